"""What local bounds need to know of single layers: slopes on a box, norms of rows and of matrices."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from tautnet.activations import ELU, GELU, LeakyReLU, ReLU
from tautnet.activations.base import AbstractActivation
from tautnet.lipschitz.elementwise import slope_range
from tautnet.lipschitz.linear_maps import TRANSPOSED
from tautnet.lipschitz.structure import Leaf

ROUNDING = 1 + 1e-9  # relative allowance for the float64 arithmetic
SAMPLES_AT_ONCE = 64
_TINY = torch.finfo(torch.float64).tiny
DUAL: dict[float, float] = {1: inf, 2: 2, inf: 1}  # q of a p, 1/p + 1/q = 1


def batches(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Some samples of each tensor at a time: the matrices of many would not fit in memory."""
    for start in range(0, max(len(tensors[0]), 1), SAMPLES_AT_ONCE):
        yield tuple(tensor[start : start + SAMPLES_AT_ONCE] for tensor in tensors)


def inf_for_nan(values: Tensor) -> Tensor:
    """What is not a number bounds nothing: inf times 0 comes from an unbounded layer."""
    return torch.where(values.isnan(), inf, values)


def column(values_N: Tensor, x: Tensor) -> Tensor:
    """One value a sample, shaped to broadcast against x of (N, *)."""
    return values_N.view(-1, *[1] * (x.dim() - 1))


def matrix_norm(matrix_NOD: Tensor, p: float) -> Tensor:
    """Operator norms of matrices for the vector p-norm, rounded up, (N,); inf for those that are not finite."""
    finite_N = matrix_NOD.isfinite().flatten(1).all(1)
    if p != 2:
        norms_N = matrix_NOD.abs().sum(1 if p == 1 else 2).amax(1)
    else:
        scale_N = torch.where(finite_N, matrix_NOD.abs().amax((1, 2)), 1.0).clamp(min=_TINY)
        scaled = torch.where(finite_N.view(-1, 1, 1), matrix_NOD, 0.0) / scale_N.view(-1, 1, 1)
        gram = scaled @ scaled.mT if scaled.shape[1] <= scaled.shape[2] else scaled.mT @ scaled
        norms_N = torch.linalg.eigvalsh(gram)[:, -1].clamp(min=0).sqrt() * scale_N
    return torch.where(finite_N, norms_N * ROUNDING, inf)


def row_norms(matrix_NOD: Tensor, p: float) -> Tensor:
    """Largest |w v| over ||v||_p <= 1 of each row w, (N, O): its norm for the dual exponent."""
    return _vector_norm(matrix_NOD, DUAL[p])


def _vector_norm(values: Tensor, ord: float) -> Tensor:
    """Along the last dimension, with squares that neither vanish nor overflow."""
    scale = values.abs().amax(-1, keepdim=True).clamp(min=_TINY)
    return torch.linalg.vector_norm(values / scale, ord=ord, dim=-1) * scale.squeeze(-1)


def channel_norms(layer: Any, p: float) -> Tensor:
    """Largest |w v| over ||v||_p <= 1 of the rows w of each output channel of a linear map, (O,), an upper bound.

    The taps of a kernel meet different values of a zero padded input, and some may meet none; so the norm of the kernel
    bounds that of the row. Other paddings repeat values: there the sum of all |taps| does, as for any exponent.
    """
    weight = layer.weight
    if type_before_parametrizations(layer) in TRANSPOSED:
        weight = weight.unflatten(0, (layer.groups, -1)).transpose(1, 2).flatten(0, 1)
    repeats = type_before_parametrizations(layer) is not nn.Linear and layer.padding_mode != "zeros"
    return _vector_norm(weight.flatten(1), 1 if repeats else DUAL[p]) * ROUNDING


def as_activation(layer: nn.Module) -> AbstractActivation | None:
    """The layer itself if it is an activation of ours, ours if it is a stock one that we have, else None."""
    if isinstance(layer, AbstractActivation):
        return layer
    if type(layer) is nn.ReLU:
        return ReLU(1)
    if type(layer) is nn.LeakyReLU:
        return LeakyReLU(1, layer.negative_slope)
    if type(layer) is nn.ELU and layer.alpha >= 0:
        return ELU(1, layer.alpha)
    return GELU(1) if type(layer) is nn.GELU and layer.approximate == "none" else None


def slopes_on_box(leaf: Leaf, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor] | None:
    """Smallest and largest slope of each element of an elementwise layer, (N, elements) each; None for others."""
    activation = as_activation(leaf.module)
    if activation is not None:
        low, high = activation.local_slope_range(lo, hi)
        return low.flatten(1), high.flatten(1)
    ends = slope_range(leaf)
    if ends is None:
        return None
    beside = (1, -1, *[1] * (lo.dim() - 2))
    low, high = (end_C.to(lo).view(beside).expand_as(lo).flatten(1) for end_C in ends)
    return low, high
