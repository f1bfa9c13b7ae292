"""The activation contract."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from tautnet.factories import AbstractLayer


class AbstractActivation(AbstractLayer):
    """A scalar function applied to every element of (N, C, *), possibly a different one for each channel.

    Args:
        num_channels: size of dimension 1 of the input, at least 1.

    Raises:
        ValueError: ``num_channels`` below 1.
    """

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        if num_channels < 1:
            raise ValueError(f"num_channels={num_channels}: at least 1")
        self.num_channels = num_channels

    @abstractmethod
    def slope_range(self) -> tuple[Tensor, Tensor]:
        """Infimum and supremum of the derivative over the whole line; may be infinite.

        Each of shape (C,), in float64 on the CPU, where constants are computed.
        """

    @abstractmethod
    def tv2(self) -> Tensor:
        """Second-order total variation of each function, the total variation of its derivative; may be infinite."""

    @abstractmethod
    def local_slope_range(self, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        """Infimum and supremum of the derivative over the box [lo, hi], shapes as ``lo`` and ``hi``."""

    def lipschitz_constant(self, p: float) -> Tensor:
        """Largest |slope|: the constant of an elementwise map, the same and exact for every vector p-norm."""
        lo_C, hi_C = self.slope_range()
        return lo_C.abs().maximum(hi_C.abs()).max()

    def local_lipschitz_constant(self, lo: Tensor, hi: Tensor, p: float) -> Tensor:
        """Largest |slope| that each sample's box [lo, hi] meets, shape (N,)."""
        return self.local_gain(lo, hi).flatten(1).amax(1)

    def local_gain(self, lo: Tensor, hi: Tensor) -> Tensor:
        """Largest |slope| of each element over the box [lo, hi], shape as ``lo``."""
        low, high = self.local_slope_range(lo, hi)
        return torch.maximum(low.abs(), high.abs())

    def bv2(self) -> Tensor:
        """TV(2)(f) + |f(0)| + |f(1)| of each function. Source: Aziznejad et al. (2020)."""
        points = torch.tensor([0.0, 1.0], dtype=torch.float64)
        values_2C = self(points.unsqueeze(1).expand(2, self.num_channels)).abs()
        return self.tv2() + values_2C.sum(dim=0)
