"""How a tensor lies in memory, as the kernels see it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Layout(NamedTuple):
    """Element i of the memory belongs to curve (i // inner) % curves; there are rows * curves * inner elements."""

    rows: int
    curves: int
    inner: int


def dense_like(x: Tensor, like: Tensor) -> Tensor:
    """``x`` with the strides that ``torch.empty_like(like)`` has; copied only where they differ or leave gaps."""
    if x.stride() == like.stride() and _is_dense(x):
        return x
    return torch.empty_like(like, dtype=x.dtype).copy_(x)


def layout_of(x: Tensor, num_curves: int) -> Layout:
    """Layout of a dense (N, C, *) with C curves, or of anything with a single one."""
    if num_curves == 1:
        return Layout(1, 1, x.numel())
    inner = x.stride(1)  # the dimensions that vary faster than the channel fill this many elements
    return Layout(x.numel() // (num_curves * inner), num_curves, inner)


def _is_dense(x: Tensor) -> bool:
    """Whether the elements fill their memory, in whatever order of the dimensions."""
    if x.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True
