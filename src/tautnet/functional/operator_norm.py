"""Spectral norms (p = 2 operator norms) of dense and convolutional maps, as upper bounds."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, cos, inf, pi

import torch
from torch import Tensor

# Relative allowance for the rounding of the float64 decompositions below; their error is near 1e-14.
_ROUNDING = 1 + 1e-10
# Frequencies a side beyond which a coarser grid is used, with the allowance for what lies between its points.
_MOST_FREQUENCIES = 64


def _exact(tensor: Tensor) -> Tensor:
    """As float64 on the CPU: other devices decompose float64 slowly or not at all."""
    return tensor.to("cpu", torch.float64)


def spectral_norm(weight_OI: Tensor) -> float:
    """Largest singular value of a matrix, by a float64 decomposition; inf if an entry is not finite."""
    if not weight_OI.isfinite().all():
        return inf
    return float(torch.linalg.matrix_norm(_exact(weight_OI), ord=2)) * _ROUNDING


def conv2d_spectral_norm(
    kernel: Tensor, image_size: Sequence[int], dilation: Sequence[int] = (1, 1), groups: int = 1
) -> float:
    """Upper bound of the spectral norm of a 2-D convolution with zero padding, any padding width, any stride.

    On a circular grid of at least n + dilation (k - 1) positions a side nothing wraps around, so the zero-padded
    convolution is a block of the circular one and its norm is at most as large; a stride drops rows and cannot
    increase it. The circular norm is the largest singular value over the frequencies of the channel matrices. At n
    positions the circular norm is *not* a bound (kernel (1, -1), n = 3: 1.802 against 1.732).

    For large images 64 frequencies a side are looked at. Between them a trigonometric polynomial of degree r, which
    u^H K(w) v is in either direction with r = ceil(dilation (k - 1) / 2), exceeds its largest value on N points by a
    factor of at most 1 / cos(pi r / N) (M. Riesz's lemma): 1.0012 a direction for k = 3.

    Source: the frequency formula is Sedghi, Gupta, Long (2019); the larger grid is an elementary argument.

    Args:
        kernel: shape (O, I / groups, kernel height, kernel width).
        image_size: height and width of the input.
        dilation: spacing of the kernel's taps, each at least 1.
        groups: channel groups; the norm is the largest of the groups'.

    Returns:
        The bound; inf if an entry is not finite.
    """
    if not kernel.isfinite().all():
        return inf
    kernel = _exact(kernel)
    spans = [d * (k - 1) for d, k in zip(dilation, kernel.shape[2:], strict=True)]
    dilated = kernel.new_zeros(*kernel.shape[:2], spans[0] + 1, spans[1] + 1)
    dilated[:, :, :: dilation[0], :: dilation[1]] = kernel
    full = [size + span for size, span in zip(image_size, spans, strict=True)]
    grid = [min(points, max(_MOST_FREQUENCIES, 4 * span)) for points, span in zip(full, spans, strict=True)]
    between = 1.0
    for points, most, span in zip(grid, full, spans, strict=True):
        between /= cos(pi * ceil(span / 2) / points) if points < most else 1.0
    # Real kernels: half of the frequencies are complex conjugates of the other half.
    spectrum_GOIF = torch.fft.rfft2(dilated, s=grid).flatten(2).unflatten(0, (groups, -1))
    matrices_FOI = spectrum_GOIF.permute(0, 3, 1, 2).flatten(0, 1)
    return float(_largest_singular_value(matrices_FOI)) * between * _ROUNDING


def _largest_singular_value(matrices_FOI: Tensor) -> Tensor:
    """Over a batch of matrices, through the smaller Gram matrix, whose eigenvalues are cheaper than an SVD."""
    outputs, inputs = matrices_FOI.shape[1:]
    adjoint_FIO = matrices_FOI.mH
    gram = matrices_FOI @ adjoint_FIO if outputs <= inputs else adjoint_FIO @ matrices_FOI
    return torch.linalg.eigvalsh(gram)[:, -1].max().clamp(min=0).sqrt()
