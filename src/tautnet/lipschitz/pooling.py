"""Constants of stock torch layers that pool, pad, copy or rearrange values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf, prod, sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from tautnet.lipschitz.rule import ROUNDING, Rule, Unbounded
from tautnet.lipschitz.structure import Leaf

NUM_ITERATIONS = 10

# Number of spatial dimensions of the layers that act on each channel by itself.
MAX_POOLS: dict[type[nn.Module], int] = {nn.MaxPool1d: 1, nn.MaxPool2d: 2, nn.MaxPool3d: 3}
ADAPTIVE_MAX_POOLS: dict[type[nn.Module], int] = {
    nn.AdaptiveMaxPool1d: 1,
    nn.AdaptiveMaxPool2d: 2,
    nn.AdaptiveMaxPool3d: 3,
}
LP_POOLS: dict[type[nn.Module], int] = {nn.LPPool1d: 1, nn.LPPool2d: 2, nn.LPPool3d: 3}
# Affine, with entries of one sign: averages and copies.
ONE_SIGNED: dict[type[nn.Module], int] = {
    nn.AvgPool1d: 1,
    nn.AvgPool2d: 2,
    nn.AvgPool3d: 3,
    nn.AdaptiveAvgPool1d: 1,
    nn.AdaptiveAvgPool2d: 2,
    nn.AdaptiveAvgPool3d: 3,
    nn.ZeroPad1d: 1,
    nn.ZeroPad2d: 2,
    nn.ZeroPad3d: 3,
    nn.ConstantPad1d: 1,
    nn.ConstantPad2d: 2,
    nn.ConstantPad3d: 3,
    nn.ReflectionPad1d: 1,
    nn.ReflectionPad2d: 2,
    nn.ReflectionPad3d: 3,
    nn.ReplicationPad1d: 1,
    nn.ReplicationPad2d: 2,
    nn.ReplicationPad3d: 3,
    nn.CircularPad1d: 1,
    nn.CircularPad2d: 2,
    nn.CircularPad3d: 3,
    nn.UpsamplingBilinear2d: 2,
}


def one_signed_norm(affine: Callable[[Tensor], Tensor], shape: Sequence[int], p: float) -> float:
    """Upper bound of the p-norm of A, for x -> A x + b on inputs (1, *shape), all entries of A of one sign.

    p = inf and 1: largest row and column sum, the images of ones under |A| and its transpose, exact. p = 2:
    |A|^2 is the spectral radius of B = A^T A, which has no negative entry, so for any v > 0 it is at most
    max_i (B v)_i / v_i (Collatz and Wielandt); v -> B v brings this down, the smallest met is taken.
    """
    with torch.inference_mode(False), torch.enable_grad():
        point = torch.ones(1, *shape, dtype=torch.float64, requires_grad=True)
        offset, image = affine(torch.zeros_like(point)).detach(), affine(point)

        def transposed(y: Tensor) -> Tensor:
            (pulled_back,) = torch.autograd.grad(image, point, y, retain_graph=True)
            return pulled_back

        if p == inf:
            return float((image - offset).detach().abs().max()) * ROUNDING
        if p == 1:
            return float(transposed(torch.ones_like(image)).abs().max()) * ROUNDING
        smallest, v = inf, torch.ones_like(point)
        for _ in range(NUM_ITERATIONS):
            next_v = transposed(affine(v) - offset)
            smallest = min(smallest, float((next_v / v).max()))
            if smallest == 0:
                break
            v = (next_v / next_v.max()).clamp(min=1e-9)
        return sqrt(smallest) * ROUNDING


def _one_signed(layer: nn.Module, leaf: Leaf, p: float) -> float:
    """One channel stands for all."""
    spatial = leaf.input_shape[-ONE_SIGNED[type_before_parametrizations(layer)] :]
    return one_signed_norm(layer, (1, *spatial), p)


def _across_channels(layer: nn.Module, leaf: Leaf, p: float) -> float:
    return one_signed_norm(layer, leaf.input_shape, p)


def _upsample(layer: nn.Upsample, leaf: Leaf, p: float) -> float:
    if layer.mode.startswith("nearest"):
        return _nearest(layer, leaf, p)
    if layer.mode == "bicubic":
        raise Unbounded("bicubic weights have both signs, for which there is no rule")
    return one_signed_norm(layer, (1, *leaf.input_shape[1:]), p)


def _nearest(layer: nn.Module, leaf: Leaf, p: float) -> float:
    """Each value goes to as many places as its position does; ``one_signed_norm`` would not see it.

    For factors that are not whole, torch's backward pass is not the transpose of its forward pass.
    """
    spatial = leaf.input_shape[1:]
    positions = torch.arange(prod(spatial), dtype=torch.float64).view(1, 1, *spatial)
    return _of_copies(int(layer(positions).long().flatten().bincount().max()), p)


def _windows(inputs: int, outputs: int, kernel: int, stride: int, padding: int, dilation: int) -> list[list[int]]:
    """The positions in each window along one dimension."""
    starts = [stride * i - padding for i in range(outputs)]
    return [[j for j in range(s, s + dilation * kernel, dilation) if 0 <= j < inputs] for s in starts]


def _adaptive_windows(inputs: int, outputs: int) -> list[list[int]]:
    """From floor(i I / O) up to ceil((i + 1) I / O) - 1."""
    return [list(range(i * inputs // outputs, -(-(i + 1) * inputs // outputs))) for i in range(outputs)]


def _overlap(windows: Sequence[Sequence[int]]) -> int:
    """In how many windows one position can lie."""
    counts: dict[int, int] = {}
    for position in (position for window in windows for position in window):
        counts[position] = counts.get(position, 0) + 1
    return max(counts.values(), default=0)


def _each(setting: int | Sequence[int], num_dimensions: int) -> Sequence[int]:
    return [setting] * num_dimensions if isinstance(setting, int) else setting


def _pool_windows(layer: Any, leaf: Leaf, num_dimensions: int, padding: Any, dilation: Any) -> list[list[list[int]]]:
    """The windows of each dimension; ``ceil_mode`` shows in the output's shape."""
    d = num_dimensions
    stride = layer.kernel_size if layer.stride is None else layer.stride
    sizes = leaf.input_shape[-d:], leaf.output_shape[-d:]
    settings = (_each(setting, d) for setting in (layer.kernel_size, stride, padding, dilation))
    return [_windows(*dimension) for dimension in zip(*sizes, *settings, strict=True)]


def _of_copies(num_copies: int, p: float) -> float:
    """A value that enters the output n times counts n times in the sum of |.|^p."""
    return float(num_copies) if p == 1 else num_copies ** (1 / p) * ROUNDING


def _of_maxima(windows: Sequence[Sequence[Sequence[int]]], p: float) -> float:
    """|max x - max y|^p <= sum |x - y|^p over the window, and a difference enters as often as windows overlap.

    Attained by a single bright pixel, p = inf by a shift of all.
    """
    if not all(window for dimension in windows for window in dimension):
        raise Unbounded("a window lies in the padding, where the maximum is -inf")
    return _of_copies(prod(_overlap(dimension) for dimension in windows), p)


def _max_pool(layer: Any, leaf: Leaf, p: float) -> float:
    d = MAX_POOLS[type_before_parametrizations(layer)]
    return _of_maxima(_pool_windows(layer, leaf, d, layer.padding, layer.dilation), p)


def _adaptive_max_pool(layer: Any, leaf: Leaf, p: float) -> float:
    d = ADAPTIVE_MAX_POOLS[type_before_parametrizations(layer)]
    sizes = zip(leaf.input_shape[-d:], leaf.output_shape[-d:], strict=True)
    return _of_maxima([_adaptive_windows(i, o) for i, o in sizes], p)


def _lp_pool(layer: Any, leaf: Leaf, p: float) -> float:
    """(k / m sum x^q)^(1/q) over m of the k places of a window, m < k only at a border in ``ceil_mode``.

    It is c^(1/q) times the window's q-norm, c = k / m, which changes by at most that of the difference, itself at most
    the p-norm for p <= q: c^(1/q) overlap^(1/p) in all, and (c m)^(1/q) for p = inf. For odd q torch takes roots of
    negative sums; q = 1 is a plain sum, an affine map.
    """
    d, q = LP_POOLS[type_before_parametrizations(layer)], layer.norm_type
    if q == 1:
        return one_signed_norm(layer, (1, *leaf.input_shape[-d:]), p)
    if q <= 0 or q % 2 != 0:
        raise Unbounded(f"norm_type={q} is neither 1 nor even: roots of negative sums")
    places = prod(_each(layer.kernel_size, d))
    if p == inf:
        return float(places ** (1 / q)) * ROUNDING
    windows = _pool_windows(layer, leaf, d, 0, 1)
    fewest = prod(min(map(len, dimension)) for dimension in windows)
    return float((places / fewest) ** (1 / q)) * _of_maxima(windows, p) * ROUNDING


def _permutation(layer: nn.Module, leaf: Leaf, p: float) -> float:
    return 1.0


RULES: dict[type[nn.Module], Rule] = {
    **dict.fromkeys(ONE_SIGNED, _one_signed),
    nn.Upsample: _upsample,
    nn.UpsamplingNearest2d: _nearest,
    nn.Fold: _across_channels,
    nn.Unfold: _across_channels,
    **dict.fromkeys(MAX_POOLS, _max_pool),
    **dict.fromkeys(ADAPTIVE_MAX_POOLS, _adaptive_max_pool),
    **dict.fromkeys(LP_POOLS, _lp_pool),
    **dict.fromkeys([nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle], _permutation),
}
