"""Sorting of channels in groups."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from tautnet.factories import AbstractLayer


class GroupSort(AbstractLayer):
    """Sorts the channels in groups of neighbours, each from the largest to the smallest.

    Groups of two are MaxMin: (x_0, x_1, x_2, x_3, …) to (max(x_0, x_1), min(x_0, x_1), max(x_2, x_3), …). Channels
    behind the last whole group are a smaller group of their own; of one channel it passes through unchanged.

    No function of single elements, hence no ``AbstractActivation``: its Jacobian is a permutation that depends on the
    input, which slopes of channels cannot describe. NaN stays in its group: of two both become NaN, in a larger one it
    comes first.

    Source: Anil, Lucas, Grosse (2019). Difference: they need a number of channels that ``group_size`` divides.

    Args:
        num_channels: size of dimension 1 of the input, at least 1.
        group_size: channels of a group, at least 2; more than ``num_channels``, or ``full``: all of them are one.

    Shape:
        (N, C, *) to the same shape.

    Lipschitz: 1, exact, any p.

    Raises:
        ValueError: an argument out of range, or an input of another number of channels.
    """

    def __init__(self, num_channels: int, group_size: int | Literal["full"] = 2) -> None:
        super().__init__()
        if num_channels < 1:
            raise ValueError(f"num_channels={num_channels}: at least 1")
        if group_size != "full" and not (isinstance(group_size, int) and group_size >= 2):
            raise ValueError(f"group_size={group_size}: an integer of at least 2, or full")
        self.num_channels = num_channels
        self.group_size = num_channels if group_size == "full" else min(group_size, num_channels)

    def extra_repr(self) -> str:
        """The settings in the module's printed form."""
        return f"{self.num_channels}, group_size={self.group_size}"

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *) to the same shape and dtype."""
        if x.dim() < 2 or x.shape[1] != self.num_channels:
            raise ValueError(f"input of shape {tuple(x.shape)}: this layer takes (N, {self.num_channels}, *)")
        num_groups = self.num_channels // self.group_size
        whole = num_groups * self.group_size
        if self.group_size == 2:  # several times faster than sorting
            first, second = x[:, 0:whole:2], x[:, 1:whole:2]
            groups = torch.stack([torch.maximum(first, second), torch.minimum(first, second)], dim=2)
        else:
            groups = _falling(x[:, :whole].reshape(x.shape[0], num_groups, self.group_size, *x.shape[2:]), dim=2)
        y = groups.flatten(1, 2)
        return y if whole == self.num_channels else torch.cat([y, _falling(x[:, whole:], dim=1)], dim=1)

    def interval(self, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        """Exact image of the box in every channel: the k-th largest of a group rises with each of its elements."""
        return self(lo), self(hi)

    def lipschitz_constant(self, p: float) -> Tensor:
        """1: where the order in the groups stays the map is a permutation, and it is continuous."""
        return torch.ones((), dtype=torch.float64)


def _falling(x: Tensor, dim: int) -> Tensor:
    return x if x.shape[dim] == 1 else x.sort(dim=dim, descending=True).values


MaxMin = GroupSort  # the name for groups of two, its default
