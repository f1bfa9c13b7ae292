"""Names for learned curves that are well-known functions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, inf, log10
from typing import Any

import numpy as np

from tautnet.splines.expressions import line, number, times

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class _Shape:
    """offset + left * x + sum of change * max(x - knot, 0)."""

    name: str
    offset: float
    left: float
    kinks: tuple[tuple[float, float], ...] = ()
    expression: str = ""

    @property
    def right(self) -> float:
        return self.left + sum(change for _, change in self.kinks)

    def __call__(self, x: Array) -> Array:
        y = self.offset + self.left * x
        for knot, change in self.kinks:
            y = y + change * np.maximum(x - knot, 0.0)
        return y


@dataclass(frozen=True)
class Recognized:
    """A known function.

    Attributes:
        name: for people, such as ``0.5 * relu``.
        expression: as ``expressions.evaluate`` takes it, such as ``0.5*relu(x)``.
    """

    name: str
    expression: str


def recognize(positions: Array, values: Array, tolerance: float = 1e-3) -> str | None:
    """Name of the known function that a piecewise linear curve is, or None: that of ``recognized``."""
    found = recognized(positions, values, tolerance)
    return None if found is None else found.name


def recognized(positions: Array, values: Array, tolerance: float = 1e-3) -> Recognized | None:
    """The known function that a piecewise linear curve is, or None.

    Known are ``zero``, ``constant(c)``, ``identity``, ``affine(slope, offset)``, ``relu``, ``abs``,
    ``leaky_relu(slope)``, ``soft_threshold(λ)``, ``clip(lo, hi)``; all but the first four also as ``-name`` and, but
    for ``clip``, as ``factor * name``. A named g is within the tolerance of the curve f as its numbers are printed,
    and these have as few decimals as that allows:
    |f(x) - g(x)| <= tolerance for all x on the grid, from the first to the last position, and
    |f' - g'| <= tolerance on both border lines. Where the knots lie does not matter; a grid without a knot at a kink
    of g is the nearer to g the finer it is. The first function in the order above is taken.

    Args:
        positions: of the points, strictly rising, shape (K,), K >= 2.
        values: at the positions, shape (K,). Between points and outside the curve is straight.
        tolerance: on values and slopes alike, above 0.

    Raises:
        ValueError: ``tolerance`` not a finite number above 0.
    """
    if not 0 < tolerance < inf:
        raise ValueError(f"tolerance={tolerance}: a finite number above 0")
    for decimals in range(max(0, ceil(-log10(tolerance))) + 3):
        for shape in _affine(positions, values, decimals):
            if _is(shape, positions, values, tolerance):
                return Recognized(shape.name, shape.expression)
        right = _rounded(_slope(positions, values, -2, -1), decimals)
        for factor in dict.fromkeys((1.0, -1.0, right)):
            if factor == 0:
                continue
            for shape in _kinked(positions, values / factor, decimals):
                if _is(shape, positions, values / factor, tolerance / abs(factor)):
                    name = {1.0: "", -1.0: "-"}.get(factor, f"{_text(factor)} * ") + shape.name
                    return Recognized(name, times(factor, shape.expression))
    return None


def _is(shape: _Shape, positions: Array, values: Array, tolerance: float) -> bool:
    """Within the tolerance on the grid, where the difference is largest at a knot of either, and on border lines."""
    if abs(_slope(positions, values, 0, 1) - shape.left) > tolerance:
        return False
    if abs(_slope(positions, values, -2, -1) - shape.right) > tolerance:
        return False
    inside = [knot for knot, _ in shape.kinks if positions[0] < knot < positions[-1]]
    x = np.concatenate([positions, inside])
    return bool(np.abs(np.interp(x, positions, values) - shape(x)).max() <= tolerance)


def _slope(positions: Array, values: Array, start: int, end: int) -> float:
    return float((values[end] - values[start]) / (positions[end] - positions[start]))


def _middle(values: Array) -> float:
    """The constant with the least largest difference."""
    return float(values.max() + values.min()) / 2


def _rounded(value: float, decimals: int) -> float:
    return round(value, decimals) + 0.0  # no negative zero


def _text(value: float) -> str:
    return f"{value:.12g}"


def _affine(x: Array, y: Array, decimals: int) -> Iterator[_Shape]:
    yield _Shape("zero", 0.0, 0.0, expression="0")
    constant = _rounded(_middle(y), decimals)
    yield _Shape(f"constant({_text(constant)})", constant, 0.0, expression=line(0.0, constant))
    yield _Shape("identity", 0.0, 1.0, expression="x")
    slope = _rounded(_slope(x, y, 0, -1), decimals)
    offset = _rounded(_middle(y - slope * x), decimals)
    yield _Shape(f"affine({_text(slope)}, {_text(offset)})", offset, slope, expression=line(slope, offset))


def _kinked(x: Array, y: Array, decimals: int) -> Iterator[_Shape]:
    yield _Shape("relu", 0.0, 0.0, ((0.0, 1.0),), "relu(x)")
    yield _Shape("abs", 0.0, -1.0, ((0.0, 2.0),), "abs(x)")
    left = _rounded(float(y[0] / x[0]) if x[0] < 0 else 0.0, decimals)
    yield _Shape(f"leaky_relu({_text(left)})", 0.0, left, ((0.0, 1.0 - left),), f"leaky_relu(x, {number(left)})")
    threshold = _rounded(float(x[-1] - y[-1] + y[0] - x[0]) / 2, decimals)
    if threshold > 0:
        name = f"soft_threshold({_text(threshold)})"
        kinks = ((-threshold, -1.0), (threshold, 1.0))
        yield _Shape(name, threshold, 1.0, kinks, f"softshrink(x, {number(threshold)})")
    lo, hi = _rounded(float(y[0]), decimals), _rounded(float(y[-1]), decimals)
    if lo < hi:
        expression = f"clamp(x, {number(lo)}, {number(hi)})"
        yield _Shape(f"clip({_text(lo)}, {_text(hi)})", lo, 0.0, ((lo, 1.0), (hi, -1.0)), expression)
