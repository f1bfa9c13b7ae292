"""What every normalizer in conf/norm/output and conf/norm/weight has to do."""

import pytest
import torch
from conftest import options, settings_with
from torch import nn

from tautnet.config import build
from tautnet.lipschitz import lipschitz_bound, lipschitz_lower
from tautnet.optim.roles import parameters_by_role

CHANNELS = 4
SHAPES = [(6, CHANNELS), (6, CHANNELS, 3), (6, CHANNELS, 3, 2)]
# Instance normalisation refuses a channel of one value, which has no spread.
CASES = [(o, shape) for o in options("norm/output") for shape in SHAPES if o != "instance" or len(shape) > 2]


@pytest.fixture(params=options("norm/output"))
def output_norm(request) -> nn.Module:
    module = build(settings_with("norm/output", request.param)["norm"]["output"], "norm.output")(CHANNELS)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


def trained_a_little(norm: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    for _ in range(3):
        norm(2 * torch.randn(shape, dtype=torch.float64) + 1)
    return norm


@pytest.mark.parametrize(("output_norm", "shape"), CASES, indirect=["output_norm"])
def test_keeps_shape_and_dtype_in_both_modes(output_norm, shape):
    for mode in (True, False):
        y = output_norm.train(mode)(torch.randn(shape))
        assert y.shape == shape
        assert y.dtype == torch.float32


def test_parameters_have_the_role_norm(output_norm):
    found = parameters_by_role(output_norm)
    assert set(found) <= {"norm"}
    assert len(found.get("norm", [])) == len(list(output_norm.parameters()))


def test_a_sample_does_not_see_the_others_in_eval_mode(output_norm):
    x = torch.randn(6, CHANNELS, 3, dtype=torch.float64)
    norm = trained_a_little(output_norm.double(), x.shape).eval()
    assert torch.allclose(norm(x)[:1], norm(x[:1]), atol=1e-12)


def test_running_state_survives_a_state_dict_round_trip(output_norm, request):
    shape = (6, CHANNELS, 3)
    norm = trained_a_little(output_norm.double(), shape).eval()
    option = request.node.callspec.params["output_norm"]
    twin = build(settings_with("norm/output", option)["norm"]["output"], "norm.output")(CHANNELS).double().eval()
    twin.load_state_dict(norm.state_dict())
    x = torch.randn(shape, dtype=torch.float64)
    assert torch.equal(twin(x), norm(x))


def test_gradients_are_finite(output_norm):
    x = torch.randn(6, CHANNELS, 3, requires_grad=True)
    output_norm(x).square().sum().backward()
    assert all(t.grad.isfinite().all() for t in (x, *output_norm.parameters()))


@pytest.mark.parametrize(("output_norm", "shape"), CASES, indirect=["output_norm"])
def test_the_stated_constant_holds_on_samples(output_norm, shape):
    net = nn.Sequential(trained_a_little(output_norm.double(), shape), nn.Flatten())
    bound = lipschitz_bound(net, shape[1:]).total
    samples = torch.cat([scale * torch.randn(50, *shape[1:], dtype=torch.float64) + 1 for scale in (1e-3, 0.1, 3.0)])
    assert lipschitz_lower(net, samples) <= bound * (1 + 1e-9)


@pytest.mark.parametrize("option", options("norm/weight"))
@pytest.mark.parametrize("make", [lambda: nn.Linear(4, 3), lambda: nn.Conv2d(4, 3, 3)], ids=["linear", "conv"])
def test_weight_norms_keep_the_layer_and_its_shape(option, make):
    layer = make()
    weight_norm = build(settings_with("norm/weight", option)["norm"]["weight"], "norm.weight")
    shape = layer.weight.shape
    assert weight_norm(layer) is layer
    assert layer.weight.shape == shape
    assert layer.weight.isfinite().all()
