"""Which layers' weights are normalised."""

from __future__ import annotations

from typing import Any

from torch import nn

from tautnet.config import ConfigError, build
from tautnet.normalizers.selection import normalize_weights_

_NO_WEIGHT_NORM = "tautnet.normalizers.no_weight_norm"


def normalize_weights_at_(net: nn.Module, config: dict[str, Any]) -> None:
    """Put ``norm.weight`` on the layers that ``norm.include`` and ``norm.exclude`` choose.

    Args:
        net: a network without weight normalizers.
        config: the settings below ``norm``.

    Raises:
        ConfigError: patterns that are none or match nothing, or a weight normalizer that a layer refuses.
    """
    weight_norm = build(config["weight"], "norm.weight")
    include, exclude = config.get("include", ["*"]), config.get("exclude", [])  # older checkpoints have neither
    for name, patterns in (("include", include), ("exclude", exclude)):
        if not isinstance(patterns, list) or not all(isinstance(pattern, str | int) for pattern in patterns):
            raise ConfigError(f"norm.{name}={patterns}: a list of patterns, as [body.*]")
    if config["weight"]["_target_"] == _NO_WEIGHT_NORM:
        if (include, exclude) != (["*"], []):
            raise ConfigError(f"norm.include={include} norm.exclude={exclude}: without effect, norm/weight is none")
        return
    try:
        normalize_weights_(net, weight_norm, include, exclude)
    except ValueError as error:
        named = str(error).startswith(("include=", "exclude="))
        raise ConfigError(f"norm.{'' if named else 'weight: '}{error}") from error
