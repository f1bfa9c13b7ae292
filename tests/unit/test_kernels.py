"""The linear spline's operator: every backend against plain torch, every way that torch may call it."""

import logging
from importlib.util import find_spec

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import grouped, in_ranks
from torch import library, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from tautnet.activations import LinearSpline
from tautnet.kernels import dispatch, linear_spline, native, reference

HAS_COMPILER = native.available()
BACKENDS = ["reference", *(["cpu"] if HAS_COMPILER else [])]
TOLERANCES = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
needs_compiler = pytest.mark.skipif(not HAS_COMPILER, reason="no C++ compiler")


def case(shape, num_knots, dtype=torch.float64, one_curve=False, spread=3.0):
    x = (torch.randn(shape, dtype=torch.float64) * spread).to(dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return x, torch.randn(1 if one_curve else shape[1], num_knots, dtype=wide)


def results(x, coefficients, backend, grid_range=2.0, grad=None):
    x, coefficients = x.detach().requires_grad_(), coefficients.detach().requires_grad_()
    y = linear_spline(x, coefficients, grid_range, backend)
    grad = torch.cos(torch.arange(y.numel(), dtype=torch.float64)).view(y.shape).to(y.dtype) if grad is None else grad
    return (y.detach(), *torch.autograd.grad(y, (x, coefficients), grad))


def by_autograd(x, coefficients, grid_range=2.0):
    """What autograd makes of the plain formula, in float64."""
    x, coefficients = x.double().requires_grad_(), coefficients.double().requires_grad_()
    y = reference.forward(x, coefficients, grid_range)
    grad = torch.cos(torch.arange(y.numel(), dtype=torch.float64)).view(y.shape)
    return (y.detach(), *torch.autograd.grad(y, (x, coefficients), grad))


def agree(actual, expected, tolerance):
    for a, e in zip(actual, expected, strict=True):
        scale = max(1.0, e.abs().max().item()) if e.numel() else 1.0
        assert a.shape == e.shape
        torch.testing.assert_close(a.double() / scale, e.double() / scale, rtol=0, atol=tolerance)


SHAPES = [(3, 4), (1, 1), (40, 17), (300, 33), (2, 3, 5), (3, 2, 4, 4), (4, 5, 3, 2, 2), (2, 7, 40, 30), (1, 2, 5000)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("num_knots", [2, 3, 17, 18, 33, 34, 51, 65, 66, 201])
def test_a_backend_gives_what_autograd_makes_of_the_formula(backend, shape, num_knots):
    for one_curve in (False, True):
        x, coefficients = case(shape, num_knots, one_curve=one_curve)
        agree(results(x, coefficients, backend), by_autograd(x, coefficients), 1e-12)
        low = x.float(), coefficients.float()
        agree(results(*low, backend), by_autograd(*low), 2e-5)


@needs_compiler
@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(1, 40), min_size=2, max_size=4),
    num_knots=st.integers(2, 300),
    dtype=st.sampled_from(list(TOLERANCES)),
    one_curve=st.booleans(),
    spread=st.sampled_from([0.0, 0.1, 3.0, 100.0]),
    grid_range=st.floats(0.01, 100.0),
    seed=st.integers(0, 2**31),
)
def test_the_compiled_kernel_equals_the_reference(shape, num_knots, dtype, one_curve, spread, grid_range, seed):
    torch.manual_seed(seed)
    if dtype == torch.float16:  # farther out its range ends
        spread = min(spread, 3.0)
    x, coefficients = case(shape, num_knots, dtype, one_curve, spread * grid_range)
    expected = results(x, coefficients, "reference", grid_range)
    actual = results(x, coefficients, "cpu", grid_range)
    assert [a.dtype for a in actual] == [e.dtype for e in expected]
    agree(actual, expected, TOLERANCES[dtype])


def strided(x):
    yield "transposed", x.transpose(2, 3)
    yield "channels last", x.contiguous(memory_format=torch.channels_last)
    yield "every other", x[:, :, ::2]
    yield "samples inside", x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)
    yield "expanded", x[:1].expand_as(x)
    yield "one channel of one sample", x[:1, :, :1, :1]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("num_knots", [5, 70])
def test_strides_are_kept_and_change_nothing(backend, num_knots):
    x, coefficients = case((4, 6, 5, 8), num_knots)
    for name, view in strided(x):
        contiguous = results(view.contiguous(), coefficients, backend)
        actual = results(view, coefficients, backend)
        agree(actual, contiguous, 1e-12)
        for tensor in actual[:2]:
            assert tensor.stride() == torch.empty_like(view).stride(), name


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_gradient_of_other_strides_is_taken_as_it_is_meant(backend):
    x, coefficients = case((4, 6, 5, 8), 9)
    grad = torch.randn(4, 6, 5, 8, dtype=torch.float64)
    expected = results(x, coefficients, backend, grad=grad)
    agree(results(x, coefficients, backend, grad=grad.to(memory_format=torch.channels_last)), expected, 1e-12)
    summed = results(x, coefficients, backend, grad=torch.ones(()).double().expand(4, 6, 5, 8))
    agree(summed, results(x, coefficients, backend, grad=torch.ones(4, 6, 5, 8).double()), 1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("num_knots", [9, 70])
@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4, 4), (2, 3, 0)])
def test_an_empty_batch_has_zero_coefficient_gradients(backend, num_knots, shape):
    x, coefficients = case(shape, num_knots)
    y, grad_x, grad_coefficients = results(x, coefficients, backend)
    assert y.shape == grad_x.shape == shape
    assert grad_coefficients.shape == (3, num_knots)
    assert not grad_coefficients.any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("num_knots", [9, 70])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_nan_gives_nan_and_touches_no_other_element(backend, num_knots, dtype):
    x, coefficients = case((40, 2), num_knots, dtype)
    clean = linear_spline(x, coefficients, 2.0, backend)
    x[7, 1] = float("nan")
    y = linear_spline(x, coefficients, 2.0, backend)
    assert y[7, 1].isnan()
    y[7, 1] = clean[7, 1]
    assert torch.equal(y, clean)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_infinite_inputs_follow_the_border_lines(backend, dtype):
    x = torch.tensor([[-torch.inf], [torch.inf]], dtype=dtype)
    y = linear_spline(x, torch.tensor([[1.0, 0.0, 2.0]], dtype=dtype), 1.0, backend)
    assert y.flatten().tolist() == [torch.inf, torch.inf]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("num_knots", [2, 9, 70])
@pytest.mark.parametrize("shape", [(5, 3), (2, 3, 20)])
def test_one_sample_touches_two_coefficients_and_unused_ones_get_exactly_zero(backend, num_knots, shape):
    x, coefficients = case(shape, num_knots)
    grad = torch.zeros(shape, dtype=torch.float64)
    grad[1, 2] = 1.0
    _, grad_x, grad_coefficients = results(x, coefficients, backend, grad=grad)
    assert not grad_coefficients[:2].any()
    assert not grad_x[0].any()
    touched = grad_coefficients[2].nonzero().numel()
    assert touched == 2 if shape == (5, 3) else touched >= min(2, num_knots)
    torch.testing.assert_close(grad_coefficients.sum(), grad.sum())  # the hats add up to one


SHARING = {"channel": (), "layer": (), "neuron": (2, 5)}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sharing", SHARING)
@pytest.mark.usefixtures("float64")
def test_first_and_second_derivatives(backend, sharing):
    spline = LinearSpline(3, 7, 1.0, sharing=sharing, spatial_shape=SHARING[sharing], backend=backend)
    coefficients = torch.randn_like(spline.coefficients)
    # in the middle of cells, inside the grid and outside
    x = (torch.randint(-5, 5, (4, 3, 2, 5)) + 0.5) / 3

    def function(x, coefficients):
        return torch.func.functional_call(spline, {"coefficients": coefficients}, x)

    inputs = (x.requires_grad_(), coefficients.requires_grad_())
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(lambda x: function(x, coefficients.detach()), inputs[:1])


@needs_compiler
@pytest.mark.parametrize("shape", [(70, 33), (3, 5, 3, 3), (7, 9, 30, 30), (1, 1, 300000), (40000, 20)])
@pytest.mark.parametrize("num_knots", [3, 51, 201])
def test_the_same_bits_with_any_number_of_threads(shape, num_knots, monkeypatch):
    monkeypatch.setattr(native, "_PARALLEL_FROM", 0)
    x, coefficients = case(shape, num_knots, torch.float32)
    threads = torch.get_num_threads()
    try:
        runs = []
        for number in (1, 1, 2, 5):
            torch.set_num_threads(number)
            runs.append(results(x, coefficients, "cpu"))
    finally:
        torch.set_num_threads(threads)
    for run in runs[1:]:
        assert all(map(torch.equal, run, runs[0]))


def test_saved_for_backward_are_the_input_and_the_coefficients_alone():
    x, coefficients = case((6, 4, 5, 5), 51, torch.float32)
    x.requires_grad_()
    coefficients.requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        linear_spline(x, coefficients, 4.0)
    assert {t.data_ptr() for t in saved} == {x.data_ptr(), coefficients.data_ptr()}
    assert len(saved) == 2


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sharing", SHARING)
@pytest.mark.usefixtures("float64")
def test_batched_jacobians(backend, sharing):
    spline = LinearSpline(3, 7, 1.0, sharing=sharing, spatial_shape=SHARING[sharing], backend=backend)
    nn.init.normal_(spline.coefficients)
    x = torch.randn(4, 3, 2, 5)
    jacobians = torch.func.vmap(torch.func.jacrev(lambda sample: spline(sample.unsqueeze(0)).squeeze(0)))(x)
    expected = torch.zeros(4, 30, 30)
    points = x.requires_grad_()
    slopes = torch.autograd.grad(spline(points).sum(), points)[0]
    expected[:, range(30), range(30)] = slopes.flatten(1)
    torch.testing.assert_close(jacobians.view(4, 30, 30), expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.usefixtures("float64")
def test_several_gradients_of_one_forward_pass_at_once(backend):
    """As torch.autograd.functional.jacobian(vectorize=True) asks for them."""
    x, coefficients = (t.requires_grad_() for t in (torch.randn(4, 3, 2), torch.randn(3, 9)))
    y, grads = linear_spline(x, coefficients, 1.0, backend), torch.randn(5, 4, 3, 2)
    batched = torch.autograd.grad(y, (x, coefficients), grads, is_grads_batched=True, retain_graph=True)
    single = [torch.autograd.grad(y, (x, coefficients), grad, retain_graph=True) for grad in grads]
    for together, apart in zip(batched, zip(*single, strict=True), strict=True):
        torch.testing.assert_close(together, torch.stack(apart))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("curves", [1, 3])
@pytest.mark.usefixtures("float64")
def test_gradients_of_the_coefficients_per_sample_and_batched_coefficients(backend, curves):
    x, coefficients = torch.randn(5, 2, 3, 4), torch.randn(curves, 9)
    many = torch.randn(5, curves, 9)

    def loss(coefficients, sample):
        return linear_spline(sample, coefficients, 1.0, backend).square().sum()

    per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(coefficients, x)
    torch.testing.assert_close(per_sample, torch.stack([torch.func.grad(loss)(coefficients, sample) for sample in x]))
    ensemble = torch.func.vmap(torch.func.grad(loss), in_dims=(0, 1))(many, x.transpose(0, 1))
    expected = torch.stack([torch.func.grad(loss)(c, sample) for c, sample in zip(many, x, strict=True)])
    torch.testing.assert_close(ensemble, expected)


@pytest.mark.parametrize("sharing", SHARING)
def test_compiles_as_one_graph(sharing):
    spline = LinearSpline(3, 9, 1.0, sharing=sharing, spatial_shape=SHARING[sharing])
    nn.init.normal_(spline.coefficients)
    torch._dynamo.reset()
    compiled = torch.compile(spline, fullgraph=True, backend="aot_eager")
    for x in (torch.randn(4, 3, 2, 5), torch.randn(4, 3, 2, 5).contiguous(memory_format=torch.channels_last)):
        outcomes = []
        for module in (spline, compiled):
            points = x.clone().requires_grad_()
            y = module(points)
            outcomes.append((y.detach(), *torch.autograd.grad(y.square().sum(), (points, spline.coefficients))))
        agree(*outcomes, 1e-6)
    assert compiled(torch.randn(0, 3, 2, 5)).shape == (0, 3, 2, 5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_low_precision_inputs_keep_their_dtype_and_find_their_knots(dtype, backend):
    x, coefficients = case((30, 2, 40), 51, dtype, spread=1.0)
    y, grad_x, grad_coefficients = results(x, coefficients, backend)
    assert (y.dtype, grad_x.dtype, grad_coefficients.dtype) == (dtype, dtype, torch.float32)
    exact = linear_spline(x.double(), coefficients.double(), 2.0, "reference")
    assert torch.equal(y, exact.to(dtype)) or (y.double() - exact).abs().max() <= TOLERANCES[dtype] * exact.abs().max()


def test_under_autocast_the_layer_computes_in_float32():
    net = nn.Sequential(nn.Linear(4, 6), LinearSpline(6))
    with torch.autocast("cpu", torch.bfloat16):
        y = net(torch.randn(5, 4))
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert net[1].coefficients.grad.dtype == torch.float32


def test_meta_tensors_and_fake_tensors_have_the_right_shape():
    y = linear_spline(torch.empty(2, 3, 4, device="meta"), torch.empty(3, 9, device="meta"), 1.0)
    assert (y.shape, y.device.type) == ((2, 3, 4), "meta")
    library.opcheck(
        torch.ops.tautnet.linear_spline.default,
        (torch.randn(2, 3, 4, requires_grad=True), torch.randn(3, 9, requires_grad=True), 1.0, "auto"),
    )


@pytest.mark.parametrize(
    ("x", "coefficients", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(4, 5), r"input of shape \(2, 3\): \(N, 4, \*\)"),
        (torch.zeros(2, 3), torch.zeros(5), r"coefficients of shape \(5,\)"),
        (torch.zeros(2, 3), torch.zeros(3, 1), r"coefficients of shape \(3, 1\)"),
        (torch.zeros(2, 3).double(), torch.zeros(3, 5), r"coefficients of torch.float32 for inputs of torch.float64"),
        (torch.zeros(2, 3).long(), torch.zeros(3, 5), r"torch.int64"),
    ],
)
def test_what_does_not_fit_is_refused(x, coefficients, message):
    with pytest.raises(ValueError, match=message):
        linear_spline(x, coefficients, 1.0)


def test_a_backend_that_does_not_run_here_is_refused_by_name():
    with pytest.raises(ValueError, match=r"backend=triton: on this cpu one of auto, .*reference"):
        linear_spline(torch.zeros(2, 3), torch.zeros(3, 5), 1.0, "triton")


def _gradients_of_a_half():
    model = nn.parallel.DistributedDataParallel(_small_net())
    x = torch.linspace(-3, 3, 80).view(20, 4)
    model(x[torch.distributed.get_rank() :: 2]).square().mean().backward()
    return [parameter.grad for parameter in model.parameters()]


def _small_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), LinearSpline(6, 9, 1.0, init="relu"), nn.Linear(6, 1))


def test_two_processes_get_the_gradients_of_one(tmp_path):
    gradients = in_ranks(grouped, 2, tmp_path, _gradients_of_a_half)[0]
    alone = _small_net()
    alone(torch.linspace(-3, 3, 80).view(20, 4)).square().mean().backward()
    for together, parameter in zip(gradients, alone.parameters(), strict=True):
        torch.testing.assert_close(together, parameter.grad)


@needs_compiler
@pytest.mark.parametrize("num_knots", [71, 201])  # cells without copies
@pytest.mark.parametrize(
    "shape", [(1, 2, 20000), (8191, 2), (3, 1, 5000)]
)  # long runs, short runs, one curve: one task
def test_sums_are_flushed_before_they_swallow_small_gradients(shape, num_knots):
    """2^24 + 1 is 2^24 in float32: after a large gradient only those up to the next flush may be lost."""
    grad = torch.ones(shape)
    grad.view(-1, shape[1], *shape[2:])[0].view(shape[1], -1)[:, 0] = 2.0**24
    coefficients = torch.zeros(shape[1], num_knots)
    grad_coefficients = results(torch.zeros(shape), coefficients, "cpu", grad=grad)[2]
    exact = grad.double().movedim(1, 0).flatten(1).sum(1)
    lost = exact - grad_coefficients.double().sum(1)
    assert (lost.abs() <= 4096).all()


@needs_compiler
@pytest.mark.parametrize(
    ("shape", "num_knots"),
    [((40, 37, 20, 20), 201), ((40, 37, 20, 20), 9), ((3000, 190), 51), ((700, 70, 3, 3), 70), ((300, 17), 3001)],
)
def test_many_groups_of_curves_in_many_parts(shape, num_knots):
    x, coefficients = case(shape, num_knots, torch.float32)
    agree(results(x, coefficients, "cpu"), results(x, coefficients, "reference"), 2e-5)
    wide = x.double(), coefficients.double()
    agree(results(*wide, "cpu"), by_autograd(*wide), 1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_bfloat16_results_are_rounded_to_nearest_with_ties_to_even(backend):
    """At a knot the result is the coefficient."""
    coefficients = torch.randn(300, 9)
    coefficients[:, :4] = (coefficients[:, :4].view(torch.int32) & -65536 | 0x8000).view(torch.float32)  # ties
    x = (torch.arange(8) - 4).to(torch.bfloat16).unsqueeze(1).expand(8, 300)
    assert torch.equal(linear_spline(x, coefficients, 4.0, backend), coefficients[:, :8].T.to(torch.bfloat16))
    nan = torch.tensor([0x7FFFFFFF], dtype=torch.int32).view(torch.float32)  # rounded as a number it would be -0
    assert linear_spline(x, nan.expand(300, 9), 4.0, backend).isnan().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("num_knots", [2, 9, 33, 65, 71])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_gradient_of_a_nan_goes_to_the_first_cell(backend, num_knots, dtype):
    for shape in ((40, 3), (2, 3, 20)):
        x, coefficients = case(shape, num_knots, dtype)
        x[1, 1] = float("nan")
        _, grad_x, grad_coefficients = results(x, coefficients, backend)
        assert grad_x.isfinite().all()
        bad = torch.zeros(3, num_knots, dtype=torch.bool)
        bad[1, :2] = True
        assert torch.equal(grad_coefficients.isnan(), bad)


@pytest.mark.parametrize("backend", BACKENDS)
def test_coefficients_of_any_strides(backend):
    x, coefficients = case((40, 3), 9)
    expected = results(x, coefficients, backend)
    agree(results(x, coefficients.T.contiguous().T, backend), expected, 1e-12)
    one = results(x, coefficients[:1].expand(3, 9), backend)
    agree(one, results(x, coefficients[:1].repeat(3, 1), backend), 1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_not_asked_for_is_not_computed(backend):
    x, coefficients = case((40, 3), 9)
    grad_x, nothing = dispatch.gradients(torch.ones_like(x), x, coefficients, 2.0, backend, False)
    assert nothing.shape == (0,)
    assert torch.equal(grad_x, dispatch.gradients(torch.ones_like(x), x, coefficients, 2.0, backend, True)[0])


@pytest.mark.parametrize("curves", [1, 3])
@pytest.mark.parametrize("backend", BACKENDS)
def test_values_for_batched_coefficients(backend, curves):
    x, many = torch.randn(5, 2, 3, 4), torch.randn(curves, 5, 9)
    together = torch.func.vmap(lambda c, sample: linear_spline(sample, c, 1.0, backend), in_dims=(1, 0))(many, x)
    alone = torch.stack([linear_spline(sample, c, 1.0, backend) for c, sample in zip(many.unbind(1), x, strict=True)])
    torch.testing.assert_close(together, alone)
    if curves == 3:  # as many as samples in a batch
        together = torch.func.vmap(lambda c: linear_spline(x[0], c, 1.0, backend), in_dims=1)(many)
        alone = torch.stack([linear_spline(x[0], c, 1.0, backend) for c in many.unbind(1)])
        torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_traced_tensors_have_the_strides_of_real_ones(memory_format):
    x, coefficients = torch.randn(2, 3, 4, 5).contiguous(memory_format=memory_format), torch.randn(3, 9)
    real = (linear_spline(x, coefficients, 1.0), dispatch.gradients(x, x, coefficients, 1.0, "auto", True)[0])
    with FakeTensorMode() as mode:
        x, coefficients = mode.from_tensor(x), mode.from_tensor(coefficients)
        fake = (
            linear_spline(x, coefficients, 1.0),
            torch.ops.tautnet.linear_spline_backward(x, x, coefficients, 1.0, "auto", True)[0],
        )
    assert [y.stride() for y in fake] == [y.stride() for y in real]


def test_the_reference_sums_in_double():
    x, coefficients = torch.zeros(200_000, 1), torch.zeros(1, 3)
    grad = torch.ones(200_000, 1)
    grad[0] = 2.0**24
    assert results(x, coefficients, "reference", grad=grad)[2][0, 1] == 2.0**24 + 200_000


def test_dispatch_modes_see_the_operator():
    seen = []

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    with Watching():
        linear_spline(torch.zeros(2, 3), torch.zeros(3, 5), 1.0)
    assert "tautnet.linear_spline.default" in seen


def test_views_that_are_not_their_memory_are_taken_as_they_are_meant():
    x = torch.complex(torch.randn(3, 4), torch.randn(3, 4)).conj().imag
    assert x.is_neg()
    coefficients = torch.randn(4, 9)
    torch.testing.assert_close(linear_spline(x, coefficients, 1.0), linear_spline(x.clone(), coefficients, 1.0))
    negated = torch._neg_view(coefficients)
    torch.testing.assert_close(linear_spline(x, negated, 1.0), linear_spline(x, negated.clone(), 1.0))
    points = torch.randn(3, 4, requires_grad=True)
    (grad,) = torch.autograd.grad(linear_spline(points, coefficients, 1.0), points, x)
    (expected,) = torch.autograd.grad(linear_spline(points, coefficients, 1.0), points, x.clone())
    torch.testing.assert_close(grad, expected)


def test_coefficients_elsewhere_are_refused():
    with pytest.raises(ValueError, match="coefficients on meta for inputs on cpu"):
        linear_spline(torch.zeros(2, 3), torch.zeros(3, 5, device="meta"), 1.0)


@pytest.mark.skipif(find_spec("triton") is None, reason="needs the package triton")
def test_where_triton_fails_one_line_says_so(caplog):
    """As it does on a CPU outside its interpreter."""
    with caplog.at_level(logging.WARNING, "tautnet"):
        assert not dispatch._triton_works("cpu")
        assert not dispatch._triton_works("cpu")
    assert len(caplog.records) == 1
    assert caplog.records[0].getMessage().startswith("Splines run in plain torch, slower: Triton fails here (")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_triton_is_chosen():
    assert dispatch._chosen("auto", "cuda") == "triton"
