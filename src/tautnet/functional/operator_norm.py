"""Spectral norms (p = 2 operator norms) of dense and convolutional maps, as upper bounds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import cos, inf, pi, prod, sqrt

import torch
import torch.nn.functional as F
from torch import Tensor

from tautnet.functional.eigenvalues import largest_in_batch
from tautnet.functional.padded_norm import padded_spectral_norm

PADDING_MODES = ("zeros", "circular", "reflect", "replicate")

# Relative allowance for the rounding of the float64 decompositions below; their error is near 1e-14.
_ROUNDING = 1 + 1e-10
# Frequencies a side beyond which a coarser grid is used, with the allowance for what lies between its points: at most
# so many, fewer for wide layers, whose matrices are dear, and never less than four times the kernel's span.
_MOST_FREQUENCIES = 64
_LEAST_FREQUENCIES = 16
_FREQUENCIES_TIMES_CHANNELS = 8192
# Numbers held at once by the matrices of a block of frequencies: 64 MiB.
_BLOCK = 2**22


_Phase = tuple[tuple[list[int], list[int]], ...]  # of each axis: indices of the taps in the kernel, and their steps


def _exact(tensor: Tensor) -> Tensor:
    """As float64 on the CPU: other devices decompose float64 slowly or not at all."""
    return tensor.detach().to("cpu", torch.float64)


def spectral_norm(weight_OI: Tensor) -> float:
    """Largest singular value of a matrix, by a float64 decomposition; inf if an entry is not finite."""
    if not weight_OI.isfinite().all():
        return inf
    return float(torch.linalg.matrix_norm(_exact(weight_OI), ord=2)) * _ROUNDING


@dataclass(frozen=True)
class _Axis:
    """One direction of a convolution, as a circular convolution of phases that contains it.

    Attributes:
        stride: number of phases.
        taps: index in the kernel and place in the dilated kernel of every tap that is read.
        points: positions of a phase on the circle.
        factor: what the norm of the padding adds.
    """

    stride: int
    taps: tuple[tuple[int, int], ...]
    points: int
    factor: float = 1.0

    @property
    def steps(self) -> list[int]:
        """Places of the taps within their phases."""
        return [place // self.stride for _, place in self.taps]

    def phases(self) -> list[tuple[list[int], list[int]]]:
        """Of every phase that is read: the taps' indices in the kernel and their steps."""
        found: dict[int, tuple[list[int], list[int]]] = {}
        for (index, place), step in zip(self.taps, self.steps, strict=True):
            indices, steps = found.setdefault(place % self.stride, ([], []))
            indices.append(index)
            steps.append(step)
        return list(found.values())

    def grid(self, most: int) -> tuple[int, float]:
        """Number of frequencies to look at and the allowance for those between them."""
        span = max(self.steps) - min(self.steps)
        points = min(self.points, max(most, 4 * span)) if span else 1
        return points, 1.0 if points in (1, self.points) else 1 / cos(pi * span / (2 * points))


def conv_spectral_norm(
    kernel: Tensor,
    input_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int],
    groups: int,
    padding_mode: str,
) -> float:
    r"""Upper bound of the spectral norm of an n-d convolution without its bias, n = 1, 2, 3.

    Stride: position s j + a of the input belongs to phase a. A convolution of stride s is one of stride 1 from s^n
    times as many channels, the phases, whose kernels are the taps of each phase.

    Zero padding: output i reads position q through tap q - i. On a circle so large that no q - i met by the image
    leaves the taps on one side and enters them on the other, the convolution is a block of the circular one, whose norm
    is the largest singular value over the frequencies of the channel matrices. At as many points as the image has the
    circular norm is *not* a bound (kernel (1, -1), n = 3: 1.802 against 1.732). Taps that only ever read padding are
    left out.

    Circular padding is the circular convolution of the image itself: exact if the stride divides the image and every
    phase is put out once; if no more outputs are made than the image has pixels, rows of the one without stride.
    Otherwise, and for the other modes: the convolution without padding of a padded image, times the norm of the
    padding, which copies pixels, the square root of the largest number of copies; or ``padded_spectral_norm``,
    nearly exact, where it can be afforded.

    Between the N points a side of a grid coarser than the circle, |K(w) v|^2 is a trigonometric polynomial in each
    direction, of degree at most the span r of the taps, and exceeds its largest value on the points by a factor of at
    most 1 / cos(pi r / (2 N))^2 (M. Riesz's lemma applied to it less half its maximum).

    Source: the frequency formula is Sedghi, Gupta, Long (2019); polyphase form, circle and grid are elementary.

    Args:
        kernel: shape (O, I / groups, \*k) with n sides k.
        input_size: n sides of the image before padding.
        stride: n steps, each at least 1.
        padding: n pairs (before, after), each at least 0.
        dilation: n spacings of the kernel's taps, each at least 1.
        groups: channel groups; the norm is the largest of the groups'.
        padding_mode: ``zeros``, ``circular``, ``reflect`` or ``replicate``.

    Returns:
        The bound; inf if an entry is not finite.

    Raises:
        ValueError: an unknown padding mode.
    """
    if padding_mode not in PADDING_MODES:
        raise ValueError(f"padding_mode={padding_mode}: one of {', '.join(PADDING_MODES)}")
    if not kernel.isfinite().all():
        return inf
    kernel = _exact(kernel)
    scale = float(kernel.abs().max())
    axes = [
        _axis(*settings, padding_mode)
        for settings in zip(kernel.shape[2:], input_size, stride, padding, dilation, strict=True)
    ]
    if scale == 0 or not all(axis.taps for axis in axes):
        return 0.0
    channels = min(kernel.shape[0] // groups, kernel.shape[1])
    most = max(_LEAST_FREQUENCIES, min(_MOST_FREQUENCIES, _FREQUENCIES_TIMES_CHANNELS // channels))
    grids, allowances = zip(*(axis.grid(most) for axis in axes), strict=True)
    largest = 0.0
    for matrices_FOI in _channel_matrices(kernel / scale, axes, grids, groups):
        largest = _largest_eigenvalue(_gram(matrices_FOI), largest)
    bound = sqrt(largest) * prod(allowances) * prod(axis.factor for axis in axes) * _ROUNDING
    if any(axis.factor > 1 for axis in axes):
        settings = input_size, stride, padding, dilation, groups, padding_mode
        bound = padded_spectral_norm(kernel / scale, *settings, known=bound)
    return scale * bound


def _axis(size: int, image: int, stride: int, padding: tuple[int, int], dilation: int, mode: str) -> _Axis:
    """How one direction is looked at; see ``conv_spectral_norm``."""
    taps = tuple((index, dilation * index) for index in range(size))
    span = dilation * (size - 1)
    outputs = (image + sum(padding) - span - 1) // stride + 1
    if mode == "circular" and outputs * stride == image:
        return _Axis(stride, taps, image // stride)
    if mode == "circular" and sum(padding) <= span:  # rows of stride 1, none of them twice
        return _Axis(1, taps, image)
    if mode == "zeros":
        return _zero_padded(taps, stride, outputs, padding[0], image)
    padded = _zero_padded(taps, stride, outputs, 0, image + sum(padding))
    return replace(padded, factor=sqrt(_copies(image, padding, mode)))


def _zero_padded(taps: tuple[tuple[int, int], ...], stride: int, outputs: int, before: int, image: int) -> _Axis:
    """With zeros around the image, of which ``before`` lie in front."""

    def is_read(place: int) -> bool:
        first, last = -((place - before) // stride), (before + image - 1 - place) // stride
        return max(first, 0) <= min(last, outputs - 1)

    axis = _Axis(stride, tuple(tap for tap in taps if is_read(tap[1])), 1)
    if not axis.taps:
        return axis
    # Within a phase, q - i runs from `least` to `most`. On the circle a tap is met again `points` away, outside of it.
    least, most = before // stride - (outputs - 1), (before + image - 1) // stride
    return replace(axis, points=max(most - min(axis.steps), max(axis.steps) - least) + 1)


def _copies(image: int, padding: tuple[int, int], mode: str) -> int:
    """How often the most frequent pixel occurs in a padded line."""
    line = torch.arange(image, dtype=torch.float64).view(1, 1, -1)
    return int(F.pad(line, padding, mode=mode).long().flatten().bincount().max())


def _channel_matrices(kernel: Tensor, axes: Sequence[_Axis], grids: Sequence[int], groups: int) -> Iterator[Tensor]:
    """The matrices (frequencies x groups, O / groups, phases x I / groups), in blocks of frequencies."""
    phases = list(product(*(axis.phases() for axis in axes)))
    halves = [*grids[:-1], grids[-1] // 2 + 1]  # real kernels: the other half are complex conjugates
    length = max(1, _BLOCK // (len(phases) * kernel.shape[0] * kernel.shape[1]))
    for start in range(0, prod(halves), length):
        block = torch.arange(start, min(start + length, prod(halves)))
        frequencies_Fn = torch.stack(torch.unravel_index(block, halves), dim=1)
        parts = [_spectrum(kernel, phase, frequencies_Fn, torch.tensor(grids)) for phase in phases]
        yield torch.cat(parts, dim=2).reshape(len(block) * groups, kernel.shape[0] // groups, -1)


def _spectrum(kernel: Tensor, phase: _Phase, frequencies_Fn: Tensor, grids_n: Tensor) -> Tensor:
    """Fourier transform (F, O, I / groups) of the taps of one phase."""
    for axis, (indices, _) in enumerate(phase):
        kernel = kernel.index_select(2 + axis, torch.tensor(indices))
    steps_Tn = torch.tensor(list(product(*(steps for _, steps in phase))))
    turns_FT = ((frequencies_Fn[:, None] * steps_Tn) % grids_n / grids_n.double()).sum(2)
    taps_TD = kernel.flatten(2).flatten(0, 1).T
    parts = [(wave(2 * pi * turns_FT) @ taps_TD).view(-1, *kernel.shape[:2]) for wave in (torch.cos, torch.sin)]
    return torch.complex(*parts)


def _gram(matrices_FOI: Tensor) -> Tensor:
    """The smaller Gram matrix, whose eigenvalues are cheaper than a singular value decomposition."""
    outputs, inputs = matrices_FOI.shape[1:]
    adjoint_FIO = matrices_FOI.mH
    return matrices_FOI @ adjoint_FIO if outputs <= inputs else adjoint_FIO @ matrices_FOI


def _largest_eigenvalue(gram_FCC: Tensor, at_least: float) -> float:
    if gram_FCC.shape[1] == 1:
        return max(at_least, float(gram_FCC.real.max()))
    return largest_in_batch(gram_FCC, lambda chosen: torch.linalg.eigvalsh(chosen)[:, -1], at_least)[0]
