"""Unitize's compiled operator: against the formula, for all layouts, and who is not to be given to it."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from tautnet.functional import pixel_unitize
from tautnet.kernels import native as compiler
from tautnet.kernels import unitize as native
from tautnet.normalizers import Unitize

needs_compiler = pytest.mark.skipif(not native.available(), reason="no C++ compiler")
FORMULA, KERNEL, TORCH = "formula", "kernel", "torch"


def layer_of(num_channels, dtype=torch.float64, training=True, **settings):
    """With random parameters and running statistics."""
    layer = Unitize(num_channels, **{"norm_axes": "pixel", "eps": 1e-2, **settings}).to(dtype).train(training)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
        layer.batch_norm.running_mean.normal_()
        layer.batch_norm.running_var.uniform_(0.2, 3.0)
    return layer


def results(layer, x, how=KERNEL, grad=None):
    """Value, gradients and running statistics, as one of the three ways gives them."""
    layer, x = copy.deepcopy(layer), x.detach().requires_grad_()
    if grad is None:
        grad = torch.cos(torch.arange(x.numel(), dtype=torch.float64)).view(x.shape)
    with pytest.MonkeyPatch.context() as patch:
        if how == FORMULA:
            patch.setattr(pixel_unitize, "watched", lambda _: True)
        elif how == TORCH:
            patch.setattr(native, "available", lambda: False)
        y = layer(x)
    grads = torch.autograd.grad(y, (x, *layer.parameters()), grad.to(x.dtype))
    return [y.detach(), *grads, *(buffer for buffer in layer.batch_norm.buffers())]


def errors(actual, expected):
    """Largest error of each beside its largest value."""
    return [
        ((a.double() - e.double()).abs().max() / e.double().abs().max().clamp(min=1e-3)).item()
        for a, e in zip(actual, expected, strict=True)
    ]


SHAPES = [(2, 1), (7, 3), (9, 5), (65, 33), (200, 16), (3, 4000), (5, 3, 4), (2, 5, 7, 7), (3, 2, 31, 33), (1, 3, 2000)]


@needs_compiler
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_it_is_the_formula(shape, training):
    layer, x = layer_of(shape[1], training=training), torch.randn(shape, dtype=torch.float64) + 1
    expected = results(layer, x, FORMULA)
    assert max(errors(results(layer, x), expected)) < 1e-11
    low, x = copy.deepcopy(layer).float(), x.float()
    usual, found = errors(results(low, x, FORMULA), expected), errors(results(low, x), expected)
    assert all(f < 3 * u + 1e-6 for f, u in zip(found, usual, strict=True))


@needs_compiler
@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(1, 40), min_size=2, max_size=4),
    options=st.sampled_from(
        [
            {},
            {"alpha_shape": "layer"},
            {"affine": False},
            {"learn_alpha": False, "alpha_init": 0.4, "norm_scale": "rms"},
        ]
    ),
    training=st.booleans(),
    layout=st.sampled_from(["contiguous", "channels last", "reversed", "gaps", "expanded"]),
    seed=st.integers(0, 2**31),
)
def test_it_is_the_formula_for_any_shape_and_layout(shape, options, training, layout, seed):
    torch.manual_seed(seed)
    layer = layer_of(shape[1], training=training and torch.Size(shape).numel() > shape[1], **options)
    x, grad = 3 * torch.randn(2, *shape, dtype=torch.float64) + 0.5
    if layout == "channels last":
        x, grad = (t.movedim(1, -1).contiguous().movedim(-1, 1) for t in (x, grad))
    elif layout == "reversed":
        order = range(len(shape) - 1, -1, -1)
        x = x.permute(*order).contiguous().permute(*order)
    elif layout == "gaps":
        x, grad = torch.stack([x, x], -1)[..., 0], torch.stack([grad, grad], -1)[..., 1]
    elif layout == "expanded":
        grad = grad[:1, :1].expand_as(grad)
    expected = results(layer, x, FORMULA, grad)
    assert max(errors(results(layer, x, KERNEL, grad), expected)) < 1e-9
    assert max(errors(results(layer, x, TORCH, grad), expected)) < 1e-9
    assert layer(x).stride() == torch.empty_like(x).stride()


@pytest.mark.parametrize("shape", [(5, 3), (3, 2, 3, 2)])
def test_gradients_of_first_and_second_order(shape):
    layer = layer_of(shape[1])
    names = [name for name, _ in layer.named_parameters()]

    def function(x, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), x)

    inputs = (torch.randn(shape, dtype=torch.float64, requires_grad=True), *layer.parameters())
    assert gradcheck(function, inputs, check_batched_grad=True)
    assert gradgradcheck(function, inputs)


@needs_compiler
@pytest.mark.parametrize("shape", [(700, 513), (40, 6, 31, 33)])
def test_the_bits_do_not_depend_on_the_threads(shape):
    layer, x = layer_of(shape[1], torch.float32), torch.randn(shape)
    found, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 30):
            torch.set_num_threads(count)
            found.append(results(layer, x))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@needs_compiler
@pytest.mark.parametrize("shape", [(300, 20), (8, 3, 20, 20)])
@pytest.mark.parametrize("mean", [1.0, 100.0, 1e4])
def test_a_mean_far_from_zero_costs_no_digits(shape, mean):
    layer, x = layer_of(shape[1], torch.float32), torch.randn(shape) + mean
    expected = results(copy.deepcopy(layer).double(), x.double(), FORMULA)
    assert max(errors(results(layer, x), expected)) < 5e-6
    if mean == 1e4:
        assert max(errors(results(layer, x, FORMULA), expected)) > 5e-5


@needs_compiler
@pytest.mark.parametrize("shape", [(4096, 5), (6, 5, 40, 40)])
def test_neither_do_first_positions_far_from_the_others(shape):
    """Around which the moments are taken first."""
    layer, x = layer_of(shape[1], torch.float32), torch.randn(shape)
    x.view(shape[0], shape[1], -1)[0, :, :8] += 3e4
    expected = results(copy.deepcopy(layer).double(), x.double(), FORMULA)
    assert max(errors(results(layer, x), expected)) < 1e-5


@needs_compiler
@pytest.mark.parametrize("value", [0.0, 3.7, -1e4])
def test_constant_channels_give_beta(value):
    layer = layer_of(3, torch.float32)
    y, grad_x, *_, running_var, _ = results(layer, torch.full((50, 3), value))
    torch.testing.assert_close(y, layer.bias.detach().expand_as(y))
    torch.testing.assert_close(running_var, 0.9 * layer.batch_norm.running_var)
    assert grad_x.isfinite().all()


@needs_compiler
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("shape", [(40, 3), (4, 3, 9)])
def test_what_is_not_a_number_spoils_its_channel_and_its_statistics(shape, value):
    """And the norm, so that all channels of its position are spoilt too, but no others."""
    layer, x = layer_of(3, torch.float32), torch.randn(shape)
    x.view(shape[0], 3, -1)[1, 1, 0] = value
    y, *_, running_mean, running_var, _ = results(layer, x)
    assert y[:, 1].isnan().all()
    assert running_mean.isfinite().tolist() == running_var.isfinite().tolist() == [True, False, True]


@needs_compiler
def test_without_wide_vectors_the_results_agree(monkeypatch):
    cases = [(layer_of(shape[1]), torch.randn(shape, dtype=torch.float64)) for shape in ((30, 7), (3, 2, 9, 9))]
    expected = [results(*case) for case in cases]
    monkeypatch.setattr(compiler, "_FLAGS", (*compiler._FLAGS, "-DTAUTNET_PORTABLE", "-O1"))
    native._library.cache_clear()
    native._function.cache_clear()
    try:
        for case, known in zip(cases, expected, strict=True):
            assert max(errors(results(*case), known)) < 1e-11
    finally:
        native._library.cache_clear()
        native._function.cache_clear()


# --- who is given to it -----------------------------------------------------------------------------------------------


class Watching(torch.Tensor):
    pass


@pytest.fixture
def calls(monkeypatch):
    """The shapes that the compiled operator has been called with."""
    made, forward = [], native.forward
    monkeypatch.setattr(native, "forward", lambda x, *given: made.append(tuple(x.shape)) or forward(x, *given))
    return made


@needs_compiler
def test_plain_tensors_in_memory_are_for_the_operator(calls):
    shapes = [(4, 3), (4, 3, 2, 2), (1, 3, 2), (2, 3)]
    for shape in shapes:
        layer_of(3, torch.float32)(torch.randn(shape))
    layer_of(3, training=False)(torch.randn(1, 3).double())
    with torch.no_grad():
        layer_of(3, torch.float32)(torch.randn(4, 3))
    assert calls == [*shapes, (1, 3), (4, 3)]


def test_all_else_is_not(calls):
    layer, x = layer_of(3, torch.float32), torch.randn(6, 3)
    layer_of(3, torch.bfloat16)(x.bfloat16())
    layer.double()(x)
    layer.float()(torch.randn(6, 3, 0).new_ones(6, 3).as_subclass(Watching))
    layer(torch._neg_view(x))
    layer.eval()(torch.zeros(0, 3))
    for momentum in (None, 0.0):
        layer.train().batch_norm.momentum = momentum
        layer(x)
    torch.func.vmap(layer.eval(), in_dims=1, out_dims=1)(x.unsqueeze(1))
    assert calls == []


def test_memory_that_is_not_the_values_is_read_as_the_values():
    layer, x, grad = layer_of(3), *torch.randn(2, 6, 3, dtype=torch.float64)
    expected = results(layer, x, FORMULA, grad)
    assert max(errors(results(layer, x, KERNEL, torch._neg_view(-grad)), expected)) < 1e-11
    layer.weight = torch.nn.Parameter(torch.stack([layer.weight.detach()] * 2, 1)[:, 0])
    layer.batch_norm.running_var = torch.stack([layer.batch_norm.running_var] * 2, 1)[:, 0]
    assert not layer.weight.is_contiguous()
    assert max(errors(results(layer, x, KERNEL, grad), expected)) < 1e-11


@pytest.mark.filterwarnings("ignore")  # tracing is deprecated
def test_a_trace_holds_no_constants():
    layer, x = layer_of(3, torch.float32, training=False), torch.randn(2, 6, 3)
    traced = torch.jit.trace(layer, x[0])
    torch.testing.assert_close(traced(x[1]), layer(x[1]))


@needs_compiler
def test_running_statistics_that_changed_are_known_to_have():
    layer = layer_of(3, torch.float32)
    running_mean = layer.batch_norm.running_mean
    product = torch.ones(3, requires_grad=True) * running_mean
    layer(torch.randn(6, 3))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


@needs_compiler
def test_numbers_beside_the_input_that_are_kept_grow_with_rows_and_channels_alone():
    layer, x = layer_of(64, torch.float32), torch.randn(256, 64, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(x)
    assert sum(t.numel() for t in kept if t.data_ptr() != x.data_ptr()) == 256 + 3 * 64 + 3 * 64
