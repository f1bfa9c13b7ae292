"""Fewer knots for the splines of a trained network."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from tautnet.activations import LinearSpline
from tautnet.splines.refit import anchored, bends, refitted, removal_scores, with_limited_slopes

Method = Literal["threshold", "refit", "merge"]


@dataclass(frozen=True)
class SplineChange:
    """What sparsification did to one module's curves.

    Attributes:
        path: dotted path in the network, empty for the network itself.
        knots_before: slope changes that were not zero up to rounding, over all curves.
        knots_after: those that are left.
        sup_change: largest change of a value on the grid, over all curves.
        border_slope_change: largest change of the slope of a border line; outside the grid the values' change grows by
            this much for each unit of the input.
    """

    path: str
    knots_before: int
    knots_after: int
    sup_change: float
    border_slope_change: float


@dataclass(frozen=True)
class SparsifyReport:
    """What sparsification did to a network.

    Attributes:
        splines: one entry a module.
    """

    splines: tuple[SplineChange, ...]

    @property
    def knots_before(self) -> int:
        """Knots of all splines before."""
        return sum(spline.knots_before for spline in self.splines)

    @property
    def knots_after(self) -> int:
        """Knots of all splines now."""
        return sum(spline.knots_after for spline in self.splines)

    @property
    def knots_removed(self) -> int:
        """The difference."""
        return self.knots_before - self.knots_after

    @property
    def sup_change(self) -> float:
        """Largest change of a value on a grid."""
        return max(spline.sup_change for spline in self.splines)

    @property
    def border_slope_change(self) -> float:
        """Largest change of the slope of a border line."""
        return max(spline.border_slope_change for spline in self.splines)


@torch.no_grad()
def sparsify_(net: nn.Module, threshold: float, method: Method = "refit") -> SparsifyReport:
    """Remove knots from all splines of a network.

    A knot counts as removed when its slope change is zero up to what rounding the stored coefficients to their dtype
    makes of it. Nothing changes at threshold 0, nor when applied a second time.

    * ``threshold``: slope changes of size at most ``threshold`` become zero, the rest is rebuilt from the left end.
    * ``refit``: the same knots go, and the rest is the least squares fit to the values on the grid; repeated while the
      fit has slope changes of at most ``threshold``.
    * ``merge``: knots go one by one, the one first whose loss changes the least squares fit least, while that costs no
      more than a lone knot with a slope change of ``threshold`` would (see ``removal_scores``). Neighbouring knots
      merge into one, however large their slope changes. Without limits of the slope, a larger threshold keeps a subset
      of the knots. With a threshold of at least TV(2) nothing but straight lines are left.

    With ``threshold`` and ``refit`` nothing but straight lines are left above the largest slope change, and the more go
    at once, the larger the threshold (``refit`` may lose further ones in its repetitions). A spline's limits of the
    slope hold: the straight pieces are clipped, the mean value stays.

    Source: ``threshold`` is the procedure of the authors of Aziznejad et al. (2020), as their code has it; the others
    are this project's.

    Args:
        net: a network with splines, or a spline.
        threshold: unit of a slope, at least 0.
        method: threshold, refit or merge.

    Raises:
        ValueError: a bad argument, no spline in the network, or a spline with values that are not finite.
    """
    _check_method(method)
    if not threshold >= 0:
        raise ValueError(f"threshold={threshold}: a number of at least 0")
    return SparsifyReport(
        tuple(_sparsify_spline(path, spline, threshold, method) for path, spline in _splines(net).items())
    )


def search_thresholds(net: nn.Module, method: Method) -> list[float]:
    """The thresholds to try, ascending.

    For ``merge`` the scores, between two of which nothing changes; for ``refit`` the sizes of the slope changes; for
    ``threshold`` the list of the authors of Aziznejad et al. (2020), as in their code: 0; from 0.0002 by 0.0002 below
    0.004; from 0.004 by 0.05 below 1; from 1 by 0.2 below 3; from 3 by 0.5 below 10; from 10 by 2 below 100.

    Args:
        net: a network with splines, or a spline.
        method: threshold, refit or merge.

    Raises:
        ValueError: as ``sparsify_``.
    """
    _check_method(method)
    if method == "threshold":
        pieces = ((0.0002, 0.004, 0.0002), (0.004, 1, 0.05), (1, 3, 0.2), (3, 10, 0.5), (10, 100, 2))
        return [0.0, *(float(value) for piece in pieces for value in np.arange(*piece))]
    sizes = []
    for path, spline in _splines(net).items():
        curves = _Curves(path, spline)
        scores_CJ = curves.scores(curves.values_CK, method)
        sizes.append(scores_CJ[scores_CJ > curves.rounding_C1])
    return sorted(set(torch.cat(sizes).tolist()))


def _check_method(method: str) -> None:
    if method not in get_args(Method):
        raise ValueError(f"method={method}: one of {', '.join(get_args(Method))}")


def _splines(net: nn.Module) -> dict[str, LinearSpline]:
    found = {path: module for path, module in net.named_modules() if isinstance(module, LinearSpline)}
    if not found:
        raise ValueError(f"net={type(net).__name__}: no spline to sparsify")
    return found


class _Curves:
    """The points of a spline and the units to speak of them."""

    def __init__(self, path: str, spline: LinearSpline) -> None:
        positions_CK, values_CK = spline.points()
        self.values_CK = values_CK.detach().clone()  # they may be the coefficients themselves
        if not self.values_CK.isfinite().all():
            raise ValueError(f"net: the spline {path or 'itself'} has values that are not finite")
        self.step_C1 = (positions_CK[:, -1:] - positions_CK[:, :1]) / (spline.num_knots - 1)
        size_C1 = self.values_CK.abs().amax(dim=1, keepdim=True)
        if spline.linear is not None:  # coefficients and linear term may cancel
            size_C1 = size_C1 + (spline.linear.to(size_C1).unsqueeze(1) * positions_CK[:, -1:]).abs()
        self.lowest_C1, self.highest_C1 = (
            (sign * inf if limit is None else limit) * self.step_C1
            for sign, limit in ((-1, spline.slope_min), (1, spline.slope_max))
        )
        # A slope change adds four values; each is rounded up to three times, by half an eps of at most this size. Slope
        # limits round to multiples of up to 4 eps of it.
        limited = spline.slope_min is not None or spline.slope_max is not None
        self.rounding_C1 = (16 if limited else 8) * torch.finfo(spline.coefficients.dtype).eps * size_C1 / self.step_C1

    def slope_changes(self, values_CK: Tensor) -> Tensor:
        return bends(values_CK) / self.step_C1

    def scores(self, values_CK: Tensor, method: Method) -> Tensor:
        """At which threshold each knot goes, shape (curves, K-2)."""
        if method == "merge":
            return removal_scores(values_CK) / self.step_C1
        return self.slope_changes(values_CK).abs()


def _sparsify_spline(path: str, spline: LinearSpline, threshold: float, method: Method) -> SplineChange:
    curves = _Curves(path, spline)
    before_CJ = curves.slope_changes(curves.values_CK).abs() > curves.rounding_C1
    after_CJ, values_CK = _thinned(curves, before_CJ, threshold, method)
    changed_C = (after_CJ != before_CJ).any(dim=1, keepdim=True)
    if changed_C.any():
        spline.set_values_(torch.where(changed_C, values_CK, curves.values_CK))
    change_CK = spline.points()[1] - curves.values_CK
    slopes_CL = change_CK.diff(dim=1) / curves.step_C1
    return SplineChange(
        path,
        knots_before=int(before_CJ.sum()),
        knots_after=int(after_CJ.sum()),
        sup_change=float(change_CK.abs().max()),
        border_slope_change=float(slopes_CL[:, [0, -1]].abs().max()),
    )


def _thinned(curves: _Curves, survives_CJ: Tensor, threshold: float, method: Method) -> tuple[Tensor, Tensor]:
    """Which knots survive, and the values on the grid without the others."""
    values_CK = curves.values_CK
    while True:
        chosen_CJ = survives_CJ & (curves.scores(values_CK, method) > threshold + curves.rounding_C1)
        if torch.equal(chosen_CJ, survives_CJ):
            return survives_CJ, values_CK
        survives_CJ = chosen_CJ
        fit = anchored if method == "threshold" else refitted
        values_CK = with_limited_slopes(fit(curves.values_CK, survives_CJ), curves.lowest_C1, curves.highest_C1)
