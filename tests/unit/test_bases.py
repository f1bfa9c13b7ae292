"""Basis functions against closed forms, numpy's own and their orthogonality."""

from math import factorial

import numpy as np
import pytest
import torch

from tautnet.functional.bases import elements, is_polynomial, num_elements, to_powers

pytestmark = pytest.mark.usefixtures("float64")

DEGREE = 8
POLYNOMIALS = {
    "power": lambda x, j: x**j,
    "taylor": lambda x, j: x**j / factorial(j),
    "chebyshev": lambda x, j: np.polynomial.chebyshev.chebval(x, [0] * j + [1]),
    "legendre": lambda x, j: np.polynomial.legendre.legval(x, [0] * j + [1]),
    "hermite": lambda x, j: np.polynomial.hermite_e.hermeval(x, [0] * j + [1]),
}


@pytest.mark.parametrize("basis", POLYNOMIALS)
def test_polynomials_are_those_of_numpy(basis):
    x = torch.linspace(-2, 2, 41)
    values = elements(x, basis, DEGREE)
    assert is_polynomial(basis)
    assert len(values) == num_elements(basis, DEGREE) == DEGREE
    for j, value in enumerate(values, start=1):
        torch.testing.assert_close(value, torch.from_numpy(POLYNOMIALS[basis](x.numpy(), j)), rtol=1e-13, atol=1e-12)
    assert torch.equal(values[0], x)


@pytest.mark.parametrize("basis", POLYNOMIALS)
@pytest.mark.parametrize("degree", [1, 2, 5, 16])
def test_the_change_to_powers_is_triangular_and_gives_the_same_values(basis, degree):
    matrix_KP = to_powers(basis, degree)
    assert matrix_KP.shape == (degree, degree + 1)
    assert matrix_KP.dtype == torch.float64
    assert torch.equal(matrix_KP, matrix_KP.tril(1))
    assert (matrix_KP.diagonal(1) > 0).all()
    x = torch.linspace(-1, 1, 21)
    powers = torch.stack([x**p for p in range(degree + 1)])
    values = torch.stack(elements(x, basis, degree))
    torch.testing.assert_close(matrix_KP @ powers, values, rtol=1e-9, atol=1e-9 * float(matrix_KP.abs().max()))


def test_exact_coefficients():
    assert to_powers("chebyshev", 5)[4].tolist() == [0, 5, 0, -20, 0, 16]
    assert to_powers("hermite", 5)[4].tolist() == [0, 15, 0, -10, 0, 1]
    assert to_powers("legendre", 4)[3].tolist() == [0.375, 0, -3.75, 0, 4.375]
    assert to_powers("taylor", 4)[3].tolist() == pytest.approx([0, 0, 0, 0, 1 / 24])
    assert torch.equal(to_powers("power", 3), torch.eye(4)[1:])


@pytest.mark.parametrize(
    ("basis", "rule", "squared"),
    [
        ("chebyshev", np.polynomial.chebyshev.chebgauss, lambda j: np.pi / 2),
        ("legendre", np.polynomial.legendre.leggauss, lambda j: 2 / (2 * j + 1)),
        ("hermite", np.polynomial.hermite_e.hermegauss, lambda j: np.sqrt(2 * np.pi) * factorial(j)),
    ],
)
def test_orthogonality(basis, rule, squared):
    nodes, weights = (torch.from_numpy(t) for t in rule(DEGREE + 1))  # exact up to degree 2 DEGREE + 1
    values = torch.stack(elements(nodes, basis, DEGREE))
    expected = torch.tensor([float(squared(j)) for j in range(1, DEGREE + 1)])
    gram = (values * weights) @ values.T / expected.sqrt() / expected.sqrt().unsqueeze(1)
    torch.testing.assert_close(gram, torch.eye(DEGREE), rtol=0, atol=1e-11)
    torch.testing.assert_close(values @ weights / expected.sqrt(), torch.zeros(DEGREE), rtol=0, atol=1e-11)


def test_fourier_has_quarter_wave_sines_and_half_wave_cosines_of_period_four():
    x = torch.tensor([0.0, 0.5, 1.0, 2.0])
    sin_1, sin_3, cos_1, cos_2 = elements(x, "fourier", 2)
    root = 0.5**0.5
    expected = [[0, root, 1, 0], [0, root, -1, 0], [1, 0, -1, 1], [1, -1, 1, 1]]
    torch.testing.assert_close(torch.stack([sin_1, sin_3, cos_1, cos_2]), torch.tensor(expected), rtol=0, atol=1e-14)
    assert num_elements("fourier", 4) == 8
    x = torch.randn(50)
    for here, there in zip(elements(x, "fourier", 4), elements(x + 4, "fourier", 4), strict=True):
        torch.testing.assert_close(here, there, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="basis=fourier: one of power"):
        to_powers("fourier", 3)
