r"""Distances between two clouds of points, and quantities that enclose the earth mover's.

The earth mover's or Wasserstein-1 distance of two clouds of N points of weight 1 / N each is the least mean length of
the ways when every point of one moves to a point of the other:

    W1 = min over permutations s of 1/N sum_n ||a_n - b_s(n)||.

By Kantorovich-Rubinstein duality it is the supremum of mean f(a) - mean f(b) over all 1-Lipschitz f. All functions take
(N, D) twice, compute in float64 on the CPU and give a number without a gradient; values that are not finite give NaN
or inf. Of one layer's outputs before and after an update they measure internal covariate shift.

Source: Huang, Yu (2020) for the use of W1 on layer outputs. The paper's own bounds could not be read: ``norm_gap`` and
``norm_sum`` are reconstructed from its abstract and derived here.
"""

from __future__ import annotations

from math import nan

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


def earth_mover_exact(a_ND: Tensor, b_ND: Tensor) -> float:
    """W1 by optimal assignment; NaN unless all distances are finite.

    Time grows as N^3, memory as N^2: for N up to about 512.

    Args:
        a_ND: points, shape (N, D).
        b_ND: as many points.

    Raises:
        ValueError: other shapes.
    """
    # Squares instead of a matrix product, whose cancellation is as large as the way of an update.
    cost_NN = torch.cdist(*_paired(a_ND, b_ND), compute_mode="donot_use_mm_for_euclid_dist")
    if not cost_NN.isfinite().all():
        return nan
    rows, columns = linear_sum_assignment(cost_NN.numpy())
    return float(cost_NN[rows, columns].mean())


def sliced(a_ND: Tensor, b_ND: Tensor, num_projections: int, generator: torch.Generator) -> float:
    """Mean over random directions of the W1 of the projections: at most W1, since a projection shortens every way.

    In one dimension the optimal assignment is that of the sorted values. In D dimensions a translation by t gives
    about ||t|| times the mean of |u_1| over the unit sphere, sqrt(2 / (pi D)) for large D.

    Args:
        a_ND: points, shape (N, D).
        b_ND: as many points.
        num_projections: directions, at least 1.
        generator: of the directions, on the CPU.

    Raises:
        ValueError: other shapes, or no direction.
    """
    if num_projections < 1:
        raise ValueError(f"num_projections={num_projections}: at least 1")
    a, b = _paired(a_ND, b_ND)
    directions_DP = torch.randn(a.shape[1], num_projections, generator=generator, dtype=torch.float64)
    directions_DP /= directions_DP.norm(dim=0)
    return per_unit(a @ directions_DP, b @ directions_DP)


def per_unit(a_ND: Tensor, b_ND: Tensor) -> float:
    """Mean over the D units of the W1 of each alone, by sorting: at most W1, a unit being a projection.

    Args:
        a_ND: points, shape (N, D).
        b_ND: as many points.

    Raises:
        ValueError: other shapes.
    """
    a, b = _paired(a_ND, b_ND)
    return float((a.sort(dim=0).values - b.sort(dim=0).values).abs().mean())


def coupling_distance(a_ND: Tensor, b_ND: Tensor) -> float:
    """Mean ||a_n - b_n||, every point to its own successor: at least W1, being one of the assignments.

    Args:
        a_ND: points, shape (N, D).
        b_ND: as many points.

    Raises:
        ValueError: other shapes.
    """
    a, b = _paired(a_ND, b_ND)
    return float((a - b).norm(dim=1).mean())


def norm_gap(a_ND: Tensor, b_ND: Tensor) -> float:
    """|mean ||a|| - mean ||b|||: at most W1, by duality with f = ||.||.

    Args:
        a_ND: points, shape (N, D).
        b_ND: as many points.

    Raises:
        ValueError: other shapes.
    """
    a, b = _paired(a_ND, b_ND)
    return float((a.norm(dim=1).mean() - b.norm(dim=1).mean()).abs())


def norm_sum(a_ND: Tensor, b_ND: Tensor) -> float:
    """Mean ||a|| + mean ||b||: at least W1, the ways through the origin.

    Loose: a bound on what an update can do, never a measure of what it did. |alpha_t| + |alpha_{t+1}| for fully
    unitized outputs, about 2 sqrt(D) for batch-normalised ones.

    Args:
        a_ND: points, shape (N, D).
        b_ND: as many points.

    Raises:
        ValueError: other shapes.
    """
    a, b = _paired(a_ND, b_ND)
    return float(a.norm(dim=1).mean() + b.norm(dim=1).mean())


def _paired(a_ND: Tensor, b_ND: Tensor) -> tuple[Tensor, Tensor]:
    if a_ND.dim() != 2 or 0 in a_ND.shape:
        raise ValueError(f"a_ND={tuple(a_ND.shape)}: the shape (N, D), N and D at least 1")
    if b_ND.shape != a_ND.shape:
        raise ValueError(f"b_ND={tuple(b_ND.shape)}: as many points as a_ND, shape {tuple(a_ND.shape)}")
    return a_ND.detach().to("cpu", torch.float64), b_ND.detach().to("cpu", torch.float64)
