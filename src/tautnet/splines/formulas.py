"""Closed forms of learned curves: the standard function that fits each of them, as a formula."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Literal

import torch
from torch import Tensor

from tautnet.activations import AbstractActivation, LinearSpline
from tautnet.splines.curves import curve_values, num_curves
from tautnet.splines.expressions import evaluate
from tautnet.splines.members import Member, fitted_members, relative_error, sorted_out
from tautnet.splines.recognize import Recognized, recognized

DEFAULT_RANGE = 3.0  # half-width, where nothing says on which inputs an activation works
_NUM_POINTS = 201
Kind = Literal["exact", "within", "nearest"]


@dataclass(frozen=True)
class Formula:
    """What a curve is, or is nearly, on a range of inputs.

    Attributes:
        name: of the function, such as ``tanh``; what ``recognize`` says of an exact one, such as ``leaky_relu(0.1)``.
        expression: the formula in x, such as ``0.83*tanh(1.2*x - 0.31) + 0.02``, for ``evaluate`` or to read.
        lo: left end of the range.
        hi: right end.
        error: root mean square of the difference on the range over the curve's standard deviation there, that is
            sqrt(1 - R^2), of the numbers as they are printed; 0 of a constant curve.
        kind: ``exact``, recognised as a piecewise linear function within 0.001; ``within`` the tolerance; ``nearest``
            of all, though beyond it: nothing fits.
    """

    name: str
    expression: str
    lo: float
    hi: float
    error: float
    kind: Kind

    def __call__(self, x: Tensor) -> Tensor:
        """The formula's values at x, of x's shape and dtype."""
        return evaluate(self.expression, x)

    def __str__(self) -> str:
        """The formula, and that it does not fit if so."""
        return self.expression if self.kind != "nearest" else f"nothing fits; nearest: {self.expression}"


def formulas(
    activation: AbstractActivation,
    lo: float | None = None,
    hi: float | None = None,
    tolerance: float = 0.01,
    names: Sequence[str] | None = None,
    curves: Sequence[int] | None = None,
) -> list[Formula]:
    """The closed form c f(a x + b) + d of each curve of an activation, the simplest one that is near enough.

    Exact shapes that ``recognize`` knows come first. Of the other functions with an error of at most ``tolerance``
    those of the fewest constants are taken, and of these the one with the least error: straight lines (2), what is
    only shifted or scaled (x^2, x^3, x^4, abs, relu, sign, log, sqrt, 1/x, exp: 3), the others (sigmoid, tanh, arctan,
    softplus, silu, gelu, elu, sin, gaussian, leaky_relu: 4). Only functions that are finite on the range are looked at.
    The numbers have as few digits as cost at most a tenth of the tolerance. The result depends on the numbers alone.

    Args:
        activation: any, learned or not; it is left as it is. Its eval-mode function is taken.
        lo: left end of the inputs that count; None with ``hi``: of a spline the grid of each curve, else -3.
        hi: right end; else 3.
        tolerance: largest relative error of a fit, above 0 and at most 1.
        names: the functions to choose from, as ``names=["tanh"]``; None for all. With names nothing is taken as exact.
        curves: which of the curves, by number; None for all.

    Returns:
        One for each curve, in the order of channels or of ``curves``.

    Raises:
        ValueError: an argument out of range, or a curve that is not finite.
    """
    return [found[0] for found in candidates(activation, lo, hi, tolerance, names, curves, most=1)]


def candidates(
    activation: AbstractActivation,
    lo: float | None = None,
    hi: float | None = None,
    tolerance: float = 0.01,
    names: Sequence[str] | None = None,
    curves: Sequence[int] | None = None,
    most: int = 5,
) -> list[list[Formula]]:
    """For each curve the formulas that come into question, that of ``formulas`` first, then by rising error.

    Args:
        activation: as in ``formulas``.
        lo: as in ``formulas``.
        hi: as in ``formulas``.
        tolerance: as in ``formulas``.
        names: as in ``formulas``.
        curves: as in ``formulas``.
        most: formulas of a curve, at least 1.

    Raises:
        ValueError: as ``formulas``.
    """
    if not 0 < tolerance <= 1:
        raise ValueError(f"tolerance={tolerance}: above 0, at most 1")
    if most < 1:
        raise ValueError(f"most={most}: at least 1")
    ends_C2 = _ends(activation, lo, hi)
    part_S = torch.linspace(0, 1, _NUM_POINTS, dtype=torch.float64)
    x_CS = torch.lerp(ends_C2[:, :1], ends_C2[:, 1:], part_S)
    y_CS = curve_values(activation, x_CS)
    if not y_CS.isfinite().all():
        raise ValueError(f"activation={type(activation).__name__}: its values on the range are not finite")
    chosen = list(range(len(y_CS))) if curves is None else list(curves)
    if not all(0 <= curve < len(y_CS) for curve in chosen):
        raise ValueError(f"curves={chosen}: of 0 to {len(y_CS) - 1}")
    exact = _exact(activation, ends_C2, chosen) if names is None else [None] * len(chosen)
    fitted = fitted_members(activation, chosen, x_CS[chosen], y_CS[chosen], names)
    return [
        _listed(shape, members, x_CS[curve], y_CS[curve], tolerance, most)
        for shape, members, curve in zip(exact, fitted, chosen, strict=True)
    ]


def _ends(activation: AbstractActivation, lo: float | None, hi: float | None) -> Tensor:
    """Of the range of each curve, (curves, 2)."""
    if (lo is None) != (hi is None):
        raise ValueError(f"lo={lo}, hi={hi}: both or none")
    if lo is not None and hi is not None:
        if not (isfinite(lo) and isfinite(hi) and lo < hi):
            raise ValueError(f"lo={lo}, hi={hi}: finite, lo below hi")
        ends = torch.tensor([[lo, hi]], dtype=torch.float64)
    elif isinstance(activation, LinearSpline):
        ends = activation.points()[0][:, [0, -1]]
    else:
        ends = torch.tensor([[-DEFAULT_RANGE, DEFAULT_RANGE]], dtype=torch.float64)
    return ends.expand(num_curves(activation), 2)


def _exact(activation: AbstractActivation, ends_C2: Tensor, chosen: list[int]) -> list[Recognized | None]:
    """Piecewise linear functions that are known; of a spline by its knots, of others by points with 0 among them."""
    if isinstance(activation, LinearSpline):
        x_CK, y_CK = activation.points()
    else:
        x_K = torch.linspace(-1, 1, _NUM_POINTS, dtype=torch.float64)
        x_CK = torch.where(x_K < 0, -x_K * ends_C2[:, :1].clamp(max=0), x_K * ends_C2[:, 1:].clamp(min=0))
        inside_C1 = (ends_C2[:, :1] < 0) & (ends_C2[:, 1:] > 0)
        x_CK = torch.where(inside_C1, x_CK, torch.lerp(ends_C2[:, :1], ends_C2[:, 1:], (x_K + 1) / 2))
        y_CK = curve_values(activation, x_CK)
    return [recognized(x_CK[curve].numpy(), y_CK[curve].numpy()) for curve in chosen]


def _listed(
    shape: Recognized | None, members: Sequence[Member], x_S: Tensor, y_S: Tensor, tolerance: float, most: int
) -> list[Formula]:
    """The formulas of a curve, the chosen one first."""

    def formula(name: str, expression: str, exact: bool = False) -> Formula:
        error = relative_error(evaluate(expression, x_S), y_S)
        kind: Kind = "exact" if exact else "within" if error <= tolerance else "nearest"
        return Formula(name, expression, float(x_S[0]), float(x_S[-1]), error, kind)

    def written(some: Sequence[Member]) -> list[Formula]:
        """Those of fewer constants first."""
        texts = [(member.name, *member.written(x_S, y_S, tolerance)) for member in some]
        return [formula(name, text) for name, text, _ in sorted(texts, key=lambda each: each[2])]

    simplest, others = sorted_out(members, tolerance)
    if shape is not None:
        first = [formula(shape.name, shape.expression, exact=True)]
        others = sorted([*simplest, *others], key=lambda member: member.error)
    else:
        first = written(simplest)
    rest = [*first[1:], *written(others[: max(0, most - len(first))])]
    return [first[0], *sorted(rest, key=lambda each: each.error)][:most]
