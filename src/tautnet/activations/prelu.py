"""ReLU with a learned negative slope."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tautnet.activations.base import AbstractActivation
from tautnet.factories import Role
from tautnet.functional.elementwise import range_on_box


class PReLU(AbstractActivation):
    """max(x, 0) + w_c * min(x, 0), one learned slope a channel.

    Source: He, Zhang, Ren, Sun (2015). The paper advises no weight decay on w, hence its own role.

    Args:
        num_channels: size of dimension 1 of the input.
        init: first value of every w_c, any finite number.

    Parameters: ``weight`` of shape (C,), role ``activation``.
    Lipschitz: max(1, max_c |w_c|), exact.

    Raises:
        ValueError: ``init`` not finite.
    """

    parameter_roles: ClassVar[Mapping[str, Role]] = {"weight": "activation"}

    def __init__(self, num_channels: int, init: float = 0.25) -> None:
        super().__init__(num_channels)
        if not isfinite(init):
            raise ValueError(f"init={init}: a finite number")
        self.weight = nn.Parameter(torch.full((num_channels,), init))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *) to the same shape and dtype."""
        return F.prelu(x, self.weight.to(x.dtype))

    def _slopes_like(self, x: Tensor) -> Tensor:
        return self.weight.view(-1, *[1] * (x.dim() - 2)).expand_as(x)

    def slope_range(self) -> tuple[Tensor, Tensor]:
        """w_c and 1, sorted."""
        weight_C = self.weight.to("cpu", torch.float64)
        return weight_C.clamp(max=1.0), weight_C.clamp(min=1.0)

    def tv2(self) -> Tensor:
        """|1 - w_c|."""
        return (1 - self.weight.to("cpu", torch.float64)).abs()

    def interval(self, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        """Exact image of the box."""
        return range_on_box(self, lo, hi, turning_points=[0.0])

    def local_slope_range(self, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        """Slopes met in the box; both where it touches 0."""
        left, right = self._slopes_like(lo), torch.ones_like(lo)
        at_lo, at_hi = torch.where(lo > 0, right, left), torch.where(hi < 0, left, right)
        return torch.minimum(at_lo, at_hi), torch.maximum(at_lo, at_hi)
