"""The regularizer contract."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import inf

from torch import Tensor, nn

from tautnet.factories import RoleOwner


class AbstractRegularizer(nn.Module, RoleOwner, ABC):
    """A penalty on a network; its own parameters, if any, have the role ``regularizer``.

    Owned by the LightningModule, which attaches it once and adds its value to the loss of every training step.

    Args:
        weight: factor of the penalty, at least 0.

    Raises:
        ValueError: ``weight`` below 0.
    """

    def __init__(self, weight: float) -> None:
        super().__init__()
        if not 0 <= weight < inf:
            raise ValueError(f"weight={weight}: a finite number of at least 0")
        self.weight = weight

    @abstractmethod
    def attach(self, net: nn.Module, input_shape: Sequence[int]) -> None:
        """Look at the network once, before training.

        Args:
            net: the network.
            input_shape: shape of one sample.

        Raises:
            ValueError: the penalty has nothing to act on.
        """

    @abstractmethod
    def forward(self) -> Tensor:
        """The weighted penalty for the latest training forward, a scalar."""
