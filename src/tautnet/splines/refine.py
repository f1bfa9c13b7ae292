"""A finer grid for a spline without another function."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from tautnet.activations import LinearSpline


@torch.no_grad()
def doubled(spline: LinearSpline) -> LinearSpline:
    """The same function with 2K - 1 knots instead of K: every old knot and the middle of every cell.

    Source: the doubling of the resolution during training in the authors' code of Aziznejad et al. (2020).

    Args:
        spline: stays as it is.

    Returns:
        A new spline with the same settings and a parameter of another shape, which no optimizer knows yet.
    """
    finer = deepcopy(spline)
    finer.num_knots = 2 * spline.num_knots - 1
    finer.coefficients = nn.Parameter(_with_middles(spline.coefficients), spline.coefficients.requires_grad)
    finer.set_values_(_with_middles(spline.points()[1]))
    finer.awaits_range = spline.awaits_range
    return finer


def _with_middles(values_CK: Tensor) -> Tensor:
    """The values with the mean of every two neighbours between them, shape (C, 2K-1)."""
    middles = (values_CK[:, 1:] + values_CK[:, :-1]) / 2
    pairs = torch.stack([values_CK[:, :-1], middles], dim=2).flatten(1)
    return torch.cat([pairs, values_CK[:, -1:]], dim=1)


def double_knots_(net: nn.Module) -> None:
    """Replace every spline inside a network by one with 2K - 1 knots and the same function.

    The splines' parameters are new ones: make the optimizer and attach regularizers afterwards. A spline used at
    several places stays one.

    Args:
        net: holds splines; a bare spline cannot be replaced in place, ``doubled`` returns its refinement.

    Raises:
        ValueError: no spline inside.
    """
    finer: dict[nn.Module, LinearSpline] = {}
    for module in list(net.modules()):
        for name, child in module._modules.items():  # named_children would pass over a module used a second time
            if isinstance(child, LinearSpline):
                if child not in finer:
                    finer[child] = doubled(child)
                setattr(module, name, finer[child])
    if not finer:
        raise ValueError(f"net={type(net).__name__}: no spline inside; doubled(spline) refines a bare one")
