"""Upper bounds of stock torch layers in eval mode, p = 2. Anything without a rule here is unbounded.

A rule takes the layer and the shape (C, *) of one input and returns the constant; inf where the layer's settings are
not covered. Rules are looked up by exact type: a subclass may compute something else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil, inf, prod, sqrt
from typing import Any

import torch
from torch import nn

from tautnet.functional.operator_norm import conv2d_spectral_norm, spectral_norm


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _linear(layer: nn.Linear, shape: Sequence[int]) -> float:
    return spectral_norm(layer.weight)


def _conv2d(layer: nn.Conv2d, shape: Sequence[int]) -> float:
    if layer.padding_mode != "zeros":
        return inf
    return conv2d_spectral_norm(layer.weight, shape[-2:], _pair(layer.dilation), layer.groups)


def _batch_norm(layer: nn.BatchNorm1d | nn.BatchNorm2d, shape: Sequence[int]) -> float:
    if layer.running_var is None:  # normalises with the statistics of the batch, in eval mode too
        return inf
    factor_C = (layer.running_var.to("cpu", torch.float64) + layer.eps).rsqrt()
    if layer.affine:
        factor_C = factor_C * layer.weight.to("cpu", torch.float64).abs()
    return float(factor_C.max())


def _overlap(kernel: Sequence[int], stride: Sequence[int]) -> int:
    """In how many windows one position can lie."""
    return prod(ceil(k / s) for k, s in zip(kernel, stride, strict=True))


def _avg_pool(layer: nn.AvgPool2d, shape: Sequence[int]) -> float:
    """The mean of m values has norm 1 / sqrt(m), and each position enters at most ``overlap`` means."""
    padded = any(_pair(layer.padding)) and not layer.count_include_pad
    if padded or layer.ceil_mode or layer.divisor_override is not None:  # border windows divide by less
        return inf
    kernel, stride = _pair(layer.kernel_size), _pair(layer.stride)
    return sqrt(_overlap(kernel, stride) / prod(kernel))


def _adaptive_avg_pool(layer: nn.AdaptiveAvgPool2d, shape: Sequence[int]) -> float:
    """Equal, disjoint windows if the sizes divide."""
    sizes = layer.output_size if isinstance(layer.output_size, tuple) else (layer.output_size, layer.output_size)
    outputs = [i if o is None else o for o, i in zip(sizes, shape[-2:], strict=True)]
    if any(i % o for i, o in zip(shape[-2:], outputs, strict=True)):
        return inf
    return sqrt(prod(outputs) / prod(shape[-2:]))


def _max_pool(layer: nn.MaxPool2d, shape: Sequence[int]) -> float:
    """|max x - max y| <= max |x - y| <= the l2 distance over the window."""
    if _pair(layer.dilation) != (1, 1):
        return inf
    return sqrt(_overlap(_pair(layer.kernel_size), _pair(layer.stride)))


def _adaptive_max_pool(layer: nn.AdaptiveMaxPool2d, shape: Sequence[int]) -> float:
    """As for ``MaxPool2d``, counting in how many windows a position lies at most."""
    sizes = layer.output_size if isinstance(layer.output_size, tuple) else (layer.output_size, layer.output_size)
    return sqrt(prod(_adaptive_overlap(i, i if o is None else o) for o, i in zip(sizes, shape[-2:], strict=True)))


def _adaptive_overlap(inputs: int, outputs: int) -> int:
    """In how many of the windows floor(i I / O) … ceil((i + 1) I / O) - 1 one of I positions can lie."""
    counts = [0] * inputs
    for i in range(outputs):
        for position in range(i * inputs // outputs, -(-(i + 1) * inputs // outputs)):
            counts[position] += 1
    return max(counts)


def _isometry(layer: nn.Module, shape: Sequence[int]) -> float:
    return 1.0


RULES: dict[type[nn.Module], Callable[[Any, Sequence[int]], float]] = {
    nn.Linear: _linear,
    nn.Conv2d: _conv2d,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.AvgPool2d: _avg_pool,
    nn.AdaptiveAvgPool2d: _adaptive_avg_pool,
    nn.MaxPool2d: _max_pool,
    nn.AdaptiveMaxPool2d: _adaptive_max_pool,
    # Each output value is one of the input's or zero, and none is repeated: distances stay, or shrink where padding is
    # negative and crops.
    nn.Flatten: _isometry,
    nn.Identity: _isometry,
    nn.ZeroPad2d: _isometry,
    nn.PixelShuffle: _isometry,
    nn.PixelUnshuffle: _isometry,
    nn.Dropout: _isometry,
}


@torch.no_grad()
def stock_layer_bound(layer: nn.Module, shape: Sequence[int]) -> float:
    """The rule of the layer's exact type, a weight parametrization looked through; inf without one."""
    rule = RULES.get(torch.nn.utils.parametrize.type_before_parametrizations(layer))
    return inf if rule is None else rule(layer, shape)
