"""What every activation in conf/activation has to do."""

import pytest
import torch
from conftest import options, settings_with

from tautnet.activations import AbstractActivation
from tautnet.config import build
from tautnet.factories import AbstractLayer
from tautnet.optim.roles import parameters_by_role

CHANNELS = 6
SHAPES = [(5, CHANNELS), (5, CHANNELS, 4), (5, CHANNELS, 4, 3), (0, CHANNELS, 2)]
ACROSS_CHANNELS = ["groupsort", "maxmin"]  # no function of single elements: a channel has no slopes
BY_BATCH = ["slaf", "slaf_2", "slaf_7"]  # statistics of the batch in training
ELEMENTWISE = [option for option in options("activation") if option not in ACROSS_CHANNELS]


@pytest.fixture(params=options("activation"))
def activation(request) -> AbstractLayer:
    module = build(settings_with("activation", request.param)["activation"], "activation")(CHANNELS)
    with torch.no_grad():  # away from the initial function, to both signs of slope
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


def test_is_an_activation(activation, request):
    elementwise = request.node.callspec.params["activation"] in ELEMENTWISE
    assert isinstance(activation, AbstractLayer)
    assert isinstance(activation, AbstractActivation) is elementwise
    assert activation.num_channels == CHANNELS


@pytest.mark.parametrize("shape", SHAPES)
def test_keeps_shape_and_dtype(activation, shape):
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        y = activation(torch.randn(shape).to(dtype))
        assert y.shape == shape
        assert y.dtype == dtype


def test_is_the_same_in_eval_mode(activation, request):
    x = torch.randn(7, CHANNELS, 3)
    same = torch.equal(activation.train()(x), activation.eval()(x))
    assert same is (request.node.callspec.params["activation"] not in BY_BATCH)


def test_parameters_exist_from_the_start_and_have_the_role(activation):
    names = {name for name, _ in activation.named_parameters()}
    activation(torch.randn(2, CHANNELS))
    assert {name for name, _ in activation.named_parameters()} == names
    found = parameters_by_role(activation)
    assert set(found) <= {"activation"}
    assert len(found.get("activation", [])) == len(names)


def test_state_dict_round_trip(activation, request):
    option = request.node.callspec.params["activation"]
    twin = build(settings_with("activation", option)["activation"], "activation")(CHANNELS)
    twin.load_state_dict(activation.state_dict())
    x = torch.randn(7, CHANNELS)
    assert torch.equal(twin(x), activation(x))


def test_gradients_are_finite(activation):
    x = (4 * torch.randn(50, CHANNELS)).requires_grad_()
    activation(x).square().sum().backward()
    assert all(t.grad.isfinite().all() for t in (x, *activation.parameters()))


@pytest.mark.parametrize("p", [1, 2, float("inf")])
def test_the_stated_constant_holds_on_samples(activation, p):
    activation = activation.double().eval()
    x = 8 * torch.randn(4000, CHANNELS, dtype=torch.float64)
    y = x + torch.logspace(-3, 1, 4000, dtype=torch.float64).unsqueeze(1) * torch.randn_like(x)
    ratio = (activation(x) - activation(y)).norm(p, dim=1) / (x - y).norm(p, dim=1)
    assert ratio.max() <= activation.lipschitz_constant(p) + 1e-9


@pytest.mark.parametrize("activation", ELEMENTWISE, indirect=True)
def test_observed_slopes_respect_the_stated_ones(activation):
    activation = activation.double().eval()
    x, y = 8 * torch.randn(2, 4000, CHANNELS, dtype=torch.float64)
    ratio = (activation(x) - activation(y)) / (x - y)
    lo, hi = activation.slope_range()
    assert (ratio >= lo - 1e-9).all()
    assert (ratio <= hi + 1e-9).all()


def boxes_with_points() -> tuple[torch.Tensor, ...]:
    """Lower and upper ends (N, C, 2), and points of the boxes (M, N, C, 2)."""
    lo = 4 * torch.randn(40, CHANNELS, 2, dtype=torch.float64)
    hi = lo + 3 * torch.rand_like(lo)
    return lo, hi, lo + (hi - lo) * torch.rand(60, *lo.shape, dtype=torch.float64)


def test_boxes_contain_values(activation):
    activation = activation.double().eval()
    lo, hi, points = boxes_with_points()
    y = torch.stack([activation(x) for x in points])
    smallest, largest = activation.interval(lo, hi)
    assert (y >= smallest - 1e-9).all()
    assert (y <= largest + 1e-9).all()


@pytest.mark.parametrize("activation", ELEMENTWISE, indirect=True)
def test_boxes_contain_slopes(activation):
    activation = activation.double().eval()
    lo, hi, points = boxes_with_points()
    points.requires_grad_()
    (slope,) = torch.autograd.grad(sum(activation(x).sum() for x in points), points)
    smallest, largest = activation.local_slope_range(lo, hi)
    assert (slope >= smallest - 1e-9).all()
    assert (slope <= largest + 1e-9).all()
