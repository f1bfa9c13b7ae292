"""What normalisation by the statistics of groups of values does to boxes and distances.

The map of each group x of n values: z = r c, r = (mean(c^2) + eps)^(-1/2), with c = x - mean(x) if ``centred``, else
c = x. Groups lie along the last dimension.
"""

from __future__ import annotations

from math import inf, sqrt

import torch
from torch import Tensor


def normalised_box(lo: Tensor, hi: Tensor, eps: float, centred: bool) -> tuple[Tensor, Tensor]:
    """A box that contains the image of the box [lo, hi]; exact if not ``centred``.

    z_i = c_i / sqrt(t / n + eps) with t = sum c^2 rises with c_i at fixed other values. So its largest value lies at
    the largest c_i, divided by the root of the smallest t if c_i >= 0 there and of the largest t if not. Known of t:
    its range over the box, the sum of c_i^2 and the range of the other squares, and, as centred values sum to 0,
    t >= n / (n - 1) c_i^2. All of these leave z_i rising with c_i. An end that is not a number, as of an infinite box,
    becomes the largest |z_i| there is, sqrt(n - 1) if centred, else sqrt(n).

    Args:
        lo: lower ends, shape (*, n).
        hi: upper ends.
        eps: above 0.
        centred: whether the mean is subtracted.
    """
    n = lo.shape[-1]
    t_range = _square_sums(lo, hi, centred)
    lo, hi = _centred_box(lo, hi) if centred else (lo, hi)
    near, far = _distances(lo, hi)
    near, far = near.square(), far.square()
    others = near.sum(-1, keepdim=True) - near, far.sum(-1, keepdim=True) - far
    share = n / (n - 1) if centred and n > 1 else 1.0
    limit = sqrt(n - 1) if centred else sqrt(n)

    def image(c: Tensor, grows: Tensor) -> Tensor:
        """Of c / sqrt(t / n + eps), for the smallest t where ``grows``, for the largest elsewhere."""
        least = torch.fmax(torch.maximum(t_range[0], share * c.square()), c.square() + others[0])
        most = torch.fmin(t_range[1], c.square() + others[1])
        return c * (torch.where(grows, least, most) / n + eps).rsqrt()

    low, high = image(lo, lo <= 0), image(hi, hi >= 0)
    return torch.where(low.isnan(), -limit, low), torch.where(high.isnan(), limit, high)


def largest_slope(lo: Tensor, hi: Tensor, eps: float, centred: bool, p: float) -> Tensor:
    """Upper bound of the map's Lipschitz constant for the vector p-norm on each box, shape (*); see ``slope_bound``."""
    n = lo.shape[-1]
    least, most = _square_sums(lo, hi, centred)
    return slope_bound((most / n + eps).rsqrt(), (least / n + eps).rsqrt(), n, eps, centred, p).squeeze(-1)


def slope_bound(r_lo: Tensor, r_hi: Tensor, group_size: int, eps: float, centred: bool, p: float) -> Tensor:
    """Upper bound of the norm of the Jacobian for the vector p-norm where r_lo <= r <= r_hi.

    With P the centring (or the identity) the Jacobian is r M, M = P - z z^T / n, and 0 <= M <= I as |z|^2 <= n. So for
    p = 2 it is at most r_hi.

    M is symmetric, so for p = 1 and inf its row sums of |.| decide. Let q = |z|^2 / n = 1 - eps r^2. M_ii <= P_ii;
    beside it, P adds at most (n - 1) / n if centred, and z gives |z_i| sum_{j != i} |z_j| / n
    <= |z_i| sqrt((n - 1) (n q - z_i^2)) / n <= q sqrt(n - 1) / 2. The bound is the maximum of r (a + b q),
    a = 2 (1 - 1 / n) or 1, b = sqrt(n - 1) / 2, which is concave in r with its top at r^2 = (a + b) / (3 b eps).

    Args:
        r_lo: smallest r, at least 0.
        r_hi: largest r, at most 1 / sqrt(eps).
        group_size: n.
        eps: above 0.
        centred: whether the mean is subtracted.
        p: 1, 2 or inf.
    """
    if p == 2:
        return r_hi
    a, b = 2 * (1 - 1 / group_size) if centred else 1.0, sqrt(group_size - 1) / 2
    top = sqrt((a + b) / (3 * b * eps)) if b > 0 else inf
    r = torch.maximum(r_lo, r_hi.clamp(max=top))
    return r * (a + b * (1 - eps * r.square()))


def _centred_box(lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
    """Exact image of a box under x - mean(x); infinite where an end is."""
    n = lo.shape[-1]
    low = lo - hi.mean(-1, keepdim=True) + (hi - lo) / n
    high = hi - lo.mean(-1, keepdim=True) - (hi - lo) / n
    return torch.where(low.isnan(), -inf, low), torch.where(high.isnan(), inf, high)


def _distances(lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest |value|."""
    return torch.maximum(lo, -hi).clamp(min=0), torch.maximum(hi, -lo)


def _square_sums(lo: Tensor, hi: Tensor, centred: bool) -> tuple[Tensor, Tensor]:
    """Smallest and largest sum of c^2 over the box, exact if not centred, else bounds, shape (*, 1).

    Centred by the box of c, and by |c| <= |c(middle)| + |radius|, as centring lengthens nothing.
    """
    if not centred:
        near, far = _distances(lo, hi)
        return near.square().sum(-1, keepdim=True), far.square().sum(-1, keepdim=True)
    least, most = _square_sums(*_centred_box(lo, hi), centred=False)
    middle, radius = (lo + hi) / 2, torch.linalg.vector_norm((hi - lo) / 2, dim=-1, keepdim=True)
    length = torch.linalg.vector_norm(middle - middle.mean(-1, keepdim=True), dim=-1, keepdim=True)
    # fmax and fmin: of an infinite box these lengths are not numbers
    least = torch.fmax(least, (length - radius).clamp(min=0).square())
    return least, torch.fmin(most, (length + radius).square())
