"""Operator norms of dense, convolutional and transposed convolutional layers, p = 1, 2, inf."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrize import type_before_parametrizations

from tautnet.functional.operator_norm import conv_spectral_norm, spectral_norm
from tautnet.lipschitz.rule import ROUNDING, Rule, exact
from tautnet.lipschitz.structure import Leaf

CONVOLUTIONS: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Conv1d: F.conv1d,
    nn.Conv2d: F.conv2d,
    nn.Conv3d: F.conv3d,
}
TRANSPOSED: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.ConvTranspose1d: F.conv_transpose1d,
    nn.ConvTranspose2d: F.conv_transpose2d,
    nn.ConvTranspose3d: F.conv_transpose3d,
}


def is_linear_map(leaf: Leaf) -> bool:
    """Whether the leaf is one weight applied along the channels, so that a factor a channel can be folded into it.

    A dense layer on more than one dimension acts along the last, which is not the channels': False.
    """
    kind = type_before_parametrizations(leaf.module)
    if leaf.unknown:
        return False
    if kind is nn.Linear:
        return len(leaf.input_shape) == 1
    if kind in CONVOLUTIONS or kind in TRANSPOSED:
        weight = leaf.module.weight
        assert isinstance(weight, Tensor)
        return len(leaf.input_shape) == weight.dim() - 1
    return False


@torch.no_grad()
def linear_constant(leaf: Leaf, p: float, rows_O: Tensor | None = None, columns_I: Tensor | None = None) -> float:
    """Upper bound of the p-norm of diag(rows) W diag(columns), W the layer's linear map; inf if not finite.

    A dense layer on (N, *, I) is the same matrix in many places (block diagonal), whose norm is that of one block.

    Args:
        leaf: a leaf with ``is_linear_map``, or, without factors, any of a type that this file knows.
        p: 1, 2 or inf.
        rows_O: factor of each output channel, (O,) or (1,), float64.
        columns_I: factor of each input channel, (I,) or (1,), float64.

    Raises:
        Unbounded: complex weights.
    """
    layer: Any = leaf.module
    kind = type_before_parametrizations(layer)
    weight = exact(layer.weight)
    if kind is nn.Linear:
        weight = _scaled(weight[None], rows_O, columns_I)[0]
    elif kind in CONVOLUTIONS:
        weight = _scaled(_by_group(weight, layer.groups), rows_O, columns_I).flatten(0, 1)
    else:
        weight_GOI = _by_group(weight, layer.groups).transpose(1, 2)
        weight = _scaled(weight_GOI, rows_O, columns_I).transpose(1, 2).flatten(0, 1)
    if not weight.isfinite().all():
        return inf
    if kind is nn.Linear:
        return _dense_norm(weight, p)
    if p == 2:
        return _convolution_spectral_norm(layer, weight, leaf)
    return _convolution_sums(layer, weight, leaf, p)


def _by_group(weight: Tensor, groups: int) -> Tensor:
    return weight.reshape(groups, -1, *weight.shape[1:])


def _scaled(weight_GOI: Tensor, rows_O: Tensor | None, columns_I: Tensor | None) -> Tensor:
    """Rows and columns multiplied, for a weight (groups, O / groups, I / groups, *)."""
    groups, outputs, inputs = weight_GOI.shape[:3]
    window = [1] * (weight_GOI.dim() - 3)
    if rows_O is not None:
        weight_GOI = weight_GOI * rows_O.expand(groups * outputs).reshape(groups, outputs, 1, *window)
    if columns_I is not None:
        weight_GOI = weight_GOI * columns_I.expand(groups * inputs).reshape(groups, 1, inputs, *window)
    return weight_GOI


def _dense_norm(weight_OI: Tensor, p: float) -> float:
    """Largest column sum, singular value, row sum."""
    if p == 2:
        return spectral_norm(weight_OI)
    return float(weight_OI.abs().sum(0 if p == 1 else 1).max()) * ROUNDING


def _paddings(layer: Any) -> list[tuple[int, int]]:
    """Added before and after each dimension; "same" adds the odd one after, as torch does."""
    if layer.padding == "valid":
        return [(0, 0)] * len(layer.kernel_size)
    if layer.padding == "same":
        totals = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    return [(both, both) for both in layer.padding]


def _convolution_spectral_norm(layer: Any, weight: Tensor, leaf: Leaf) -> float:
    """Of the convolution; a transposed one is the adjoint of the convolution with its weight, from its output grid.

    (Of more than the adjoint, if ``output_padding`` is at least the stride: the convolution then has further outputs,
    which only add to the norm.)
    """
    transposed = type_before_parametrizations(layer) in TRANSPOSED
    shape = leaf.output_shape if transposed else leaf.input_shape
    return conv_spectral_norm(
        weight,
        shape[-len(layer.kernel_size) :],
        layer.stride,
        tuple(_paddings(layer)),
        layer.dilation,
        layer.groups,
        layer.padding_mode,
    )


def _convolution_sums(layer: Any, weight: Tensor, leaf: Leaf, p: float) -> float:
    """Largest row (p = inf) or column (p = 1) sum of |W|, from how often each tap is read where.

    A map with one tap alone puts ones out where the tap is read, its transpose where it reads; times |weight|, summed
    over the channels on the other side, these are the sums. Exact as long as no output reads one position through two
    taps, which wide circular, reflecting and replicating padding can lead to; then |.| is added, which is no less.
    """
    size = leaf.input_shape[-len(layer.kernel_size) :]
    transposed = type_before_parametrizations(layer) in TRANSPOSED
    summed_over = 1 if (p == inf) == transposed else 2  # inputs for row sums, outputs for column sums
    weights_CK = _by_group(weight.abs(), layer.groups).sum(summed_over).flatten(0, 1).flatten(1)
    with torch.inference_mode(False), torch.enable_grad():
        num_taps = weights_CK.shape[1]
        taps = torch.eye(num_taps, dtype=torch.float64).view(num_taps, 1, *layer.kernel_size)
        ones = torch.ones(1, num_taps, *size, dtype=torch.float64, requires_grad=True)
        reads = _depthwise(layer, taps, ones)
        if p == 1:
            (reads,) = torch.autograd.grad(reads.sum(), ones)
    return float((weights_CK @ reads.detach()[0].flatten(1)).max()) * ROUNDING


def _depthwise(layer: Any, kernels: Tensor, x: Tensor) -> Tensor:
    """The layer's map with one kernel a channel."""
    kind, groups = type_before_parametrizations(layer), len(kernels)
    if kind in TRANSPOSED:
        return TRANSPOSED[kind](
            x, kernels, None, layer.stride, layer.padding, layer.output_padding, groups, layer.dilation
        )
    return CONVOLUTIONS[kind](_padded(layer, x), kernels, None, layer.stride, 0, layer.dilation, groups)


def _padded(layer: Any, x: Tensor) -> Tensor:
    widths: Sequence[int] = [width for pair in reversed(_paddings(layer)) for width in pair]
    return F.pad(x, widths, "constant" if layer.padding_mode == "zeros" else layer.padding_mode)


def _constant(layer: nn.Module, leaf: Leaf, p: float) -> float:
    return linear_constant(leaf, p)


RULES: dict[type[nn.Module], Rule] = dict.fromkeys([nn.Linear, *CONVOLUTIONS, *TRANSPOSED], _constant)
