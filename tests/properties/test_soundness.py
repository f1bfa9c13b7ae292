"""Nothing observed exceeds the bound: random nets of every backbone, activation and normalizer."""

from zlib import crc32

import pytest
import torch
from torch import nn

from tautnet.activations import ELU, GELU, Absolute, GroupSort, LeakyReLU, LinearSpline, PReLU, ReLU
from tautnet.backbones import LayerFactory, Residual, cifar_resnet, convnet, mlp
from tautnet.lipschitz import lipschitz_bound, lipschitz_lower
from tautnet.normalizers import BatchNorm, Unitize, no_output_norm, no_weight_norm

SLACK = 1 + 1e-8  # rounding of float64 differences

ACTIVATIONS = {
    "relu": ReLU,
    "leaky_relu": lambda c: LeakyReLU(c, -1.5),
    "elu": lambda c: ELU(c, 1.5),
    "gelu": GELU,
    "absolute": Absolute,
    "groupsort": lambda c: GroupSort(c, 3),
    "prelu": PReLU,
    "spline": lambda c: LinearSpline(c, 9, 2.0),
    "spline_layer": lambda c: LinearSpline(c, 6, 1.0, sharing="layer", linear_term=True),
    "spline_limited": lambda c: LinearSpline(c, 9, 2.0, slope_min=-0.5, slope_max=1.5, init="relu", learn_scale=True),
}
NORMS = {
    "none": no_output_norm,
    "batch": BatchNorm,
    "unitize": lambda c: Unitize(c, eps=0.1),
    "unitize_pixel": lambda c: Unitize(c, eps=0.1, norm_axes="pixel", norm_scale="rms"),
}


def pooled(factory):
    """Overlapping maximum and average pooling around a residual block."""
    return nn.Sequential(
        *factory.conv_norm_act(1, 2),
        nn.MaxPool2d(3, stride=2, padding=1),
        Residual(nn.Sequential(*factory.conv_norm_act(2, 2)), nn.Identity()),
        nn.AvgPool2d(3, stride=1),
        nn.BatchNorm2d(2),
        nn.Flatten(),
        factory.linear(8, 3),
    )


BACKBONES = {
    "mlp": lambda factory: (mlp(factory, (5,), 3, widths=(6, 4)), (5,)),
    "shallow": lambda factory: (mlp(factory, (2,), 2, widths=(3,)), (2,)),
    "convnet": lambda factory: (convnet(factory, (2, 5, 5), 3, widths=(3, 2)), (2, 5, 5)),
    "pooled": lambda factory: (pooled(factory), (1, 7, 7)),
    "cifar_resnet": lambda factory: (cifar_resnet(factory, (1, 6, 6), 3, depth=8, width=2), (1, 6, 6)),
}


pytestmark = pytest.mark.usefixtures("float64_on_one_thread")


@torch.no_grad()
def randomise(net):
    """Parameters of learned activations and normalizers, and running statistics, far from where they start."""
    for module in net.modules():
        if isinstance(module, (LinearSpline, PReLU, Unitize, nn.BatchNorm1d, nn.BatchNorm2d)):
            for parameter in module.parameters(recurse=False):
                parameter.normal_()
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.running_mean.normal_()
            module.running_var.uniform_(0.1, 2.0)
    return net


def ratios(net, x, y):
    fx, fy = net(torch.cat([x, y])).chunk(2)
    return (fx - fy).norm(dim=1) / (x - y).flatten(1).norm(dim=1)


def start_pairs(input_shape):
    """Pairs at every distance, near and far from the origin."""
    x = torch.randn(24, *input_shape) * torch.logspace(-2, 1, 24).view(-1, *[1] * len(input_shape))
    distances = torch.logspace(1, -4, 24)[torch.randperm(24)]
    return x, x + torch.randn_like(x) * distances.view(-1, *[1] * len(input_shape))


def steepest(net, x, y, steps):
    """Largest ratio met while both points climb the logarithm of their ratio; also where they end."""
    x, y = x.clone().requires_grad_(), y.clone().requires_grad_()
    optimizer = torch.optim.Adam([x, y], lr=0.05)
    largest = 0.0
    for _ in range(steps):
        optimizer.zero_grad()
        ratio = ratios(net, x, y)
        largest = max(largest, ratio.max().item())
        (-(ratio + 1e-12).log().sum()).backward()
        optimizer.step()
    return largest, x.detach()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_nothing_observed_exceeds_the_bound(backbone, activation, norm):
    torch.manual_seed(crc32(f"{backbone} {activation} {norm}".encode()))
    factory = LayerFactory(ACTIVATIONS[activation], NORMS[norm], no_weight_norm)
    net, input_shape = BACKBONES[backbone](factory)
    randomise(net).eval()
    x, y = start_pairs(input_shape)
    guaranteed = lipschitz_bound(net, input_shape).total
    observed, ends = steepest(net, x, y, steps=30)
    observed = max(observed, lipschitz_lower(net, torch.cat([x, ends])))
    assert 0 < observed <= guaranteed * SLACK
    assert guaranteed < float("inf")


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("seed", range(3))
def test_bound_of_a_dense_net_on_the_line_is_nearly_attained(activation, seed):
    torch.manual_seed(seed)
    factory = LayerFactory(ACTIVATIONS[activation], no_output_norm, no_weight_norm)
    net = randomise(mlp(factory, (1,), 1, widths=(1,))).eval()
    points = torch.linspace(-60, 60, 60_001).view(-1, 1)
    guaranteed = lipschitz_bound(net, (1,)).total
    assert 0.99 * guaranteed <= lipschitz_lower(net, points) <= guaranteed * SLACK
