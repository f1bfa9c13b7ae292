"""Every trainable parameter in exactly one role."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn
from torch.nn.utils import parametrize

from tautnet.factories import ROLES, Role, RoleOwner

_LINEAR: Mapping[str, Role] = {"weight": "weight", "bias": "bias"}
_NORM: Mapping[str, Role] = {"weight": "norm", "bias": "norm"}
_STOCK: Mapping[type[nn.Module], Mapping[str, Role]] = {
    **dict.fromkeys([nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d], _LINEAR),
    **dict.fromkeys([nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d], _LINEAR),
    **dict.fromkeys([nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm], _NORM),
    **dict.fromkeys([nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d], _NORM),
    **dict.fromkeys([nn.GroupNorm, nn.LayerNorm, nn.RMSNorm], _NORM),
}


def _roles_of(module: nn.Module) -> Mapping[str, Role]:
    if isinstance(module, RoleOwner):
        return module.parameter_roles
    return _STOCK.get(parametrize.type_before_parametrizations(module), {})


def parameters_by_role(root: nn.Module) -> dict[Role, list[nn.Parameter]]:
    """All trainable parameters below ``root`` by role, each once; roles that nobody has are left out.

    Raises:
        ValueError: a parameter whose layer states no role for it.
    """
    found: dict[Role, dict[nn.Parameter, None]] = {role: {} for role in ROLES}
    parametrised: dict[nn.Module, Role] = {}  # the originals of a parametrised weight keep the weight's role
    for path, module in root.named_modules():
        roles = _roles_of(module)
        if parametrize.is_parametrized(module):
            lists = module.get_submodule("parametrizations").named_children()
            parametrised |= {originals: roles[name] for name, originals in lists if name in roles}
        if module in parametrised:
            roles = {name: parametrised[module] for name, _ in module.named_parameters(recurse=False)}
        for name, parameter in module.named_parameters(recurse=False):
            if name not in roles:
                raise ValueError(f"{path}.{name}: {type(module).__name__} states no role for it")
            if parameter.requires_grad:
                found[roles[name]][parameter] = None
    return {role: list(parameters) for role, parameters in found.items() if parameters}
