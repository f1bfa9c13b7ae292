"""Weight normalisation: the length of every filter learned apart from its direction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from tautnet.factories import Role, RoleOwner
from tautnet.normalizers.weight import check_kind, parametrised


class WeightNormalization:
    r"""Splits each row of a layer's weight into direction and length: w_o = g_o v_o / ||v_o||_2.

    A row of a kernel is one filter, all of its inputs and taps. At the start g_o is the length of the row, so the layer
    does not change. No statistic, no state.

    g has the role ``norm``, free of weight decay, and v the role ``weight``, whose decay only shortens v and leaves the
    function. That is why this is not ``torch.nn.utils.parametrizations.weight_norm``, which computes the same: there
    both are originals of the weight, of one role.

    Lipschitz: none stated; rows of bounded length may all point one way.

    Source: Salimans, Kingma (2016); no start from data. Ours: a row of zeros, which has no direction, stays zero.
    """

    def __call__(self, layer: nn.Module) -> nn.Module:
        """Parametrise the weight of an ``nn.Linear`` or ``nn.Conv1d/2d/3d``; the same layer comes back.

        Raises:
            ValueError: another layer, or one with a parametrised weight.
        """
        check_kind(layer)
        assert isinstance(layer.weight, Tensor)
        return parametrised(layer, LengthAndDirection(layer.weight.detach()))


class LengthAndDirection(nn.Module, RoleOwner):
    """The parametrization that ``WeightNormalization`` puts on a weight.

    Args:
        weight: at the start.
    """

    parameter_roles: ClassVar[Mapping[str, Role]] = {"length": "norm"}

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.length = nn.Parameter(_lengths(weight).flatten())

    def forward(self, weight: Tensor) -> Tensor:
        """(O, I) or (O, I / groups, *k) to the same shape."""
        least = torch.finfo(weight.dtype).tiny ** 0.5
        factor = self.length.view(-1, *[1] * (weight.dim() - 1)) / _lengths(weight).clamp(min=least)
        return weight * factor


def _lengths(weight: Tensor) -> Tensor:
    """Of the rows, (O, 1, ...)."""
    return torch.linalg.vector_norm(weight, dim=tuple(range(1, weight.dim())), keepdim=True)
