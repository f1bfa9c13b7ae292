"""Linear splines whose slopes stay in an interval, and whose changes of slope shrink.

All functions take values at uniform knots, one spline a row, as ``functional.linear_spline`` does.
"""

from __future__ import annotations

from math import inf

import torch
from torch import Tensor
from torch.nn.functional import softshrink


def limit_slopes(values_CK: Tensor, step_C1: Tensor, slope_min: float | None, slope_max: float | None) -> Tensor:
    r"""Clip every slope to [slope_min, slope_max] and keep each curve's mean value, differentiably.

    P(c) = D^+ clip(D c, step * slope_min, step * slope_max) + mean(c), with D the differences of neighbours and D^+ its
    pseudo-inverse: clip the differences, sum them up, shift to the mean of c. It is idempotent and leaves a feasible c
    alone, both up to the rounding below; it is not the Euclidean projection.

    The *stored* result keeps the limits, not only the real-valued one: (b - a) / step of two neighbours, computed in
    float64, lies in the interval. Proof: let q = 2 eps 2^e with eps of the result's dtype and 2^e > max |P(c)|. The
    result consists of integers times q below 2^(bits of the mantissa) in size, hence is exact in its dtype, and so are
    its differences n q. The integers n are clipped to those n with slope_min <= fl(n q / step) <= slope_max; division
    rounds monotonically, so checking the outermost n is checking all. The price is an error of up to q, in float32 at
    most 5e-7 max |P(c)|, for each difference at a limit, in the result but not in the derivative, which is that of P.

    An interval without 0 and narrower than q / step (``slope_min == slope_max``, for example) may hold no such n: then
    the limit nearer to 0 gives way, by less than 2 q / step, and the outer one holds.

    Source: Ducotterd et al. (2024), SplineProj, as their code and users of it have it; the exact rounding is ours.

    Args:
        values_CK: values at the knots, shape (C, K).
        step_C1: distance of the knots of each curve, above 0, float64, shape (C, 1) or (1, 1).
        slope_min: smallest slope; None for no limit.
        slope_max: largest slope, at least ``slope_min``; None for no limit.
    """
    wide_CK = values_CK.double()
    rises = wide_CK.diff(dim=1)
    if slope_min is not None:
        rises = rises.maximum(slope_min * step_C1)
    if slope_max is not None:
        rises = rises.minimum(slope_max * step_C1)
    ramps_CK = _sums(rises)
    limited_CK = ramps_CK + (wide_CK - ramps_CK).mean(dim=1, keepdim=True)
    dtype = torch.promote_types(values_CK.dtype, torch.float32)
    stored_CK = _on_lattice(limited_CK.detach(), step_C1.detach(), slope_min, slope_max, torch.finfo(dtype))
    return (stored_CK + (limited_CK - limited_CK.detach())).to(dtype)  # the bracket is 0 and carries the derivative


def _on_lattice(
    limited_CK: Tensor, step_C1: Tensor, slope_min: float | None, slope_max: float | None, info: torch.finfo
) -> Tensor:
    """The nearest multiples of q whose slopes keep the limits as float64 computes them."""
    largest_C1 = limited_CK.abs().amax(dim=1, keepdim=True).clamp(min=info.tiny / info.eps)
    quantum_C1 = 2 * info.eps * (largest_C1 / torch.frexp(largest_C1).mantissa)  # the quotient is a power of two
    least, most = -inf if slope_min is None else slope_min, inf if slope_max is None else slope_max
    lower, upper = -_multiples_below(-least, quantum_C1, step_C1), _multiples_below(most, quantum_C1, step_C1)
    if most < 0:  # where no multiple lies between, the last one below wins: it has to be the one nearer to 0
        upper = upper.maximum(lower)
    rises = (limited_CK / quantum_C1).round().diff(dim=1).maximum(lower).minimum(upper)
    lattice_CK = _sums(rises)
    return (lattice_CK + (limited_CK / quantum_C1 - lattice_CK).mean(dim=1, keepdim=True).round()) * quantum_C1


def _sums(rises: Tensor) -> Tensor:
    """0 and the running sums, (C, K-1) to (C, K)."""
    if rises.device.type == "cpu":
        return torch.nn.functional.pad(rises.cumsum(dim=1), (1, 0))
    size = rises.shape[1]  # cumsum on a GPU is not deterministic
    return rises @ torch.ones(size, size + 1, dtype=rises.dtype, device=rises.device).triu(1)


def _multiples_below(limit: float, quantum_C1: Tensor, step_C1: Tensor) -> Tensor:
    """The largest integer n with fl(n q / step) <= limit, or one less."""
    multiples_C1 = (limit * step_C1 / quantum_C1).floor()
    return multiples_C1 - (multiples_C1 * quantum_C1 / step_C1 > limit).double()  # the product was rounded


def shrink_slope_changes(values_CK: Tensor, step: float, amount: float) -> Tensor:
    r"""Move every change of slope towards 0 by ``amount``, those smaller than that onto it.

    With a the changes of slope and l the line that fits a curve's values best in least squares, (l, a) are coordinates
    of the splines. This is the proximal step of amount * ||a||_1 in them: l stays, a becomes sign(a) max(|a| - amount,
    0). It is not the proximal step in the values, which has no closed form. Computed in float64; in the result's dtype
    the changes that became 0 are so up to 2 eps max |values| / step.

    Args:
        values_CK: values at the knots, shape (C, K).
        step: distance of the knots.
        amount: in units of slope, at least 0.
    """
    wide_CK = values_CK.double()
    changes = wide_CK.diff(dim=1).diff(dim=1) / step
    bend_CK = step * _sums(_sums(softshrink(changes, amount) - changes))
    centred_K = torch.arange(wide_CK.shape[1], device=wide_CK.device, dtype=torch.float64)
    centred_K = centred_K - centred_K.mean()
    tilt_C1 = (bend_CK @ centred_K / centred_K.square().sum()).unsqueeze(1)
    return (wide_CK + bend_CK - bend_CK.mean(dim=1, keepdim=True) - tilt_C1 * centred_K).to(values_CK.dtype)
