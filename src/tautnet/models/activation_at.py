"""Networks with the chosen activation at some places and ReLU at the others."""

from __future__ import annotations

from typing import Any

from torch import nn

from tautnet.activations import GroupSort, ReLU
from tautnet.activations.base import AbstractActivation
from tautnet.config import ConfigError
from tautnet.normalizers.selection import matching

_KEY = "model.activation_at"


def place_activations_(net: nn.Module, config: dict[str, Any]) -> None:
    """Put ReLU in the place of those activations that ``model.activation_at`` leaves out.

    Source: the hybrids of SLAF and ReLU in the code of Goyal, Goyal, Lall (2019): one learned activation alone, or none
    in the first block of each stage.

    Args:
        net: built with the chosen activation everywhere.
        config: of the model. The key has ``include`` and ``exclude``, patterns of the activations' paths, see
            ``tautnet.normalizers.selection.matching``; integers are paths too.

    Raises:
        ConfigError: patterns that are none, match nothing or change nothing.
    """
    chosen = config["model"].get("activation_at", {})  # older checkpoints do not have it
    if not isinstance(chosen, dict):
        raise ConfigError(f"{_KEY}={chosen}: include and exclude, lists of patterns")
    patterns = {"include": ["*"], "exclude": []} | chosen
    for name, value in patterns.items():
        if name not in ("include", "exclude"):
            raise ConfigError(f"{_KEY}.{name}: no such key; accepted: exclude, include")
        if not isinstance(value, list) or not all(isinstance(pattern, str | int) for pattern in value):
            raise ConfigError(f"{_KEY}.{name}={value}: a list of patterns, as [last]")
    include, exclude = ([str(pattern) for pattern in patterns[name]] for name in ("include", "exclude"))
    if (include, exclude) == (["*"], []):
        return
    activations = {
        path: module
        for path, module in net.named_modules(remove_duplicate=False)
        if isinstance(module, AbstractActivation | GroupSort)
    }
    try:
        kept = matching(list(activations), include, exclude)
    except ValueError as error:
        raise ConfigError(f"{_KEY}.{error}") from error
    replaced = {path: module for path, module in activations.items() if path not in kept}
    if not replaced or all(type(module) is ReLU for module in activations.values()):
        why = "the activation is ReLU" if replaced else "that are all activations"
        raise ConfigError(f"{_KEY}.include={include} {_KEY}.exclude={exclude}: without effect, {why}")
    for path, module in replaced.items():
        net.set_submodule(path, ReLU(module.num_channels))
