"""Learned splines as tables: the knots that matter, the values there, the slopes between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import inf, isclose, isfinite, prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tautnet.activations.linear_spline import LinearSpline
from tautnet.activations.relu_sum import ReluSum
from tautnet.activations.spline_init import Sharing
from tautnet.splines.formulas import formulas
from tautnet.splines.recognize import recognize

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Curve:
    """One piecewise linear function on the whole line.

    Attributes:
        name: what ``recognize`` calls the original curve, None for nothing known.
        knots: J positions, strictly rising; none for an affine function.
        values: at the knots, J.
        slopes: of the J + 1 pieces, the border lines included.
        value_at_0: which fixes an affine function too.
        error: largest difference from the original curve between its first and last knot.
        formula: what the original curve is on its grid, see ``formulas``; None where nothing fits or was tried.
        formula_error: relative, see ``Formula``; None without a formula.
    """

    name: str | None
    knots: tuple[float, ...]
    values: tuple[float, ...]
    slopes: tuple[float, ...]
    value_at_0: float
    error: float = 0.0
    formula: str | None = None
    formula_error: float | None = None

    def __post_init__(self) -> None:
        """Refuse what is no function."""
        if not len(self.knots) == len(self.values) == len(self.slopes) - 1:
            sizes = f"{len(self.knots)} knots, {len(self.values)} values, {len(self.slopes)} slopes"
            raise ValueError(f"{sizes}: as many values as knots and one slope more")
        if not all(isfinite(v) for v in (*self.knots, *self.values, *self.slopes, self.value_at_0, self.error)):
            raise ValueError("a curve with NaN or infinite numbers: finite ones")
        if any(b <= a for a, b in pairwise(self.knots)):
            raise ValueError(f"knots={self.knots}: strictly rising")
        if self.knots:
            at_0 = float(_interpolate(0.0, self.knots, self.values, self.slopes))
            if not isclose(at_0, self.value_at_0, rel_tol=1e-6, abs_tol=1e-6 * (1 + max(map(abs, self.values)))):
                raise ValueError(f"value_at_0={self.value_at_0}: the knots say {at_0}")

    def __call__(self, x: Array) -> Array:
        """Values at x, any shape, in float64."""
        if not self.knots:
            return self.value_at_0 + self.slopes[0] * x
        return _interpolate(x, self.knots, self.values, self.slopes)


@dataclass(frozen=True)
class SplineTable:
    """The curves of one layer, in the order of ``LinearSpline``'s.

    Attributes:
        num_channels: of the layer.
        sharing: ``channel``, ``layer`` or ``neuron``.
        spatial_shape: of the neurons of a channel, empty but for ``neuron``.
        grid_range: half-width of the spline's knot interval.
        curves: one for each channel, layer or neuron.
    """

    num_channels: int
    sharing: Sharing
    spatial_shape: tuple[int, ...]
    grid_range: float
    curves: tuple[Curve, ...]

    def __post_init__(self) -> None:
        """Refuse what is no layer of splines."""
        counts = {"channel": self.num_channels, "layer": 1, "neuron": self.num_channels * prod(self.spatial_shape)}
        if not isinstance(self.num_channels, int) or self.num_channels < 1:
            raise ValueError(f"num_channels={self.num_channels}: an integer of at least 1")
        if self.sharing not in counts or len(self.curves) != counts[self.sharing]:
            raise ValueError(f"sharing={self.sharing}: {len(self.curves)} curves for {self.num_channels} channels")
        if not (isinstance(self.grid_range, (int, float)) and 0 < self.grid_range < inf):
            raise ValueError(f"grid_range={self.grid_range}: a finite number above 0")

    def relu_sum(self, dtype: torch.dtype = torch.float32) -> ReluSum:
        """The layer in plain torch operations, on the CPU.

        Slopes are rounded towards 0, so that none of the stored ones is steeper than the table's.

        Args:
            dtype: floating point, in which the numbers are kept.

        Raises:
            ValueError: two knots are one in this ``dtype``.
        """
        knots_CJ, slopes_CP, value_at_0_C = self._numbers()
        rounded_CP = slopes_CP.to(dtype)
        steeper_CP = rounded_CP.double().abs() > slopes_CP.abs()
        rounded_CP = torch.where(steeper_CP, rounded_CP.nextafter(torch.zeros_like(rounded_CP)), rounded_CP)
        numbers = (knots_CJ.to(dtype), rounded_CP, value_at_0_C.to(dtype))
        return ReluSum(self.num_channels, *numbers, sharing=self.sharing, spatial_shape=self.spatial_shape)

    def _numbers(self) -> tuple[Tensor, Tensor, Tensor]:
        """Knots (curves, J), slopes (curves, J + 1), values at 0 (curves,), float64.

        J is the largest number of knots; after the last knots of other curves come some without a change of slope.
        """
        most = max(len(curve.knots) for curve in self.curves)
        knots, slopes = [], []
        for curve in self.curves:
            missing, last = most - len(curve.knots), max((*curve.knots, 0.0))
            knots += [*curve.knots, *(last + self.grid_range * (i + 1) for i in range(missing))]
            slopes += [*curve.slopes, *[curve.slopes[-1]] * missing]
        flat = (knots, slopes, [curve.value_at_0 for curve in self.curves])
        knots_, slopes_, value_at_0_C = (torch.tensor(numbers, dtype=torch.float64) for numbers in flat)
        return knots_.view(len(self.curves), most), slopes_.view(len(self.curves), most + 1), value_at_0_C


def curve_table(
    spline: LinearSpline,
    tolerance: float | None = None,
    name_tolerance: float = 1e-3,
    formula_tolerance: float | None = None,
) -> SplineTable:
    """The curves of a spline by those of its knots that change the slope.

    Kept are the inner knots whose slope change exceeds ``tolerance`` in size. The curve is drawn anew through them and
    the two ends of the grid, whose lines go on outside. So slopes are means of the old ones: the Lipschitz constant
    does not grow, monotone stays monotone. With a_k the dropped slope changes, between two points of a distance d the
    function changes by at most d / 4 times the sum of |a_k| there (``Curve.error`` states the change), and a border
    slope by at most the sum of |a_k| beside it; outside the grid the difference grows with the distance.

    Args:
        spline: its function is taken from ``points()``.
        tolerance: slope change that is dropped, at least 0. None drops what the rounding of the stored values can
            cause, 8 eps M / step, and takes further knots where the curve would move by more than 4 eps M. Here M is
            the largest |f(x)| on the grid, plus the largest |b x| of a linear term b, and eps that of their dtype
            (of float32 for smaller ones, where it would change the function visibly).
        name_tolerance: of ``recognize``.
        formula_tolerance: of ``formulas``; None to look for none, which is faster.

    Raises:
        ValueError: a tolerance out of range, or a spline that is not finite.
    """
    if tolerance is not None and not 0 <= tolerance < inf:
        raise ValueError(f"tolerance={tolerance}: None, or a finite number of at least 0")
    positions_CK, values_CK = (tensor.detach().numpy() for tensor in spline.points())
    if not np.isfinite(values_CK).all():
        raise ValueError("a spline with NaN or infinite values: a finite one")
    size_C = np.abs(values_CK).max(axis=1)
    if spline.linear is not None:  # the values are sums, and rounded as their parts are
        linear_C = spline.linear.detach().to("cpu", torch.float64).numpy()
        size_C = size_C + np.abs(linear_C) * np.abs(positions_CK).max(axis=1)
    rounding_C = torch.finfo(torch.promote_types(spline.coefficients.dtype, torch.float32)).eps * size_C
    curves = tuple(
        _curve(positions, values, _kept(positions, values, tolerance, rounding), name_tolerance)
        for positions, values, rounding in zip(positions_CK, values_CK, rounding_C, strict=True)
    )
    if formula_tolerance is not None:
        found = formulas(spline, tolerance=formula_tolerance)
        curves = tuple(
            curve if f.kind == "nearest" else replace(curve, formula=f.expression, formula_error=f.error)
            for curve, f in zip(curves, found, strict=True)
        )
    return SplineTable(spline.num_channels, spline.sharing, spline.spatial_shape, spline.grid_range, curves)


def curve_tables(
    net: nn.Module,
    tolerance: float | None = None,
    name_tolerance: float = 1e-3,
    formula_tolerance: float | None = None,
) -> dict[str, SplineTable]:
    """``curve_table`` of every ``LinearSpline`` in a network, by path; of a shared one under each of its paths.

    Args:
        net: a network, or a spline, whose path is empty.
        tolerance: as in ``curve_table``.
        name_tolerance: as in ``curve_table``.
        formula_tolerance: as in ``curve_table``.

    Raises:
        ValueError: no ``LinearSpline`` in ``net``, or as ``curve_table``.
    """
    splines = {path: m for path, m in net.named_modules(remove_duplicate=False) if isinstance(m, LinearSpline)}
    if not splines:
        raise ValueError(f"net={type(net).__name__}: a network with a LinearSpline")
    settings = (tolerance, name_tolerance, formula_tolerance)
    tables = {spline: curve_table(spline, *settings) for spline in dict.fromkeys(splines.values())}
    return {path: tables[spline] for path, spline in splines.items()}


def _kept(positions: Array, values: Array, tolerance: float | None, rounding: float) -> Array:
    """Indices of the kept inner knots, with both ends of the grid around them."""
    if tolerance is None:
        steepest, furthest = 8 * rounding / np.diff(positions).min(), 4 * rounding
    else:
        steepest, furthest = tolerance, inf
    changes = np.diff(np.diff(values) / np.diff(positions))
    kept = np.concatenate([[0], np.flatnonzero(np.abs(changes) > steepest) + 1, [len(values) - 1]])
    while True:
        errors = np.abs(np.interp(positions, positions[kept], values[kept]) - values)
        if errors.max() <= furthest:
            return kept
        kept = np.sort(np.append(kept, errors.argmax()))


def _interpolate(x: Array | float, knots: Sequence[float], values: Sequence[float], slopes: Sequence[float]) -> Array:
    """Straight between the knots, with the border slopes outside."""
    left, right = np.minimum(x - np.float64(knots[0]), 0.0), np.maximum(x - np.float64(knots[-1]), 0.0)
    return np.interp(x, knots, values) + slopes[0] * left + slopes[-1] * right


def _curve(positions: Array, values: Array, kept: Array, name_tolerance: float) -> Curve:
    x, y = positions[kept], values[kept]
    slopes = np.diff(y) / np.diff(x)
    return Curve(
        name=recognize(positions, values, name_tolerance),
        knots=tuple(x[1:-1].tolist()),
        values=tuple(y[1:-1].tolist()),
        slopes=tuple(slopes.tolist()),
        value_at_0=float(_interpolate(0.0, x.tolist(), y.tolist(), slopes.tolist())),
        error=float(np.abs(np.interp(positions, x, y) - values).max()),
    )
