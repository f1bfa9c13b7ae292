"""What every activation in conf/activation has to do."""

import pytest
import torch
from conftest import options

from tautnet.activations import AbstractActivation
from tautnet.config import build
from tautnet.optim.roles import parameters_by_role

CHANNELS = 6
SHAPES = [(5, CHANNELS), (5, CHANNELS, 4), (5, CHANNELS, 4, 3), (0, CHANNELS, 2)]


@pytest.fixture(params=options("activation"))
def activation(request, settings) -> AbstractActivation:
    module = build(settings(f"activation={request.param}")["activation"], "activation")(CHANNELS)
    with torch.no_grad():  # away from the initial function, to both signs of slope
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


def test_is_an_activation(activation):
    assert isinstance(activation, AbstractActivation)
    assert activation.num_channels == CHANNELS


@pytest.mark.parametrize("shape", SHAPES)
def test_keeps_shape_and_dtype(activation, shape):
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        y = activation(torch.randn(shape).to(dtype))
        assert y.shape == shape
        assert y.dtype == dtype


def test_is_the_same_in_eval_mode(activation):
    x = torch.randn(7, CHANNELS, 3)
    assert torch.equal(activation.train()(x), activation.eval()(x))


def test_parameters_exist_from_the_start_and_have_the_role(activation):
    names = {name for name, _ in activation.named_parameters()}
    activation(torch.randn(2, CHANNELS))
    assert {name for name, _ in activation.named_parameters()} == names
    found = parameters_by_role(activation)
    assert set(found) <= {"activation"}
    assert len(found.get("activation", [])) == len(names)


def test_state_dict_round_trip(activation, request, settings):
    option = request.node.callspec.params["activation"]
    twin = build(settings(f"activation={option}")["activation"], "activation")(CHANNELS)
    twin.load_state_dict(activation.state_dict())
    x = torch.randn(7, CHANNELS)
    assert torch.equal(twin(x), activation(x))


def test_gradients_are_finite(activation):
    x = (4 * torch.randn(50, CHANNELS)).requires_grad_()
    activation(x).square().sum().backward()
    assert all(t.grad.isfinite().all() for t in (x, *activation.parameters()))


def test_observed_slopes_respect_the_stated_ones(activation):
    activation = activation.double()
    x, y = 8 * torch.randn(2, 4000, CHANNELS, dtype=torch.float64)
    ratio = (activation(x) - activation(y)) / (x - y)
    lo, hi = activation.slope_range()
    assert (ratio >= lo - 1e-9).all()
    assert (ratio <= hi + 1e-9).all()
    assert ratio.abs().max() <= activation.lipschitz_constant(2) + 1e-9


def test_boxes_contain_values_and_slopes(activation):
    activation = activation.double()
    lo = 4 * torch.randn(40, CHANNELS, 2, dtype=torch.float64)
    hi = lo + 3 * torch.rand_like(lo)
    x = (lo + (hi - lo) * torch.rand(60, *lo.shape, dtype=torch.float64)).requires_grad_()
    y = torch.stack([activation(point) for point in x])
    (slope,) = torch.autograd.grad(y.sum(), x)
    for observed, (smallest, largest) in (
        (y, activation.interval(lo, hi)),
        (slope, activation.local_slope_range(lo, hi)),
    ):
        assert (observed >= smallest - 1e-9).all()
        assert (observed <= largest + 1e-9).all()
