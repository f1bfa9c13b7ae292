"""Unitize and BatchNorm: exact values, gradients, statistics, dtypes."""

import math
import re
from math import inf

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from tautnet.normalizers import BatchNorm, Unitize
from tautnet.optim.roles import parameters_by_role

SHAPES = [(6, 3), (6, 3, 4), (6, 3, 4, 5), (6, 3, 4, 2, 3)]
TINY = 1e-14  # an eps that does not show


pytestmark = pytest.mark.usefixtures("float64")


def randomised(layer: nn.Module) -> nn.Module:
    """Random parameters and running statistics."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
        layer.batch_norm.running_mean.normal_()
        layer.batch_norm.running_var.uniform_(0.2, 3.0)
    return layer


def without_statistics(layer: Unitize) -> Unitize:
    """In eval mode, with running statistics that make the normalised input the input."""
    layer.batch_norm.running_mean.zero_()
    layer.batch_norm.running_var.fill_(1 - layer.eps)
    return layer.eval()


def with_alpha(layer: Unitize, alpha) -> Unitize:
    with torch.no_grad():
        layer.alpha.copy_(torch.as_tensor(alpha))
    return layer


def per_channel(vector, x):
    return vector.view(-1, *[1] * (x.dim() - 2))


def squared_norms(x, axes, scale):
    """The scaled squared norm of each sample or position, by loops."""
    positions = x[0, 0].numel() if axes == "sample" else 1
    factor = {"official": positions**-2, "l2": 1, "per_pixel": 1 / positions, "rms": 1 / (positions * x.shape[1])}[
        scale
    ]
    q = torch.empty_like(x[:, :1])
    for n, sample in enumerate(x.flatten(2) if x.dim() > 2 else x.unsqueeze(2)):
        columns = sample.T
        norms = torch.stack([column @ column for column in columns])
        q[n] = (norms.sum().expand_as(norms) if axes == "sample" else norms).view(q[n].shape)
    return factor * q


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("norm_axes", ["sample", "pixel"])
def test_alpha_zero_is_batch_normalisation(shape, training, norm_axes):
    unitize = with_alpha(randomised(Unitize(3, norm_axes=norm_axes)), 0.0)
    batch = nn.BatchNorm1d(3, eps=1e-3)
    batch.load_state_dict({**unitize.batch_norm.state_dict(), "weight": unitize.weight, "bias": unitize.bias})
    x = 2 * torch.randn(shape) + 1
    flat = x if x.dim() == 2 else x.flatten(2)
    expected = batch.train(training)(flat).view(shape)
    torch.testing.assert_close(unitize.train(training)(x), expected, rtol=1e-12, atol=1e-12)


def test_a_new_layer_is_batch_normalisation_that_has_not_learned():
    unitize = Unitize(3)
    x = torch.randn(5, 3)
    torch.testing.assert_close(unitize(x), nn.BatchNorm1d(3, eps=1e-3)(x), rtol=1e-12, atol=1e-12)
    assert unitize.alpha.tolist() == [0, 0, 0]


def test_alpha_one_gives_every_row_norm_one():
    unitize = with_alpha(Unitize(7, eps=TINY), 1.0)
    norms = unitize(torch.randn(20, 7)).norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(20), rtol=1e-10, atol=0)


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 1.0])
def test_scalar_alpha_interpolates_the_norm(alpha):
    unitize = without_statistics(with_alpha(Unitize(7, eps=TINY), alpha))
    x = 3 * torch.randn(20, 7)
    expected = alpha + (1 - alpha) * x.norm(dim=1)
    torch.testing.assert_close(unitize(x).norm(dim=1), expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize(
    ("alpha", "expected"), [(1.0, [0.6, 0.8]), (0.5, [1.8, 2.4]), ([1.0, 0.0], [0.6, 4.0]), (0.0, [3.0, 4.0])]
)
def test_three_four(alpha, expected):
    unitize = without_statistics(with_alpha(Unitize(2, eps=TINY), alpha))
    actual = unitize(torch.tensor([[3.0, 4.0]]))
    torch.testing.assert_close(actual, torch.tensor([expected]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("scale", "expected"), [("official", 20.0), ("l2", 1.0), ("per_pixel", 20**0.5), ("rms", 60**0.5)]
)
def test_norm_of_an_image_at_alpha_one(scale, expected):
    unitize = with_alpha(Unitize(3, eps=TINY, norm_scale=scale), 1.0)
    norms = unitize(torch.randn(6, 3, 4, 5)).flatten(1).norm(dim=1)
    torch.testing.assert_close(norms, torch.full((6,), expected), rtol=1e-10, atol=0)


def test_alpha_one_does_not_see_the_scale_of_a_sample():
    unitize = without_statistics(with_alpha(Unitize(3, eps=TINY), 1.0))
    x, scales = torch.randn(5, 3, 4, 4), torch.tensor([1e-2, 0.5, 1.0, 3.0, 1e3]).view(5, 1, 1, 1)
    torch.testing.assert_close(unitize(scales * x), unitize(x), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("norm_axes", ["sample", "pixel"])
@pytest.mark.parametrize("norm_scale", ["official", "l2", "per_pixel", "rms"])
def test_forward_is_the_formula(shape, norm_axes, norm_scale):
    unitize = randomised(Unitize(3, eps=0.02, norm_axes=norm_axes, norm_scale=norm_scale)).eval()
    x = torch.randn(shape)
    mean, deviation = unitize.batch_norm.running_mean, (unitize.batch_norm.running_var + 0.02).sqrt()
    normalised = (x - per_channel(mean, x)) / per_channel(deviation, x)
    r = (squared_norms(normalised, norm_axes, norm_scale) + 0.02) ** -0.5
    alpha, gamma, beta = (per_channel(vector, x) for vector in (unitize.alpha, unitize.weight, unitize.bias))
    expected = gamma * (alpha * r + (1 - alpha)) * normalised + beta
    torch.testing.assert_close(unitize(x), expected, rtol=1e-12, atol=1e-12)


def test_zero_sample_gives_beta():
    unitize = without_statistics(with_alpha(Unitize(3), 1.0))
    nn.init.constant_(unitize.bias, 0.7)
    assert torch.equal(unitize(torch.zeros(1, 3, 2)), torch.full((1, 3, 2), 0.7))


# --- gradients --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(6, 3), (4, 3, 2, 3)])
@pytest.mark.parametrize("norm_scale", ["official", "l2", "per_pixel", "rms"])
def test_gradients_are_the_closed_forms(shape, norm_scale):
    unitize = randomised(Unitize(3, norm_scale=norm_scale))
    without_statistics(unitize)
    x, g = torch.randn(shape, requires_grad=True), torch.randn(shape)
    unitize(x).backward(g)

    positions = x[0, 0].numel()
    kappa = {"official": positions**-2, "l2": 1, "per_pixel": 1 / positions, "rms": 1 / (3 * positions)}[norm_scale]
    z, alpha, gamma = x.detach(), per_channel(unitize.alpha, x).detach(), per_channel(unitize.weight, x).detach()
    dims = tuple(range(1, x.dim()))
    r = (kappa * (z * z).sum(dims, keepdim=True) + unitize.eps) ** -0.5
    s = alpha * r + 1 - alpha
    input_gradient = gamma * s * g - r**3 * kappa * z * (gamma * alpha * g * z).sum(dims, keepdim=True)
    over_channels = (0, *range(2, x.dim()))
    torch.testing.assert_close(x.grad, input_gradient, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(unitize.alpha.grad, (gamma * z * (r - 1) * g).sum(over_channels), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(unitize.weight.grad, (s * z * g).sum(over_channels), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(unitize.bias.grad, g.sum(over_channels), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("norm_axes", ["sample", "pixel"])
@pytest.mark.parametrize("training", [True, False])
def test_gradients_agree_with_finite_differences(norm_axes, training):
    unitize = randomised(Unitize(2, norm_axes=norm_axes)).train(training)
    x = torch.randn(3, 2, 2, requires_grad=True)
    parameters = dict(unitize.named_parameters())

    def function(x, *values):
        return torch.func.functional_call(unitize, dict(zip(parameters, values, strict=True)), x)

    assert torch.autograd.gradcheck(function, (x, *parameters.values()))


def test_alpha_at_zero_has_a_gradient():
    unitize = Unitize(3)
    (unitize(torch.randn(8, 3, 4)) * torch.randn(8, 3, 4)).sum().backward()
    assert (unitize.alpha.grad.abs() > 1e-3).all()


# --- statistics and modes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("make", [Unitize, BatchNorm])
def test_running_statistics_are_those_of_a_batch_norm_twin(shape, make):
    layer = make(3, eps=1e-3, momentum=0.2)
    twin = nn.BatchNorm1d(3, eps=1e-3, momentum=0.2)
    for _ in range(3):
        x = 2 * torch.randn(shape) + 1
        layer(x)
        twin(x if x.dim() == 2 else x.flatten(2))
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(getattr(layer.batch_norm, name), getattr(twin, name), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("make", [Unitize, BatchNorm])
def test_evaluation_of_a_sample_does_not_see_the_rest_of_the_batch(shape, make):
    layer = randomised(make(3)).eval()
    x = torch.randn(shape)
    alone = torch.cat([layer(sample.unsqueeze(0)) for sample in x])
    torch.testing.assert_close(layer(x), alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("make", [Unitize, BatchNorm])
def test_evaluation_leaves_the_running_statistics_alone(make):
    layer = randomised(make(3)).eval()
    before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    layer(torch.randn(4, 3))
    assert all(torch.equal(buffer, before[name]) for name, buffer in layer.named_buffers())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("reference", "shape"),
    [(nn.BatchNorm1d, (6, 3)), (nn.BatchNorm2d, (6, 3, 4, 5)), (nn.BatchNorm3d, (6, 3, 4, 2, 3))],
)
def test_batch_norm_is_torchs(reference, shape, training):
    ours, theirs = randomised(BatchNorm(3, eps=1e-4, momentum=0.3)), reference(3, eps=1e-4, momentum=0.3)
    theirs.load_state_dict(ours.batch_norm.state_dict())
    ours.train(training)
    theirs.train(training)
    x, output_gradient = torch.randn(shape), torch.randn(shape)
    results = []
    for layer in (ours, theirs):
        leaf = x.clone().requires_grad_()
        y = layer(leaf)
        y.backward(output_gradient)
        results.append([y.detach(), leaf.grad, *(p.grad for p in layer.parameters()), *layer.buffers()])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("make", [Unitize, BatchNorm])
def test_conversion_to_sync_batch_norm_keeps_everything(make, shape):
    net = nn.Sequential(randomised(make(3))).eval()
    parameters = {name: parameter.clone() for name, parameter in net.named_parameters()}
    x = torch.randn(shape)
    expected = net(x)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    assert isinstance(converted[0].batch_norm, nn.SyncBatchNorm)
    assert dict(converted.named_parameters()).keys() == parameters.keys()
    assert all(torch.equal(parameter, parameters[name]) for name, parameter in converted.named_parameters())
    torch.testing.assert_close(converted(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("norm_axes", ["sample", "pixel"])
def test_local_constants_are_never_below_the_jacobians_in_the_box(norm_axes):
    """At samples of one large value and many equal ones, whose norm is near that of eps: large for p = 1 and inf."""
    shape = (32, 2, 2) if norm_axes == "sample" else (128, 1, 1)
    layer = with_alpha(without_statistics(Unitize(shape[0], 0.01, norm_axes=norm_axes, norm_scale="l2")), 1.0)
    z = torch.full((1, 128), (0.01 / 128) ** 0.5)
    z[0, 0] = 0.1
    x = z.view(1, *shape)
    jacobian = torch.autograd.functional.jacobian(layer, x).view(128, 128)
    for p in (1, 2, float("inf")):
        truth = torch.linalg.matrix_norm(jacobian, ord=p)
        local = layer.local_lipschitz_constant(x - 1e-6, x + 1e-6, p).detach()
        assert local.shape == (1,)
        assert truth <= local.item() <= 3 * truth
    assert torch.linalg.matrix_norm(jacobian, ord=float("inf")) > 2 * torch.linalg.matrix_norm(jacobian, ord=2)


@pytest.mark.parametrize("norm_axes", ["sample", "pixel"])
def test_boxes_that_hold_zero_reach_the_largest_inverse_norm(norm_axes):
    layer = with_alpha(without_statistics(Unitize(2, 0.01, norm_axes=norm_axes, norm_scale="l2")), 1.0)
    lo, hi = torch.tensor([[-1.0, -1.0]]), torch.tensor([[2.0, 2.0]])
    assert layer.local_lipschitz_constant(lo, hi, 2).item() == pytest.approx(10)  # 1 / sqrt(eps), met at 0
    low, high = layer.interval(lo, hi)
    for point in ([-1.0, 0.0], [0.0, -1.0], [0.0, 2.0], [2.0, 0.0]):
        y = layer(torch.tensor([point]))
        assert (low <= y).all()
        assert (y <= high).all()


OPTIONS = [
    {"alpha_shape": "layer"},
    {"alpha_constraint": "sigmoid", "alpha_init": 0.7},
    {"alpha_constraint": "sigmoid", "alpha_init": 0.7, "alpha_shape": "layer", "affine": False},
    {"norm_divisor": 0.01},
    {"learn_alpha": False, "alpha_init": 1.0},
    {"learn_alpha": False, "alpha_init": -0.5, "affine": False, "norm_axes": "pixel"},
    {"unbiased_train_var": True, "norm_scale": "rms"},
    {"unbiased_train_var": True, "norm_axes": "pixel", "norm_divisor": 3.0},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(4, 2), (3, 2, 2)])
def test_gradients_of_every_option_agree_with_finite_differences(options, training, shape):
    unitize = randomised(Unitize(2, **options)).train(training)
    names = [name for name, _ in unitize.named_parameters()]

    def function(x, *values):
        return torch.func.functional_call(unitize, dict(zip(names, values, strict=True)), x)

    x = torch.randn(shape, requires_grad=True)
    assert torch.autograd.gradcheck(function, (x, *unitize.parameters()))
    assert torch.autograd.gradgradcheck(function, (x, *unitize.parameters()))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_constants_and_boxes_of_every_option_hold(options):
    """On samples about where the slope is largest, at the running mean, and far from it."""
    layer = randomised(Unitize(3, eps=0.02, **options)).eval()
    offsets = torch.logspace(-3, 1, 30).view(-1, 1, 1, 1) * torch.randn(30, 3, 2, 2)
    x = layer.batch_norm.running_mean.view(-1, 1, 1) + offsets
    jacobians = torch.stack([torch.autograd.functional.jacobian(layer, s[None]).view(12, 12) for s in x])
    width = 0.05
    for p in (1, 2, float("inf")):
        truth = torch.linalg.matrix_norm(jacobians, ord=p)
        local = layer.local_lipschitz_constant(x - width, x + width, p)
        assert (truth <= local * (1 + 1e-12)).all()
        assert (local <= layer.lipschitz_constant(p).to(local) * (1 + 1e-12)).all()
    low, high = layer.interval(x - width, x + width)
    for _ in range(50):
        y = layer(x + width * (2 * torch.rand_like(x) - 1).sign())
        assert (low - 1e-12 <= y).all()
        assert (y <= high + 1e-12).all()


def test_state_dict_round_trip():
    source, copy = randomised(Unitize(3)).eval(), Unitize(3).eval()
    copy.load_state_dict(source.state_dict())
    x = torch.randn(4, 3, 2)
    assert torch.equal(copy(x), source(x))


# --- constraint, dtypes, arguments ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("constraint", "expected"), [("project", [0.0, 0.3, 1.0]), ("none", [-0.4, 0.3, 1.7])])
def test_projection_clamps_alpha_only_under_the_constraint(constraint, expected):
    unitize = with_alpha(Unitize(3, alpha_constraint=constraint), [-0.4, 0.3, 1.7])
    unitize.project_()
    assert unitize.alpha.tolist() == expected
    assert unitize.alpha.requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("low_precision_layer", [False, True])
def test_half_precision_sum_of_squares_over_a_big_image_does_not_overflow(dtype, low_precision_layer):
    unitize = without_statistics(with_alpha(Unitize(64, norm_scale="rms").float(), 1.0))
    x = torch.randn(1, 64, 56, 56, dtype=torch.float32).to(dtype)
    assert x.square().sum() > torch.finfo(torch.float16).max
    expected = unitize(x.float())
    y = (unitize.to(dtype) if low_precision_layer else unitize)(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), expected, rtol=2e-2, atol=1e-3)


@pytest.mark.parametrize("divisor", [1.0, 4.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_official_layer_in_numpy(shape, divisor):
    """The formulas of the authors' code as the notes give them, in training and then in eval mode."""
    eps, momentum = 1e-3, 0.01
    unitize = randomised(Unitize(3, eps, momentum, norm_divisor=divisor, unbiased_train_var=True))
    x, unseen = (2 * np.random.default_rng(0).normal(size=(2, *shape)) + 1).astype(np.float64)
    alpha, gamma, beta = (
        vector.detach().numpy().reshape(-1, *[1] * (len(shape) - 2))
        for vector in (unitize.alpha, unitize.weight, unitize.bias)
    )
    axes, m, positions = (0, *range(2, x.ndim)), x.size / shape[1], x[0, 0].size
    mean = x.mean(axes, keepdims=True)
    variance = x.var(axes, keepdims=True) * m / (m - 1 - eps)

    def transformed(x, mean, variance):
        normalised = (x - mean) / np.sqrt(variance + eps)
        each_channel = np.mean(normalised**2, axis=tuple(range(2, x.ndim)), keepdims=True)
        q = each_channel.sum(axis=1, keepdims=True) / positions / divisor
        return gamma * (alpha / np.sqrt(q + eps) + (1 - alpha)) * normalised + beta

    running = [buffer.numpy().reshape(mean.shape) for buffer in list(unitize.batch_norm.buffers())[:2]]
    kept = [(1 - momentum) * old + momentum * new for old, new in zip(running, (mean, variance), strict=True)]
    np.testing.assert_allclose(unitize(torch.from_numpy(x)).detach(), transformed(x, mean, variance), rtol=1e-11)
    for buffer, expected in zip(unitize.batch_norm.buffers(), kept, strict=False):
        np.testing.assert_allclose(buffer, expected.ravel(), rtol=1e-12)
    np.testing.assert_allclose(
        unitize.eval()(torch.from_numpy(unseen)).detach(), transformed(unseen, *kept), rtol=1e-11
    )


@pytest.mark.parametrize("options", [{}, {"unbiased_train_var": True}, {"alpha_shape": "layer"}, {"norm_scale": "rms"}])
@pytest.mark.parametrize("norm_axes", ["sample", "pixel"])
@pytest.mark.parametrize("training", [True, False])
def test_it_is_the_definition_over_batch_normalisation(norm_axes, training, options):
    layer = randomised(Unitize(3, norm_axes=norm_axes, **options)).train(training)
    x, grad = (torch.randn(5, 3, 4, 2) + 2).requires_grad_(), torch.randn(5, 3, 4, 2)
    m, eps = 40, layer.eps
    statistics = (x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)) if training else list(layer.batch_norm.buffers())
    factor = m / (m - 1 - eps) if training and options.get("unbiased_train_var") else 1
    mean, variance = statistics[0].clone(), statistics[1] * factor
    normalised = (x - per_channel(mean, x)) / per_channel(variance + eps, x).sqrt()
    r = (squared_norms(normalised, norm_axes, options.get("norm_scale", "official")) + eps) ** -0.5
    alpha, gamma, beta = (per_channel(vector, x) for vector in (layer.alpha, layer.weight, layer.bias))
    expected = gamma * (alpha * r + (1 - alpha)) * normalised + beta
    leaves = (x, *layer.parameters())
    by_definition = [expected, *torch.autograd.grad(expected, leaves, grad)]
    y = layer(x)
    for actual, truth in zip((y, *torch.autograd.grad(y, leaves, grad)), by_definition, strict=True):
        torch.testing.assert_close(actual, truth, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(7, 3), (5, 3, 4, 2)])
def test_the_derivative_by_hand_is_that_of_the_formula(options, training, shape):
    """Which vmap over several gradients at once, as differentiating twice, takes instead."""
    layer = randomised(Unitize(3, **{"norm_axes": "pixel", **options})).train(training)
    x, grad = (2 * torch.randn(shape) + 1).requires_grad_(), torch.randn(2, *shape)
    if x.dim() == 4:
        x = x.detach().to(memory_format=torch.channels_last).requires_grad_()
    leaves = (x, *layer.parameters())
    y = layer(x)
    together = torch.autograd.grad(y, leaves, grad, is_grads_batched=True, retain_graph=True)
    for index in range(2):
        by_hand = torch.autograd.grad(y, leaves, grad[index], retain_graph=True)
        for actual, expected in zip(by_hand, together, strict=True):
            torch.testing.assert_close(actual, expected[index], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(16, 40), (8, 16, 3, 3)])
def test_the_input_alone_is_kept_for_the_backward_pass(shape, dtype):
    layer, x = Unitize(shape[1], norm_axes="pixel", alpha_init=0.5).to(dtype), torch.randn(shape, dtype=dtype)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = layer(x.requires_grad_())
    large = [t for t in kept if t.numel() == x.numel()]
    assert [t.data_ptr() for t in large] == [x.data_ptr()]
    y.sum().backward()
    assert y.dtype == x.grad.dtype == layer.alpha.grad.dtype == dtype
    twin = Unitize(shape[1], norm_axes="pixel", alpha_init=0.5)
    torch.testing.assert_close(y, twin(x.double()).to(dtype), rtol=0.02, atol=0.02)


def test_parameters_that_rest_and_inputs_without_gradient():
    layer, x, grad = with_alpha(randomised(Unitize(3)), 0.4), torch.randn(6, 3), torch.randn(6, 3)
    expected = torch.autograd.grad(layer(x), layer.weight, grad)[0]
    layer.alpha.requires_grad_(False)
    layer.bias.requires_grad_(False)
    torch.testing.assert_close(torch.autograd.grad(layer(x), layer.weight, grad)[0], expected)


# --- alpha ------------------------------------------------------------------------------------------------------------


def test_a_fixed_alpha_is_no_parameter_and_stays():
    layer = Unitize(3, alpha_init=0.5, learn_alpha=False)
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"]
    layer.requires_grad_(True)
    assert not layer.alpha.requires_grad
    assert layer.state_dict()["alpha"].tolist() == layer.mixing().tolist() == [0.5, 0.5, 0.5]
    assert {role: len(found) for role, found in parameters_by_role(layer).items()} == {"norm": 2}
    learned = with_alpha(Unitize(3), 0.5)
    x = torch.randn(4, 3, 2)
    assert torch.equal(layer(x), learned(x))
    learned.load_state_dict(layer.state_dict())


def test_sigmoid_keeps_alpha_inside_and_learns_by_the_chain_rule():
    layer, free = Unitize(2, alpha_constraint="sigmoid", alpha_init=0.25), Unitize(2, alpha_init=0.25)
    assert layer.raw_alpha.tolist() == pytest.approx([-math.log(3)] * 2)
    assert layer.mixing().tolist() == pytest.approx([0.25, 0.25])
    assert parameters_by_role(layer)["norm"][0] is layer.raw_alpha
    x, grad = torch.randn(5, 2, 3), torch.randn(5, 2, 3)
    for each in (layer, free):
        each(x).backward(grad)
    torch.testing.assert_close(layer.raw_alpha.grad, 0.25 * 0.75 * free.alpha.grad)
    with torch.no_grad():
        layer.raw_alpha.copy_(torch.tensor([-50.0, 50.0]))
    layer.project_()
    assert layer.raw_alpha.tolist() == [-50, 50]
    assert 0 < layer.mixing()[0] < layer.mixing()[1] <= 1


def test_one_alpha_for_the_layer_gathers_the_channels_gradients():
    one, each = Unitize(3, alpha_init=0.3, alpha_shape="layer"), Unitize(3, alpha_init=0.3)
    x, grad = torch.randn(5, 3, 4), torch.randn(5, 3, 4)
    for layer in (one, each):
        layer(x).backward(grad)
    assert one.alpha.shape == (1,)
    torch.testing.assert_close(one.alpha.grad, each.alpha.grad.sum().view(1))


# --- inputs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [Unitize, lambda c: Unitize(c, norm_axes="pixel"), BatchNorm])
@pytest.mark.parametrize("shape", [(4,), (4, 2), (4, 2, 5), (4, 3, 0), (4, 3, 2, 0)])
def test_other_shapes_are_refused_by_name(make, shape):
    with pytest.raises(ValueError, match=re.escape(f"x.shape={shape}: (N, 3, *)")):
        make(3)(torch.zeros(shape))


@pytest.mark.parametrize("norm_axes", ["sample", "pixel"])
def test_a_single_value_a_channel_has_no_variance_to_train_with(norm_axes):
    layer = Unitize(3, norm_axes=norm_axes)
    with pytest.raises(ValueError, match="batch_size=1: in training at least 2 values"):
        layer(torch.randn(1, 3))
    assert layer.batch_norm.num_batches_tracked == 0
    assert layer(torch.randn(1, 3, 2)).isfinite().all()
    assert layer.eval()(torch.randn(1, 3)).isfinite().all()
    assert layer(torch.randn(0, 3)).shape == (0, 3)


@pytest.mark.parametrize("norm_axes", ["sample", "pixel"])
@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 2, 2)])
def test_nan_spoils_its_sample_alone_in_eval_mode(norm_axes, shape):
    layer = with_alpha(Unitize(3, norm_axes=norm_axes), 0.5).eval()
    x = torch.randn(shape)
    x[2, 1] = float("nan")
    assert layer(x).isnan().flatten(1).all(1).tolist() == [False, False, True, False]


@pytest.mark.parametrize(("scale", "growth"), [("official", 2), ("l2", 0.5), ("per_pixel", 1), ("rms", 1)])
def test_what_four_times_the_positions_do_to_the_scale(scale, growth):
    layer = with_alpha(Unitize(3, eps=TINY, norm_scale=scale), 1.0)
    small, large = (layer(torch.randn(4, 3, size, size)).square().mean().sqrt() for size in (6, 12))
    assert (large / small).item() == pytest.approx(growth, rel=1e-9)


def test_running_statistics_average_all_batches_without_momentum():
    """As averaging the weights over epochs sets it, to measure the statistics anew."""
    layer, twin = Unitize(3), nn.BatchNorm1d(3, momentum=None)
    layer.batch_norm.momentum = None
    for _ in range(3):
        x = torch.randn(5, 3)
        layer(x)
        twin(x)
    for actual, expected in zip(layer.batch_norm.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("settings", [{}, {"norm_axes": "pixel", "unbiased_train_var": True}])
def test_so_do_the_statistics_of_images(settings):
    """They are not torch's own kernel's, as those of dense layers are."""
    layer, batches = Unitize(3, eps=TINY, **settings), [torch.randn(5, 3, 4) for _ in range(3)]
    layer.batch_norm.momentum = None
    for x in batches:
        layer(x)
    values = torch.stack([x.movedim(1, 0).flatten(1) for x in batches])
    torch.testing.assert_close(layer.batch_norm.running_mean, values.mean(2).mean(0))
    torch.testing.assert_close(layer.batch_norm.running_var, values.var(2).mean(0))


@pytest.mark.parametrize("training", [True, False])
def test_a_gradient_is_that_of_the_mode_of_its_forward(training):
    """Differentiated twice, the statistics are found again, at a time when the layer may be in the other mode."""
    layer, x, grad = randomised(Unitize(3)).train(training), torch.randn(4, 3, 5).requires_grad_(), torch.randn(4, 3, 5)
    (once,) = torch.autograd.grad(layer(x), x, grad)
    y = layer(x)
    layer.train(not training)
    (again,) = torch.autograd.grad(y, x, grad, create_graph=True)
    torch.testing.assert_close(again, once)


@pytest.mark.parametrize("make", [Unitize, BatchNorm])
def test_a_converted_layer_shares_with_the_processes_of_its_group(make, monkeypatch):
    own, single = object(), object()
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda group=None: 1 if group is single else 2)
    for group, shared in ((own, own), (single, None), (None, dist.group.WORLD)):
        (layer,) = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(make(3)), group)
        assert layer.ranks() is shared


@pytest.mark.parametrize("norm_axes", ["sample", "pixel"])
def test_it_compiles_in_one_graph(norm_axes):
    layer, twin = (with_alpha(Unitize(3, norm_axes=norm_axes), 0.5) for _ in range(2))
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(4, 3, 5)
    torch.testing.assert_close(compiled(x), twin(x))
    torch.testing.assert_close(layer.batch_norm.running_var, twin.batch_norm.running_var)


@pytest.mark.parametrize("make", [Unitize, BatchNorm])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_channels": 0}, "num_channels=0"),
        ({"eps": 0.0}, "eps=0.0"),
        ({"eps": -1e-3}, "eps=-0.001"),
        ({"eps": float("nan")}, "eps=nan"),
        ({"momentum": 0.0}, "momentum=0.0"),
        ({"momentum": 1.5}, "momentum=1.5"),
    ],
)
def test_bad_arguments_are_named_with_their_value(make, settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make(**{"num_channels": 3, **settings})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"norm_divisor": 0.0}, "norm_divisor=0.0"),
        ({"norm_divisor": float("inf")}, "norm_divisor=inf"),
        ({"alpha_init": float("nan")}, "alpha_init=nan"),
        ({"alpha_constraint": "sigmoid"}, "alpha_init=0.0: above 0, below 1"),
        ({"alpha_constraint": "project", "alpha_init": 1.1}, "alpha_init=1.1: in 0 to 1"),
        ({"alpha_constraint": "project", "learn_alpha": False}, "alpha_constraint=project: none"),
        ({"alpha_constraint": "sigmoid", "learn_alpha": False, "alpha_init": 0.5}, "alpha_constraint=sigmoid: none"),
    ],
)
def test_settings_of_alpha_and_the_norm_are_checked(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Unitize(3, **settings)


@pytest.mark.parametrize("name", ["norm_axes", "norm_scale", "alpha_constraint", "alpha_shape"])
def test_unknown_choice_is_named_with_its_value(name):
    with pytest.raises(ValueError, match=f"{name}=other"):
        Unitize(3, **{name: "other"})


@pytest.mark.parametrize(("eps", "size"), [(1.0, 2), (3.0, 3)])
def test_the_official_factor_needs_enough_values(eps, size):
    with pytest.raises(ValueError, match=r"^unbiased_train_var=True: more than 1 \+ eps values a channel"):
        Unitize(2, eps=eps, unbiased_train_var=True)(torch.randn(size, 2))


def test_an_infinite_eps_is_refused():
    with pytest.raises(ValueError, match=r"^eps=inf: above 0, finite"):
        Unitize(2, eps=inf)
