"""Gram iteration: never below the truth in any type, close after many iterations, gradients that exist."""

import math
import random

import pytest
import torch
from torch import nn

from tautnet.functional import gram as module
from tautnet.functional.gram import gram_conv_spectral_norm, gram_spectral_norm
from tautnet.functional.operator_norm import conv_spectral_norm

pytestmark = pytest.mark.usefixtures("float64_on_one_thread")

SHAPES = [(1, 1), (5, 5), (3, 8), (8, 3), (1, 9), (60, 60), (150, 20)]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def truth_of(matrix):
    return float(torch.linalg.svdvals(matrix.detach().double())[0])


def adversarial(shape):
    """Random, constant, zero, of rank one, with equal singular values, over many scales, with one large entry."""
    spread = torch.randn(shape) * 10 ** (torch.rand(shape) * 6 - 3)
    one_large = torch.full(shape, 1e-3)
    one_large[0, 0] = 1
    return [
        torch.randn(shape),
        torch.ones(shape),
        torch.zeros(shape),
        torch.eye(*shape),
        torch.randn(shape[0], 1) @ torch.randn(1, shape[1]),
        nn.init.orthogonal_(torch.empty(shape)),
        spread,
        one_large,
    ]


# --- matrices ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [1e-44, 1e-20, 1e-6, 1.0, 1e4, 1e30])
def test_bound_is_never_below_the_largest_singular_value(dtype, shape, scale):
    for matrix in adversarial(shape):
        matrix = (matrix * scale).to(dtype)
        if matrix.isfinite().all():
            for num_iterations in (0, 1, 4, 9, 40):
                bound = gram_spectral_norm(matrix, num_iterations)
                assert bound.dtype == dtype
                assert float(bound) >= truth_of(matrix)


@pytest.mark.parametrize("shape", SHAPES)
def test_bound_is_within_the_factor_of_its_rank_and_falls(shape):
    for matrix in adversarial(shape):
        truth, last = truth_of(matrix), math.inf
        for num_iterations in range(10):
            bound = float(gram_spectral_norm(matrix, num_iterations))
            assert bound <= truth * min(shape) ** (2.0 ** -(num_iterations + 2)) * (1 + 1e-9) + 1e-290
            assert bound <= last * (1 + 1e-9) + 1e-290
            last = bound


def test_the_bound_is_that_of_the_iteration():
    matrix = torch.randn(4, 6)
    gram = matrix @ matrix.T
    for num_iterations in range(4):
        power = torch.linalg.matrix_power(gram, 2**num_iterations)
        expected = float(power.norm()) ** (2.0 ** -(num_iterations + 1))
        assert float(gram_spectral_norm(matrix, num_iterations)) == pytest.approx(expected, rel=1e-9)


def test_float32_is_bounded_whatever_the_precision_of_its_products():
    matrix = torch.randn(100, 80, dtype=torch.float32)
    usual = gram_spectral_norm(matrix, 8)
    torch.set_float32_matmul_precision("medium")
    try:
        assert torch.equal(gram_spectral_norm(matrix, 8), usual)
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("shape", [(3, 4), (4, 3), (1, 1)])
@pytest.mark.parametrize("num_iterations", [0, 3])
def test_gradient_of_a_matrix(shape, num_iterations):
    matrix = torch.randn(shape, requires_grad=True)
    assert torch.autograd.gradcheck(lambda m: gram_spectral_norm(m, num_iterations), matrix)
    assert torch.autograd.gradgradcheck(lambda m: gram_spectral_norm(m, num_iterations), matrix)


# --- convolutions -----------------------------------------------------------------------------------------------------


def random_kernel(n):
    groups = random.choice([1, 1, 2])
    outputs, inputs = groups * random.randint(1, 3), random.randint(1, 3)
    sizes = [random.randint(1, 5 if n < 3 else 3) for _ in range(n)]
    strides = [random.randint(1, 3) for _ in range(n)]
    dilations = [random.randint(1, 3 if n < 3 else 2) for _ in range(n)]
    kernel = random.choice([torch.randn, torch.ones, torch.zeros])(outputs, inputs, *sizes)
    return kernel * 10 ** random.uniform(-6, 6), strides, dilations, groups


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_bound_of_a_convolution_holds_for_every_image_and_padding(n, dtype):
    random.seed(n)
    for _ in range(25 if n < 3 else 10):
        kernel, strides, dilations, groups = random_kernel(n)
        kernel = kernel.to(dtype)
        bound = float(gram_conv_spectral_norm(kernel, strides, dilations, groups, random.choice([0, 2, 10])))
        for image in {1: (1, 7, 50), 2: (5, 23), 3: (4, 7)}[n]:  # no coarse grid, whose allowance is another
            padding = [
                (random.randint(0, 3) + d * (k - 1),) * 2 for d, k in zip(dilations, kernel.shape[2:], strict=True)
            ]
            exact = conv_spectral_norm(kernel, [image] * n, strides, padding, dilations, groups, "zeros")
            assert bound * (1 + 1e-10) >= exact
        assert bound <= 3 * exact + 1e-40


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 1), (4, 2), (2, 2), (1, 1)])
def test_bound_of_a_convolution_is_close_on_a_large_image(kernel, stride):
    weight = torch.randn(3, 4, kernel, kernel)
    settings = ([stride] * 2, [(kernel, kernel)] * 2, [1, 1], 1, "zeros")
    exact = conv_spectral_norm(weight, [1000, 1000], *settings)
    bound = float(gram_conv_spectral_norm(weight, [stride] * 2, [1, 1], 1, 12))
    assert exact * 0.99 <= bound <= 1.045 * exact
    if kernel <= stride:  # nothing depends on the frequency
        assert bound == pytest.approx(float(torch.linalg.svdvals(weight.flatten(1))[0]), rel=1e-9)


def test_the_allowance_between_frequencies_is_needed(monkeypatch):
    """|1 - e^{iw}| peaks at pi, which a grid of 3 misses."""
    monkeypatch.setattr(module, "_POINTS_PER_STEP", 3)
    kernel = torch.tensor([1.0, -1.0]).view(1, 1, 2)
    assert float(gram_conv_spectral_norm(kernel, [1], [1], 1, 5)) == pytest.approx(2, rel=1e-9)


def test_blocks_of_frequencies_change_nothing(monkeypatch):
    kernel = torch.randn(4, 3, 3, 3, requires_grad=True)
    results = []
    for block in (2**22, 10):
        monkeypatch.setattr(module, "_BLOCK", block)
        bound = gram_conv_spectral_norm(kernel, [1, 1], [1, 1], 1, 6)
        results.append((bound.detach(), *torch.autograd.grad(bound, kernel)))
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("shape", "stride", "dilation", "groups"),
    [
        ((2, 3, 3), [1], [1], 1),
        ((3, 2, 3, 2), [1, 1], [2, 1], 1),
        ((2, 2, 3, 3), [2, 2], [1, 1], 2),
        ((2, 1, 2, 2, 2), [1, 1, 1], [1, 1, 1], 1),
    ],
)
def test_gradient_of_a_kernel(shape, stride, dilation, groups):
    kernel = torch.randn(shape, requires_grad=True)
    assert torch.autograd.gradcheck(lambda k: gram_conv_spectral_norm(k, stride, dilation, groups, 4), kernel)


# --- both -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1.0])
def test_gradients_of_zeros_and_constants_are_finite(dtype, scale):
    for shape in ((3, 4), (2, 3, 3), (3, 2, 3, 3)):
        weight = torch.full(shape, scale, dtype=dtype, requires_grad=True)
        rest = ([1] * len(shape[2:]), [1] * len(shape[2:]), 1, 6)
        bound = gram_spectral_norm(weight, 6) if len(shape) == 2 else gram_conv_spectral_norm(weight, *rest)
        bound.backward()
        assert weight.grad.isfinite().all()
        assert bound.dtype == dtype
        assert scale == 1 or bound <= 1e-6


def test_what_is_not_finite_is_not_bounded():
    for value in (math.nan, math.inf):
        assert gram_spectral_norm(torch.full((2, 3), value), 3).isnan()
        assert gram_conv_spectral_norm(torch.full((2, 3, 3), value), [1], [1], 1, 3).isnan()


def test_a_kernel_without_values_has_a_norm_without():
    kernel = torch.empty(2, 2, 3, 3, device="meta")
    assert gram_conv_spectral_norm(kernel, [1, 1], [1, 1], 1, 3).shape == ()
