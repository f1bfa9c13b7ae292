"""The regularizer contract."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import inf

from torch import Tensor, nn

from tautnet.factories import RoleOwner


class AbstractRegularizer(nn.Module, RoleOwner, ABC):
    """A penalty on a network; its own parameters, if any, have the role ``regularizer``.

    Owned by the LightningModule, which attaches it once and adds its value to the loss of every training step. On
    several ranks a penalty on parameters is the same in all; one on what passes through the network is of each rank's
    part of the batch, and averaging the gradients averages it.

    Args:
        weight: factor of the penalty, at least 0.

    Attributes:
        progress: share of the training steps behind, 0 to 1, set by the model before each step; 1 without one.

    Raises:
        ValueError: ``weight`` below 0.
    """

    def __init__(self, weight: float) -> None:
        super().__init__()
        if not 0 <= weight < inf:
            raise ValueError(f"weight={weight}: a finite number of at least 0")
        self.weight = weight
        self.progress = 1.0

    @abstractmethod
    def attach(self, net: nn.Module, input_shape: Sequence[int]) -> None:
        """Look at the network once, before training.

        Args:
            net: the network.
            input_shape: shape of one sample.

        Raises:
            ValueError: the penalty has nothing to act on.
        """

    def calibrate_(self, net: nn.Module, x: Tensor) -> None:
        """Set what waits for data, before the fit; most penalties have nothing of that kind.

        Args:
            net: the network.
            x: inputs of a training batch.

        Raises:
            ValueError: a batch that does not do.
        """

    def check_batch_size(self, size: int) -> None:
        """Refuse training batches that are too small for the penalty, before the fit; most take any.

        Args:
            size: samples in a batch, on several ranks in each one's part of it.

        Raises:
            ValueError: too few.
        """

    @abstractmethod
    def forward(self) -> Tensor:
        """The weighted penalty for the latest training forward, a scalar."""
