"""Almost-orthogonal layers: norms never above the constant, for weights of every kind."""

import copy
import math

import pytest
import torch
from torch import nn

from tautnet.activations import GroupSort
from tautnet.backbones import LayerFactory, convnet, mlp
from tautnet.lipschitz import lipschitz_bound, lipschitz_lower
from tautnet.normalizers import Aol, Spectral, no_output_norm
from tautnet.normalizers.aol import almost_orthogonal
from tautnet.optim.roles import parameters_by_role

pytestmark = pytest.mark.usefixtures("float64_on_one_thread")

LAYERS = {
    "dense": (lambda: nn.Linear(7, 7), (7,)),
    "tall": (lambda: nn.Linear(3, 30), (3,)),
    "flat": (lambda: nn.Linear(30, 3), (30,)),
    "1d": (lambda: nn.Conv1d(3, 2, 4, 2, padding=3), (3, 11)),
    "2d": (lambda: nn.Conv2d(3, 4, 3, padding=1), (3, 9, 8)),
    "stride": (lambda: nn.Conv2d(2, 5, 3, 2, padding=2), (2, 9, 9)),
    "groups": (lambda: nn.Conv2d(4, 6, (2, 3), dilation=2, groups=2), (4, 6, 7)),
    "3d": (lambda: nn.Conv3d(2, 2, 2, padding=1), (2, 4, 4, 3)),
    "pixel": (lambda: nn.Conv2d(3, 3, 1), (3, 4, 4)),
}
KINDS = pytest.mark.parametrize("kind", LAYERS)


def made(kind, dtype=torch.float64):
    make, shape = LAYERS[kind]
    return make().to(dtype), shape


@KINDS
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_norm_never_exceeds_the_constant(kind, scale, dtype):
    weights = [
        lambda w: w.normal_(),
        lambda w: w.fill_(1.0),
        lambda w: w.normal_().mul_(10 ** (torch.rand_like(w) * 6 - 3)),
        lambda w: nn.init.eye_(w.zero_().flatten(1)).sum() and w,
    ]
    for fill in weights:
        layer, shape = made(kind, dtype)
        with torch.no_grad():
            fill(layer.weight)
            layer.weight.mul_(scale)
        Aol(3.0, start_orthogonal=False)(layer)
        assert 0 < lipschitz_bound(layer, shape).total <= 3 * (1 + 1e-9)


@KINDS
def test_norm_stays_below_the_constant_while_training(kind):
    layer, shape = made(kind, torch.float32)
    Aol()(layer)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    x = torch.randn(8, *shape, dtype=torch.float32)
    for _ in range(10):
        optimizer.zero_grad()
        (-layer(x).square().mean()).backward()
        optimizer.step()
        assert 0.1 < lipschitz_bound(layer, shape).total <= 1 + 1e-9


def test_a_small_matrix_by_hand():
    """W^T W = [[1, 2], [2, 5]]: columns divided by sqrt(3) and sqrt(7)."""
    weight = torch.tensor([[1.0, 2.0], [0.0, 1.0]])
    torch.testing.assert_close(almost_orthogonal(weight), weight / torch.tensor([3.0, 7.0]).sqrt())


def test_a_line_by_hand():
    """(1, -2, 3) with itself: 3, -8, 14, -8, 3."""
    kernel = torch.tensor([1.0, -2.0, 3.0]).view(1, 1, 3)
    torch.testing.assert_close(almost_orthogonal(kernel), kernel / 6)


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize(("outputs", "inputs"), [(2, 3), (4, 1)])
def test_sums_are_those_of_the_matrix_on_a_large_image(outputs, inputs, dilation):
    kernel = torch.randn(outputs, inputs, 3, 2)
    x = torch.eye(inputs * 15 * 15).view(-1, inputs, 15, 15)
    images = nn.functional.conv2d(x, kernel, padding=5, dilation=dilation).flatten(1)
    sums = (images @ images.T).abs().sum(1).view(inputs, 15, 15)[:, 7, 7]
    torch.testing.assert_close(almost_orthogonal(kernel), kernel / sums.sqrt().view(1, -1, 1, 1))


def test_orthogonal_matrices_and_starts_stay():
    for shape in ((5, 5), (8, 3)):
        weight = nn.init.orthogonal_(torch.empty(shape))
        torch.testing.assert_close(almost_orthogonal(7 * weight), weight)
    layer = Aol(2.0)(nn.Conv2d(3, 6, 3, padding=1, bias=False))
    x = torch.randn(2, 3, 5, 6)
    torch.testing.assert_close(layer(x).norm(), 2 * x.norm())
    grouped = Aol()(nn.Conv1d(4, 4, 4, groups=2, bias=False))
    matrices = grouped.weight[:, :, 2].unflatten(0, (2, 2))
    torch.testing.assert_close(matrices @ matrices.mT, torch.eye(2).expand(2, 2, 2))
    assert grouped.weight.count_nonzero() == 8


def test_the_start_is_replaced_only_if_asked():
    layer, _ = made("2d")
    own = layer.weight.detach().clone()
    Aol(start_orthogonal=False)(layer)
    assert torch.equal(layer.parametrizations.weight.original, own)
    expected = torch.stack([own[:, i] / layer.weight[:, i] for i in range(3)])
    torch.testing.assert_close(expected, expected[:, :1, :1, :1].expand_as(expected))


@pytest.mark.parametrize(("shape", "groups"), [((3, 4), 1), ((2, 3, 3), 1), ((4, 2, 2, 3), 2)])
def test_the_gradient_goes_through_the_sums(shape, groups):
    weight = torch.randn(shape, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w: almost_orthogonal(w, groups), weight)


@KINDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_columns_of_zeros_stay_and_have_a_gradient(kind, dtype):
    layer, shape = made(kind, dtype)
    Aol()(layer)
    original = layer.parametrizations.weight.original
    for zeros in (original[:, :1], original):
        with torch.no_grad():
            original.normal_()
            zeros.zero_()
        layer.zero_grad()
        layer.weight.sum().backward()
        assert original.grad.isfinite().all()
        assert not layer.weight[:, :1].any()
        assert lipschitz_bound(layer, shape).total <= 1 + 1e-9


def test_autocast_and_memory_format_change_nothing():
    for kind in ("dense", "2d", "groups"):
        layer, _ = made(kind, torch.float32)
        exact = Aol(start_orthogonal=False)(layer).weight.detach()
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(layer.weight, exact)
        if exact.dim() == 4:
            torch.testing.assert_close(layer.to(memory_format=torch.channels_last).weight, exact)


def test_state_and_roles():
    layer, twin = Aol()(nn.Linear(6, 4)), Aol()(nn.Linear(6, 4))
    assert set(layer.state_dict()) == {"bias", "parametrizations.weight.original"}
    twin.load_state_dict(copy.deepcopy(layer.state_dict()))
    assert torch.equal(twin.weight, layer.weight)
    assert parameters_by_role(layer) == {"weight": [layer.parametrizations.weight.original], "bias": [layer.bias]}
    assert "constant=1.0" in repr(layer)


@pytest.mark.parametrize("shape", [(3,), (2, 6, 6)])
def test_a_network_is_bounded_by_one(shape):
    factory = LayerFactory(GroupSort, no_output_norm, Aol())
    net = mlp(factory, shape, 3, (7, 5)) if len(shape) == 1 else convnet(factory, shape, 3, (4, 3))
    report = lipschitz_bound(net, shape)
    assert 0 < lipschitz_lower(net, torch.randn(50, *shape)) <= report.total <= 1 + 1e-8
    assert report.unbounded == ()


def test_a_layer_without_values_can_be_built():
    with torch.device("meta"):
        for make, _ in LAYERS.values():
            layer = Aol()(make())
            assert layer.weight.shape == layer.parametrizations.weight.original.shape


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.Conv1d(2, 2, 3, padding=1, padding_mode="reflect"), "^padding_mode=reflect: zeros"),
        (nn.Bilinear(2, 2, 3), "^layer=Bilinear: nn.Linear, nn.Conv1d, nn.Conv2d or nn.Conv3d"),
        (Spectral()(nn.Linear(2, 2)), "^layer=ParametrizedLinear: "),
    ],
)
def test_other_layers_are_refused_and_left_alone(layer, message):
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(ValueError, match=message):
        Aol()(layer)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_constants_out_of_range_are_refused(value):
    with pytest.raises(ValueError, match=f"^constant={value}: "):
        Aol(constant=value)
