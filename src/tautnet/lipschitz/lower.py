"""Lower bound of a network's Lipschitz constant: Jacobians at data, and where gradient ascent leads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import inf, nan
from typing import Any

import torch
from torch import Tensor, nn

from tautnet.lipschitz.structure import check_exponent, eval_mode

MOST_OUTPUTS = 128  # up to here a Jacobian is read row by row; beyond, its norm is approached from below
NUM_ITERATIONS = 20  # of the power method
NUM_STARTS = 4  # that share them for p = 1 and inf
NUM_PAIRS = 4  # that climb
SAMPLES_AT_ONCE = 256
_STRIDE = 0.3  # of an ascent step, in distances of the pair
_LAST_DISTANCE = 0.01  # of a pair, in first distances


def lipschitz_lower(net: nn.Module, x: Tensor, p: float = 2, num_steps: int = 0) -> float:
    """Largest observed ||J||_p, J the Jacobian of the eval-mode net: an observation, never a guarantee.

    ||J||_1 is the largest column sum of |J|, ||J||_inf the largest row sum, ||J||_2 the largest singular value. Looks
    at the batch, and with ``num_steps`` at the ends of ``ascend``. Exact at each point for up to 128 outputs in one
    dimension, one backward pass an output; beyond, from below by the power method.

    Only Jacobians count, no ratios of differences: whatever rounding does to the values, a backward pass multiplies
    slopes that the layers have somewhere, so that it passes a bound made of layers' constants by rounding of that
    product alone; relative margin 1e-4 in float32 (TF32 and autocast are off meanwhile), 1e-9 in float64, more in half
    precision. On a kink, a set of measure zero, the slopes are those that autograd picks layer by layer.

    Nothing of the net, gradients and training flags included, and no random state is changed.

    Args:
        net: maps (N, *) to (N, *), sample by sample in eval mode.
        x: the batch, N >= 1.
        p: exponent of the vector norm on both sides, 1, 2 or inf.
        num_steps: of gradient ascent, at least 0.

    Returns:
        The observed value; NaN if a derivative at the batch is not finite.

    Raises:
        ValueError: an argument out of range.
    """
    value = float(jacobian_norms(net, x, p).max())
    if num_steps == 0:
        return value
    return max(value, ascend(net, *start_pairs(net, x, p), p, num_steps)[0])  # NaN if the first is, not the second


def jacobian_norms(net: nn.Module, x: Tensor, p: float = 2) -> Tensor:
    """||J||_p at every sample, shape (N,), float64, CPU; arguments and errors as ``lipschitz_lower``."""
    check_exponent(p)
    if len(x) == 0:
        raise ValueError(f"x={tuple(x.shape)}: at least one sample")
    with _observing(net):
        return torch.cat([_jacobian_norms(net, part, p) for part in torch.split(x, SAMPLES_AT_ONCE)])


def start_pairs(net: nn.Module, x: Tensor, p: float = 2, num_pairs: int = NUM_PAIRS) -> tuple[Tensor, Tensor]:
    """Pairs for ``ascend``: the steepest samples, each with a point near by in its steep direction or with another one.

    Steep is what a backward pass from random outputs finds: ||J^T v||_q <= ||v||_q ||J||_p, 1/p + 1/q = 1. One forward
    and one backward pass over the batch.

    Args:
        net: as in ``lipschitz_lower``.
        x: the batch, N >= 1.
        p: 1, 2 or inf.
        num_pairs: at least 1; the result has no more than N.

    Raises:
        ValueError: an argument out of range.
    """
    check_exponent(p)
    if len(x) == 0 or num_pairs < 1:
        raise ValueError(f"x={tuple(x.shape)}, num_pairs={num_pairs}: at least one of each")
    q = _dual_exponent(p)
    with _observing(net):
        inputs = x.detach().clone().requires_grad_()
        outputs = net(inputs.clone())  # a clone: the first layer may work in place
        v = torch.randn(outputs.shape[1:], generator=torch.Generator().manual_seed(0)).to(outputs)
        (slopes,) = torch.autograd.grad(outputs, inputs, v.expand_as(outputs))
        steepest = _norms(slopes, q).nan_to_num(-1).topk(min(num_pairs, len(x))).indices
        x, direction = inputs.detach()[steepest], _dual_vector(slopes[steepest], q)
    distances = _norms(x - x.flip(0), p)
    scale = distances.mean() if distances.any() else _norms(x, p).mean().clamp(min=1.0)
    fractions = torch.tensor([0.3, 0.1]).to(x).repeat(len(x))[: len(x)]
    near = x + _column(scale * fractions, x) * direction
    # The later half is paired with the earlier one, unless the samples are the same.
    to_others = (torch.arange(len(x), device=x.device) >= (len(x) + 1) // 2) & (distances > 0)
    return x, torch.where(_column(to_others, x), x.flip(0), near)


def ascend(net: nn.Module, x: Tensor, y: Tensor, p: float = 2, num_steps: int = 20) -> tuple[float, Tensor, Tensor]:
    """Climb the slopes of secants, ||f(x) - f(y)||_p / ||x - y||_p, and look at the Jacobians at the ends.

    The Jacobian of a piecewise linear net is locally constant, a secant of some length feels the neighbouring pieces.
    With v the dual vector of f(y) - f(x), one step moves the middle of a pair along J(y)^T v - J(x)^T v and turns the
    pair into the dual vector of J(y)^T v + J(x)^T v (the power method for p-norms of Boyd, 1974), while its length
    shrinks to a hundredth. A step costs a forward and a backward pass over both points. Source: own.

    Args:
        net: as in ``lipschitz_lower``.
        x: first points, N >= 1.
        y: second points, of the same shape; a pair of equal points stays where it is.
        p: 1, 2 or inf.
        num_steps: at least 0.

    Returns:
        The largest Jacobian norm at the ends of each pair's steepest secant (NaN if none is finite), and these
        secants, by their Jacobians in falling order, brought to the pairs' first lengths, to climb on from.

    Raises:
        ValueError: an argument out of range.
    """
    check_exponent(p)
    if num_steps < 0:
        raise ValueError(f"num_steps={num_steps}: at least 0")
    if x.shape != y.shape:
        raise ValueError(f"y={tuple(y.shape)}: the shape of x, {tuple(x.shape)}")
    with _observing(net):
        x, y = x.detach().clone(), y.detach().clone()
        length_N = _norms(y - x, p)
        ends = _climb(net, x, y, p, num_steps)
        norms_N = jacobian_norms(net, torch.cat(ends), p).nan_to_num(-1).view(2, -1).amax(0)
        middle, half = (ends[0] + ends[1]) / 2, _column(length_N / 2, x) * _scaled(ends[1] - ends[0], p)
        order = norms_N.argsort(descending=True).to(x.device)
        value = float(norms_N.max())
        return value if value >= 0 else nan, (middle - half)[order], (middle + half)[order]


def _climb(net: nn.Module, x: Tensor, y: Tensor, p: float, num_steps: int) -> tuple[Tensor, Tensor]:
    """The ends of the steepest secant that each pair met."""
    q = _dual_exponent(p)
    middle, direction, length_N = (x + y) / 2, _scaled(y - x, p), _norms(y - x, p)
    best_x, best_y, best_N = x.clone(), y.clone(), torch.zeros_like(length_N)
    for step in range(num_steps):
        shrunk_N = length_N * _LAST_DISTANCE ** (step / max(1, num_steps - 1))
        half = _column(shrunk_N / 2, x) * direction
        x, y = (middle - half).requires_grad_(), (middle + half).requires_grad_()
        f_x, f_y = net(torch.cat([x, y])).chunk(2)
        rise = f_y - f_x
        slope_N = _norms(rise.detach(), p) / shrunk_N
        steeper = (slope_N > best_N) & slope_N.isfinite()  # a pair that overflows climbs no more
        best_N[steeper], best_x[steeper], best_y[steeper] = slope_N[steeper], x.detach()[steeper], y.detach()[steeper]
        minus_g_x, g_y = torch.autograd.grad(rise, (x, y), _dual_vector(rise.detach(), p))
        direction = _dual_vector(g_y - minus_g_x, q)
        stride_N = _STRIDE * _norms(2 * half, 2)
        middle = middle + _column(stride_N, x) * _scaled(g_y + minus_g_x, 2)
    return best_x, best_y


def _jacobian_norms(net: nn.Module, x: Tensor, p: float) -> Tensor:
    inputs = x.detach().clone().requires_grad_()
    outputs = net(inputs.clone())  # a clone: the first layer may work in place
    if outputs.dim() > 2 or outputs.shape[1] > MOST_OUTPUTS:
        return _by_power_method(inputs, outputs, p)
    # Samples do not interact, so the gradient of a sum over the batch holds one row of every Jacobian.
    rows = [torch.autograd.grad(column.sum(), inputs, retain_graph=True)[0] for column in outputs.unbind(1)]
    jacobians_NOD = torch.stack([row.flatten(1) for row in rows], dim=1).cpu().double()
    finite_N = jacobians_NOD.isfinite().flatten(1).all(1)
    norms_N = torch.linalg.matrix_norm(jacobians_NOD.masked_fill(~finite_N.view(-1, 1, 1), 0), ord=p)
    return norms_N.masked_fill(~finite_N, nan)


def _by_power_method(inputs: Tensor, outputs: Tensor, p: float) -> Tensor:
    """||J^T v||_q for vectors v of q-norm 1, one a sample, which iteration turns to where it is large.

    J^T v -> its dual vector u -> J u -> its dual vector v never lowers the value (Boyd, 1974, recalled): with
    <J u, v> = ||J^T v||_q before, Hölder gives ||J^T v'||_q >= <J u, v'> = ||J u||_p >= <J u, v> for the new v'. For
    p = 1 and inf it stops at the next local maximum, hence several starts. The product J u comes from differentiating
    J^T v, which is linear in v, by v.
    """
    q, generator = _dual_exponent(p), torch.Generator().manual_seed(0)
    v = torch.zeros_like(outputs, requires_grad=True)
    (pulled_back,) = torch.autograd.grad(outputs, inputs, v, create_graph=True)
    best_N = torch.zeros(len(inputs), dtype=torch.float64)
    for _ in range(1 if p == 2 else NUM_STARTS):
        unit = torch.randn(outputs.shape, generator=generator).to(outputs)
        for _ in range(NUM_ITERATIONS if p == 2 else NUM_ITERATIONS // NUM_STARTS):
            (slopes,) = torch.autograd.grad(outputs, inputs, unit, retain_graph=True)
            (image,) = torch.autograd.grad(pulled_back, v, _dual_vector(slopes, q), retain_graph=True)
            unit = _dual_vector(image, p)
        (slopes,) = torch.autograd.grad(outputs, inputs, unit, retain_graph=True)
        unit_N = _norms(unit.cpu().double(), q)  # 1 but for rounding, or 0
        best_N = best_N.maximum(_norms(slopes.cpu().double(), q) / unit_N.clamp(min=0.5))
    finite_N = (outputs.isfinite().flatten(1).all(1) & pulled_back.isfinite().flatten(1).all(1)).cpu()
    return best_N.masked_fill(~(finite_N & best_N.isfinite()), nan)


def _dual_exponent(p: float) -> float:
    return {1: inf, 2: 2, inf: 1}[p]


def _dual_vector(z: Tensor, p: float) -> Tensor:
    """Vector w with <w, z> = ||z||_p and ||w||_q = 1, 1/p + 1/q = 1, of each sample; 0 for 0."""
    if p == 2:
        return _scaled(z, 2)
    if p == 1:
        return z.sign()
    flat = z.flatten(1)
    largest = flat.abs().argmax(1, keepdim=True)
    return torch.zeros_like(flat).scatter(1, largest, flat.gather(1, largest).sign()).view_as(z)


def _norms(z: Tensor, p: float) -> Tensor:
    return torch.linalg.vector_norm(z.flatten(1), ord=p, dim=1)


def _scaled(z: Tensor, p: float) -> Tensor:
    """To p-norm 1; 0 stays 0."""
    return z / _column(_norms(z, p).clamp(min=torch.finfo(z.dtype).tiny), z)


def _column(values_N: Tensor, like: Tensor) -> Tensor:
    return values_N.view(-1, *[1] * (like.dim() - 1))


@contextmanager
def _observing(net: nn.Module) -> Iterator[None]:
    """Eval mode, differentiable, in the full precision of the weights."""
    # Lightning evaluates in inference mode, where nothing can be differentiated.
    with torch.inference_mode(False), torch.enable_grad(), eval_mode(net), _full_precision(net):
        yield


@contextmanager
def _full_precision(net: nn.Module) -> Iterator[None]:
    """No TF32 or bfloat16 inside of float32 products: their 1e-3 would pass for a violated bound."""
    every: Any = torch.backends  # untyped in part
    backends = (every.cudnn.conv, every.cuda.matmul, every.mkldnn.conv, every.mkldnn.matmul)
    before = [backend.fp32_precision for backend in backends]
    device = next((parameter.device.type for parameter in net.parameters()), "cpu")
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        with torch.autocast(device, enabled=False):
            yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision
