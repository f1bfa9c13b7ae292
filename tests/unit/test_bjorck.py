"""Björck's iteration: norms never above 1, convergence, and a parametrised layer like any other."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from tautnet.activations import Absolute, GroupSort, LeakyReLU
from tautnet.backbones import LayerFactory, convnet, mlp
from tautnet.lipschitz import lipschitz_bound, lipschitz_lower
from tautnet.normalizers import Bjorck, no_output_norm
from tautnet.normalizers.bjorck import orthonormalised
from tautnet.optim.roles import parameters_by_role

pytestmark = pytest.mark.usefixtures("float64_on_one_thread")

SHAPES = [(5, 5), (3, 8), (8, 3), (1, 6), (6, 1), (1, 1)]


def singular_values(matrix):
    return torch.linalg.svdvals(matrix.detach())


@torch.no_grad()
def operator_norm(layer, *input_shape):
    """Spectral norm of an affine layer, from its matrix: the images of the unit vectors."""
    size = math.prod(input_shape)
    images = layer(torch.cat([torch.zeros(1, size), torch.eye(size)]).view(-1, *input_shape)).flatten(1)
    return float(torch.linalg.matrix_norm(images[1:] - images[:1], ord=2))


# --- the iteration ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e3, 1e30])
@pytest.mark.parametrize("beta", [0.05, 0.5])
def test_no_iterate_has_a_norm_above_one(shape, scale, beta):
    for matrix in (torch.randn(shape), torch.rand(shape), torch.ones(shape), torch.eye(*shape)):
        norms = [singular_values(orthonormalised(scale * matrix, k, beta)).max() for k in range(21)]
        assert max(norms) <= 1 + 1e-12
        assert all(later >= earlier - 1e-12 for earlier, later in pairwise(norms))


@pytest.mark.parametrize("shape", SHAPES)
def test_it_converges_to_the_polar_factor(shape):
    matrix = torch.randn(shape)
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    assert s.min() / s.max() > 1e-3
    torch.testing.assert_close(orthonormalised(matrix, 60), u @ vh, rtol=0, atol=1e-12)


def test_singular_values_follow_their_recursion():
    matrix = torch.randn(4, 6)
    scale = (matrix.abs().sum(0).max() * matrix.abs().sum(1).max()).sqrt()
    s = singular_values(matrix) / scale
    for k in range(6):
        torch.testing.assert_close(singular_values(orthonormalised(matrix, k, beta=0.3)), s)
        s = s * (1 + 0.3 * (1 - s.square()))


def test_a_matrix_of_zeros_stays_and_has_a_gradient():
    matrix = torch.zeros(3, 2, requires_grad=True)
    result = orthonormalised(matrix)
    assert torch.equal(result, torch.zeros(3, 2))
    result.sum().backward()
    assert matrix.grad.isfinite().all()


@pytest.mark.parametrize("shape", [(3, 4), (4, 3)])
def test_gradients_are_those_of_the_whole_iteration(shape):
    matrix = torch.randn(shape, requires_grad=True)
    assert torch.autograd.gradcheck(lambda m: orthonormalised(m, 4), matrix)


# --- the layers -------------------------------------------------------------------------------------------------------


def test_a_dense_layer_keeps_class_shape_role_and_trains():
    layer = nn.Linear(6, 4)
    assert Bjorck()(layer) is layer
    assert layer.weight.shape == (4, 6)
    found = parameters_by_role(layer)
    assert found == {"weight": [layer.parametrizations.weight.original], "bias": [layer.bias]}
    layer(torch.randn(5, 6)).square().sum().backward()
    assert layer.parametrizations.weight.original.grad.abs().max() > 0
    torch.testing.assert_close(layer.weight @ layer.weight.T, torch.eye(4), rtol=0, atol=1e-3)


def test_state_dict_round_trip():
    layer, twin = Bjorck()(nn.Linear(6, 4)), Bjorck()(nn.Linear(6, 4))
    assert set(layer.state_dict()) == {"bias", "parametrizations.weight.original"}
    twin.load_state_dict(layer.state_dict())
    x = torch.randn(5, 6)
    assert torch.equal(twin(x), layer(x))


def test_the_settings_reach_the_weight():
    original = torch.randn(4, 6)
    layer = nn.Linear(6, 4)
    with torch.no_grad():
        layer.weight.copy_(original)
    Bjorck(num_iterations=2, beta=0.25)(layer)
    torch.testing.assert_close(layer.weight, orthonormalised(original, 2, 0.25))
    assert "num_iterations=2, beta=0.25" in repr(layer)


def test_autocast_does_not_lower_the_precision():
    layer = Bjorck()(nn.Linear(32, 32).float())
    exact = layer.weight
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer.weight, exact)
    assert singular_values(exact.double()).max() <= 1 + 1e-6


@pytest.mark.parametrize("kernel", [1, 3, (2, 3)])
@pytest.mark.parametrize(("stride", "dilation", "padding"), [(1, 1, 1), (1, 1, 0), (2, 1, 1), (1, 2, 2), (2, 2, 1)])
@pytest.mark.parametrize(("inputs", "outputs", "groups"), [(1, 1, 1), (3, 2, 1), (2, 5, 1), (4, 4, 2), (4, 4, 4)])
def test_convolutions_have_a_norm_of_at_most_one(kernel, stride, dilation, padding, inputs, outputs, groups):
    for init in (nn.init.normal_, nn.init.ones_):
        conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups)
        init(conv.weight)
        truth = operator_norm(Bjorck()(conv), inputs, 5, 6)
        assert 0 < truth <= 1 + 1e-12
        assert truth <= lipschitz_bound(conv, (inputs, 5, 6)).total


def test_the_factor_of_a_convolution_cannot_be_larger():
    conv = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    nn.init.ones_(conv.weight)
    assert operator_norm(Bjorck()(conv), 1, 12, 12) > 0.95  # towards 1 on growing images


@pytest.mark.parametrize("constant", [0.1, 1.0, 20.0])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [(nn.Linear(7, 4), (7,)), (nn.Conv1d(2, 3, 4, 2), (2, 9)), (nn.Conv3d(2, 2, (3, 1, 2), padding=1), (2, 4, 3, 4))],
    ids=["dense", "1d", "3d"],
)
def test_the_constant_is_the_largest_norm(layer, shape, constant):
    layer = Bjorck(constant=constant)(copy.deepcopy(layer).double())
    norm = operator_norm(layer, *shape)
    assert 0.2 * constant < norm <= constant * (1 + 1e-12)
    assert lipschitz_bound(Bjorck(constant=constant)(nn.Linear(6, 4)), (6,)).total == pytest.approx(constant, rel=1e-3)
    assert f"constant={constant}" in repr(layer)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_float32_exceeds_the_constant_by_rounding_alone(scale):
    for layer in (nn.Linear(200, 150), nn.Linear(30, 200), nn.Conv2d(16, 24, 3)):
        with torch.no_grad():
            layer.weight.normal_(std=scale)
        weight = Bjorck(25)(layer.float()).weight.detach()
        matrix = weight.double().flatten(1) * math.sqrt(math.prod(weight.shape[2:]))
        assert 0.99 < singular_values(matrix).max() <= 1 + 1e-6


def test_grouped_convolution_is_bounded_group_by_group():
    conv = Bjorck()(nn.Conv2d(4, 4, 1, groups=2, bias=False))
    for rows in conv.weight.flatten(1).chunk(2):
        assert singular_values(rows).max() <= 1 + 1e-12


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"), "padding_mode=reflect: zeros"),
        (nn.ConvTranspose2d(2, 2, 3), "layer=ConvTranspose2d: nn.Linear, nn.Conv1d, nn.Conv2d or nn.Conv3d"),
        (Bjorck()(nn.Linear(2, 2)), "layer=ParametrizedLinear: "),
    ],
)
def test_other_layers_are_refused(layer, message):
    with pytest.raises(ValueError, match=message):
        Bjorck()(layer)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_iterations", 0),
        ("beta", 0.0),
        ("beta", 0.6),
        ("beta", math.nan),
        ("constant", 0.0),
        ("constant", math.inf),
        ("constant", math.nan),
    ],
)
def test_settings_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=f"^{name}={value}: "):
        Bjorck(**{name: value})


# --- networks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", [Absolute, GroupSort, lambda c: LeakyReLU(c, -1.0)])
@pytest.mark.parametrize("shape", [(3,), (2, 6, 6)])
def test_a_network_is_bounded_by_one_and_what_is_observed_by_the_bound(activation, shape):
    factory = LayerFactory(activation, no_output_norm, Bjorck())
    net = mlp(factory, shape, 3, (7, 5)) if len(shape) == 1 else convnet(factory, shape, 3, (4, 3))
    net.train()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    report = lipschitz_bound(net, shape)
    lower = lipschitz_lower(net, torch.randn(200, *shape))
    assert 0 < lower <= report.total <= 1 + 1e-5
    assert report.unbounded == ()
    assert net.training
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_the_bound_is_that_of_the_weight_in_force():
    layer = nn.Linear(5, 5)
    with torch.no_grad():
        layer.weight.mul_(100)
    Bjorck()(layer)
    assert parametrize.is_parametrized(layer)
    assert lipschitz_bound(layer, (5,)).total == pytest.approx(operator_norm(layer, 5), rel=1e-9)
