"""Variance constancy: the variance of what enters an activation shall be the same in every small subset of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf, nan, prod
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from tautnet.factories import Observed, Observer, Projected, Role
from tautnet.functional.variance_constancy import Form, subset_variances, variance_constancy
from tautnet.lipschitz.structure import eval_mode
from tautnet.normalizers.selection import matching
from tautnet.regularizers.base import AbstractRegularizer
from tautnet.regularizers.layer_inputs import LayerInput, activation_inputs

Pairs = Literal[1, "all"]
Unit = Literal["position", "channel"]
BetaShape = Literal["unit", "channel", "layer"]
Reduction = Literal["sum", "mean"]


class VarianceConstancy(AbstractRegularizer, Projected):
    r"""weight * sum over layers of the mean over units of (1 - s_1^2 / (s_2^2 + beta))^2.

    s_1^2 and s_2^2 are unbiased variances of what enters an activation, over the first and the second ``sample_size``
    samples of a training batch, beta a learned parameter. The loss asks for a low kurtosis, few modes, and so for the
    constancy that lets batch normalisation be done without; hence ``norm=none``. Behind a normalizer it is nearly
    constant. At inference nothing of it remains. Batches have to be shuffled.

    It looks at each training forward through hooks that stay in the network, see ``factories.Observer``, and acts on
    the latest one. A layer that runs in eval mode has no term; a batch with fewer than 2 ``sample_size`` samples gives
    0. In distributed training each rank has the loss of its own part of the batch, which has to hold enough samples;
    averaging the gradients averages the losses, and beta, trained alike, stays the same on all ranks. Gradient
    checkpointing has to be of the kind that records the first pass (``use_reentrant=False``).

    Source: Littwin, Wolf (2018), by their code: one pair, every position of an image a unit with a beta of its own,
    the output without a term, weight 0.01. Differences: beta keeps ``beta_min`` and has no weight decay, where theirs
    has no limit and the decay of the weights; evaluation leaves no trace. Ours: all pairs, pooled positions, shared
    beta, beta from data, warm-up, the mean over layers, ``detach_denominator``; ``population``, see
    ``functional.variance_constancy``.

    Args:
        weight: gamma, at least 0.
        sample_size: n, samples a subset, at least 2.
        pairs: 1, or ``all``: every pair of consecutive subsets that the batch has.
        beta_init: above 0, unit of the variance; with ``beta_from_data`` in units of the variance of the first batch,
            for which the model calls ``calibrate_``. For Gaussian units and n = 5, about 1 of it gives the least loss.
        beta_from_data: measure each unit's variance at the start.
        learn_beta: whether beta is trained.
        beta_min: at least 0, where each step puts back a smaller beta; None for no limit.
        beta_shape: one beta for each ``unit``, ``channel`` or ``layer``; ``unit`` needs images of one size if units
            are positions.
        unit: ``position`` or ``channel``, whose variance is over samples and positions.
        form: ``two_sample`` or ``population``.
        reduction: ``sum`` or ``mean`` over layers; units are averaged.
        detach_denominator: no gradient through the denominator's variance.
        include: patterns of the activations' paths, see ``normalizers.selection.matching``; integers are paths too.
        exclude: patterns of activations that are left out.
        warmup: share of the training steps in which the weight rises from 0 along a line, 0 to below 1; the model
            says how far training is.

    Attributes:
        unit_terms: the term of each unit in the latest step by the layer's path, unweighted, without gradient.

    Raises:
        ValueError: an argument out of range; ``attach`` to a network without such activations, or with one that runs
            several times in a forward or overwrites its input.
    """

    parameter_roles: ClassVar[Mapping[str, Role]] = {"beta": "regularizer"}

    def __init__(
        self,
        weight: float = 0.01,
        sample_size: int = 5,
        pairs: Pairs = 1,
        beta_init: float = 1.0,
        beta_from_data: bool = False,
        learn_beta: bool = True,
        beta_min: float | None = 1e-3,
        beta_shape: BetaShape = "unit",
        unit: Unit = "position",
        form: Form = "two_sample",
        reduction: Reduction = "sum",
        detach_denominator: bool = False,
        include: Sequence[str | int] = ("*",),
        exclude: Sequence[str | int] = (),
        warmup: float = 0.0,
    ) -> None:
        super().__init__(weight)
        if sample_size < 2:
            raise ValueError(f"sample_size={sample_size}: at least 2")
        if not 0 < beta_init < inf:
            raise ValueError(f"beta_init={beta_init}: a finite number above 0")
        if beta_min is not None and not 0 <= beta_min < inf:
            raise ValueError(f"beta_min={beta_min}: a finite number of at least 0, or null")
        if beta_min is not None and not beta_from_data and beta_init < beta_min:
            raise ValueError(f"beta_init={beta_init}: at least beta_min, {beta_min:g}")
        if beta_from_data and not beta_min:
            raise ValueError(f"beta_min={beta_min}: above 0 with beta_from_data, a unit may start constant")
        if not 0 <= warmup < 1:
            raise ValueError(f"warmup={warmup}: from 0 to below 1")
        _check_choice("pairs", pairs, get_args(Pairs))
        _check_choice("unit", unit, get_args(Unit))
        _check_choice("form", form, get_args(Form))
        _check_choice("beta_shape", beta_shape, get_args(BetaShape))
        _check_choice("reduction", reduction, get_args(Reduction))
        self.sample_size, self.pairs, self.unit, self.form = sample_size, pairs, unit, form
        self.beta_init, self.beta_from_data, self.beta_min = beta_init, beta_from_data, beta_min
        self.beta_shape, self.reduction, self.warmup = beta_shape, reduction, warmup
        self.detach_denominator = detach_denominator
        self.include, self.exclude = [str(p) for p in include], [str(p) for p in exclude]
        self.beta = nn.Parameter(torch.empty(0), requires_grad=learn_beta)  # of all layers, one after the other
        self.unit_terms: dict[str, Tensor] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}  # of a layer's beta, by path
        self._observed = Observed()
        self._awaits_data = beta_from_data

    def attach(self, net: nn.Module, input_shape: Sequence[int]) -> None:
        """Choose the activations, make their betas, and hang the observers into the network."""
        if self._shapes:
            raise ValueError("net: attached already; a network has a penalty of its own")
        like = next((tensor for tensor in net.parameters() if tensor.is_floating_point()), torch.zeros(()))
        with eval_mode(net):
            found = activation_inputs(net, torch.zeros(1, *input_shape, dtype=like.dtype, device=like.device))
        if not found:
            raise ValueError("the network has no activation but, it may be, that of its output")
        chosen = matching(list(found), self.include, self.exclude)
        for path in chosen:
            _check_input(path, found[path])
        self._shapes = {path: self._shape(found[path].x) for path in chosen}
        start = torch.full((sum(map(prod, self._shapes.values())),), nan if self.beta_from_data else self.beta_init)
        dtype = torch.promote_types(like.dtype, torch.float32)
        self.beta = nn.Parameter(start.to(like.device, dtype), requires_grad=self.beta.requires_grad)
        net.register_forward_pre_hook(self._observed)
        net.register_forward_hook(self._observed)
        for path in chosen:
            net.get_submodule(path).register_forward_pre_hook(Observer(self._observed, path))

    def _shape(self, x: Tensor) -> tuple[int, ...]:
        """Shape of a layer's beta, broadcast with the units of its input (N, C, *)."""
        if self.unit == "channel":
            return (x.shape[1],) if self.beta_shape != "layer" else (1,)
        units = tuple(x.shape[1:])
        ones = (1,) * (len(units) - 1)
        return {"unit": units, "channel": (units[0], *ones), "layer": (1, *ones)}[self.beta_shape]

    def betas(self) -> dict[str, Tensor]:
        """The beta of each layer by path, of the shape of its units or 1 where they share it."""
        parts = torch.split(self.beta, [prod(shape) for shape in self._shapes.values()])
        return {path: part.view(shape) for (path, shape), part in zip(self._shapes.items(), parts, strict=True)}

    @torch.no_grad()
    def calibrate_(self, net: nn.Module, x: Tensor) -> None:
        """With ``beta_from_data``: beta becomes ``beta_init`` times the variances in this batch, floored.

        Raises:
            ValueError: a batch too small for the loss; the first one is seldom smaller than the others.
        """
        self.check_batch_size(len(x))
        if not self.beta_from_data:
            return
        found = activation_inputs(net, x)
        for path, beta in self.betas().items():
            variances_U = self._variances(found[path].x, len(x), 1)[0]
            shared = [dim for dim in range(beta.dim()) if beta.shape[dim] < variances_U.shape[dim]]
            beta.copy_(self.beta_init * (variances_U.mean(shared, keepdim=True) if shared else variances_U))
        self.project_()

    def check_batch_size(self, size: int) -> None:
        """Two subsets are needed, or ValueError."""
        if 2 * self.sample_size > size:
            raise ValueError(f"sample_size={self.sample_size}: at most half of a batch, which has {size} samples")

    def _variances(self, x: Tensor, sample_size: int, num_subsets: int) -> Tensor:
        return subset_variances(x, sample_size, num_subsets, pool_positions=self.unit == "channel")

    def forward(self) -> Tensor:
        """The weighted penalty for the latest training forward, a scalar; 0 in eval mode.

        Raises:
            RuntimeError: no training forward of the network since the last call.
            ValueError: inputs of another shape than beta, or beta still waits for data.
        """
        inputs, self._observed.inputs = self._observed.inputs, {}
        self.unit_terms = {}
        if self.training and not inputs:
            raise RuntimeError(
                "variance constancy has no forward of the network in training mode with gradients to act on"
            )
        self._check_started()
        # beta always takes part: other processes, whose batch is large enough, would wait for its gradient
        total = 0 * self.beta.sum()
        betas = self.betas() if inputs else {}
        for path, x in inputs.items():
            num_subsets = 2 if self.pairs == 1 else len(x) // (2 * self.sample_size) * 2
            if 2 * self.sample_size > len(x):
                continue
            variances_KU = self._variances(x, self.sample_size, num_subsets)
            _check_same_size(path, betas[path], variances_KU[0])
            terms_U = variance_constancy(variances_KU, betas[path], self.form, self.detach_denominator)
            self.unit_terms[path] = terms_U.detach()
            total = total + terms_U.mean()
        if self.reduction == "mean":
            total = total / len(self._shapes)
        return self.weight * self._warmth() * total

    def _warmth(self) -> float:
        return min(1.0, self.progress / self.warmup) if self.warmup > 0 else 1.0

    def _check_started(self) -> None:
        """Look at beta once: an attribute would be missing from checkpoints."""
        if self._awaits_data:
            if self.beta.isnan().any():
                raise ValueError("beta_from_data=True: calibrate_ comes before training")
            self._awaits_data = False

    @torch.no_grad()
    def project_(self) -> None:
        """Put beta back to ``beta_min`` where it is smaller."""
        if self.beta_min is not None:
            self.beta.clamp_(min=self.beta_min)


def _check_input(path: str, entered: LayerInput) -> None:
    if entered.num_runs > 1:
        raise ValueError(
            f"exclude=[]: {path} runs {entered.num_runs} times in a forward; name it, or use several modules"
        )
    if entered.overwritten:
        raise ValueError(f"exclude=[]: what enters {path} is overwritten; name it, or choose inplace=False")


def _check_same_size(path: str, beta: Tensor, variances_U: Tensor) -> None:
    if any(size not in (1, units) for size, units in zip(beta.shape, variances_U.shape, strict=True)):
        raise ValueError(
            f"beta_shape=unit: beta of {path} is for units {tuple(beta.shape)}, not {tuple(variances_U.shape)}; "
            "images of several sizes need channel or layer"
        )


def _check_choice(name: str, value: object, accepted: tuple[object, ...]) -> None:
    if value not in accepted:
        raise ValueError(f"{name}={value}: one of {', '.join(map(str, accepted))}")
