"""Standardized polynomials: the compiled form against the formula, and every way that torch may call them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.autograd.graph import saved_tensors_hooks

from tautnet.functional.standardized_polynomial import (
    polynomial,
    polynomial_formula,
    standardized_formula,
    standardized_polynomial,
)
from tautnet.kernels import native as compiler
from tautnet.kernels import polynomial as native

HAS_COMPILER = native.available(2)
needs_compiler = pytest.mark.skipif(not HAS_COMPILER, reason="no C++ compiler")
DEGREES = (1, 2, 4, 7)
CONTIGUOUS, CHANNELS_LAST = torch.contiguous_format, torch.channels_last


def case(shape, degree, dtype=torch.float64, one_curve=False, layout=CONTIGUOUS):
    num_curves = 1 if one_curve else shape[1]
    z = torch.randn(shape, dtype=torch.float64)
    z = z.contiguous(memory_format=layout) if len(shape) == 4 else z
    coefficients, bias = torch.randn(num_curves, degree).to(z), torch.randn(num_curves).to(z)
    return tuple(t.to(dtype) for t in (z, coefficients, bias))


def results(function, *inputs, eps=1e-5, grad=None):
    """Values, statistics and gradients."""
    inputs = [t.detach().requires_grad_() for t in inputs]
    y, mean, variance = function(*inputs, eps)
    grad = torch.cos(torch.arange(y.numel(), dtype=torch.float64)).view(y.shape) if grad is None else grad
    return y.detach(), mean.detach(), variance.detach(), *torch.autograd.grad(y, inputs, grad.to(y.dtype))


def errors(actual, expected):
    """Largest error of each beside its largest value."""
    return [
        ((a.double() - e.double()).abs().max() / e.double().abs().max().clamp(min=1e-30)).item()
        for a, e in zip(actual, expected, strict=True)
    ]


def agree(actual, expected, tolerance):
    assert [a.shape for a in actual] == [e.shape for e in expected]
    for a, e in zip(actual, expected, strict=True):
        scale = max(1.0, e.abs().max().item())
        torch.testing.assert_close(a.double() / scale, e.double() / scale, rtol=0, atol=tolerance)


def test_two_points_by_hand():
    """z = 0, 2: z has mean 1 and variance 1, z^2 mean 2 and variance 4."""
    z, bias = torch.tensor([[0.0], [2.0]]).double(), torch.tensor([0.5]).double()
    coefficients = torch.tensor([[3.0, 5.0]]).double()
    y, mean, variance = standardized_polynomial(z, coefficients, bias, 1e-300)
    torch.testing.assert_close(y, torch.tensor([[-7.5], [8.5]]).double())
    torch.testing.assert_close(mean, torch.tensor([[1.0, 2.0]]).double())
    torch.testing.assert_close(variance, torch.tensor([[1.0, 4.0]]).double())


@pytest.mark.parametrize("function", [polynomial, polynomial_formula])
def test_a_polynomial_with_given_coefficients(function):
    z = torch.tensor([[-2.0], [-1.0], [0.0], [1.0], [2.0]], requires_grad=True)
    coefficients = torch.tensor([[1.0, 2.0, 3.0]], requires_grad=True)
    y = function(z, coefficients)
    assert y.flatten().tolist() == [9, 2, 1, 6, 17]
    grad_z, grad_coefficients = torch.autograd.grad(y.sum(), (z, coefficients))
    assert grad_z.flatten().tolist() == [-10, -4, 2, 8, 14]
    assert grad_coefficients.tolist() == [[5, 0, 10]]


SHAPES = [
    *[(3, 4), (6, 1), (40, 17), (300, 33), (1500, 7), (2, 3, 5), (4, 5, 3, 2, 2), (37, 5, 9, 9), (9, 3, 13, 13)],
    *[(2, 7, 40, 30), (1, 2, 5000), (70, 3, 1, 1), (40, 2, 31, 33)],
]


@needs_compiler
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("degree", DEGREES)
def test_the_compiled_form_is_the_formula(shape, degree):
    for one_curve in (False, True):
        for layout in (CONTIGUOUS, CHANNELS_LAST):
            inputs = case(shape, degree, one_curve=one_curve, layout=layout)
            expected = results(standardized_formula, *inputs)
            found = results(standardized_polynomial, *inputs)
            agree(found, expected, 1e-10)
            assert found[0].stride() == torch.empty_like(inputs[0]).stride()
            low = [t.float() for t in inputs]
            naive = results(standardized_formula, *low)
            found = results(standardized_polynomial, *low)
            for error, usual in zip(errors(found, expected), errors(naive, expected), strict=True):
                assert error < 4 * usual + 2e-5


@needs_compiler
@settings(max_examples=30, deadline=None)
@given(
    shape=st.lists(st.integers(1, 40), min_size=2, max_size=4),
    degree=st.sampled_from(DEGREES),
    one_curve=st.booleans(),
    mean=st.sampled_from([0.0, 3.0, -20.0]),
    gap=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_the_compiled_form_is_the_formula_for_any_shape(shape, degree, one_curve, mean, gap, seed):
    torch.manual_seed(seed)
    z, coefficients, bias = case(shape, degree, one_curve=one_curve)
    z = (torch.stack([z, z], dim=-1)[..., 0] if gap else z) + mean
    # Two elements with nearly the same square make it a matter of rounding.
    eps = 1.0 if z.numel() < 200 * len(coefficients) else 1e-5
    found = results(standardized_polynomial, z, coefficients, bias, eps=eps)
    agree(found, results(standardized_formula, z, coefficients, bias, eps=eps), 1e-7 if mean else 1e-9)
    given = torch.cat([bias.unsqueeze(1), coefficients], dim=1)
    inputs = z.detach().requires_grad_(), given.requires_grad_()
    pairs = [(y := f(*inputs), *torch.autograd.grad(y.sin().sum(), inputs)) for f in (polynomial, polynomial_formula)]
    agree(*pairs, 1e-10)


def test_powers_are_standardized_and_the_scale_of_the_points_is_lost():
    z, coefficients, bias = case((50, 3, 4, 4), 4)
    for j in range(4):
        y, _, _ = standardized_polynomial(z, torch.eye(4)[j].expand(3, 4).double(), bias, 1e-12)
        torch.testing.assert_close(y.mean((0, 2, 3)), bias)
        torch.testing.assert_close(y.var((0, 2, 3), correction=0), torch.ones(3).double())
    y = standardized_polynomial(z, coefficients, bias, 1e-12)[0]
    torch.testing.assert_close(standardized_polynomial(3.7 * z, coefficients, bias, 1e-12)[0], y)
    odd = torch.tensor([-1.0, 1.0, -1.0, 1.0])
    torch.testing.assert_close(standardized_polynomial(-3.7 * z, coefficients * odd, bias, 1e-12)[0], y)


@needs_compiler
@pytest.mark.parametrize("shape", [(256, 3), (16, 3, 16, 16)], ids=str)
@pytest.mark.parametrize("mean", [1.0, 3.0, 5.0, 100.0, 1e4])
def test_a_mean_far_from_zero_costs_no_digits(shape, mean):
    z, coefficients, bias = case(shape, 4, torch.float32)
    z = z + mean
    expected = results(standardized_formula, z.double(), coefficients.double(), bias.double())
    assert max(errors(results(standardized_polynomial, z, coefficients, bias), expected)) < 3e-6
    if mean == 1e4:
        assert max(errors(results(standardized_formula, z, coefficients, bias), expected)) > 1e-5


@needs_compiler
@pytest.mark.parametrize("scale", [1e-4, 1e3, 1e5])
@pytest.mark.parametrize("outlier", [1.0, 1e4])
def test_powers_that_overflow_single_precision(scale, outlier):
    z, coefficients, bias = case((400, 2, 3, 3), 7, torch.float32)
    z *= scale
    z[0, 0, 0, 0] *= outlier
    expected = results(standardized_formula, z.double(), coefficients.double(), bias.double())
    found = results(standardized_polynomial, z, coefficients, bias)
    for i in (0, 3, 4, 5):  # values and gradients; the statistics themselves may be too large
        assert errors(found[i : i + 1], expected[i : i + 1])[0] < 1e-5


def test_constant_channels_give_the_bias():
    z = torch.tensor([0.0, 3.7, -1e4]).view(1, 3, 1, 1).expand(8, 3, 10, 10)
    bias = torch.tensor([0.5, -1.0, 2.0])
    y, _, variance = standardized_polynomial(z, torch.randn(3, 2), bias, 1e-5)
    torch.testing.assert_close(y, bias.view(1, 3, 1, 1).expand_as(y))
    assert variance.abs().max() < 1e-2 if not HAS_COMPILER else variance.eq(0).all()


@pytest.mark.parametrize("shape", [(20, 3), (2, 3, 100, 10)], ids=str)
def test_what_is_not_a_number_stays_in_its_channel(shape):
    z, coefficients, bias = case(shape, 4)
    for value in (float("nan"), float("inf")):
        z.view(z.shape[0], 3, -1)[1, 1, 0] = value
        unknown = [t.isnan() for t in results(standardized_polynomial, z, coefficients, bias)]
        for t in (unknown[0].movedim(1, 0), unknown[3].movedim(1, 0)):
            assert not t[[0, 2]].any()
            assert t[1].all()


@needs_compiler
@pytest.mark.parametrize(
    ("shape", "one_curve"), [((64, 40, 32, 32), False), ((9000, 33), False), ((300, 500), True), ((200, 300), False)]
)
def test_the_bits_do_not_depend_on_the_threads(shape, one_curve):
    inputs = case(shape, 4, torch.float32, one_curve)
    inputs[0][:, ::2] += 0 if one_curve else 10  # sums of some are taken twice
    found, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 30):
            torch.set_num_threads(count)
            found.append(results(standardized_polynomial, *inputs))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("compiled", [True, False])
def test_the_points_alone_are_kept(compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(native, "available", lambda degree: False)
    z, coefficients, bias = (t.requires_grad_() for t in case((64, 3, 8, 8), 4, torch.bfloat16))
    kept = []
    with saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        standardized_polynomial(z, coefficients, bias)
        polynomial(z, coefficients)
    assert sum(t.numel() for t in kept if t.data_ptr() != z.data_ptr()) < 100


def test_without_a_compiler_the_formula_computes(monkeypatch):
    inputs = case((30, 3, 4), 3)
    expected = results(standardized_polynomial, *inputs)
    monkeypatch.setattr(native, "available", lambda degree: False)
    agree(results(standardized_polynomial, *inputs), expected, 1e-12)
    monkeypatch.undo()
    z, coefficients = (t.requires_grad_() for t in inputs[:2])
    expected = torch.autograd.grad(polynomial(z, coefficients).sum(), (z, coefficients))
    monkeypatch.setattr(native, "available", lambda degree: False)
    agree(torch.autograd.grad(polynomial(z, coefficients).sum(), (z, coefficients)), expected, 1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_single(dtype):
    z, coefficients, bias = case((200, 3), 4, torch.float32)
    z = (30 * z).to(dtype)  # z^4 is beyond float16
    expected = results(standardized_polynomial, z.float(), coefficients, bias)
    found = results(standardized_polynomial, z, coefficients, bias)
    assert [t.dtype for t in found] == [dtype, torch.float32, torch.float32, dtype, torch.float32, torch.float32]
    torch.testing.assert_close(found[1:3], expected[1:3])
    torch.testing.assert_close(found[0], expected[0].to(dtype))
    assert polynomial(z, coefficients).dtype == dtype
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(standardized_formula(z, coefficients, bias, 1e-5)[0], found[0])


def test_statistics_have_no_gradient_and_unwanted_ones_are_not_made():
    z, coefficients, bias = case((20, 3), 2)
    y, mean, variance = standardized_polynomial(z.requires_grad_(), coefficients, bias)
    assert y.requires_grad
    assert not mean.requires_grad
    assert not variance.requires_grad
    y.sum().backward()
    assert coefficients.grad is None
    assert not standardized_polynomial(z.detach(), coefficients, bias)[0].requires_grad


@pytest.mark.parametrize("layout", [CONTIGUOUS, CHANNELS_LAST])
def test_gradients_of_first_and_second_order(layout):
    inputs = [t.requires_grad_() for t in case((5, 2, 2, 2), 3, layout=layout)]
    function = lambda *t: standardized_polynomial(*t, 1e-2)[0]  # noqa: E731
    assert gradcheck(function, inputs, check_batched_grad=True)
    assert gradgradcheck(function, inputs)
    assert gradcheck(polynomial, inputs[:2], check_batched_grad=True)
    assert gradgradcheck(polynomial, inputs[:2])


def test_transforms_and_compilation():
    z, coefficients, bias = case((6, 3), 3)
    value = lambda *t: standardized_polynomial(*t, 1e-2)[0].sin().sum()  # noqa: E731
    inputs = [t.clone().requires_grad_() for t in (z, coefficients, bias)]
    expected = torch.autograd.grad(value(*inputs), inputs)
    torch.testing.assert_close(torch.func.grad(value, (0, 1, 2))(z, coefficients, bias), expected)
    batch = torch.stack([z, 2 * z])
    many = torch.func.vmap(lambda t: standardized_polynomial(t, coefficients, bias)[0])(batch)
    torch.testing.assert_close(many[1], standardized_polynomial(2 * z, coefficients, bias)[0])
    torch.testing.assert_close(
        torch.func.vmap(polynomial)(batch, torch.stack([coefficients] * 2))[0], polynomial(z, coefficients)
    )
    traced = torch.compile(value, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(torch.autograd.grad(traced(*inputs), inputs), expected)
    shapes = standardized_polynomial(*(t.to("meta") for t in (z, coefficients, bias)))
    assert [t.shape for t in shapes] == [(6, 3), (3, 3), (3, 3)]


def test_it_trains_under_modules_with_parameters():
    z, coefficients, bias = case((64, 3), 2, torch.float32)
    coefficients, bias = nn.Parameter(coefficients), nn.Parameter(bias)
    standardized_polynomial(z, coefficients, bias)[0].square().mean().backward()
    assert coefficients.grad.shape == (3, 2)
    torch.testing.assert_close(bias.grad, 2 * bias.detach() / 3)


@needs_compiler
def test_without_wide_vectors_the_results_agree(monkeypatch):
    inputs = [case(shape, 2) for shape in ((40, 7, 6, 6), (12, 2, 9, 9))]
    expected = [results(standardized_polynomial, *i) for i in inputs]
    monkeypatch.setattr(compiler, "_FLAGS", (*compiler._FLAGS, "-DTAUTNET_PORTABLE"))
    native._library.cache_clear()
    native._function.cache_clear()
    try:
        for i, e in zip(inputs, expected, strict=True):
            agree(results(standardized_polynomial, *i), e, 1e-10)
    finally:
        native._library.cache_clear()
        native._function.cache_clear()


def test_degrees_beyond_the_library_use_the_formula():
    inputs = case((50, 2), 17)
    agree(results(standardized_polynomial, *inputs), results(standardized_formula, *inputs), 1e-12)


@pytest.mark.parametrize(
    ("shapes", "eps", "message"),
    [
        (((4, 3), (2, 2), (2,)), 1e-5, r"z_NCS=\(4, 3\): "),
        (((4,), (2, 2), (2,)), 1e-5, r"z_NCS=\(4,\): "),
        (((4, 3), (3,), (3,)), 1e-5, r"coefficients_CK=\(3,\): "),
        (((4, 3), (3, 2), (1,)), 1e-5, r"bias_C=\(1,\): "),
        (((0, 3), (3, 2), (3,)), 1e-5, r"z_NCS=\(0, 3\): "),
        (((4, 3), (3, 2), (3,)), 0.0, r"eps=0.0: "),
        (((4, 3), (3, 2), (3,)), float("nan"), r"eps=nan: "),
    ],
)
def test_what_does_not_fit_is_refused(shapes, eps, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        standardized_polynomial(*(torch.zeros(shape) for shape in shapes), eps)


def test_what_does_not_fit_a_polynomial_is_refused():
    with pytest.raises(ValueError, match=r"^coefficients_CK=\(3, 1\): "):
        polynomial(torch.zeros(4, 3), torch.zeros(3, 1))
    with pytest.raises(ValueError, match=r"^z_NCS=torch.int64: "):
        polynomial(torch.zeros(4, 3, dtype=torch.long), torch.zeros(3, 2))
    assert polynomial(torch.zeros(0, 3), torch.zeros(3, 2)).shape == (0, 3)


def test_statistics_have_no_gradient_where_the_formula_computes():
    z, coefficients, bias = case((20, 3), 2)
    y, mean, variance = standardized_polynomial(torch._neg_view(z.requires_grad_()), coefficients, bias)
    assert y.requires_grad
    assert not mean.requires_grad
    assert not variance.requires_grad
