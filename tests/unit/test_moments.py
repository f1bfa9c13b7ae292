"""Normalisation by moments: values, gradients, memory, layouts, transforms, precision."""

import pytest
import torch
from torch import nn

from tautnet.functional import moments as functional
from tautnet.functional.moments import moments, normalised_by_moments, pooled
from tautnet.normalizers import Unitize

SHAPES = [(6, 3), (6, 3, 4), (6, 3, 4, 5), (6, 3, 4, 2, 3), (6, 3, 1, 1)]

pytestmark = pytest.mark.usefixtures("float64")


def rule(mean_NC, var_NC, weight_C, bias_C):
    """Everything depends on everything; the mean over the batch is the further result."""
    mean_C = mean_NC.mean(0)
    factor_NC = weight_C * (1 + (var_NC.mean(0) + 0.1).rsqrt() + mean_NC.sin() + (var_NC * mean_NC).mean(1, True))
    return factor_NC, factor_NC * (mean_NC - mean_C) + bias_C + var_NC, mean_C


def by_hand(x, weight_C, bias_C):
    """The same in torch's operations."""
    flat = x.flatten(2) if x.dim() > 2 else x.unsqueeze(2)
    mean_NC = flat.mean(2)
    var_NC = (flat - mean_NC.unsqueeze(2)).square().mean(2)
    factor_NC, value_NC, mean_C = rule(mean_NC, var_NC, weight_C, bias_C)
    return (factor_NC.unsqueeze(2) * (flat - mean_NC.unsqueeze(2)) + value_NC.unsqueeze(2)).view(x.shape), mean_C


def inputs(shape):
    x = (2 * torch.randn(shape) + 1).requires_grad_()
    return x, torch.randn(shape[1]).requires_grad_(), torch.randn(shape[1]).requires_grad_()


def with_gradients(function, leaves, grad):
    y, mean_C = function(*leaves)
    return [y, mean_C, *torch.autograd.grad(y, leaves, grad)]


def assert_close(actual, expected, tolerance=1e-11):
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def apply(x, *parameters):
    return normalised_by_moments(x, rule, parameters)


# --- values and gradients ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_moments(shape):
    x = torch.randn(shape)
    mean_NC, var_NC = moments(x)
    for n in range(shape[0]):
        for c in range(shape[1]):
            values = x[n, c].flatten()
            assert mean_NC[n, c].item() == pytest.approx(values.mean().item(), abs=1e-14)
            assert var_NC[n, c].item() == pytest.approx(values.var(correction=0).item(), abs=1e-14)


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_the_formula_with_its_gradients(shape):
    leaves, grad = inputs(shape), torch.randn(shape)
    assert_close(with_gradients(apply, leaves, grad), with_gradients(by_hand, leaves, grad))
    with torch.no_grad():
        assert_close(apply(*leaves), by_hand(*leaves))


@pytest.mark.parametrize("needing", [(0,), (1,), (2,), (0, 2), (1, 2)])
def test_inputs_may_need_no_gradient(needing):
    leaves, grad = inputs((4, 3, 5)), torch.randn(4, 3, 5)
    for i, leaf in enumerate(leaves):
        leaf.requires_grad_(i in needing)
    wanted = [leaves[i] for i in needing]
    results = [torch.autograd.grad(function(*leaves)[0], wanted, grad) for function in (apply, by_hand)]
    assert_close(*results)


def permuted(x):
    return x.transpose(0, 1).contiguous().transpose(0, 1)


LAYOUTS = {
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "batch_and_channels_swapped": permuted,
    "every_other": lambda x: x.repeat_interleave(2, 3)[..., ::2],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("layout_of_grad", [*LAYOUTS, "contiguous", "expanded"])
def test_layouts(layout, layout_of_grad):
    x, *parameters = inputs((6, 3, 4, 5))
    x = LAYOUTS[layout](x.detach()).requires_grad_()
    grad = torch.randn(x.shape)
    if layout_of_grad == "expanded":
        grad = grad[:, :1, :1, :1].expand(x.shape)
    elif layout_of_grad != "contiguous":
        grad = LAYOUTS[layout_of_grad](grad)
    results = with_gradients(apply, (x, *parameters), grad)
    assert_close(results, with_gradients(by_hand, (x, *parameters), grad))
    if layout == "channels_last":
        assert results[0].is_contiguous(memory_format=torch.channels_last)
        assert results[2].is_contiguous(memory_format=torch.channels_last)


def test_gradients_are_differentiable():
    leaves = inputs((3, 2, 2, 2))
    assert torch.autograd.gradcheck(lambda *v: apply(*v)[0], leaves, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(lambda *v: apply(*v)[0], leaves)


def test_backward_may_run_twice():
    leaves, grad = inputs((4, 3, 5)), torch.randn(4, 3, 5)
    y = apply(*leaves)[0]
    assert_close(*(torch.autograd.grad(y, leaves, grad, retain_graph=True) for _ in range(2)))


def test_the_further_results_have_no_gradient():
    y, mean_C = apply(*inputs((4, 3, 5)))
    assert y.requires_grad
    assert not mean_C.requires_grad


def test_the_same_bits_in_every_run():
    leaves, grad = inputs((5, 7, 31)), torch.randn(5, 7, 31)
    first, second = (with_gradients(apply, leaves, grad) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_of_large_tensors_only_the_input_is_saved():
    leaves, saved = inputs((4, 3, 50)), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        apply(*leaves)
    large = {t.data_ptr() for t in saved if t.numel() >= leaves[0].numel()}
    assert large == {leaves[0].data_ptr()}


# --- transforms -------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch's own, for jacfwd
@pytest.mark.parametrize("transform", [torch.func.jacrev, torch.func.jacfwd])
def test_torch_func(transform):
    leaves = [leaf.detach() for leaf in inputs((3, 2, 2))]
    for i, leaf in enumerate(leaves):
        expected = torch.autograd.functional.jacobian(lambda v, i=i: by_hand(*leaves[:i], v, *leaves[i + 1 :])[0], leaf)
        torch.testing.assert_close(transform(lambda *v: apply(*v)[0], argnums=i)(*leaves), expected)


def test_vmap_over_inputs_and_parameters():
    x, weights, bias = torch.randn(5, 3, 2, 4), torch.randn(5, 2), torch.randn(2)
    actual = torch.func.vmap(lambda *v: apply(*v)[0], in_dims=(0, 0, None))(x, weights, bias)
    expected = torch.stack([by_hand(a, b, bias)[0] for a, b in zip(x, weights, strict=True)])
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("shape", [(6, 3, 4, 5), (6, 3)])
def test_compiled_in_one_graph(shape):
    compiled = torch.compile(apply, fullgraph=True, backend="aot_eager")
    leaves, grad = inputs(shape), torch.randn(shape)
    assert_close(with_gradients(compiled, leaves, grad), with_gradients(by_hand, leaves, grad))


def test_meta_tensors():
    x, *parameters = (t.detach().to("meta").requires_grad_() for t in inputs((6, 3, 4, 5)))
    y = apply(x, *parameters)[0]
    y.sum().backward()
    assert y.shape == x.grad.shape == (6, 3, 4, 5)


# --- precision --------------------------------------------------------------------------------------------------------


def standardised(mean_NC, var_NC):
    _, mean_C, var_C = pooled(mean_NC, var_NC, 256)  # of images of 16 x 16
    factor_C = (var_C + 1e-3).rsqrt()
    return factor_C.expand_as(mean_NC), factor_C * (mean_NC - mean_C), mean_C


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_float32_far_from_zero_is_as_good_as_batch_normalisation(layout):
    """With a mean of 1000 deviations the mean of the squares has no digit of the variance left."""
    x = (torch.randn(8, 4, 16, 16) + 1000).float().contiguous(memory_format=layout)
    grad = torch.randn(x.shape)

    def result(function, dtype):
        leaf = x.to(dtype).requires_grad_()
        y = function(leaf)
        return y.detach(), torch.autograd.grad(y, leaf, grad.to(dtype))[0]

    def ours(leaf):
        return normalised_by_moments(leaf, standardised, ())[0]

    norms = {dtype: nn.BatchNorm2d(4, eps=1e-3, affine=False).to(dtype) for dtype in (torch.float32, torch.float64)}
    exact = result(norms[torch.float64], torch.float64)
    theirs = result(norms[torch.float32], torch.float32)
    for actual, reference, truth in zip(result(ours, torch.float32), theirs, exact, strict=True):
        error, allowed = ((t.double() - truth).abs().max() / truth.abs().max() for t in (actual, reference))
        assert error < 1e-3
        assert error < 20 * allowed


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_half_precision_computes_in_float32(dtype, layout):
    x = (300 * torch.randn(4, 3, 16, 16)).to(dtype).contiguous(memory_format=layout)  # squares overflow float16
    grad = torch.randn(x.shape).to(dtype)
    results = []
    for wide in (dtype, torch.float64):
        leaf = x.to(wide).requires_grad_()
        y = normalised_by_moments(leaf, standardised, ())[0]
        results.append((y, *torch.autograd.grad(y, leaf, grad.to(wide))))
        assert all(t.dtype == wide for t in results[-1])
    for actual, truth in zip(*results, strict=True):
        assert (actual.double() - truth).abs().max() < 2 * torch.finfo(dtype).eps * truth.abs().max()


def test_equal_values_have_variance_zero():
    x = torch.full((2, 3, 4, 4), 7.5, dtype=torch.float32)
    assert torch.equal(functional._moments_and_buffer(x)[1], torch.zeros(2, 3, dtype=torch.float32))


def test_nan_gives_nan_to_its_sample_and_channel_alone():
    x = torch.randn(3, 2, 4)
    x[1, 0, 2] = float("nan")
    y, _ = normalised_by_moments(x, lambda mean, var: (var, mean, mean), ())
    assert y.isnan().flatten(2).all(2).tolist() == [[False, False], [True, False], [False, False]]
    assert y.isnan().sum() == 4


# --- pooling ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_pooled_moments_are_those_of_all_values(shape):
    x = torch.randn(shape) + torch.arange(3.0).view(-1, *[1] * (len(shape) - 2))
    count, mean_C, var_C = pooled(*moments(x), functional.num_positions(x))
    values_CM = x.movedim(1, 0).flatten(1)
    assert count == values_CM.shape[1]
    torch.testing.assert_close(mean_C, values_CM.mean(1))
    torch.testing.assert_close(var_C, values_CM.var(1, correction=0))


@pytest.mark.parametrize("mean", [1e3, 1e5])
def test_gradients_keep_their_digits_under_a_large_mean(mean):
    torch.manual_seed(0)
    x, grad = torch.randn(8, 3, 10, 10, dtype=torch.float64) + mean, torch.randn(8, 3, 10, 10, dtype=torch.float64)

    def gradient(layer, dtype):
        entered = x.to(dtype).requires_grad_()
        (found,) = torch.autograd.grad(layer.to(dtype)(entered), entered, grad.to(dtype))
        return found.double()

    x = x.float().double()
    true = gradient(torch.nn.BatchNorm2d(3, eps=1e-3), torch.float64)
    theirs = gradient(torch.nn.BatchNorm2d(3, eps=1e-3), torch.float32)
    assert (gradient(Unitize(3), torch.float32) - true).abs().max() <= 10 * (theirs - true).abs().max() + 1e-6
