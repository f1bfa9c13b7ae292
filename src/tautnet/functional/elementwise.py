"""Ranges of scalar functions over boxes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce

import torch
from torch import Tensor


def range_on_box(
    function: Callable[[Tensor], Tensor], lo: Tensor, hi: Tensor, turning_points: Sequence[float | Tensor] = ()
) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of an elementwise function on [lo, hi].

    Exact when the function is monotone between neighbouring ``turning_points``. A turning point outside the box is
    moved to the nearer end, where the function is looked at anyway.

    Args:
        function: elementwise, keeps shapes.
        lo: lower ends.
        hi: upper ends, at least ``lo``, same shape.
        turning_points: where the function changes between rising and falling; each broadcasts against ``lo``.
    """
    inside = [
        torch.minimum(torch.maximum(torch.as_tensor(t, dtype=lo.dtype, device=lo.device), lo), hi)
        for t in turning_points
    ]
    values = [function(point) for point in (lo, hi, *inside)]
    return reduce(torch.minimum, values), reduce(torch.maximum, values)


def scaled_box(lo: Tensor, hi: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    """Exact image of the box [lo, hi] under multiplication by ``factor``, which broadcasts against it."""
    ends = (factor * lo, factor * hi)
    return torch.minimum(*ends), torch.maximum(*ends)
