"""The containers beside Sequential, and a factor."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tautnet.factories import AbstractLayer


class Residual(nn.Module):
    """body(x) + shortcut(x), both of the same output shape."""

    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Sum of the two branches."""
        return self.body(x) + self.shortcut(x)


class Concatenation(nn.Module):
    """The outputs of all branches for the same input, one after the other along the channels.

    Args:
        branches: one or more; their outputs differ in dimension 1 at most.

    Raises:
        ValueError: no branch.
    """

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        if not branches:
            raise ValueError("branches=(): one or more")
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *) to (N, sum of the branches' channels, *)."""
        return torch.cat([branch(x) for branch in self.branches], dim=1)


class Scale(AbstractLayer):
    """factor x, with a fixed factor. Lipschitz constant |factor|, exact for every p."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """Of any shape."""
        return self.factor * x

    def lipschitz_constant(self, p: float) -> Tensor:
        """|factor|."""
        return torch.tensor(abs(self.factor), dtype=torch.float64)

    def slope_range(self) -> tuple[Tensor, Tensor]:
        """The factor."""
        factor_1 = torch.tensor([self.factor], dtype=torch.float64)
        return factor_1, factor_1

    def interval(self, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        """Exact image of the box."""
        ends = (self.factor * lo, self.factor * hi)
        return ends if self.factor >= 0 else ends[::-1]


def averaged(body: nn.Module, shortcut: nn.Module, share: float = 0.5) -> Residual:
    """A residual block that keeps the Lipschitz constant: share * body(x) + (1 - share) * shortcut(x).

    With both branches of constant L at most, share L + (1 - share) L = L for every p, where the plain sum has 2 L.

    Args:
        body: one branch.
        shortcut: the other, of the same output shape.
        share: of the body, above 0, below 1.

    Raises:
        ValueError: ``share`` out of range.
    """
    if not 0 < share < 1:
        raise ValueError(f"share={share}: above 0, below 1")
    return Residual(nn.Sequential(body, Scale(share)), nn.Sequential(shortcut, Scale(1 - share)))
