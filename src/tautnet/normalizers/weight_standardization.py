"""Weight standardisation: every filter with mean 0 and one deviation."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from tautnet.factories import Role, RoleOwner
from tautnet.normalizers.weight import check_kind, parametrised

Scale = Literal["unit", "fan_in"]
Gain = Literal["none", "per_row"]


class WeightStandardization:
    r"""Gives each row of a layer's weight mean 0 and variance 1, or 1 / n: (w - mean) / sqrt(var + eps), n entries.

    A row of a kernel is one filter, all of its inputs and taps; the variance is the biased one. With ``scale="unit"``
    a normalizer has to follow, since signals grow by about sqrt(n); ``fan_in`` divides by sqrt(n), so that rows have
    length 1. Weight decay on the weight does not restrain the function.

    Lipschitz: none stated; rows of length 1 may all point one way.

    Source: Qiao, Wang, Liu, Shen, Yuille (2019), recalled, for ``unit``; Brock, De, Smith (2021), recalled, for
    ``fan_in`` and the gain. eps is ours: 1e-10 under the root, relative to nothing; authors differ.

    Args:
        scale: ``unit`` or ``fan_in``.
        gain: a learnable factor for each row (``per_row``), 1 at the start, role ``norm``, or ``none``.
        eps: added to the variance, above 0.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(self, scale: Scale = "unit", gain: Gain = "none", eps: float = 1e-10) -> None:
        for name, value, accepted in (("scale", scale, Scale), ("gain", gain, Gain)):
            if value not in get_args(accepted):
                raise ValueError(f"{name}={value}: one of {', '.join(get_args(accepted))}")
        if not 0 < eps < float("inf"):
            raise ValueError(f"eps={eps}: above 0, finite")
        self.scale, self.gain, self.eps = scale, gain, eps

    def __call__(self, layer: nn.Module) -> nn.Module:
        """Parametrise the weight of an ``nn.Linear`` or ``nn.Conv1d/2d/3d``; the same layer comes back.

        Raises:
            ValueError: another layer, one with a parametrised weight, or rows of one entry, which have no deviation.
        """
        check_kind(layer)
        assert isinstance(layer.weight, Tensor)
        if prod(layer.weight.shape[1:]) < 2:
            raise ValueError(f"layer={layer}: rows of at least two entries; one alone has no deviation")
        return parametrised(layer, StandardizedWeight(layer.weight.detach(), self.scale, self.gain, self.eps))


class StandardizedWeight(nn.Module, RoleOwner):
    """The parametrization that ``WeightStandardization`` puts on a weight.

    Args:
        weight: at the start.
        scale: as of ``WeightStandardization``.
        gain: as of ``WeightStandardization``.
        eps: as of ``WeightStandardization``.
    """

    parameter_roles: ClassVar[Mapping[str, Role]] = {"gain": "norm"}

    def __init__(self, weight: Tensor, scale: Scale, gain: Gain, eps: float) -> None:
        super().__init__()
        self.scale, self.eps = scale, eps
        self.gain = nn.Parameter(weight.new_ones(len(weight))) if gain == "per_row" else None

    def extra_repr(self) -> str:
        """The settings in the module's printed form."""
        return f"scale={self.scale}, eps={self.eps}"

    def forward(self, weight: Tensor) -> Tensor:
        """(O, I) or (O, I / groups, *k) to the same shape and type."""
        rows_OD = weight.flatten(1).to(torch.promote_types(weight.dtype, torch.float32))
        variance_O1, mean_O1 = torch.var_mean(rows_OD, dim=1, correction=0, keepdim=True)
        factor_O1 = (variance_O1 + self.eps).rsqrt()
        if self.scale == "fan_in":
            factor_O1 = factor_O1 * rows_OD.shape[1] ** -0.5
        if self.gain is not None:
            factor_O1 = factor_O1 * self.gain.to(factor_O1).unsqueeze(1)
        return ((rows_OD - mean_O1) * factor_O1).view(weight.shape).to(weight.dtype)
