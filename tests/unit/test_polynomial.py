"""That enclosures contain what they have to, in real arithmetic too, and little else."""

from fractions import Fraction
from itertools import pairwise
from math import inf, isnan, nan, pi

import pytest
import torch

from tautnet.functional.bases import elements
from tautnet.functional.polynomial import composed, derivative, range_on_box, trigonometric_range_on_box

pytestmark = pytest.mark.usefixtures("float64")


def row(*values):
    return torch.tensor([values], dtype=torch.float64)


def horner(x, coefficients_CP):
    y = torch.zeros_like(x)
    for a_C in reversed(coefficients_CP.unbind(1)):
        y = y * x + a_C
    return y


def box(lo, hi):
    return row(lo), row(hi)


def test_derivative_and_composition():
    assert derivative(row(7, 2, 3, 4)).tolist() == [[2, 6, 12]]
    # 1 + 2 u + 3 u^2 at u = 2 x - 1: 2 - 8 x + 12 x^2
    assert composed(row(1, 2, 3), torch.tensor([2.0]), torch.tensor([-1.0])).tolist() == [[2, -8, 12]]
    coefficients_CP, factor_C, shift_C, x = torch.randn(3, 6), torch.randn(3), torch.randn(3), torch.randn(7, 3)
    expected = horner(factor_C * x + shift_C, coefficients_CP)
    torch.testing.assert_close(horner(x, composed(coefficients_CP, factor_C, shift_C)), expected)


# --- enclosures -------------------------------------------------------------------------------------------------------


def test_known_ranges():
    low, high = range_on_box(*box(-1.0, 1.0), row(0, 0, 1))  # x^2: pieces end at the minimum
    assert low.item() == pytest.approx(0, abs=1e-13)
    assert high.item() == pytest.approx(1, abs=1e-13)
    low, high = range_on_box(*box(0.5, 2.0), row(1, 2, 3))  # rising: the ends
    assert (low.item(), high.item()) == (pytest.approx(2.75, abs=1e-12), pytest.approx(17, abs=1e-12))
    low, high = range_on_box(*box(-3.0, 5.0), row(1, -2))
    assert (low.item(), high.item()) == (pytest.approx(-9, abs=1e-12), pytest.approx(7, abs=1e-12))
    low, high = range_on_box(*box(0.3, 0.3), row(1, 2, 3, 4))  # a point
    assert (low.item(), high.item()) == (pytest.approx(1.978, abs=1e-12), pytest.approx(1.978, abs=1e-12))
    assert range_on_box(*box(-3.0, 5.0), row(2.5))[0].item() == pytest.approx(2.5)  # a constant


def test_the_excess_falls_with_the_square_of_the_width():
    coefficients = row(0.3, 0.0, 1.0, 0.3, -0.2)
    excess = []
    for width in (0.4, 0.2, 0.1, 0.05):
        lo, hi = box(-0.37 * width, 0.63 * width)  # around the minimum, which lies in the middle of a piece
        values = horner(lo + (hi - lo) * torch.linspace(0, 1, 20001).view(-1, 1), coefficients)
        low, high = range_on_box(lo, hi, coefficients)
        excess.append(float(values.min() - low + high - values.max()))
    assert 5e-4 < excess[0] < 2e-3
    assert all(later < earlier / 3 for earlier, later in pairwise(excess))


@pytest.mark.parametrize("degree", [1, 2, 3, 4, 7, 16])
def test_enclosures_contain_all_values(degree):
    coefficients_CP = torch.randn(5, degree + 1)
    lo = 3 * torch.randn(300, 5)
    hi = lo + torch.rand(300, 5) * torch.logspace(-6, 1, 300).unsqueeze(1)
    low, high = range_on_box(lo, hi, coefficients_CP)
    for share in torch.linspace(0, 1, 60):
        y = horner(torch.minimum(lo + (hi - lo) * share, hi), coefficients_CP)
        assert (low <= y).all()
        assert (y <= high).all()


@pytest.mark.parametrize("degree", [3, 7, 11])
def test_enclosures_contain_the_exact_values_where_digits_cancel(degree):
    """(x - 1)^n in powers of x near 1: all digits of a float cancel, the truth is computed in fractions."""
    coefficients = torch.ones(1)
    for _ in range(degree):  # times (x - 1)
        coefficients = torch.nn.functional.pad(coefficients, (1, 0)) - torch.nn.functional.pad(coefficients, (0, 1))
    centres = 1 + 1e-3 * torch.randn(200, 1)
    lo, hi = centres - 1e-5 * torch.rand(200, 1), centres + 1e-5 * torch.rand(200, 1)
    low, high = range_on_box(lo, hi, coefficients.unsqueeze(0))
    slopes = range_on_box(lo, hi, derivative(coefficients.unsqueeze(0)))
    for x, ends, slope_ends in (
        *zip(lo.flatten(), torch.cat([low, high], 1), torch.cat(slopes, 1), strict=True),
        *zip(hi.flatten(), torch.cat([low, high], 1), torch.cat(slopes, 1), strict=True),
    ):
        exact = Fraction(x.item()) - 1
        assert Fraction(ends[0].item()) <= exact**degree <= Fraction(ends[1].item())
        assert Fraction(slope_ends[0].item()) <= degree * exact ** (degree - 1) <= Fraction(slope_ends[1].item())


def test_ends_without_a_bound():
    lo, hi = row(-inf, 0.0, nan, 1e200, 0.0), row(1.0, inf, 1.0, 2e200, 1.0)
    low, high = range_on_box(lo, hi, row(0, 1, 1))
    assert low[0, [0, 1, 3]].tolist() == [-inf] * 3
    assert high[0, [0, 1, 3]].tolist() == [inf] * 3
    assert isnan(low[0, 2])
    assert isnan(high[0, 2])
    assert low[0, 4].isfinite()


# --- Fourier sums -----------------------------------------------------------------------------------------------------


def test_ranges_of_a_single_wave():
    sine = row(2.0, 0.0)  # 2 sin(pi x / 2)
    zero = torch.zeros(1)
    for lo, hi, least, most in [(0, 1, 0, 2), (0.5, 1.5, 2**0.5, 2), (-1, 3.5, -2, 2), (2, 3, -2, 0), (100, 101, 0, 2)]:
        low, high = trigonometric_range_on_box(*box(lo, hi), sine, zero)
        assert (low.item(), high.item()) == (pytest.approx(least, abs=1e-11), pytest.approx(most, abs=1e-11))
    low, high = trigonometric_range_on_box(*box(0, 0.5), sine, zero, order=1)  # pi cos(pi x / 2)
    assert (low.item(), high.item()) == (pytest.approx(pi * 0.5**0.5), pytest.approx(pi))
    low, high = trigonometric_range_on_box(row(-inf, 0.0, 1e300), row(inf, inf, 2e300), sine, torch.ones(1))
    assert (low <= -1).all()
    assert (high >= 3).all()
    assert torch.stack([low, high]).isfinite().all()


@pytest.mark.parametrize("order", [0, 1])
def test_enclosures_contain_all_values_of_fourier_sums(order):
    weights_CK, constant_C = torch.randn(4, 6), torch.randn(4)
    lo = 5 * torch.randn(200, 4)
    hi = lo + torch.rand(200, 4) * torch.logspace(-6, 0.7, 200).unsqueeze(1)
    low, high = trigonometric_range_on_box(lo, hi, weights_CK, constant_C, order)
    narrow = (high - low)[:50]
    for share in torch.linspace(0, 1, 60):
        x = torch.minimum(lo + (hi - lo) * share, hi).requires_grad_()
        y = constant_C + sum(w * e for w, e in zip(weights_CK.unbind(1), elements(x, "fourier", 3), strict=True))
        if order:
            (y,) = torch.autograd.grad(y.sum(), x)
        assert (low <= y).all()
        assert (y <= high).all()
    assert (narrow < 300 * (hi - lo)[:50] + 1e-10).all()


def test_gradients_of_enclosures():
    lo, width = torch.randn(2, 3, requires_grad=True), (0.1 + torch.rand(2, 3)).requires_grad_()
    coefficients_CP, weights_CK = torch.randn(3, 5, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    assert torch.autograd.gradcheck(lambda lo, w, a: range_on_box(lo, lo + w, a), (lo, width, coefficients_CP))
    assert torch.autograd.gradcheck(
        lambda lo, w, a: trigonometric_range_on_box(lo, lo + w, a, torch.ones(1)), (lo, width, weights_CK)
    )
