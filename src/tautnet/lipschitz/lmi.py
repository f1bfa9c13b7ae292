"""Bound of dense networks by layer-wise linear matrix inequalities, p = 2."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, log

import torch
from torch import Tensor

from tautnet.lipschitz.folded import Fixed, Gain, Item, log_folded
from tautnet.lipschitz.linear_maps import is_linear_map
from tautnet.lipschitz.product import LeafConstants
from tautnet.lipschitz.structure import Leaf

_MOST_FEATURES = 2048  # of a layer whose inequality is solved; time grows with their cube
_LEAST_WIDTH = 1e-3  # narrower slope intervals are widened to this, where the closed form would cancel
_ROUNDING = 1e-8  # added to the logarithm: far above the error of the float64 decompositions


def log_lmi_folded(items: Sequence[Item], constants: LeafConstants) -> float:
    """As ``log_folded`` for p = 2, with runs of dense layers bounded by ``log_lmi`` where that is smaller."""
    rest: list[Item] = []
    run: list[Item] = []
    for item in [*items, Fixed(0.0)]:
        if _is_dense(item) or (isinstance(item, Gain) and run):
            run.append(item)
            continue
        tail = [run.pop()] if run and isinstance(run[-1], Gain) else []
        rest += [*_bounded_run(run, constants), *tail, item]
        run = []
    return log_folded(rest, 2, constants)


def _is_dense(item: Item) -> bool:
    return (
        isinstance(item, Leaf)
        and len(item.input_shape) == 1
        and is_linear_map(item)
        and max(*item.input_shape, *item.output_shape) <= _MOST_FEATURES
    )


def _bounded_run(run: list[Item], constants: LeafConstants) -> list[Item]:
    if len(run) < 2:
        return run
    matrices: list[Tensor] = []
    slopes: list[Gain | None] = []
    for item in run:
        if isinstance(item, Gain):
            slopes[-1] = item
        elif isinstance(item, Leaf):
            weight = item.module.weight
            assert isinstance(weight, Tensor)
            matrices.append(weight.detach().to("cpu", torch.float64))
            slopes.append(None)
    ranges = [None if gain is None else (gain.lo, gain.hi) for gain in slopes[:-1]]
    return [Fixed(min(log_lmi(matrices, ranges), log_folded(run, 2, constants)))]


@torch.no_grad()
def log_lmi(matrices: Sequence[Tensor], slopes: Sequence[tuple[Tensor, Tensor] | None]) -> float:
    r"""Log of an upper bound of the l2 constant of W_n phi_{n-1} ... phi_1 W_1, each phi_i elementwise.

    Neuron j of layer i has slopes in [lo_j, hi_j]. With D, the steeper end of each, multiplied into W_i, all slopes of
    the layer lie in one interval [a, 1], a >= -1. Multipliers lambda I in the layer's quadratic constraint give, from
    X_0 = I, m = (a + 1) / 2 and the eigenpairs (e, U) of A = D W_i X_{i-1}^{-1} W_i^T D,

        X_i = lambda U diag(1 - lambda m^2 e / (1 + a lambda e)) U^T,   lambda = 2 / ((1 - a) max(e)),

    and the squared bound is the largest eigenvalue of W_n X_{n-1}^{-1} W_n^T. For m = 0 it is the product of the norms
    of D W_i. Layers whose slopes do not vary are merged into the next matrix.

    Source: the layer-wise decomposition is that of ECLipsE (Xu, Sivaranjani 2024); the closed form for slope intervals
    other than [0, 1] is derived in this project.

    Args:
        matrices: W_1 … W_n, each (O, I), float64.
        slopes: lo and hi of each layer between, (O,) or (1,), float64; None for the identity.

    Returns:
        The logarithm; inf if an entry is not finite.
    """
    ends = [end for pair in slopes if pair is not None for end in pair]
    if not all(tensor.isfinite().all() for tensor in (*matrices, *ends)):
        return inf
    inverse: Tensor | None = None  # of X, None for the identity
    current, log_square = _normalised(matrices[0], 0.0)
    for matrix, pair in zip(matrices[1:], slopes, strict=True):
        lo, hi = (torch.ones(1, dtype=torch.float64),) * 2 if pair is None else pair
        if (lo == hi).all():
            product = matrix @ (lo.expand(len(current)).unsqueeze(1) * current)
            current, log_square = _normalised(product, log_square)
            continue
        steepest, flattest = (end.expand(len(current)) for end in _by_size(lo, hi))
        alive = steepest != 0
        a = min(float((flattest / steepest)[alive].min()), 1 - _LEAST_WIDTH)
        e, u = torch.linalg.eigh(_gram(steepest.unsqueeze(1) * current, inverse))
        if e[-1] <= 0:
            return -inf
        log_square += log(e[-1])
        e = e.clamp(min=0) / e[-1]
        centre, scale = (a + 1) / 2, 2 / (1 - a)
        x = torch.full_like(e, scale)
        if centre != 0:  # else 0 / 0 where e is 1
            x -= (scale * centre) ** 2 * e / (1 + a * scale * e)
        if not x.min() > 0:
            return inf
        inverse = (u / x) @ u.T
        current, log_square = _normalised(matrix * alive, log_square)
    largest_eigenvalue = float(torch.linalg.eigvalsh(_gram(current, inverse))[-1])
    if largest_eigenvalue <= 0:
        return -inf
    return (log_square + log(largest_eigenvalue)) / 2 + _ROUNDING


def _normalised(matrix: Tensor, log_square: float) -> tuple[Tensor, float]:
    """With a largest entry of 1, so that long products neither overflow nor vanish, and its square in the logarithm."""
    largest = float(matrix.abs().max())
    return (matrix / largest, log_square + 2 * log(largest)) if largest > 0 else (matrix, log_square)


def _gram(matrix: Tensor, inverse: Tensor | None) -> Tensor:
    """W X^{-1} W^T, exactly symmetric."""
    gram = matrix @ matrix.T if inverse is None else matrix @ inverse @ matrix.T
    return (gram + gram.T) / 2


def _by_size(lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
    """Of both ends the larger in absolute value, and the other one."""
    falling = lo.abs() > hi.abs()
    return torch.where(falling, lo, hi), torch.where(falling, hi, lo)
