r"""Polynomials and trigonometric sums, one for each channel: enclosures of their range on boxes.

All functions take points (N, C, *) and one row of coefficients a channel, or a single one for all. Enclosures contain
every value on the box; they are computed in float64 and allow for its rounding, are differentiable in coefficients and
ends, give NaN for an end that is NaN and -inf, inf where an end is infinite (of Fourier sums a finite interval) or the
arithmetic overflows.
"""

from __future__ import annotations

from math import comb, inf, nan, pi

import torch
from torch import Tensor

from tautnet.functional.bases import frequencies

_PIECES = 4  # of a box: the excess of an enclosure falls with their square
_EPS = torch.finfo(torch.float64).eps


def beside(x: Tensor, values_C: Tensor) -> Tensor:
    """One value a curve, shaped to broadcast against x of (N, C, *)."""
    return values_C.view(-1, *[1] * (x.dim() - 2))


def derivative(coefficients_CP: Tensor) -> Tensor:
    """Coefficients of the derivatives, (C, P - 1)."""
    powers = torch.arange(coefficients_CP.shape[1], dtype=coefficients_CP.dtype, device=coefficients_CP.device)
    return (coefficients_CP * powers)[:, 1:]


def composed(coefficients_CP: Tensor, factor_C: Tensor, shift_C: Tensor) -> Tensor:
    """Coefficients of x -> P(factor x + shift), (C, P)."""
    result = torch.zeros_like(coefficients_CP)
    for a_C in reversed(coefficients_CP.unbind(1)):  # Horner's scheme on rows of coefficients
        raised = torch.nn.functional.pad(result[:, :-1], (1, 0))
        result = factor_C.unsqueeze(1) * raised + shift_C.unsqueeze(1) * result
        result = result + torch.nn.functional.pad(a_C.unsqueeze(1), (0, coefficients_CP.shape[1] - 1))
    return result


def range_on_box(lo: Tensor, hi: Tensor, coefficients_CP: Tensor) -> tuple[Tensor, Tensor]:
    r"""An interval that contains P([lo, hi]), from the Bernstein coefficients on pieces of the box.

    With P(m + r t) = sum_j q_j t^j on a piece, t in [-1, 1], P is a convex combination of its Bernstein coefficients
    b_i = sum_j M_ij q_j, so that the smallest and the largest of them enclose it; the outermost are the values at the
    ends. The excess is of second order in the width, for degree 1 nothing. Rounding: all |M_ij| <= 1 and
    |q_j| sum up to at most S = sum_p |a_p| R^p, R = max(|lo|, |hi|), and each takes some 2 P operations, so that
    16 P eps S is more than the error.

    Source: the range property of Bernstein's form, textbooks.

    Args:
        lo: lower ends, (N, C, *).
        hi: upper ends, at least ``lo``.
        coefficients_CP: constant first, (C, P) or (1, P).
    """
    low, high = lo.double(), hi.double()
    matrix_PP = _bernstein_of_powers(coefficients_CP.shape[1] - 1).to(lo.device)
    rows = [beside(low, a_C) for a_C in coefficients_CP.to(lo.device, torch.float64).unbind(1)]
    radius = (high - low) / (2 * _PIECES)
    smallest, largest = torch.full_like(low, inf), torch.full_like(low, -inf)
    for piece in range(_PIECES):
        bernstein = torch.stack(_around(low + (2 * piece + 1) * radius, radius, rows), dim=-1) @ matrix_PP.T
        smallest = torch.minimum(smallest, bernstein.amin(-1))
        largest = torch.maximum(largest, bernstein.amax(-1))
    size, far = rows[-1].abs(), torch.maximum(low.abs(), high.abs())
    for a in reversed(rows[:-1]):
        size = size * far + a.abs()
    return _outwards(smallest, largest, 16 * len(rows) * _EPS * size, lo, hi)


def _around(middle: Tensor, radius: Tensor, rows: list[Tensor]) -> list[Tensor]:
    """The q_j of P(middle + radius t), by repeated division by x - middle."""
    values = [a.expand_as(middle) for a in rows]
    for start in range(len(values) - 1):
        for p in reversed(range(start, len(values) - 1)):
            values[p] = torch.addcmul(values[p], middle, values[p + 1])
    power, scaled = torch.ones_like(radius), []
    for value in values:
        scaled.append(value * power)
        power = power * radius
    return scaled


def _bernstein_of_powers(degree: int) -> Tensor:
    """M: row i holds the i-th Bernstein coefficients on [-1, 1] of 1, t, t^2, ..., (degree + 1, degree + 1).

    That of t^j is the mean product of j out of i times 1 and degree - i times -1 (the polar form of t^j).
    """
    rows = [
        [
            sum(comb(i, k) * comb(degree - i, j - k) * (-1) ** (j - k) for k in range(j + 1)) / comb(degree, j)
            for j in range(degree + 1)
        ]
        for i in range(degree + 1)
    ]
    return torch.tensor(rows, dtype=torch.float64, device="cpu")


def _outwards(smallest: Tensor, largest: Tensor, rounding: Tensor, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
    """Ends moved outwards, infinite where nothing is known, in the dtype of the box."""
    known = (smallest - rounding).isfinite() & (largest + rounding).isfinite()
    unknown = lo.isnan() | hi.isnan()
    low = torch.where(known, smallest - rounding, -inf).masked_fill(unknown, nan)
    high = torch.where(known, largest + rounding, inf).masked_fill(unknown, nan)
    return low.to(lo.dtype), high.to(lo.dtype)


def trigonometric_range_on_box(
    lo: Tensor, hi: Tensor, weights_CK: Tensor, constant_C: Tensor, order: int = 0
) -> tuple[Tensor, Tensor]:
    r"""An interval that contains the values on [lo, hi] of a Fourier sum, or of its derivative.

    f(x) = constant + sum_i s_i sin(omega_i x) + c_i cos(nu_i x). Two enclosures are cut: the sum of the exact ranges
    of the terms, and f(m) -+ r max |f'| about the middle m, with |f'| bounded by the sum of the terms' ranges again.
    The excess is of second order in the width.

    Args:
        lo: lower ends, (N, C, *).
        hi: upper ends, at least ``lo``.
        weights_CK: s and then c, (C, 2 degree) or (1, 2 degree), as ``bases.elements`` orders them.
        constant_C: (C,) or (1,); no part of a derivative.
        order: 0 for f, 1 for f'.
    """
    low, high = lo.double(), hi.double()
    middle, radius = (low + high) / 2, (high - low) / 2
    terms, constant = _terms(lo, weights_CK, order), beside(low, constant_C.to(lo.device, torch.float64))
    constant = constant * (order == 0)
    smallest, largest = _sum_of_ranges(low, high, terms)
    slopes = _sum_of_ranges(low, high, _terms(lo, weights_CK, order + 1))
    reach = radius * torch.maximum(slopes[0].abs(), slopes[1].abs())
    value = sum((a * torch.cos(omega * middle - phase) for a, omega, phase in terms), torch.zeros_like(middle))
    smallest, largest = torch.fmax(smallest, value - reach), torch.fmin(largest, value + reach)  # no NaN of inf - inf
    # omega x is rounded, relative to its size, and so are the sums; but no cosine errs by more than 2
    unit, far = 16 * len(terms) * _EPS, torch.maximum(low.abs(), high.abs())
    errors = (a.abs() * (unit * (1 + omega * far)).clamp(max=2.0) for a, omega, _ in terms)
    return _outwards(smallest + constant, largest + constant, sum(errors, unit * constant.abs()), lo, hi)


def _terms(x: Tensor, weights_CK: Tensor, order: int) -> list[tuple[Tensor, float, float]]:
    """Amplitude, frequency and phase of a cos(omega x - phase) for each term of the derivative of that order."""
    sines, cosines = frequencies(weights_CK.shape[1] // 2)
    phases = [pi / 2] * len(sines) + [0.0] * len(cosines)
    rows = weights_CK.to(x.device, torch.float64).unbind(1)
    return [
        (beside(x, a_C) * omega**order, omega, phase - order * pi / 2)
        for a_C, omega, phase in zip(rows, sines + cosines, phases, strict=True)
    ]


def _sum_of_ranges(low: Tensor, high: Tensor, terms: list[tuple[Tensor, float, float]]) -> tuple[Tensor, Tensor]:
    smallest, largest = torch.zeros_like(low), torch.zeros_like(low)
    for a, omega, phase in terms:
        bottom, top = _cosine_range(omega * low - phase, omega * high - phase)
        ends = (a * bottom, a * top)
        smallest, largest = smallest + torch.minimum(*ends), largest + torch.maximum(*ends)
    return smallest, largest


def _cosine_range(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Range of cos on [low, high]: at an end, or 1 at a multiple of 2 pi inside and -1 half a turn further.

    A multiple within rounding of an end counts as inside.
    """
    margin = 8 * _EPS * (1 + torch.maximum(low.abs(), high.abs()))
    first, last = (low - margin) / (2 * pi), (high + margin) / (2 * pi)
    ends = (low.cos(), high.cos())
    crest, trough = first.ceil() <= last.floor(), (first - 0.5).ceil() <= (last - 0.5).floor()
    return torch.where(trough, -1.0, torch.minimum(*ends)), torch.where(crest, 1.0, torch.maximum(*ends))
