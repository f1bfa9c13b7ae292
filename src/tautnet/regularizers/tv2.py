"""Second-order total variation of the learned splines."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from tautnet.activations.linear_spline import LinearSpline
from tautnet.factories import Projected
from tautnet.functional.linear_spline import knot_step
from tautnet.functional.slope_limits import shrink_slope_changes
from tautnet.regularizers.base import AbstractRegularizer

Variation = Literal["tv2", "bv2"]
OuterNorm = Literal[1, 2]


class SecondOrderVariation(AbstractRegularizer, Projected):
    r"""weight * sum over the layers l of ||(V(f_{l,1}), V(f_{l,2}), ...)||_outer_norm, V being TV(2) or BV(2).

    TV(2) is the sum of the sizes of the changes of slope; BV(2) adds |f(0)| + |f(1)|, which sees the affine part too. A
    layer used at several places counts once.

    ``balanced`` replaces the one weight by weight / (the layer's norm above) for each layer's splines, and adds
    weight / (2 ||W||_F^2) * ||W||_F^2 for the weight W of each linear and convolutional layer; both denominators are
    those at the start, so that all terms of one kind start equal. Set ``weight_decay`` to 0 with it.

    Source: Aziznejad et al. (2020), Bohra et al. (2020); both searched the weight per decade, 1e-4 is the middle of the
    later grid (1e-5 … 1e-3). The balanced rule is that of the authors' first code, where it goes with bv2 and outer
    norm 1; at a local minimum the paper's theorem (as recalled) then has, for neighbouring layers, (weight of l) *
    norm of l = 2 (weight of W_{l+1}) ||W_{l+1}||_F^2. ``prox`` is ours.

    Args:
        weight: lambda, at least 0.
        variation: ``tv2`` or ``bv2``.
        outer_norm: 1, the sum over the curves of a layer, or 2, the root of the sum of their squares.
        balanced: weigh every layer by what it starts with.
        prox: move every change of slope towards 0 by this much after each optimizer step, those smaller onto 0; in
            units of slope, at least 0. See ``functional.slope_limits.shrink_slope_changes``.

    Raises:
        ValueError: an argument out of range, or ``attach`` to a network without splines, or, with ``balanced``, with a
            layer that starts at 0.
    """

    def __init__(
        self,
        weight: float = 1e-4,
        variation: Variation = "tv2",
        outer_norm: OuterNorm = 1,
        balanced: bool = False,
        prox: float = 0.0,
    ) -> None:
        super().__init__(weight)
        if variation not in get_args(Variation):
            raise ValueError(f"variation={variation}: one of {', '.join(get_args(Variation))}")
        if outer_norm not in get_args(OuterNorm):
            raise ValueError(f"outer_norm={outer_norm}: 1 or 2")
        if not 0 <= prox < inf:
            raise ValueError(f"prox={prox}: a finite number of at least 0")
        self.variation, self.outer_norm, self.balanced, self.prox = variation, outer_norm, balanced, prox
        self._splines: list[LinearSpline] = []
        self._layers: list[nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d] = []  # of the balanced rule

    @torch.no_grad()
    def attach(self, net: nn.Module, input_shape: Sequence[int]) -> None:
        """Find the splines. They stay the network's: nothing of it is registered here."""
        self._splines = [module for module in net.modules() if isinstance(module, LinearSpline)]
        if not self._splines:
            raise ValueError("TV(2) has no effect: the network has no spline; choose activation=spline or drop it")
        if not self.balanced:
            return
        kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
        self._layers = [module for module in net.modules() if isinstance(module, kinds)]
        if not self._layers:
            raise ValueError("balanced=True: the network has no linear or convolutional layer to balance")
        paths = {module: path for path, module in net.named_modules()}
        for name, modules, at_start in (
            ("spline_scale", self._splines, self._spline_norms()),
            ("weight_scale", self._layers, self._weight_norms()),
        ):
            for module, value in zip(modules, at_start.tolist(), strict=True):
                bent = not isinstance(module, LinearSpline) or self.variation == "bv2" or module.num_active_knots() > 0
                if value == 0 or not bent:  # the rounding of a straight line is no variation
                    raise ValueError(f"balanced=True: {paths[module]} starts at 0 and cannot be weighed by that")
            self.register_buffer(name, 1 / at_start)  # in checkpoints: a continued run starts elsewhere

    def forward(self) -> Tensor:
        """The weighted penalty, a scalar."""
        if not self.balanced:
            return self.weight * self._spline_norms().sum()
        splines, weights = self.get_buffer("spline_scale"), self.get_buffer("weight_scale")
        return self.weight * (splines @ self._spline_norms() + weights @ self._weight_norms() / 2)

    def _spline_norms(self) -> Tensor:
        """The norm of each spline layer, shape (layers,)."""
        variations = [spline.tv2() if self.variation == "tv2" else spline.bv2() for spline in self._splines]
        if self.outer_norm == 1:
            return torch.stack([values_C.sum() for values_C in variations])
        return torch.stack([torch.linalg.vector_norm(values_C) for values_C in variations])

    def _weight_norms(self) -> Tensor:
        """||W||_F^2 of each linear and convolutional layer, shape (layers,)."""
        return torch.stack([layer.weight.square().sum() for layer in self._layers])

    @torch.no_grad()
    def project_(self) -> None:
        """Shrink the changes of slope by ``prox``."""
        for spline in self._splines if self.prox > 0 else []:
            step = knot_step(spline.num_knots, spline.grid_range)
            spline.coefficients.copy_(shrink_slope_changes(spline.coefficients, step, self.prox))
