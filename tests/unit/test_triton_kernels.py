"""The Triton kernels of the linear spline against a plain float64 gather and scatter.

On a GPU where there is one; else in Triton's interpreter, which has to be chosen before Triton is imported and gets a
process of its own therefore.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
ON_GPU = torch.cuda.is_available() and not INTERPRETED
DEVICE = "cuda" if ON_GPU else "cpu"

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="needs the package triton")


@pytest.mark.skipif(ON_GPU or INTERPRETED, reason="the kernels are tested in this process")
def test_the_kernels_hold_in_the_interpreter():
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", str(Path(__file__))]
    done = subprocess.run(
        command,
        env=environment | {"TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


def kernels():
    from tautnet.kernels import triton_linear_spline

    return triton_linear_spline


def reference(grad, x, coefficients, grid_range, inner):
    """Values, both gradients, and the sizes of what the three were summed from: the unit of their rounding errors."""
    num_curves, num_knots = coefficients.shape
    step = 2 * grid_range / (num_knots - 1)
    position = (x.float() + grid_range) * torch.tensor(1 / step, dtype=torch.float32)  # a cell depends on its rounding
    cell = position.nan_to_num(0.0).clamp(0, num_knots - 2).floor().long()
    fraction = position.double() - cell
    index = torch.arange(x.numel()) // inner % num_curves * num_knots + cell
    left, right = (coefficients.double().flatten()[index + shift] for shift in (0, 1))
    values = left + (right - left) * fraction
    grad_x = grad.double() * (right - left) / step

    def scattered(weights):
        sums = torch.zeros(coefficients.numel(), dtype=torch.float64)
        sums.index_add_(0, index, weights(1 - fraction)).index_add_(0, index + 1, weights(fraction))
        return sums.view_as(coefficients)

    sizes = left.abs() + right.abs() + (right - left).abs() * (fraction.abs() + 1)
    total, total_size = scattered(lambda w: grad.double() * w), scattered(lambda w: grad.double().abs() * (w.abs() + 1))
    return (values, grad_x, total), (sizes, grad_x.abs(), total_size)


def run(grad, x, coefficients, grid_range, inner, with_coefficients=True):
    grad, x, coefficients = (tensor.to(DEVICE) for tensor in (grad, x, coefficients))
    values = kernels().forward(x, coefficients, grid_range, inner)
    gradients = kernels().backward(grad, x, coefficients, grid_range, inner, with_coefficients)
    return tuple(tensor.cpu() for tensor in (values, *gradients))


def data(num_curves, rows, inner, num_knots, dtype=torch.float32):
    x = (2.5 * torch.randn(rows * num_curves * inner)).to(dtype)  # a tenth lies outside [-4, 4]
    return torch.randn_like(x), x, torch.randn(num_curves, num_knots), 4.0, inner


CASES = [  # curves, rows, inner, knots, dtype
    (5, 37, 1, 15, torch.float32),
    (66, 3, 1, 51, torch.float16),
    (17, 5, 1, 201, torch.bfloat16),
    (2, 1, 1, 3, torch.float32),
    (3, 7, 5, 51, torch.float32),
    (20, 9, 5, 3, torch.bfloat16),
    (3, 4, 64, 201, torch.float32),
    (18, 3, 64, 15, torch.float16),
    (3, 2, 1000, 51, torch.float32),
    (2, 1, 1000, 201, torch.bfloat16),
    (3, 3, 519, 51, torch.float16),
    (1, 1, 5000, 51, torch.float32),
    (1, 1, 2999, 15, torch.bfloat16),
    (1, 1, 7, 66, torch.float32),
    (2, 1, 2100, 15, torch.float32),
    (2, 1, 70, 1025, torch.float32),
]


class TestKernels:
    __test__ = ON_GPU or INTERPRETED

    @pytest.mark.parametrize(("num_curves", "rows", "inner", "num_knots", "dtype"), CASES)
    def test_agree_with_gather_and_scatter(self, num_curves, rows, inner, num_knots, dtype):
        inputs = data(num_curves, rows, inner, num_knots, dtype)
        actual, (expected, sizes) = run(*inputs), reference(*inputs)
        assert [tensor.dtype for tensor in actual] == [dtype, dtype, torch.float32]
        # The last place of a stored 16-bit number (the interpreter cuts off); the rounding of a position; of the rest.
        stored = {torch.float32: 0.0, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}[dtype]
        for result, wanted, size, place in zip(actual, expected, sizes, (stored, stored, 0.0), strict=True):
            error = (result.double() - wanted).abs()
            allowed = 1e-6 * size + num_knots * 2.0**-23 * size + place * wanted.abs() + 2.0**-24 * (place > 0)
            assert (error <= allowed).all(), (error / allowed).max()

    @pytest.mark.parametrize("inner", [1, 520])
    def test_right_hand_slopes_at_knots_and_border_lines_outside(self, inner):
        coefficients = torch.tensor([[3.0, 1.0, 2.0, 0.0, 5.0]]).repeat(2, 1)
        x = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0, -4.0, 10.0]).repeat_interleave(520)
        x = torch.cat([x, x]) if inner == 1 else x.view(7, 520).repeat_interleave(2, 0).flatten()
        values, grad_x, total = run(torch.ones_like(x), x, coefficients, 2.0, inner)
        points = x.unique()
        for result, wanted in (
            (values, [7.0, 3.0, 1.0, 2.0, 0.0, 5.0, 45.0]),
            (grad_x, [-2.0, -2.0, 1.0, -2.0, 5.0, 5.0, 5.0]),
        ):
            assert torch.equal(result, torch.tensor(wanted)[torch.searchsorted(points, x)])
        # -4 gives 3 and -2 to the first cell's ends, 10 gives -8 and 9 to the last one's.
        assert torch.equal(total, 520 * torch.tensor([[4.0, -1.0, 1.0, -7.0, 10.0]]).repeat(2, 1))

    @pytest.mark.parametrize(("num_curves", "inner", "num_knots"), [(6, 1, 51), (2, 600, 51), (1, 900, 201)])
    def test_coefficients_of_unused_cells_get_exactly_nothing(self, num_curves, inner, num_knots):
        grad, x, *rest = data(num_curves, 200 // inner + 1, inner, num_knots)
        x = x.abs().clamp(0.5, 1.5)
        total = run(grad, x, *rest)[2]
        knots = torch.linspace(-4, 4, num_knots)
        used = (knots > 0.5 - 8 / (num_knots - 1)) & (knots < 1.5 + 8 / (num_knots - 1))
        assert (total[:, ~used] == 0).all()
        assert (total[:, used] != 0).any()

    @pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's own, of NaN
    @pytest.mark.parametrize(("inner", "bad"), [(1, float("nan")), (600, float("nan")), (1, -float("inf"))])
    def test_a_bad_input_stays_with_its_element_and_its_curve(self, inner, bad):
        grad, x, *rest = data(3, 40 // inner + 1, inner, 51)
        good = run(grad, x, *rest)
        x[inner] = bad  # of curve 1
        values, grad_x, total = run(grad, x, *rest)
        others = torch.arange(x.numel()) != inner
        assert not values[inner].isfinite()
        assert torch.equal(values[others], good[0][others])
        assert torch.equal(grad_x[others], good[1][others])
        assert torch.equal(total[[0, 2]], good[2][[0, 2]])
        assert total[1].isnan().any()

    @pytest.mark.parametrize(("num_curves", "rows", "inner"), [(5, 90, 1), (2, 1, 600), (1, 1, 5000)])
    def test_two_runs_give_the_same_bits(self, num_curves, rows, inner):
        inputs = data(num_curves, rows, inner, 51)
        assert all(torch.equal(first, second) for first, second in zip(run(*inputs), run(*inputs), strict=True))

    @pytest.mark.parametrize("inner", [5, 600])
    def test_without_coefficients_the_rest_is_the_same(self, inner):
        inputs = data(2, 2, inner, 300, torch.bfloat16)
        grad_x, total = run(*inputs, with_coefficients=False)[1:]
        assert torch.equal(grad_x, run(*inputs)[1])
        assert total.shape == (0,)

    def test_a_long_sum_of_one_sign_keeps_float32_accuracy(self):
        x = torch.full((4_000_000 if ON_GPU else 6000,), 0.05)
        grad = torch.full_like(x, 0.1)
        total = run(grad, x, torch.zeros(1, 51), 4.0, 1)[2].double()
        torch.testing.assert_close(total.sum(), grad.double().sum(), rtol=1e-6, atol=0)

    def test_nothing_in_nothing_out(self):
        values, grad_x, total = run(torch.empty(0), torch.empty(0), torch.randn(3, 51), 4.0, 16)
        assert values.shape == grad_x.shape == (0,)
        assert torch.equal(total, torch.zeros(3, 51))
