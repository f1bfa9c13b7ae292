"""A penalty on how far the network's Lipschitz bound lies above a target."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf, isfinite
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from tautnet.factories import AbstractLayer
from tautnet.functional.gram import gram_conv_spectral_norm, gram_spectral_norm
from tautnet.lipschitz.boxes import affine_parts
from tautnet.lipschitz.linear_maps import CONVOLUTIONS, TRANSPOSED
from tautnet.lipschitz.rules import Unbounded, leaf_constant
from tautnet.lipschitz.structure import Branches, Chain, Leaf, eval_mode, leaves, read
from tautnet.regularizers.base import AbstractRegularizer

Scale = Literal["log", "linear"]
Constant = Callable[[], Tensor]  # a layer's constant as it is now, a scalar
_AFFINE = (nn.Linear, *CONVOLUTIONS, *TRANSPOSED)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class LipschitzExcess(AbstractRegularizer):
    r"""weight * max(0, log L - log target), or with ``scale=linear`` weight * max(0, L - target).

    L is the product bound of the eval-mode network, over sums and concatenations as in ``lipschitz.product``, as a
    differentiable function of everything in it: weights through Gram iterations for p = 2 (upper bounds, of
    convolutions for images of any size) and sums of absolute values for p = 1 and inf, splines and our own normalizers
    through their ``lipschitz_constant``, batch norms through gamma, their statistics held. L is never below the
    constant, so a penalty of 0 means: the network keeps the target. Below the target nothing acts.

    Source: penalising what a bound exceeds a target by is common; the form is ours. The Gram iteration is Delattre et
    al. (2023).

    Args:
        weight: at least 0.
        target: above 0.
        p: exponent of the vector norm, 1, 2 or inf.
        scale: ``log``, whose gradient keeps its size however large L is, or ``linear``.
        num_iterations: of the Gram iteration, p = 2 only, 1 to 1000; more are tighter and slower.

    Raises:
        ValueError: an argument out of range; ``attach`` to a network with layers that have no finite or no
            differentiable constant, with nothing to learn in its bound, or, with ``scale=linear``, with a bound beyond
            float range.
    """

    def __init__(
        self, weight: float = 0.1, target: float = 10.0, p: float = 2, scale: Scale = "log", num_iterations: int = 8
    ) -> None:
        super().__init__(weight)
        if not 0 < target < inf:
            raise ValueError(f"target={target}: a finite number above 0")
        if p not in (1, 2, inf):
            raise ValueError(f"p={p}: 1, 2 or inf")
        if scale not in get_args(Scale):
            raise ValueError(f"scale={scale}: one of {', '.join(get_args(Scale))}")
        if not 1 <= num_iterations <= 1000:
            raise ValueError(f"num_iterations={num_iterations}: an integer from 1 to 1000")
        self.target, self.p, self.scale, self.num_iterations = target, p, scale, num_iterations
        self._chain: Chain = ()
        self._constants: dict[tuple[str, tuple[int, ...]], Constant] = {}

    def attach(self, net: nn.Module, input_shape: Sequence[int]) -> None:
        """Find how each layer's constant is computed. The layers stay the network's."""
        self._chain = read(net, input_shape)
        problems = []
        with eval_mode(net), torch.no_grad():
            for leaf in leaves(self._chain):
                try:
                    self._constants[_key(leaf)] = self._constant(leaf)
                except Unbounded as unbounded:
                    problems.append(f"{leaf.name}: {unbounded}")
        if problems:
            raise ValueError(f"no differentiable Lipschitz bound for p={self.p:g}: {', '.join(problems)}")
        with torch.enable_grad():
            start = self.log_bound()
        if not start.requires_grad:
            raise ValueError("the Lipschitz bound has no effect here: nothing in it is learned")
        if self.scale == "linear" and not start.detach().float().exp().isfinite():
            raise ValueError(f"scale=linear: the bound starts at exp({start.item():.4g}); choose log")

    def forward(self) -> Tensor:
        """The weighted penalty, a scalar."""
        log_bound = self.log_bound()
        if self.scale == "log":
            return self.weight * torch.relu(log_bound - torch.tensor(self.target).log()).float()
        return self.weight * torch.relu(log_bound.exp() - self.target).float()

    def log_bound(self) -> Tensor:
        """Natural logarithm of the bound, a differentiable scalar in float64 on the CPU."""
        return self._log_of(self._chain)

    def _log_of(self, chain: Chain) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for part in chain:
            total = total + (self._joined(part) if isinstance(part, Branches) else self._leaf(part))
        return total

    def _leaf(self, leaf: Leaf) -> Tensor:
        constant = self._constants[_key(leaf)]().to("cpu", torch.float64)
        return constant.clamp(min=torch.finfo(torch.float64).tiny).log()  # no infinite gradient at a layer of zeros

    def _joined(self, branches: Branches) -> Tensor:
        logs = torch.stack([self._log_of(chain) for chain in branches.chains])
        if branches.kind == "concatenation" and self.p == inf:
            return logs.max()
        exponent = self.p if branches.kind == "concatenation" else 1
        return torch.logsumexp(exponent * logs, dim=0) / exponent

    def _constant(self, leaf: Leaf) -> Constant:
        module: Any = leaf.module
        if leaf.unknown:
            raise Unbounded(leaf.unknown)
        if isinstance(module, AbstractLayer):
            if not isfinite(module.lipschitz_constant(self.p)):
                raise Unbounded(f"no constant for p={self.p:g}")
            return lambda: module.lipschitz_constant(self.p)
        kind = type_before_parametrizations(module)
        if kind in _AFFINE and self.p != 2:
            return lambda: absolute_sums(module, leaf.input_shape, self.p)
        if kind is nn.Linear:
            return lambda: gram_spectral_norm(module.weight, self.num_iterations)
        if kind in _AFFINE:
            if module.padding_mode != "zeros":
                raise Unbounded(f"padding_mode={module.padding_mode} has no differentiable constant; choose zeros")
            # of a transposed convolution the kernel is that of the convolution whose transpose, of equal norm, it is
            settings = (module.stride, module.dilation, module.groups, self.num_iterations)
            return lambda: gram_conv_spectral_norm(module.weight, *settings)
        if kind in _BATCH_NORMS and module.running_var is not None:
            return lambda: _batch_norm(module)
        value = leaf_constant(leaf, self.p)
        if any(parameter.requires_grad for parameter in module.parameters()):
            raise Unbounded("no differentiable constant")
        if not isfinite(value):
            raise Unbounded(f"no constant for p={self.p:g}")
        return lambda: torch.tensor(value, dtype=torch.float64)


def absolute_sums(layer: nn.Module, input_shape: Sequence[int], p: float) -> Tensor:
    """Norm of a dense, convolutional or transposed convolutional layer W for p = 1 or inf, exact, differentiable.

    p = inf: the largest entry of |W| 1, the row sums. p = 1: that of |W|^T 1, the derivative of the sum of |W| x.
    """
    with torch.enable_grad():
        apply, weight, _ = affine_parts(layer)
        x = torch.ones(1, *input_shape, dtype=torch.float64, device=weight.device, requires_grad=True)
        rows = apply(x, weight.abs().double())
        return rows.max() if p == inf else torch.autograd.grad(rows.sum(), x, create_graph=True)[0].max()


def _key(leaf: Leaf) -> tuple[str, tuple[int, ...]]:
    return leaf.path, leaf.input_shape


def _batch_norm(layer: nn.BatchNorm2d) -> Tensor:
    """Largest |gamma| / sqrt(var + eps) of the running variance."""
    assert layer.running_var is not None
    factors_C = (layer.running_var.double() + layer.eps).rsqrt()
    return (factors_C if layer.weight is None else factors_C * layer.weight.abs()).max()
