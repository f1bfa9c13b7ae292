"""The one container beside Sequential, and a factor."""

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
