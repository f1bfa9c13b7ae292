"""The one container beside Sequential."""

from __future__ import annotations

from torch import Tensor, nn


class Residual(nn.Module):
    """body(x) + shortcut(x), both of the same output shape."""

    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Sum of the two branches."""
        return self.body(x) + self.shortcut(x)
