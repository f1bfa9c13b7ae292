"""Sorting of neighbouring channels."""

from __future__ import annotations

import torch
from torch import Tensor

from tautnet.factories import AbstractLayer


class MaxMin(AbstractLayer):
    """Sorts the channels in pairs: (x_0, x_1, x_2, x_3, …) to (max(x_0, x_1), min(x_0, x_1), max(x_2, x_3), …).

    No function of single elements, hence no ``AbstractActivation``: its Jacobian is a permutation that depends on the
    input, which slopes of channels cannot describe. The last of an odd number of channels passes through unchanged; a
    single one makes it the identity.

    Source: GroupSort with groups of two, Anil, Lucas, Grosse (2019). Difference: they need an even number of channels.

    Args:
        num_channels: size of dimension 1 of the input, at least 1.

    Shape:
        (N, C, *) to the same shape.

    Lipschitz: 1, exact, any p.

    Raises:
        ValueError: ``num_channels`` below 1, or an input of another number of channels.
    """

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        if num_channels < 1:
            raise ValueError(f"num_channels={num_channels}: at least 1")
        self.num_channels = num_channels

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *) to the same shape and dtype."""
        if x.dim() < 2 or x.shape[1] != self.num_channels:
            raise ValueError(f"input of shape {tuple(x.shape)}: this layer takes (N, {self.num_channels}, *)")
        paired = self.num_channels // 2 * 2
        first, second = x[:, 0:paired:2], x[:, 1:paired:2]
        pairs = torch.stack([torch.maximum(first, second), torch.minimum(first, second)], dim=2).flatten(1, 2)
        return pairs if paired == self.num_channels else torch.cat([pairs, x[:, paired:]], dim=1)

    def interval(self, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        """Exact image of the box [lo, hi] in every channel: maximum and minimum rise with each of their arguments."""
        return self(lo), self(hi)

    def lipschitz_constant(self, p: float) -> Tensor:
        """1: where the order of the pairs stays the map is a permutation, and it is continuous."""
        return torch.ones((), dtype=torch.float64)
