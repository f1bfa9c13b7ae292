"""Fewer knots for linear splines: which knots go, and the values on the grid without them.

All functions take ``values_CK``, float64, the values of one spline a row on K equidistant positions, and speak in the
unit of the index: the step is 1 and a slope change is v_{k-1} - 2 v_k + v_{k+1}. Inner knot j stands at position j + 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

_CURVES_AT_ONCE = 64  # (curves, K-2, K-2) has to fit into memory


def bends(values_CK: Tensor) -> Tensor:
    """Slope changes at the inner knots, shape (C, K-2)."""
    return values_CK.diff(dim=1).diff(dim=1)


def anchored(values_CK: Tensor, survives_CJ: Tensor) -> Tensor:
    """The splines without the slope changes of the other knots, rebuilt from left to right.

    v_k = 2 v_{k-1} - v_{k-2} + a_{k-1}, with a = 0 where a knot goes; the first two values stay, so whatever goes tilts
    everything to its right.

    Source: the sparsification of Aziznejad et al. (2020) in the authors' code.

    Args:
        values_CK: values on the grid.
        survives_CJ: bool, (C, K-2), the inner knots that stay.
    """
    first_slope_C1 = values_CK[:, 1:2] - values_CK[:, :1]
    slopes = torch.cat([first_slope_C1, torch.where(survives_CJ, bends(values_CK), 0.0)], dim=1).cumsum(dim=1)
    return torch.cat([values_CK[:, :1], slopes], dim=1).cumsum(dim=1)


def refitted(values_CK: Tensor, survives_CJ: Tensor) -> Tensor:
    """The closest splines that bend at the surviving knots alone: least squares over the values on the grid.

    The unknowns are the values at the surviving knots and at both ends, a well-conditioned basis; both border lines are
    free.

    Args:
        values_CK: values on the grid.
        survives_CJ: bool, (C, K-2), the inner knots that stay.
    """
    fitted = torch.empty_like(values_CK)
    for curve, (values_K, survives_J) in enumerate(zip(values_CK, survives_CJ, strict=True)):
        basis_KM = _hats(survives_J)
        fitted[curve] = basis_KM @ torch.linalg.lstsq(basis_KM, values_K.unsqueeze(1)).solution.squeeze(1)
    return fitted


def _hats(survives_J: Tensor) -> Tensor:
    """Values on the grid (K) of the hat functions on the surviving knots and both ends (M)."""
    nodes_M = torch.nn.functional.pad(survives_J, (1, 1), value=True).nonzero().squeeze(1)
    grid_K = torch.arange(len(survives_J) + 2)
    right_K = torch.searchsorted(nodes_M, grid_K).clamp(min=1)
    left_K = right_K - 1
    share_K = (grid_K - nodes_M[left_K]).double() / (nodes_M[right_K] - nodes_M[left_K])
    basis_KM = torch.zeros(len(grid_K), len(nodes_M), dtype=torch.float64)
    basis_KM[grid_K, left_K], basis_KM[grid_K, right_K] = 1 - share_K, share_K
    return basis_KM


def with_limited_slopes(values_CK: Tensor, lowest_C1: Tensor, highest_C1: Tensor) -> Tensor:
    """The splines with their slopes clipped and their mean value kept.

    A straight piece keeps one slope, so no knot is added.

    Source: Ducotterd et al. (2024), the slope clipping of their linear splines.

    Args:
        values_CK: values on the grid.
        lowest_C1: smallest slope, -inf for none.
        highest_C1: largest slope, inf for none.
    """
    rises = values_CK.diff(dim=1).clamp(lowest_C1, highest_C1).cumsum(dim=1)
    limited = torch.nn.functional.pad(rises, (1, 0))
    return limited + (values_CK - limited).mean(dim=1, keepdim=True)


def removal_scores(values_CK: Tensor) -> Tensor:
    """How much it costs to lose each inner knot when the cheapest goes first, shape (C, K-2).

    Backward elimination: of the knots still there, the one goes whose loss adds least to the squared error of the least
    squares fit, a_j^2 / V_jj with a the slope changes of the fit and V their covariance under unit noise on the values;
    what remains is the fit to the rest. The score of a knot is the square root of the largest addition so far, as the
    slope change of a lone knot in the middle of an otherwise straight spline whose loss adds as much.

    With the knots of score <= t gone, t = 0 removes nothing but knots without a slope change, a larger t removes the
    same knots and more, and t >= TV(2) leaves a straight line. Each score of the fit that remains is as it was.

    Source: the elimination is textbook regression; no paper on splines is followed.

    Args:
        values_CK: values on the grid.
    """
    return torch.cat([_removal_scores(chunk) for chunk in torch.split(values_CK, _CURVES_AT_ONCE)])


def _removal_scores(values_CK: Tensor) -> Tensor:
    bends_CJ = bends(values_CK)
    num_curves, num_inner = bends_CJ.shape
    second_difference_JK = bends(torch.eye(num_inner + 2, dtype=torch.float64)).T
    covariance_CJJ = (second_difference_JK @ second_difference_JK.T).repeat(num_curves, 1, 1)
    additions, largest = torch.zeros_like(bends_CJ), torch.zeros(num_curves, dtype=torch.float64)
    here, gone = torch.arange(num_curves), torch.zeros_like(bends_CJ, dtype=torch.bool)
    for _ in range(num_inner):
        costs = bends_CJ.square() / covariance_CJJ.diagonal(dim1=1, dim2=2)
        cost_C, knot_C = costs.masked_fill(gone, float("inf")).min(dim=1)
        largest = torch.maximum(largest, cost_C)
        additions[here, knot_C] = largest
        gone[here, knot_C] = True
        column_CJ = covariance_CJJ[here, :, knot_C]
        share_CJ = column_CJ / column_CJ[here, knot_C].unsqueeze(1)
        bends_CJ = bends_CJ - share_CJ * bends_CJ[here, knot_C].unsqueeze(1)
        covariance_CJJ = covariance_CJJ - share_CJ.unsqueeze(2) * column_CJ.unsqueeze(1)
    return (additions / _cost_of_a_lone_knot(num_inner + 2)).sqrt()


def _cost_of_a_lone_knot(num_knots: int) -> float:
    """Squared error of the straight line closest to a kink of slope change 1, for the costliest place of the kink."""
    grid_K = torch.arange(num_knots, dtype=torch.float64)
    kinks_KJ = (grid_K.unsqueeze(1) - grid_K[1:-1]).clamp(min=0)
    lines_K2 = torch.stack([torch.ones_like(grid_K), grid_K - grid_K.mean()], dim=1)
    closest_KJ = lines_K2 @ torch.linalg.lstsq(lines_K2, kinks_KJ).solution
    return float((kinks_KJ - closest_KJ).square().sum(dim=0).max())
