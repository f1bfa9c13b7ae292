"""Spectral norms by Gram iteration: differentiable upper bounds, on the device of the weight."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import cos, pi, prod

import torch
from torch import Tensor

from tautnet.functional.eigenvalues import largest_in_batch

# Frequencies a side for each step that the taps of a phase span: 1 / cos(pi / 16) = 1.0196 for what lies between.
_POINTS_PER_STEP = 8
_EPS = torch.finfo(torch.float64).eps
_BLOCK = 2**22  # numbers held at once by the matrices of a block of frequencies: 64 MiB
_TINY = 1e-200  # keeps quotients and gradients of zeros finite; float64 squares it no further


def gram_spectral_norm(weight_OI: Tensor, num_iterations: int) -> Tensor:
    r"""Upper bound of the largest singular value of a matrix after any number of iterations; differentiable.

    With G = W W^T or W^T W, the smaller, the bound is ||G^(2^t)||_F^(2^-(t+1)) for t = ``num_iterations``: never below
    the largest singular value, nor above it by more than a factor r^(2^-(t+2)), r the rank. It is computed as X_0 = G,
    X_{k+1} = (X_k / c_k)^2, c_k = ||X_k||_F, and back from the last: b_t = ||X_t||_F, b_k = c_k sqrt(b_{k+1}), where
    b_k bounds the largest eigenvalue of X_k, so that nothing can overflow.

    Rounding: a product of matrices of inner size m is off by at most m eps ||A||_F ||B||_F; as much is added to each
    b_{k+1} before the root. All is done in float64, whatever the weight's type, because float32 products may be carried
    out in shorter types on some devices without a sign of it; the result is rounded up to the weight's type.

    Source: Delattre, Barthélemy, Araujo, Allauzen (2023), arXiv 2305.16173. Differences: no logarithms, and the
    allowance for rounding.

    Args:
        weight_OI: a matrix of floating numbers; NaN where an entry is not finite.
        num_iterations: squarings, at least 0.

    Returns:
        A scalar of the weight's type, on its device.
    """
    scaled_OI, scale = _scaled(weight_OI)
    rounding = _slack(max(weight_OI.shape)) * scaled_OI.detach().square().sum() + _TINY
    square = _eigenvalue_bound(_gram(scaled_OI)[None], num_iterations)[0] + rounding
    return _rounded_up(scale * square.sqrt(), weight_OI.dtype)


def gram_conv_spectral_norm(
    kernel: Tensor, stride: Sequence[int], dilation: Sequence[int], groups: int, num_iterations: int
) -> Tensor:
    r"""Upper bound of the spectral norm of a convolution with zero padding of any width on images of any size.

    Such a convolution is a block of the one on an endless image, whose norm is the largest singular value of the
    channel matrices K(w) of all frequencies; of a stride, of those of its phases (see ``conv_spectral_norm``). A grid
    is looked at, N = 8 frequencies a side for each step that the taps span, r steps in all, and what lies between them
    is covered by 1 / cos(pi r / (2 N)): 1.0196 a side.

    The matrices G(w) = K(w) K(w)^H, or K(w)^H K(w), are trigonometric polynomials of degree r, hence known from 2 r + 1
    frequencies a side. Gram iteration as in ``gram_spectral_norm`` bounds the most promising, Cholesky factorisations
    show that no other exceeds the largest of these bounds, and the gradient is that of this one, the only one that it
    has to pass. On an accelerator this costs a few synchronisations.

    Source: as ``gram_spectral_norm``. Ours: the grid in place of one of the image's size, which bounds circular
    convolutions alone; interpolation; Cholesky factorisations in place of the iteration for every frequency.

    Args:
        kernel: shape (O, I / groups, \*k) with n sides k.
        stride: n steps, each at least 1.
        dilation: n spacings of the kernel's taps, each at least 1.
        groups: channel groups; the norm is the largest of the groups'.
        num_iterations: squarings, at least 0.

    Returns:
        A scalar of the kernel's type, on its device.
    """
    if kernel.is_meta:  # nothing to decide on
        return kernel.new_empty(())
    scaled, scale = _scaled(kernel)
    taps = _Taps(kernel, stride, dilation, groups)
    frequencies_Fn = _half_grid(taps.grid)
    with torch.no_grad():
        largest, best_n = 0.0, frequencies_Fn[0]
        lags_LGCC = taps.lags(scaled)
        length = max(1, _BLOCK // lags_LGCC[0].numel())
        for start in range(0, len(frequencies_Fn), length):
            block_Fn = frequencies_Fn[start : start + length]
            gram_FCC = taps.interpolated(lags_LGCC, block_Fn).flatten(0, 1)
            largest, index = largest_in_batch(gram_FCC, lambda x_FCC: _eigenvalue_bound(x_FCC, num_iterations), largest)
            best_n = best_n if index is None else block_Fn[index // groups]
    live = _eigenvalue_bound(_gram(taps.matrices(scaled, best_n[None], taps.grid)).flatten(0, 1), num_iterations).max()
    channels = lags_LGCC.shape[-1]
    value = live.detach().clamp(min=largest) * (1 + channels * _slack(channels)) + taps.rounding(scaled.detach())
    square = live + (value - live.detach())
    return _rounded_up(scale * taps.between * square.sqrt(), kernel.dtype)


class _Taps:
    """The taps of a kernel by phase, and what depends on their places alone.

    Attributes:
        grid: frequencies in each direction, one where nothing depends on them.
        between: allowance for what lies between the frequencies.
    """

    def __init__(self, kernel: Tensor, stride: Sequence[int], dilation: Sequence[int], groups: int) -> None:
        self.groups = groups
        # Of every phase: the taps' places in the flattened kernel, and their steps in each direction.
        self.phases: dict[tuple[int, ...], tuple[list[int], list[list[int]]]] = {}
        for place, index in enumerate(product(*map(range, kernel.shape[2:]))):
            taps = [d * i for d, i in zip(dilation, index, strict=True)]
            phase = tuple(tap % s for tap, s in zip(taps, stride, strict=True))
            places, steps = self.phases.setdefault(phase, ([], []))
            places.append(place)
            steps.append([tap // s for tap, s in zip(taps, stride, strict=True)])
        # Every phase with a tap has none before step 0, and phase 0 has one there.
        self.spans = [d * (k - 1) // s for d, k, s in zip(dilation, kernel.shape[2:], stride, strict=True)]
        self.grid = [max(1, _POINTS_PER_STEP * span) for span in self.spans]
        self.between = 1 / prod(
            cos(pi * span / (2 * points)) for span, points in zip(self.spans, self.grid, strict=True)
        )

    def matrices(self, kernel: Tensor, frequencies_Fn: Tensor, grid: Sequence[int]) -> Tensor:
        """The channel matrices of the kernel, (F, groups, O / groups, phases I / groups)."""
        parts = []
        for places, steps in self.phases.values():
            waves_FT = _waves(frequencies_Fn, steps, grid, kernel.device)
            taps_TD = kernel.flatten(2)[:, :, places].flatten(0, 1).T
            parts.append((waves_FT @ taps_TD.to(waves_FT.dtype)).view(-1, *kernel.shape[:2]))
        return torch.cat(parts, dim=2).reshape(len(frequencies_Fn), self.groups, kernel.shape[0] // self.groups, -1)

    def lags(self, kernel: Tensor) -> Tensor:
        """Coefficients (L, groups, C, C) of the Gram matrices, steps -r to r in each direction."""
        sizes = [2 * span + 1 for span in self.spans]
        gram_FGCC = _gram(self.matrices(kernel, _half_grid(sizes), sizes))
        spectrum = gram_FGCC.view(*sizes[:-1], sizes[-1] // 2 + 1, *gram_FGCC.shape[1:])
        directions = list(range(len(sizes)))
        lags = torch.fft.irfftn(spectrum, s=sizes, dim=directions)
        return torch.fft.fftshift(lags, dim=directions).flatten(0, len(sizes) - 1)

    def interpolated(self, lags_LGCC: Tensor, frequencies_Fn: Tensor) -> Tensor:
        """The Gram matrices at frequencies of the grid, (F, groups, C, C)."""
        steps = [list(step) for step in product(*(range(-span, span + 1) for span in self.spans))]
        waves_FL = _waves(frequencies_Fn, steps, self.grid, lags_LGCC.device)
        gram_FD = torch.complex(*(part @ lags_LGCC.flatten(1) for part in (waves_FL.real, waves_FL.imag)))
        return gram_FD.view(-1, *lags_LGCC.shape[1:])

    def rounding(self, kernel: Tensor) -> Tensor:
        """Bound of what rounding does to the eigenvalues of interpolated Gram matrices.

        The sizes of all sums times eps, times the sum over lags of the norms of the coefficients: with T taps at most
        (sum_t ||K_t||_F)^2 <= T ||K||_F^2.
        """
        num_taps, num_lags = prod(kernel.shape[2:]), prod(2 * span + 1 for span in self.spans)
        slack = _slack(max(kernel.shape[0], kernel.shape[1] * len(self.phases)) + 2 * num_taps + 2 * num_lags)
        return slack * num_taps * torch.linalg.vector_norm(kernel).square()


def _half_grid(grid: Sequence[int]) -> Tensor:
    """One of each pair of conjugate frequencies, which is all that a real kernel needs, (F, n)."""
    return torch.tensor(list(product(*map(range, [*grid[:-1], grid[-1] // 2 + 1]))))


def _waves(frequencies_Fn: Tensor, steps: list[list[int]], grid: Sequence[int], device: torch.device) -> Tensor:
    """exp(-2 pi i f step / grid), (F, steps)."""
    grid_n = torch.tensor(grid)
    turns_FT = ((frequencies_Fn[:, None] * torch.tensor(steps)) % grid_n / grid_n.double()).sum(2)
    return torch.polar(torch.ones_like(turns_FT), -2 * pi * turns_FT).to(device)


def _gram(matrices: Tensor) -> Tensor:
    """The smaller of the two Gram matrices."""
    return matrices @ matrices.mH if matrices.shape[-2] <= matrices.shape[-1] else matrices.mH @ matrices


def _slack(inner: int) -> float:
    """Relative rounding error of a complex product of matrices of this inner size, more than twice over."""
    return 2 * (inner + 8) * _EPS


def _scaled(weight: Tensor) -> tuple[Tensor, Tensor]:
    """In float64 with largest entry 1, and the scale. Gradients need not pass the scale: it does not matter."""
    wide = weight.to(torch.float64)
    scale = wide.detach().abs().amax().clamp(min=_TINY)
    return wide / scale, scale


def _rounded_up(bound: Tensor, dtype: torch.dtype) -> Tensor:
    info = torch.finfo(dtype)
    return (bound * (1 + info.eps) + info.smallest_normal * info.eps).to(dtype)


def _eigenvalue_bound(x_FCC: Tensor, num_iterations: int) -> Tensor:
    """Upper bounds (F,) of the largest eigenvalues of a batch of Gram matrices; see ``gram_spectral_norm``."""
    channels = x_FCC.shape[-1]
    scales = []
    for _ in range(num_iterations):
        scales.append(torch.linalg.vector_norm(x_FCC.detach(), dim=(1, 2)).clamp(min=_TINY))
        y_FCC = x_FCC / scales[-1].view(-1, 1, 1)
        x_FCC = y_FCC @ y_FCC
    bound_F = torch.linalg.vector_norm(x_FCC, dim=(1, 2)) * (1 + channels**2 * _EPS)
    for scale_F in reversed(scales):
        bound_F = scale_F * (bound_F + _slack(channels)).sqrt()
    return bound_F
