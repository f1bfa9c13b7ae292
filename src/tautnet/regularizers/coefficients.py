"""Penalty on the coefficients of learned sums of basis functions."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from tautnet.activations.slaf import Slaf
from tautnet.factories import Projected
from tautnet.regularizers.base import AbstractRegularizer

Exponent = Literal[1, 2]


class CoefficientPenalty(AbstractRegularizer, Projected):
    r"""weight * sum over all SLAFs, curves c and elements j of |sigmoid(s_j) w_{c,j}|^exponent.

    What counts is the effective coefficient; without a gate the sigmoid is 1. The bias b is free. A layer used at
    several places counts once. Splines have a penalty of their own, ``SecondOrderVariation``.

    ``decoupled`` keeps the penalty out of the loss and of the optimizer: after each of its steps w and s make a plain
    gradient step on the penalty, of length ``step``. Neither momentum nor the schedule of the learning rate has a part
    in it. Only the product of ``weight`` and ``step`` counts. With exponent 1 a coefficient does not stay at 0 but
    swings around it by up to that product. Parameters without a gradient, such as resting ones, make no step.

    Source: Goyal, Goyal, Lall (2019), by their code: the effective coefficient, both exponents, and a step of SGD after
    that of the loss.

    Args:
        weight: at least 0.
        exponent: 1 or 2.
        decoupled: see above.
        step: of the decoupled step, above 0; None without one.

    Raises:
        ValueError: an argument out of range or without effect; ``attach`` to a network without SLAF.
    """

    def __init__(
        self, weight: float = 1e-4, exponent: Exponent = 1, decoupled: bool = False, step: float | None = None
    ) -> None:
        super().__init__(weight)
        if exponent not in get_args(Exponent):
            raise ValueError(f"exponent={exponent}: 1 or 2")
        if decoupled and (step is None or not 0 < step < inf):
            raise ValueError(f"step={step}: a finite number above 0 with decoupled")
        if step is not None and not decoupled:
            raise ValueError(f"step={step}: has an effect with decoupled only")
        self.exponent, self.decoupled, self.step = exponent, decoupled, step
        self._slafs: list[Slaf] = []

    def attach(self, net: nn.Module, input_shape: Sequence[int]) -> None:
        """Find the SLAFs. They stay the network's: nothing of it is registered here."""
        self._slafs = [module for module in net.modules() if isinstance(module, Slaf)]
        if not self._slafs:
            raise ValueError("the penalty has no effect: the network has no SLAF; choose activation=slaf or drop it")

    def forward(self) -> Tensor:
        """The weighted penalty, a scalar; 0 if it is decoupled."""
        penalty = self.penalty()
        return torch.zeros_like(penalty) if self.decoupled else penalty

    def penalty(self) -> Tensor:
        """The weighted penalty, decoupled or not."""
        sizes = torch.stack([_effective(slaf).abs().pow(self.exponent).sum() for slaf in self._slafs])
        return self.weight * sizes.sum()

    def project_(self) -> None:
        """The decoupled step."""
        if self.step is None:
            return
        parameters = (tensor for slaf in self._slafs for tensor in (slaf.coefficients, slaf.gate_logits))
        moving = [tensor for tensor in parameters if tensor is not None and tensor.grad is not None]
        if not moving:
            return
        with torch.enable_grad():
            gradients = torch.autograd.grad(self.penalty(), moving)
        with torch.no_grad():
            for tensor, gradient in zip(moving, gradients, strict=True):
                tensor.sub_(self.step * gradient)


def _effective(slaf: Slaf) -> Tensor:
    """sigmoid(s) w, (curves, K)."""
    return slaf.coefficients if slaf.gate_logits is None else slaf.coefficients * slaf.gate_logits.sigmoid()
