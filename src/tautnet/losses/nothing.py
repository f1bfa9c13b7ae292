"""Training without targets."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from tautnet.losses.base import AbstractClassificationLoss


class NoLoss(AbstractClassificationLoss):
    """0 whatever the logits: the penalties alone train the network, and parameters that they do not reach stay."""

    soft_targets: ClassVar[bool] = True

    def forward(self, x: Tensor, logits: Tensor, targets: Tensor, progress: float) -> Tensor:
        """0, with a gradient of 0 for every parameter."""
        return 0 * logits.sum()
