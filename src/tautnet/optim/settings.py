"""From the optimizer's settings to one optimizer a role."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from tautnet.config import ConfigError, build
from tautnet.factories import ROLES, Role

_NOT_NEGATIVE = ("lr", "weight_decay")
_WEIGHT, _OTHER = (0, 0, 0, 0), (0,)  # shapes to try an optimizer with: not every one takes every shape


def role_settings(config: Mapping[str, Any]) -> dict[Role, tuple[str, dict[str, Any]]]:
    """Key and settings of every role's optimizer.

    ``config`` describes an optimizer (``_target_``, ``lr``, …) and, under ``roles``, what differs for a role. A role
    with a ``_target_`` of its own starts afresh; another one inherits what it does not set.

    Raises:
        ConfigError: an unknown role, or a setting that the role's optimizer refuses.
    """
    base = {name: value for name, value in config.items() if name != "roles"}
    own: Mapping[str, Mapping[str, Any]] = config.get("roles") or {}
    for role in own:
        if role not in ROLES:
            raise ConfigError(f"optimizer.roles.{role}: no such role; accepted: {', '.join(ROLES)}")
    _try("optimizer", base, _WEIGHT)  # first, so that what every role inherits is reported under its own key
    settings: dict[Role, tuple[str, dict[str, Any]]] = {}
    for role in ROLES:
        changes = dict(own.get(role) or {})
        key, inherited = f"optimizer.roles.{role}", {} if "_target_" in changes else base
        settings[role] = key, inherited | changes
        _try(*settings[role], _WEIGHT if role == "weight" else _OTHER)
    return settings


def _try(key: str, settings: dict[str, Any], shape: tuple[int, ...]) -> None:
    for name, value in settings.items():
        if not isinstance(value, (int, float)):
            continue
        if name in _NOT_NEGATIVE and not 0 <= value < inf:
            raise ConfigError(f"{key}.{name}={value}: a finite number of at least 0")
        if name == "momentum" and not 0 <= value < 1:  # torch takes 1 and more, with which any sum grows without end
            raise ConfigError(f"{key}.momentum={value}: at least 0, below 1")
        if not -inf < value < inf:
            raise ConfigError(f"{key}.{name}={value}: a finite number")
    make_optimizer([nn.Parameter(torch.empty(shape))], "weight", key, settings)


def make_optimizer(parameters: Sequence[nn.Parameter], role: Role, key: str, settings: dict[str, Any]) -> Optimizer:
    """The optimizer of one role; its parameter group carries the role's name.

    Raises:
        ConfigError: a setting that the optimizer refuses.
    """
    return build(settings, key, params=[{"params": list(parameters), "role": role}])
