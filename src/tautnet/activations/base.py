"""The activation contract."""

from __future__ import annotations

from abc import abstractmethod

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
    def interval(self, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        """Image of the box [lo, hi]: smallest and largest value, shapes as ``lo`` and ``hi``, (N, C, *)."""

    @abstractmethod
    def local_slope_range(self, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        """Infimum and supremum of the derivative over the box [lo, hi], shapes as ``lo`` and ``hi``."""

    def lipschitz_constant(self, p: float) -> Tensor:
        """Largest |slope|: the constant of an elementwise map, the same and exact for every vector p-norm."""
        lo_C, hi_C = self.slope_range()
        return lo_C.abs().maximum(hi_C.abs()).max()
