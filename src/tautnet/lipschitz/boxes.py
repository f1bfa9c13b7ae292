"""Boxes through a network: for a box of inputs, one that contains all outputs."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from math import exp, log1p
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from tautnet.factories import AbstractLayer
from tautnet.functional.elementwise import range_on_box, scaled_box
from tautnet.lipschitz.linear_maps import CONVOLUTIONS, TRANSPOSED
from tautnet.lipschitz.rules import Unbounded
from tautnet.lipschitz.structure import Chain, Leaf, eval_mode

Box = tuple[Tensor, Tensor]


def propagate(chain: Chain, lo: Tensor, hi: Tensor) -> Box:
    """A box that contains the image of the box [lo, hi] under the eval-mode network, differentiable in all tensors.

    Layer by layer: affine maps by centre and radius, c -> W c + b and r -> |W| r, which is their exact image (or
    larger, where padding copies a value that two taps of a kernel meet); monotone layers at both ends; other
    elementwise ones at their turning points; own layers by ``interval``. The boxes of summed branches add, those of
    concatenated ones stand side by side. Every step gives the exact image of its box or more; all together give more,
    because a box forgets how its sides depend on each other.

    The statement is about real arithmetic, and rounding is not covered: for certificates evaluate a copy of the network
    in float64. Under autocast the arithmetic stays in float32. Batch norms are read at their running statistics,
    whatever the mode, and nothing is updated.

    Source: interval bound propagation, Gowal et al. (2018).

    Args:
        chain: the network, see ``structure.read``.
        lo: lower ends, shape (N, *).
        hi: upper ends, at least ``lo``.

    Raises:
        Unbounded: a layer without a rule; the message has its path and the reason.
    """
    dtype = torch.promote_types(lo.dtype, torch.float32)
    with torch.autocast(lo.device.type, enabled=False):
        return _through(chain, lo.to(dtype), hi.to(dtype))


def _through(chain: Chain, lo: Tensor, hi: Tensor) -> Box:
    for part in chain:
        if isinstance(part, Leaf):
            lo, hi = _of_leaf(part, lo, hi)
            continue
        boxes = [_through(branch, lo, hi) for branch in part.chains]
        ends = list(zip(*boxes, strict=True))
        if part.kind == "sum":
            lo, hi = (reduce(torch.add, end) for end in ends)
        else:
            lo, hi = (torch.cat(end, dim=1) for end in ends)
    return lo, hi


def _of_leaf(leaf: Leaf, lo: Tensor, hi: Tensor) -> Box:
    if leaf.unknown:
        raise Unbounded(f"{leaf.name}: {leaf.unknown}")
    if isinstance(leaf.module, AbstractLayer):
        return leaf.module.interval(lo, hi)
    rule = RULES.get(type_before_parametrizations(leaf.module))
    if rule is None:
        raise Unbounded(f"{leaf.name}: no rule for boxes")
    try:
        return rule(leaf.module, lo, hi)
    except Unbounded as unbounded:
        raise Unbounded(f"{leaf.name}: {unbounded}") from unbounded


def affine_parts(layer: Any) -> tuple[Callable[[Tensor, Tensor], Tensor], Tensor, Tensor | None]:
    """Of a dense, convolutional or transposed convolutional layer: x, W -> W x, and the layer's W and bias.

    The weight is the one in force in eval mode, read without effect on the layer.
    """
    kind = type_before_parametrizations(layer)
    with eval_mode(layer):
        weight = layer.weight
    if kind is nn.Linear:
        return nn.functional.linear, weight, layer.bias
    if kind in TRANSPOSED:
        settings = (layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation)
        return lambda x, w: TRANSPOSED[kind](x, w, None, *settings), weight, layer.bias
    assert kind in CONVOLUTIONS
    return lambda x, w: layer._conv_forward(x, w, None), weight, layer.bias  # pads as the layer does


def _affine(layer: nn.Module, lo: Tensor, hi: Tensor) -> Box:
    """Padding, of zeros or copies, acts on centre and radius alike."""
    apply, weight, bias = affine_parts(layer)
    if weight.is_complex():
        raise Unbounded("complex weights")
    weight = weight.to(lo.dtype)
    centre, radius = apply((lo + hi) / 2, weight), apply((hi - lo) / 2, weight.abs())
    if bias is not None:
        channel_last = type_before_parametrizations(layer) is nn.Linear
        centre = centre + bias.to(lo.dtype).view(-1, *[1] * (0 if channel_last else weight.dim() - 2))
    return centre - radius, centre + radius


def _batch_norm(layer: Any, lo: Tensor, hi: Tensor) -> Box:
    if layer.running_var is None or layer.running_mean is None:
        raise Unbounded("normalises with the statistics of the batch")
    factor_C = (layer.running_var.to(lo.dtype) + layer.eps).rsqrt()
    if layer.weight is not None:
        factor_C = factor_C * layer.weight
    shift_C = -factor_C * layer.running_mean
    if layer.bias is not None:
        shift_C = shift_C + layer.bias
    factor, shift = (value_C.to(lo.dtype).view(-1, *[1] * (lo.dim() - 2)) for value_C in (factor_C, shift_C))
    low, high = scaled_box(lo, hi, factor)
    return low + shift, high + shift


def _monotone(layer: nn.Module, lo: Tensor, hi: Tensor) -> Box:
    """Every output rises with every input, or does not depend on it."""
    return layer(lo.clone()), layer(hi.clone())  # clones: an activation may work in place


def _same(layer: nn.Module, lo: Tensor, hi: Tensor) -> Box:
    return lo, hi


def _average(layer: Any, lo: Tensor, hi: Tensor) -> Box:
    if layer.divisor_override is not None and layer.divisor_override < 0:
        raise Unbounded("negative divisor")
    return _monotone(layer, lo, hi)


def _turning_at(*points: float) -> Callable[[nn.Module, Tensor, Tensor], Box]:
    def rule(layer: nn.Module, lo: Tensor, hi: Tensor) -> Box:
        with eval_mode(layer):  # RReLU draws slopes in training
            return range_on_box(lambda x: layer(x.clone()), lo, hi, points)

    return rule


def _gelu(layer: Any, lo: Tensor, hi: Tensor) -> Box:
    return _turning_at(-0.7524614220710162 if layer.approximate == "tanh" else -0.7517915246935645)(layer, lo, hi)


def _softplus(layer: Any, lo: Tensor, hi: Tensor) -> Box:
    """Rising, but torch switches to x where beta x exceeds the threshold: a jump of log(1 + exp(-threshold)) / |beta|.

    Without the switch it is g, |f - g| <= jump, so f(x) >= g(x) - jump >= g(lo) - jump >= f(lo) - 2 jump.
    """
    if layer.beta == 0:
        raise Unbounded("divides by beta = 0")
    jump = (max(-layer.threshold, 0.0) + log1p(exp(-abs(layer.threshold)))) / abs(layer.beta)
    return layer(lo) - 2 * jump, layer(hi) + 2 * jump


RULES: dict[type[nn.Module], Callable[[Any, Tensor, Tensor], Box]] = {
    **dict.fromkeys([nn.Linear, *CONVOLUTIONS, *TRANSPOSED], _affine),
    **dict.fromkeys([nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm], _batch_norm),
    **dict.fromkeys([nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d], _same),
    **dict.fromkeys([nn.AlphaDropout, nn.FeatureAlphaDropout], _same),
    # what moves, copies or drops values
    **dict.fromkeys([nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle], _monotone),
    **dict.fromkeys([nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d], _monotone),
    **dict.fromkeys([nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d], _monotone),
    **dict.fromkeys([nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d], _monotone),
    **dict.fromkeys([nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d], _monotone),
    **dict.fromkeys([nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d], _monotone),
    # largest values, and averages with weights of at least 0
    **dict.fromkeys([nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d], _monotone),
    **dict.fromkeys([nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d], _monotone),
    **dict.fromkeys([nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d], _monotone),
    nn.AvgPool1d: _monotone,
    **dict.fromkeys([nn.AvgPool2d, nn.AvgPool3d], _average),
    # elementwise, nowhere falling
    **dict.fromkeys([nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.Sigmoid, nn.Hardsigmoid, nn.LogSigmoid, nn.Tanh], _monotone),
    **dict.fromkeys([nn.Tanhshrink, nn.Softsign, nn.SELU, nn.Softshrink, nn.Hardshrink], _monotone),
    # elementwise, falling up to the turning point or behind it, depending on their settings
    **dict.fromkeys([nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.CELU], _turning_at(0.0)),
    nn.GELU: _gelu,
    nn.SiLU: _turning_at(-1.278464542761074),
    nn.Mish: _turning_at(-1.1924312145154952),
    nn.Hardswish: _turning_at(-1.5),
    nn.Softplus: _softplus,
}
