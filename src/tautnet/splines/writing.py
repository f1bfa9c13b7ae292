"""Fitted functions written down: constants that do nothing left out, the others in as few digits as they need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import inf, isfinite

import torch
from torch import Tensor

from tautnet.splines.expressions import line, plus, times
from tautnet.splines.families import Family

SPENT = 0.1  # of the tolerance, which fewer constants and fewer digits may cost
_MOST_DIGITS = 15
_DIGITS_OF_A_CONSTANT = 7  # as many as float32 has


@dataclass(frozen=True)
class Fitted:
    """A member of a family that was fitted to a curve, a straight line, or a constant.

    Attributes:
        name: of the function.
        num_constants: that were fitted.
        error: of the fit, relative to the curve's standard deviation.
        family: of f; None for a straight line or a constant.
        a: see ``Family``.
        b: likewise.
    """

    name: str
    num_constants: int
    error: float
    family: Family | None = None
    a: float = 1.0
    b: float = 0.0

    def written(self, x_S: Tensor, y_S: Tensor, tolerance: float) -> tuple[str, int]:
        """The formula for a curve through these points, and how many constants are left in it."""
        if self.num_constants == 1:
            return line(0.0, _rounded(float(y_S.mean()), _DIGITS_OF_A_CONSTANT)), 1
        forms = []
        for a, b in self._placed():
            values_S = self._values(x_S, a, b)
            for which in product((True, False), (True, False)):
                c, d = _outer(values_S, y_S, *which)
                forms.append((_num_written(a, b, c, d), _error(c * values_S + d, y_S), (a, b, c, d), which))
        allowed = _allowed(min(error for _, error, _, _ in forms), tolerance)
        _, _, (a, b, c, d), which = min((form for form in forms if form[1] <= allowed), key=lambda form: form[:2])
        for digits in range(2, _MOST_DIGITS):
            short_a, short_b = _rounded(a, digits), _rounded(b, digits)
            values_S = self._values(x_S, short_a, short_b)
            short_c, short_d = (_rounded(value, digits) for value in _outer(values_S, y_S, *which))
            if _error(short_c * values_S + short_d, y_S) <= allowed:
                short = (short_a, short_b, short_c, short_d)
                return self._text(*short), _num_written(*short)
        return self._text(a, b, c, d), _num_written(a, b, c, d)

    def _placed(self) -> list[tuple[float, float]]:
        """Pairs (a, b): as fitted, and where that is another function with b = 0 and with a = ±1."""
        placed = [(self.a, self.b)]
        if self.family is not None and self.family.free[1]:
            placed.append((self.a, 0.0))
        if self.family is not None and self.family.kind in ("free", "scaled"):
            placed += [(1.0 if self.a > 0 else -1.0, b) for _, b in placed]
        return placed

    def _values(self, x_S: Tensor, a: float, b: float) -> Tensor:
        return x_S if self.family is None else self.family(x_S, *(x_S.new_tensor(p) for p in (a, b)))

    def _text(self, a: float, b: float, c: float, d: float) -> str:
        return line(c, d) if self.family is None else plus(self.family.text(a, b, c), d)


@dataclass(frozen=True)
class Polynomial:
    """The polynomial that a curve is.

    Attributes:
        coefficients: constant first.
    """

    coefficients: tuple[float, ...]
    name = "polynomial"
    error = 0.0

    @property
    def num_constants(self) -> int:
        """Its coefficients."""
        return len(self.coefficients)

    def written(self, x_S: Tensor, y_S: Tensor, tolerance: float) -> tuple[str, int]:
        """The formula, and how many constants are left in it."""
        allowed, reach = _allowed(0.0, tolerance), float(x_S.abs().max())
        small = allowed * float(y_S.std(correction=0)) / (2 * len(self.coefficients))
        kept = [c if abs(c) * reach**power > small else 0.0 for power, c in enumerate(self.coefficients)]
        short: Sequence[float] = kept
        for digits in range(2, _MOST_DIGITS):
            short = [_rounded(value, digits) for value in kept]
            if _error(sum((c * x_S**power for power, c in enumerate(short)), torch.zeros_like(x_S)), y_S) <= allowed:
                break
        text = ""
        for power, c in reversed(list(enumerate(short))):
            if power == 0 or c == 0:
                continue
            term = times(abs(c) if text else c, "x" if power == 1 else f"x**{power}")
            text = f"{text} {'-' if c < 0 else '+'} {term}" if text else term
        return plus(text, short[0]), sum(c != 0 for c in short)


def _allowed(error: float, tolerance: float) -> float:
    """The error that the text may have: a little more, but not beyond the tolerance for that."""
    return max(error, min(error + SPENT * tolerance, tolerance)) if error <= tolerance else error + SPENT * tolerance


def _error(values_S: Tensor, y_S: Tensor) -> float:
    error = float((values_S - y_S).square().mean().sqrt() / y_S.std(correction=0))
    return error if isfinite(error) else inf


def _outer(values_S: Tensor, y_S: Tensor, unit: bool, plain: bool) -> tuple[float, float]:
    """Least squares for c f + d: c, with ``unit`` ±1, and d, with ``plain`` 0."""
    f_S, target_S = (values_S, y_S) if plain else (values_S - values_S.mean(), y_S - y_S.mean())
    c = float((f_S @ target_S) / (f_S @ f_S))
    if unit:
        c = -1.0 if c < 0 else 1.0
    return c, 0.0 if plain else float(y_S.mean() - c * values_S.mean())


def _num_written(a: float, b: float, c: float, d: float) -> int:
    return (abs(a) != 1) + (b != 0) + (abs(c) != 1) + (d != 0)


def _rounded(value: float, digits: int) -> float:
    return float(f"{value:.{digits - 1}e}") + 0.0  # no negative zero
