"""A grid: every combination of the listed values."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from hydra.core.override_parser.types import Override

from tautnet.config import ConfigError


def grid(overrides: Sequence[Override]) -> list[list[str]]:
    """Every combination of the values of overrides, the last one changing first.

    Raises:
        ConfigError: an interval, which has no end of values; a range or pattern without any.
    """
    return [list(job) for job in itertools.product(*map(values, overrides))]


def values(override: Override) -> list[str]:
    """The overrides with one value each that an override stands for."""
    key = override.get_key_element()
    if override.is_interval_sweep():
        raise ConfigError(f"{override.input_line}: an interval needs a search, hydra/sweeper=optuna; or list values")
    if override.is_discrete_sweep():
        listed = [f"{key}={value}" for value in override.sweep_string_iterator()]
        if not listed:
            raise ConfigError(f"{override.input_line}: at least one value; this range or pattern has none")
        return listed
    if "=" not in str(override.input_line):  # ~key
        return [key]
    return [f"{key}={override.get_value_element_as_str()}"]
