"""Standard functions that curves are compared with, each a family c f(a x + b) + d."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tautnet.splines.expressions import FUNCTIONS, line, number, times

Kind = Literal["shifted", "scaled", "free", "kinked"]
_REACH = 50.0  # largest |a| and |b| on the interval [-1, 1]
_SHIFT = 10.0  # largest |b| of what is only shifted: from further away it is a straight line


@dataclass(frozen=True)
class Family:
    """The functions f(a x + b), from which c and d follow by linear regression.

    Attributes:
        name: of f.
        kind: ``free``; ``shifted``, a = ±1, as another a only changes c and d; ``scaled``, b = 0 likewise; ``kinked``,
            f(x + b, a), a the slope on the left.
        function: f.
        starts: pairs (a, b) on the interval [-1, 1], among which a fit begins.
        form: of the text, with the argument for ``{}``.
        symmetric: f(-u) is an affine function of f(u), so that a > 0 is enough.
    """

    name: str
    kind: Kind
    function: Callable[..., Tensor]
    starts: Callable[[], Tensor]
    form: str
    symmetric: bool = False

    @property
    def num_constants(self) -> int:
        """Constants that are fitted, c and d included."""
        return 3 if self.kind in ("shifted", "scaled") else 4

    @property
    def free(self) -> tuple[bool, bool]:
        """Whether a, and whether b is fitted."""
        return self.kind != "shifted", self.kind != "scaled"

    def __call__(self, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """The values at x; a and b broadcast against it."""
        return self.function(x + b, a) if self.kind == "kinked" else self.function(a * x + b)

    def allows(self, a: Tensor, b: Tensor) -> Tensor:
        """Whether a and b, of the interval [-1, 1], are of a sensible size."""
        return (a.abs() <= _REACH) & (b.abs() <= (_SHIFT if self.kind == "shifted" else _REACH))

    def placed(self, a: float, b: float, middle: float, half: float) -> tuple[float, float]:
        """The same a and b for the interval around ``middle`` of half the length ``half``, from those for [-1, 1]."""
        if self.symmetric and a < 0:
            a, b = -a, -b
        if self.kind == "shifted":
            return a, b * half - a * middle
        if self.kind == "kinked":
            return a, b * half - middle
        return a / half, (0.0 if self.kind == "scaled" else b - a * middle / half)

    def text(self, a: float, b: float, c: float) -> str:
        """The text of c f(a x + b)."""
        inner = line(1.0 if self.kind == "kinked" else a, b)
        if "{}**" in self.form and inner != "x":
            inner = f"({inner})"
        whole = self.form.format(inner, number(a))
        return f"{number(c)}{whole[1:]}" if whole.startswith("1/") else times(c, whole)


def families() -> tuple[Family, ...]:
    """All of them, those of fewer constants first."""
    return (
        *(Family(f"x^{n}", "shifted", _power(n), _anywhere, f"{{}}**{n}", True) for n in (2, 3, 4)),
        *(_called(name, "shifted", _inside, name == "abs") for name in ("abs", "relu")),
        _called("sign", "shifted", _steps, True),
        *(_called(name, "shifted", _outside) for name in ("log", "sqrt")),
        Family("1/x", "shifted", torch.reciprocal, _outside, "1/({})", True),
        _called("exp", "scaled", _rates),
        *(_called(name, "free", _windows, True) for name in ("sigmoid", "tanh", "arctan")),
        *(_called(name, "free", _windows) for name in ("softplus", "silu", "gelu", "elu")),
        _called("sin", "free", _waves, True),
        Family("gaussian", "free", _gaussian, _windows, "exp(-{}**2)", True),
        Family("leaky_relu", "kinked", _leaky_relu, _kinks, "leaky_relu({}, {})"),
    )


def _called(name: str, kind: Kind, starts: Callable[[], Tensor], symmetric: bool = False) -> Family:
    return Family(name, kind, FUNCTIONS[name], starts, f"{name}({{}})", symmetric)


def _power(degree: int) -> Callable[[Tensor], Tensor]:
    return lambda u: u**degree


def _gaussian(u: Tensor) -> Tensor:
    return torch.exp(-u.square())


def _leaky_relu(u: Tensor, slope: Tensor) -> Tensor:
    return u.clamp(min=0) + slope * u.clamp(max=0)


def _pairs(a: Tensor, b: Tensor) -> Tensor:
    return torch.cartesian_prod(a.double(), b.double())


def _both_signs() -> Tensor:
    return torch.tensor([1.0, -1.0])


def _anywhere() -> Tensor:
    """Vertices in the interval and a little outside."""
    return _pairs(torch.ones(1), torch.linspace(-4, 4, 65))


def _inside() -> Tensor:
    """Kinks in the interval."""
    return _pairs(_both_signs(), torch.linspace(-0.99, 0.99, 199))


def _steps() -> Tensor:
    """Jumps between the points at which curves are looked at: where exactly they are cannot be seen."""
    return _pairs(torch.ones(1), torch.linspace(-0.995, 0.995, 200))


def _outside() -> Tensor:
    """Singularities outside of the interval, on both sides."""
    return _pairs(_both_signs(), 1 + torch.cat([torch.zeros(1), torch.logspace(-3, 0.95, 40)]))


def _rates() -> Tensor:
    rates = torch.logspace(-1.3, 1.5, 40)
    return _pairs(torch.cat([-rates, rates]), torch.zeros(1))


def _windows() -> Tensor:
    """Pieces [p, q] of f that lie over the interval, of all sizes, in both directions."""
    sizes = torch.tensor([0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.5, 6.5, 10.0, 15.0, 22.0, 33.0], dtype=torch.float64)
    ends = torch.cat([-sizes.flip(0), torch.zeros(1, dtype=torch.float64), sizes])
    p, q = torch.cartesian_prod(ends, ends).unbind(1)
    return torch.stack([(q - p) / 2, (p + q) / 2], dim=1)[p != q]


def _waves() -> Tensor:
    """Up to 16 periods in the interval, eight phases of each."""
    return _pairs(torch.linspace(0.5, 50, 100), torch.linspace(0, torch.pi, 9)[:-1])


def _kinks() -> Tensor:
    left = torch.tensor([-3.0, -1.5, -0.75, -0.5, -0.25, -0.1, 0.1, 0.25, 0.5, 0.75, 1.5, 3.0])
    return _pairs(left, torch.linspace(-0.98, 0.98, 99))
