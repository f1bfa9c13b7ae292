"""The penalty on the Lipschitz bound: its value, its gradient, and that it reaches its target."""

from math import inf, log

import pytest
import torch
from torch import nn

from tautnet.activations import GELU, LinearSpline, ReLU
from tautnet.backbones import LayerFactory, mlp
from tautnet.backbones.blocks import Concatenation, Residual, averaged
from tautnet.config import ConfigError
from tautnet.lipschitz import lipschitz_bound
from tautnet.models import Classifier
from tautnet.normalizers import BatchNorm, Bjorck, Unitize, no_output_norm, no_weight_norm
from tautnet.regularizers import LipschitzExcess

pytestmark = pytest.mark.usefixtures("float64")
EXPONENTS = (1, 2, inf)


def dense_net(activation=lambda c: LinearSpline(c, 9, 2.0), norm=no_output_norm):
    return mlp(LayerFactory(activation, norm, no_weight_norm), (6,), 4, (16, 16))


def conv_net():
    body = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False), BatchNorm(4), GELU(4))
    both = Concatenation(nn.Conv2d(4, 2, 1), nn.Conv2d(4, 2, 3, padding=2, dilation=2))
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3, stride=2, padding=1), LinearSpline(4), averaged(body, nn.Identity(), 0.3)),
        *(Residual(nn.Conv2d(4, 4, 3, padding=1), nn.Identity()), both, nn.BatchNorm2d(4), nn.Tanh()),
        *(nn.ConvTranspose2d(4, 2, 2, stride=2, groups=2), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(32, 4)),
    )


def attached(net, shape, **arguments):
    regularizer = LipschitzExcess(**arguments)
    regularizer.attach(net, shape)
    return regularizer


NETS = {
    "dense": (dense_net, (6,)),
    "batch norm": (lambda: dense_net(ReLU, BatchNorm), (6,)),
    "unitize": (lambda: dense_net(norm=Unitize), (6,)),
    "convolutions": (conv_net, (1, 8, 8)),
}


@pytest.mark.parametrize("p", EXPONENTS)
@pytest.mark.parametrize("name", NETS)
def test_the_bound_is_the_product_bound_or_a_little_more(name, p):
    make, shape = NETS[name]
    net = make()
    if name == "unitize" and p != 2:  # finite only while alpha is 0, which it does not stay
        with pytest.raises(ValueError, match="Unitize"):
            attached(net, shape, p=p)
        return
    found = attached(net, shape, p=p, num_iterations=10).log_bound().item()
    exact = lipschitz_bound(net, shape, p).log_product
    assert exact - 1e-9 <= found <= exact + (0.3 if p == 2 else 1e-9)  # strided and small convolutions: any image size


def test_the_value_in_both_scales():
    net = dense_net()
    bound = attached(net, (6,)).log_bound().item()
    target = torch.tensor(bound).exp().item() / 5
    in_log = attached(net, (6,), weight=0.5, target=target)()
    assert in_log.item() == pytest.approx(0.5 * log(5), rel=1e-6)
    linear = attached(net, (6,), weight=0.5, target=target, scale="linear")()
    assert linear.item() == pytest.approx(0.5 * 4 * target, rel=1e-6)
    exact = lipschitz_bound(net, (6,))
    assert linear.item() >= 0.5 * (torch.tensor(exact.log_product).exp().item() - target) * (1 - 1e-6)


@pytest.mark.parametrize("p", EXPONENTS)
def test_the_gradient_is_that_of_the_bound(p):
    """By central differences of every kind of parameter."""
    net = conv_net()
    with torch.no_grad():  # away from ties, at which the largest of several values has no derivative
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    regularizer = attached(net, (1, 8, 8), p=p, target=1e-3, num_iterations=6)
    regularizer.log_bound().backward()
    checked = 0
    for parameter in net.parameters():
        if parameter.grad is None or parameter.grad.abs().max() == 0:
            continue
        direction, step = torch.randn_like(parameter), 1e-6
        with torch.no_grad():
            parameter.add_(direction, alpha=step)
            above = regularizer.log_bound()
            parameter.add_(direction, alpha=-2 * step)
            below = regularizer.log_bound()
            parameter.add_(direction, alpha=step)
        slope = (parameter.grad * direction).sum()
        assert slope.item() == pytest.approx((above - below).item() / (2 * step), rel=1e-4, abs=1e-7)
        checked += 1
    assert checked >= 9  # seven weights, a spline, two gammas; one of them may be in the smaller of two branches


@pytest.mark.parametrize("scale", ["log", "linear"])
@pytest.mark.parametrize("p", EXPONENTS)
def test_descent_on_it_alone_reaches_the_target_and_stops_there(p, scale):
    net = dense_net()
    regularizer = attached(net, (6,), weight=1.0, target=3.0, p=p, scale=scale)
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    assert regularizer() > 0
    for _ in range(400):
        optimizer.zero_grad()
        loss = regularizer()
        loss.backward()
        if loss == 0:
            break
        optimizer.step()
    assert loss == 0
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in net.parameters())
    assert 2 < lipschitz_bound(net, (6,), p).total <= 3.0


def test_a_network_in_float32_is_not_rounded_below_its_bound():
    net = conv_net().float()
    found = attached(net, (1, 8, 8)).log_bound().item()
    assert found >= lipschitz_bound(net, (1, 8, 8)).log_product


def test_a_layer_of_zeros_has_finite_gradients():
    net = dense_net()
    with torch.no_grad():
        net[1].weight.zero_()
    for p in EXPONENTS:
        regularizer = attached(net, (6,), p=p)
        loss = regularizer()
        loss.backward()
        assert loss == 0
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in net.parameters())


def test_training_is_left_alone():
    """No buffer moves, and the network stays in its mode."""
    net = nn.Sequential(nn.Linear(6, 8), BatchNorm(8), ReLU(8), nn.Dropout(0.5), nn.Linear(8, 4)).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    regularizer = attached(net, (6,))
    regularizer().backward()
    assert all(module.training for module in net.modules())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert regularizer.state_dict() == {}
    assert not list(regularizer.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight": -1.0}, "weight=-1.0: "),
        ({"target": 0.0}, "target=0.0: "),
        ({"p": 3}, "p=3: 1, 2 or inf"),
        ({"scale": "root"}, "scale=root: one of log, linear"),
        ({"num_iterations": 0}, "num_iterations=0: "),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        LipschitzExcess(**arguments)


class Unknown(nn.Module):
    def forward(self, x):
        return x


def test_layers_without_a_differentiable_constant_are_named():
    net = nn.Sequential(nn.Linear(6, 6), nn.GroupNorm(2, 6), nn.Softshrink(0.5), Unknown(), nn.Linear(6, 4))
    with pytest.raises(
        ValueError, match=r"^no differentiable Lipschitz bound for p=2: 1 \(Group.*, 3 \(Unknown\): "
    ) as at:
        attached(net, (6,))
    assert "Softshrink" not in str(at.value)


@pytest.mark.parametrize("p", EXPONENTS)
def test_layers_with_hooks_or_an_infinite_slope_are_named(p):
    hooked = nn.Linear(6, 6)
    hooked.register_forward_hook(lambda module, inputs, outputs: 3 * outputs)
    with pytest.raises(ValueError, match=r"1 \(Linear\): with hooks.*, 2 \(LeakyReLU\): no constant for p="):
        attached(nn.Sequential(nn.Linear(6, 6), hooked, nn.LeakyReLU(inf)), (6,), p=p)


@pytest.mark.parametrize("p", EXPONENTS)
def test_negative_factors_of_a_batch_norm_count_by_their_size(p):
    norm = nn.BatchNorm1d(4)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([-5.0, 1.0, 0.5, -1.0]))
    assert attached(nn.Sequential(norm), (4,), p=p).log_bound().item() == pytest.approx(log(5), abs=1e-5)


@pytest.mark.parametrize("p", [1, inf])
def test_own_layers_without_a_constant_are_named(p):
    layer = Unitize(4)
    nn.init.constant_(layer.alpha, 0.5)
    attached(nn.Sequential(layer), (4,), p=2)
    with pytest.raises(ValueError, match=r"0 \(Unitize\): no constant for p="):
        attached(nn.Sequential(layer), (4,), p=p)


def test_padding_that_repeats_pixels_is_refused():
    net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect"))
    with pytest.raises(ValueError, match=r"0 \(Conv2d\): padding_mode=reflect"):
        attached(net, (1, 8, 8))


def test_nothing_to_learn_and_a_bound_beyond_range_are_refused():
    with pytest.raises(ValueError, match="no effect"):
        attached(nn.Sequential(nn.ReLU(), nn.Flatten()), (6,))
    net = nn.Sequential(*(nn.Linear(6, 6) for _ in range(20)))
    with torch.no_grad():
        for layer in net:
            layer.weight.fill_(1e6)
    with pytest.raises(ValueError, match="scale=linear: "):
        attached(net, (6,), scale="linear")
    assert attached(net, (6,))().isfinite()


def test_weights_held_by_bjorck_leave_the_splines_to_learn():
    net = mlp(LayerFactory(lambda c: LinearSpline(c, 9, 2.0), no_output_norm, Bjorck()), (6,), 4, (8,))
    regularizer = attached(net, (6,), target=0.5)
    regularizer().backward()
    (spline,) = (module for module in net.modules() if isinstance(module, LinearSpline))
    assert spline.coefficients.grad.abs().max() > 0


def test_a_model_brings_the_shape(settings):
    composed = settings("regularizer=lipschitz", "model=convnet", "regularizer.lipschitz.target=2")
    assert set(composed["regularizer"]) == {"tv2", "lipschitz"}
    model = Classifier(composed | {"input_shape": [1, 8, 8], "num_outputs": 10})
    assert model.regularizers["lipschitz"]() > 0
    with pytest.raises(ConfigError, match=r"regularizer.lipschitz.*target=-1"):
        Classifier(settings("regularizer=lipschitz", "regularizer.lipschitz.target=-1") | composed_shape())


def composed_shape():
    return {"input_shape": [1, 8, 8], "num_outputs": 10}
