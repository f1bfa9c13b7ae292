r"""Linear splines on a uniform grid: evaluation, slopes, images of boxes.

A spline has K coefficients, its values at the knots ``t_k = -grid_range + k * step`` with
``step = 2 * grid_range / (K - 1)``; between knots it is a straight line, outside the grid the border line goes on.
All functions take ``coefficients_CK``, one spline a row, or a single one for all, and points (N, C, *). The border
coefficients fix the two border lines and carry no change of slope, so K coefficients have K - 2 slope changes.

Source: Bohra, Campos, Gupta, Aziznejad, Unser (2020), B-spline form; the formulas are given where they are used.
"""

from __future__ import annotations

from math import nan

import torch
from torch import Tensor

from tautnet.kernels import linear_spline


def knot_step(num_knots: int, grid_range: float) -> float:
    """Distance of two neighbouring knots."""
    return 2.0 * grid_range / (num_knots - 1)


def knot_positions(num_knots: int, grid_range: float) -> Tensor:
    """The knots, shape (K,), float64, exactly symmetric around 0."""
    centred = torch.arange(num_knots, dtype=torch.float64) - (num_knots - 1) / 2
    return centred * knot_step(num_knots, grid_range)


def slopes(coefficients_CK: Tensor, grid_range: float) -> Tensor:
    """Slopes between knots, shape (C, K-1)."""
    return coefficients_CK.diff(dim=1) / knot_step(coefficients_CK.shape[1], grid_range)


def slope_changes(coefficients_CK: Tensor, grid_range: float) -> Tensor:
    """Changes of slope at the inner knots, a_k = (c_{k-1} - 2 c_k + c_{k+1}) / step, shape (C, K-2)."""
    return slopes(coefficients_CK, grid_range).diff(dim=1)


def evaluate(x: Tensor, coefficients_CK: Tensor, grid_range: float, backend: str = "auto") -> Tensor:
    """Value of spline c at ``x[:, c]``, in the dtype of ``x``; with a single spline, its value everywhere.

    NaN gives NaN. The derivative at a knot is the right-hand slope. Positions are computed in float32 at least: a
    bfloat16 position would lose the knot.

    Args:
        x: points, shape (N, C, *).
        coefficients_CK: values at the knots, shape (C, K) or (1, K).
        grid_range: half-width of the knot interval, in the unit of x.
        backend: see ``tautnet.kernels.linear_spline``.
    """
    wide = torch.promote_types(torch.promote_types(x.dtype, coefficients_CK.dtype), torch.float32)
    points = x.to(wide) if wide == torch.float64 else x
    return linear_spline(points, coefficients_CK.to(wide), grid_range, backend).to(x.dtype)


def beside(x: Tensor, values_C: Tensor) -> Tensor:
    """One value a curve, shaped to broadcast against x of (N, C, *)."""
    return values_C.view(-1, *[1] * (x.dim() - 2))


def interval(lo: Tensor, hi: Tensor, coefficients_CK: Tensor, grid_range: float) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of spline c on ``[lo[:, c], hi[:, c]]``: taken at an end or at a knot inside.

    A knot within rounding of an end counts as inside. Differentiable in the coefficients and the ends.

    Args:
        lo: lower ends, shape (N, C, *); infinite ones are allowed, NaN gives NaN.
        hi: upper ends, at least ``lo``.
        coefficients_CK: values at the knots, shape (C, K) or (1, K).
        grid_range: half-width of the knot interval, in the unit of the ends.
    """
    ends = (evaluate(lo, coefficients_CK, grid_range), evaluate(hi, coefficients_CK, grid_range))
    num_knots = coefficients_CK.shape[1]
    position_lo, position_hi = _outward_positions(lo, hi, num_knots, grid_range, coefficients_CK.dtype)
    first, last = position_lo.ceil().long().clamp(min=0), position_hi.floor().long().clamp(max=num_knots - 1)
    inside = first <= last
    low, high = range_extremes(coefficients_CK, first.clamp(max=num_knots - 1), torch.maximum(first, last))
    low = torch.where(inside, torch.minimum(ends[0], low.to(lo.dtype)), ends[0])
    high = torch.where(inside, torch.maximum(ends[0], high.to(lo.dtype)), ends[0])
    return torch.minimum(low, ends[1]), torch.maximum(high, ends[1])


def local_slope_range(lo: Tensor, hi: Tensor, coefficients_CK: Tensor, grid_range: float) -> tuple[Tensor, Tensor]:
    """Smallest and largest slope of spline c among the cells that ``[lo[:, c], hi[:, c]]`` touches.

    An end within rounding of a knot touches both of its cells. Arguments and gradients as of ``interval``.
    """
    num_cells = coefficients_CK.shape[1] - 1
    position_lo, position_hi = _outward_positions(lo, hi, num_cells + 1, grid_range, coefficients_CK.dtype)
    first = (position_lo.ceil().long() - 1).clamp(0, num_cells - 1)
    last = position_hi.floor().long().clamp(0, num_cells - 1)
    smallest, largest = range_extremes(slopes(coefficients_CK, grid_range), first, torch.maximum(first, last))
    unknown = lo.isnan() | hi.isnan()
    return smallest.to(lo.dtype).masked_fill(unknown, nan), largest.to(lo.dtype).masked_fill(unknown, nan)


@torch.no_grad()
def _outward_positions(
    lo: Tensor, hi: Tensor, num_knots: int, grid_range: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Positions of the ends in units of cells, knot k at k, moved outwards by more than they were rounded.

    Inside the grid the sum, the factor and the product err by at most 4 units in the last place of K, and an end that
    is itself a rounded multiple by one more. Ends beyond the grid are moved near to it.
    """
    wide = torch.promote_types(torch.promote_types(lo.dtype, dtype), torch.float32)
    rounding = 8 * torch.finfo(wide).eps * num_knots
    scale = (num_knots - 1) / (2 * grid_range)
    at_lo, at_hi = (((end.to(wide) + grid_range) * scale).nan_to_num(nan=0.0) for end in (lo, hi))
    return (at_lo - rounding).clamp(-1, num_knots), (at_hi + rounding).clamp(-1, num_knots)


def range_extremes(values_CK: Tensor, first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest of ``values_CK[c, first[:, c]], ..., values_CK[c, last[:, c]]``, shape (N, C, *).

    Two look-ups each, whatever the length: a table holds where the extreme of each run of 2^j values lies, and two
    runs cover a range. The gradient goes to the value that is the extreme, the first found of equal ones.

    Args:
        values_CK: shape (C, K) or (1, K).
        first: int64 indices from 0, shape (N, C, *).
        last: indices, at least ``first`` and below K.
    """
    num_curves, num_values = values_CK.shape
    curve = beside(first, torch.arange(num_curves, device=first.device))
    level_of_length = torch.arange(num_values + 1, device=first.device).clamp(min=1).double().log2().floor().long()
    level = level_of_length[last - first + 1]
    row = (level * num_curves + curve) * num_values
    starts = (row + first, row + last + 1 - (1 << level))
    known, flat = values_CK.detach().flatten(), values_CK.flatten()

    def extreme(sign: int) -> Tensor:
        a, b = (_runs(sign * values_CK.detach()).index_select(0, start.flatten()) for start in starts)
        chosen = torch.where(sign * known[a] >= sign * known[b], a, b)
        return flat.index_select(0, chosen).view(first.shape)

    return extreme(-1), extreme(1)


def _runs(values_CK: Tensor) -> Tensor:
    """Where in the flat ``values_CK`` the largest of each run of 2^j values lies, by level j, curve and start, flat."""
    num_curves, num_values = values_CK.shape
    flat = values_CK.flatten()
    best = torch.arange(flat.numel(), device=flat.device).view(num_curves, num_values)
    levels, length = [best], 1
    while 2 * length <= num_values:
        other = torch.cat([best[:, length:], best[:, -length:]], dim=1)  # runs that leave the row are never asked for
        best = torch.where(flat[other] > flat[best], other, best)
        levels.append(best)
        length *= 2
    return torch.stack(levels).flatten()
