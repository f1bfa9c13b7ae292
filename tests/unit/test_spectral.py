"""Spectral normalisation: the layer's norm as a map never exceeds the constant, and comes near it."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from tautnet.activations import Absolute
from tautnet.backbones import LayerFactory, convnet, mlp
from tautnet.lipschitz import lipschitz_bound, lipschitz_lower
from tautnet.normalizers import Bjorck, Spectral, no_output_norm
from tautnet.normalizers.weight import rounding_margin
from tautnet.optim.roles import parameters_by_role

pytestmark = pytest.mark.usefixtures("float64_on_one_thread")

LAYERS = {
    "dense": (lambda: nn.Linear(7, 5), (7,)),
    "wide": (lambda: nn.Linear(3, 30), (3,)),
    "1d": (lambda: nn.Conv1d(3, 2, 4, 2, padding=3), (3, 11)),
    "2d": (lambda: nn.Conv2d(3, 4, 3, padding=1), (3, 9, 8)),
    "stride": (lambda: nn.Conv2d(2, 5, 3, 2, padding=1), (2, 9, 9)),
    "groups": (lambda: nn.Conv2d(4, 6, (2, 3), dilation=2, groups=2), (4, 6, 7)),
    "3d": (lambda: nn.Conv3d(2, 2, 2, padding=1), (2, 4, 4, 3)),
}
KINDS = pytest.mark.parametrize("kind", LAYERS)


def made(kind, scale=1.0, dtype=torch.float64):
    make, shape = LAYERS[kind]
    layer = make().to(dtype)
    with torch.no_grad():
        layer.weight.normal_(std=scale)
    return layer, shape


def norm_of(layer, shape):
    """The bound of the exact map of the weight in force; its own allowance for rounding is 1e-10."""
    return lipschitz_bound(nn.Sequential(layer).double(), shape).total


@KINDS
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize(("dtype", "margin"), [(torch.float64, 1e-9), (torch.float32, 1e-9)])
@pytest.mark.parametrize(("constant", "num_iterations"), [(1.0, 8), (0.3, 1), (50.0, 3)])
def test_norm_never_exceeds_the_constant(kind, scale, dtype, margin, constant, num_iterations):
    layer, shape = made(kind, scale, dtype)
    weight = Spectral(constant, num_iterations)(layer).weight.detach()
    plain = LAYERS[kind][0]()
    plain.weight = nn.Parameter(weight.double())
    bound = norm_of(plain, shape)
    assert bound <= constant * (1 + margin)
    assert lipschitz_bound(layer, shape).total <= constant * (1 + margin)
    assert bound > constant * (0.5 if num_iterations == 1 else 0.7)


@KINDS
def test_norm_stays_below_the_constant_while_training(kind):
    layer, shape = made(kind, dtype=torch.float32)
    Spectral(2.0)(layer)
    optimizer = torch.optim.SGD(layer.parameters(), lr=3.0)
    x = torch.randn(8, *shape, dtype=torch.float32)
    for _ in range(10):
        optimizer.zero_grad()
        (-layer(x).square().mean()).backward()
        optimizer.step()
        assert lipschitz_bound(layer, shape).total <= 2 * (1 + 1e-9)


def test_a_dense_layer_reaches_the_constant():
    layer, shape = made("dense")
    assert norm_of(Spectral(3.0, 30)(layer), shape) == pytest.approx(3, rel=1e-8)


def test_rounding_to_float32_does_not_pass_the_constant():
    for size in (1, 2, 5, 40):
        for _ in range(20):
            weight = Spectral(0.7, 40)(nn.Linear(size, size).float()).weight.detach().double()
            norm = torch.linalg.matrix_norm(weight, ord=2)
            assert 0.7 * (1 - 1e-5) <= norm <= 0.7


def test_the_margin_covers_rounding_of_all_entries_in_the_worst_direction():
    """Of an orthogonal matrix every entry is moved by eps / 2 of itself so that the same pair of vectors gains."""
    weight, eps = torch.linalg.qr(torch.randn(64, 64))[0], torch.finfo(torch.float32).eps
    v = torch.ones(64) / 8
    moved = weight + eps / 2 * weight.abs() * torch.outer(weight @ v, v).sign()
    growth = float(torch.linalg.matrix_norm(moved, ord=2)) - 1
    assert 2 * eps < growth <= rounding_margin(weight.float(), 1) - 1


def test_the_margin_is_taken_off_the_weight_in_force():
    layer, eps = Spectral(1.0)(nn.Linear(64, 64).float()), torch.finfo(torch.float32).eps
    transform, original = layer.parametrizations.weight[0], layer.parametrizations.weight.original
    factor = (layer.weight.double() / original.double()).median().item()
    expected = 1 / (transform.bound(original).item() * rounding_margin(original, 1))
    assert factor == pytest.approx(expected, rel=2 * eps)
    assert rounding_margin(original, 1) > 1 + 8 * eps


def test_only_above_leaves_smaller_norms_alone():
    for scale, same in ((1e-3, True), (10.0, False)):
        layer, shape = made("2d", scale)
        before = layer.weight.detach().clone()
        Spectral(1.0, only_above=True)(layer)
        assert torch.equal(layer.weight, before) == same
        assert norm_of(layer, shape) <= 1 + 1e-9


@KINDS
def test_what_is_normalised_already_stays(kind):
    layer, _ = made(kind)
    once = Spectral(1.0)(layer).weight.detach()
    plain = LAYERS[kind][0]()
    plain.weight = nn.Parameter(once.clone())
    torch.testing.assert_close(Spectral(1.0)(plain).weight, once, rtol=1e-9, atol=0)


def test_the_gradient_goes_through_the_bound():
    layer, _ = made("2d")
    transform = copy.deepcopy(Spectral(1.0, 3)(layer).parametrizations.weight[0])
    weight = torch.randn(4, 3, 3, 3, requires_grad=True)
    assert torch.autograd.gradcheck(transform, weight)
    # The result does not change with the weight's length.
    mix = torch.randn_like(weight)
    (gradient,) = torch.autograd.grad((transform(weight) * mix).sum(), weight)
    assert abs((gradient * weight).sum()) <= 1e-9 * gradient.norm() * weight.norm()


@KINDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_weight_of_zeros_stays_and_has_a_gradient(kind, dtype):
    layer, _ = made(kind, 0.0, dtype)
    Spectral()(layer)
    layer.weight.sum().backward()
    assert not layer.weight.any()
    assert layer.parametrizations.weight.original.grad.isfinite().all()


@KINDS
def test_autocast_and_memory_format_change_nothing(kind):
    layer, _ = made(kind, dtype=torch.float32)
    exact = Spectral()(layer).weight.detach()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer.weight, exact)
    if exact.dim() == 4:
        torch.testing.assert_close(layer.to(memory_format=torch.channels_last).weight, exact)


def test_same_weights_in_training_and_evaluation_and_after_loading():
    layer, _ = made("2d")
    twin, _ = made("2d")
    Spectral()(layer), Spectral()(twin)
    assert set(layer.state_dict()) == {"bias", "parametrizations.weight.original"}
    twin.load_state_dict(layer.state_dict())
    assert torch.equal(twin.train().weight, layer.eval().weight)
    assert parameters_by_role(layer) == {"weight": [layer.parametrizations.weight.original], "bias": [layer.bias]}
    assert "constant=1.0, num_iterations=8, only_above=False" in repr(layer)


def test_the_stock_parametrization_leaves_a_convolution_above_one():
    """Why this one exists: constant kernels have norm 1 as matrices and 3 as maps."""
    layer = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    nn.init.ones_(layer.weight)
    stock = parametrizations.spectral_norm(copy.deepcopy(layer), n_power_iterations=20).eval()
    assert lipschitz_lower(nn.Sequential(stock, nn.Flatten()), torch.randn(1, 1, 16, 16)) > 2.5
    assert 0.9 < lipschitz_bound(Spectral()(layer), (1, 16, 16)).total <= 1 + 1e-9


@pytest.mark.parametrize("shape", [(3,), (2, 6, 6)])
def test_a_network_is_bounded_by_one(shape):
    factory = LayerFactory(Absolute, no_output_norm, Spectral())
    net = mlp(factory, shape, 3, (7, 5)) if len(shape) == 1 else convnet(factory, shape, 3, (4, 3))
    report = lipschitz_bound(net, shape)
    assert 0 < lipschitz_lower(net, torch.randn(50, *shape)) <= report.total <= 1 + 1e-8
    assert report.unbounded == ()


def test_a_layer_without_values_can_be_built():
    with torch.device("meta"):
        for make, _ in LAYERS.values():
            layer = Spectral()(make())
            assert layer.weight.shape == layer.parametrizations.weight.original.shape


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), "^padding_mode=circular: zeros"),
        (nn.ConvTranspose2d(2, 2, 3), "^layer=ConvTranspose2d: nn.Linear, nn.Conv1d, nn.Conv2d or nn.Conv3d"),
        (Bjorck()(nn.Linear(2, 2)), "^layer=ParametrizedLinear: "),
    ],
)
def test_other_layers_are_refused(layer, message):
    with pytest.raises(ValueError, match=message):
        Spectral()(layer)


@pytest.mark.parametrize(("name", "value"), [("constant", 0.0), ("constant", math.nan), ("num_iterations", 0)])
def test_settings_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=f"^{name}={value}: "):
        Spectral(**{name: value})
