"""Second-order total variation of the learned splines."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tautnet.activations.linear_spline import LinearSpline
from tautnet.regularizers.base import AbstractRegularizer


class SecondOrderVariation(AbstractRegularizer):
    """weight * the sum of TV(2) over all curves of all splines, an l1 penalty on the changes of slope.

    Source: Aziznejad et al. (2020), Bohra et al. (2020); both searched the weight per decade, 1e-4 is the middle of the
    later grid (1e-5 … 1e-3). A spline used at several places counts once.

    Args:
        weight: lambda, at least 0.

    Raises:
        ValueError: ``weight`` below 0, or ``attach`` to a network without splines.
    """

    def __init__(self, weight: float = 1e-4) -> None:
        super().__init__(weight)
        self._splines: list[LinearSpline] = []

    def attach(self, net: nn.Module) -> None:
        """Find the splines. They stay the network's: nothing is registered here."""
        self._splines = [module for module in net.modules() if isinstance(module, LinearSpline)]
        if not self._splines:
            raise ValueError("TV(2) has no effect: the network has no spline; choose activation=spline or drop it")

    def forward(self) -> Tensor:
        """The weighted penalty, a scalar."""
        return self.weight * torch.stack([spline.tv2().sum() for spline in self._splines]).sum()
