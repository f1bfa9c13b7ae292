"""How far two versions of a spline lie apart."""

from __future__ import annotations

import torch
from torch import Tensor

from tautnet.activations import LinearSpline
from tautnet.functional.linear_spline import evaluate


@torch.no_grad()
def largest_difference(before: LinearSpline, after: LinearSpline, lo_C: Tensor, hi_C: Tensor) -> Tensor:
    """Exact sup of |after(x) - before(x)| over [lo, hi] for every curve, shape (curves,), float64.

    The difference is a linear spline on the same knots: its largest size is found at an end or at a knot between.

    Args:
        before: a spline.
        after: one on the same knots.
        lo_C: lower ends, shape (curves,); inside or outside the grid.
        hi_C: upper ends.

    Raises:
        ValueError: splines on different knots.
    """
    (positions_CK, before_CK), (other_CK, after_CK) = before.points(), after.points()
    if positions_CK.shape != other_CK.shape or not torch.equal(positions_CK, other_CK):
        raise ValueError("after: not on the knots of before")
    difference_CK = after_CK - before_CK
    reach_C = positions_CK[:, -1]
    ends_2C1 = torch.stack([lo_C, hi_C]).to("cpu", torch.float64).unsqueeze(2)
    # On the grid [-1, 1]: a curve may have a grid of its own.
    at_ends_2C = evaluate(ends_2C1 / reach_C.unsqueeze(1), difference_CK, 1.0).squeeze(2).abs()
    inside_CK = (ends_2C1[0] <= positions_CK) & (positions_CK <= ends_2C1[1])
    at_knots_C = torch.where(inside_CK, difference_CK.abs(), 0.0).amax(dim=1)
    return torch.maximum(at_ends_2C.amax(dim=0), at_knots_C)
