r"""Families of functions that learned activations are sums of: e_1, ..., e_K, without the constant.

Five are polynomials, e_j of degree j, made by a recurrence of three terms from e_0 = 1 and e_1 = x:

    e_{j+1} = a_j x e_j - b_j e_{j-1}.

``power`` is x^j, ``taylor`` x^j / j!, ``chebyshev`` of the first kind, ``legendre`` with P_j(1) = 1, ``hermite`` the
probabilists' one, orthogonal under N(0, 1). ``fourier`` has sin((2i - 1) pi x / 2) and then cos(i pi x),
i = 1, ..., degree, of period 4.

Source: the first two and Fourier after the code of Goyal, Goyal, Lall (2019); the orthogonal ones are from textbooks.
"""

from __future__ import annotations

from collections.abc import Callable
from math import pi
from typing import Literal

import torch
from torch import Tensor

Basis = Literal["power", "taylor", "fourier", "chebyshev", "legendre", "hermite"]

_RECURRENCES: dict[str, Callable[[int], tuple[float, float]]] = {  # j -> a_j, b_j
    "power": lambda j: (1.0, 0.0),
    "taylor": lambda j: (1 / (j + 1), 0.0),
    "chebyshev": lambda j: (2.0 if j else 1.0, 1.0),
    "legendre": lambda j: ((2 * j + 1) / (j + 1), j / (j + 1)),
    "hermite": lambda j: (1.0, float(j)),
}


def is_polynomial(basis: Basis) -> bool:
    """Whether the elements are polynomials."""
    return basis in _RECURRENCES


def num_elements(basis: Basis, degree: int) -> int:
    """K: the degree; of Fourier's pairs of sine and cosine twice as many."""
    return degree if is_polynomial(basis) else 2 * degree


def elements(x: Tensor, basis: Basis, degree: int) -> list[Tensor]:
    """Values of e_1, ..., e_K at x, each of the shape of ``x``.

    Args:
        x: points, any shape, a floating dtype.
        basis: see the head of this file.
        degree: largest degree, or Fourier's number of frequencies, at least 1.
    """
    if not is_polynomial(basis):
        sines, cosines = frequencies(degree)
        return [torch.sin(omega * x) for omega in sines] + [torch.cos(omega * x) for omega in cosines]
    values = [x]
    for j in range(1, degree):
        a, b = _RECURRENCES[basis](j)
        newest = a * x * values[-1]
        below = values[-2] if j > 1 else 1.0
        values.append(newest - b * below if b else newest)
    return values


def frequencies(degree: int) -> tuple[list[float], list[float]]:
    """Fourier's angular frequencies of the sines and of the cosines."""
    return [(2 * i - 1) * pi / 2 for i in range(1, degree + 1)], [i * pi for i in range(1, degree + 1)]


def to_powers(basis: Basis, degree: int) -> Tensor:
    """The triangular matrix T with e_j(x) = sum_p T_{j,p} x^p, j = 1, ..., degree, p = 0, ..., degree.

    Returns:
        Shape (degree, degree + 1), float64 on the CPU; its whole numbers are exact, its fractions rounded.

    Raises:
        ValueError: a basis that is no polynomial.
    """
    if not is_polynomial(basis):
        raise ValueError(f"basis={basis}: one of {', '.join(_RECURRENCES)}")
    rows = torch.eye(degree + 1, dtype=torch.float64, device="cpu")  # row 1 is x already
    for j in range(1, degree):
        a, b = _RECURRENCES[basis](j)
        rows[j + 1] = a * rows[j].roll(1) - b * rows[j - 1]
    return rows[1:]
