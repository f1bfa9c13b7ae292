r"""Linear splines on a uniform grid: evaluation, slopes, images of boxes.

A spline has K coefficients, its values at the knots ``t_k = -grid_range + k * step`` with
``step = 2 * grid_range / (K - 1)``; between knots it is a straight line, outside the grid the border line goes on.
All functions take ``coefficients_CK``, one spline a row, or a single one for all, and points (N, C, *). The border
coefficients fix the two border lines and carry no change of slope, so K coefficients have K - 2 slope changes.

Source: Bohra, Campos, Gupta, Aziznejad, Unser (2020), B-spline form; the formulas are given where they are used.
"""

from __future__ import annotations

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
    """Smallest and largest value of spline c on ``[lo[:, c], hi[:, c]]``: taken at an end or at a knot inside."""
    ends = (evaluate(lo, coefficients_CK, grid_range), evaluate(hi, coefficients_CK, grid_range))
    low, high = torch.minimum(*ends), torch.maximum(*ends)
    knots = knot_positions(coefficients_CK.shape[1], grid_range).tolist()
    for knot, value_C in zip(knots, coefficients_CK.unbind(1), strict=True):
        inside, value = (lo <= knot) & (knot <= hi), beside(lo, value_C)
        low = torch.where(inside, torch.minimum(low, value), low)
        high = torch.where(inside, torch.maximum(high, value), high)
    return low, high


def local_slope_range(lo: Tensor, hi: Tensor, coefficients_CK: Tensor, grid_range: float) -> tuple[Tensor, Tensor]:
    """Smallest and largest slope of spline c among the cells that ``[lo[:, c], hi[:, c]]`` touches."""
    knots = knot_positions(coefficients_CK.shape[1], grid_range).tolist()
    starts, ends = [-float("inf"), *knots[1:-1]], [*knots[1:-1], float("inf")]
    smallest, largest = torch.full_like(lo, float("inf")), torch.full_like(lo, -float("inf"))
    for start, end, slope_C in zip(starts, ends, slopes(coefficients_CK, grid_range).unbind(1), strict=True):
        touched, slope = (lo <= end) & (start <= hi), beside(lo, slope_C)
        smallest = torch.where(touched, torch.minimum(smallest, slope), smallest)
        largest = torch.where(touched, torch.maximum(largest, slope), largest)
    return smallest, largest
