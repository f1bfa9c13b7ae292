"""The contract of classification losses, and the usual one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import inf
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F


def check_positive(name: str, value: float) -> None:
    """Raise ValueError unless ``value`` is finite and above 0."""
    if not 0 < value < inf:
        raise ValueError(f"{name}={value}: a finite number above 0")


class AbstractClassificationLoss(nn.Module, ABC):
    """A loss of logits; owned by the ``Classifier``, which attaches it to its network once."""

    soft_targets: ClassVar[bool] = False  # whether targets may be probabilities (N, K)

    def attach(self, net: nn.Module, input_shape: Sequence[int]) -> None:
        """Look at the network once, before training.

        Args:
            net: the network of the logits.
            input_shape: shape of one sample.

        Raises:
            ValueError: a network on which the loss is not defined.
        """

    @abstractmethod
    def forward(self, x: Tensor, logits: Tensor, targets: Tensor, progress: float) -> Tensor:
        """Mean loss of a batch, a scalar.

        Args:
            x: inputs, shape (N, *).
            logits: the network's outputs for ``x``, shape (N, K), K at least 2.
            targets: classes (N,), or probabilities (N, K) with ``soft_targets``.
            progress: share of the training steps behind, 0 to 1; 1 in evaluation.
        """

    def check_targets(self, targets: Tensor) -> None:
        """Raise ValueError for probabilities where classes are needed."""
        if targets.dim() != 1 and not self.soft_targets:
            raise ValueError(
                f"targets of shape {tuple(targets.shape)}: this loss takes classes; no mixup, cutmix, label_smoothing"
            )


class CrossEntropy(AbstractClassificationLoss):
    """-log softmax(logits)_y, the mean over the batch; of probabilities the expectation."""

    soft_targets: ClassVar[bool] = True

    def forward(self, x: Tensor, logits: Tensor, targets: Tensor, progress: float) -> Tensor:
        """Mean cross entropy."""
        return F.cross_entropy(logits, targets)
