"""Boxes through networks: they contain every output, exactly where the layer allows it; and range queries."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from tautnet.activations import ELU, GELU, Absolute, GroupSort, LinearSpline, PReLU
from tautnet.backbones.blocks import Concatenation, Residual, Scale
from tautnet.functional import linear_spline as functional
from tautnet.lipschitz.boxes import propagate
from tautnet.lipschitz.rules import Unbounded
from tautnet.lipschitz.structure import read
from tautnet.normalizers import BatchNorm, Unitize

INF = float("inf")

pytestmark = pytest.mark.usefixtures("float64_on_one_thread")


@torch.no_grad()
def randomised(net):
    for parameter in net.parameters():
        parameter.normal_()
    for name, buffer in net.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_()
        elif name.endswith("running_var"):
            buffer.uniform_(0.1, 2.0)
    return net


def image(net, *shape, count=4, width=1.0, **settings):
    """Random boxes and their images, and those of points inside: corners for the most part."""
    lo = torch.randn(count, *shape)
    hi = lo + width * torch.rand_like(lo) * (torch.rand_like(lo) < 0.8)
    shares = torch.rand(400, *lo.shape)
    shares[:300] = shares[:300].round()
    points = lo + shares * (hi - lo)
    low, high = propagate(read(net, shape), lo, hi)
    net.eval()
    with torch.no_grad():
        outputs = net(points.flatten(0, 1)).unflatten(0, points.shape[:2])
    return low, high, outputs


def assert_inside(low, high, outputs):
    assert low.shape == high.shape == outputs.shape[1:]
    assert (outputs >= low - 1e-9).all()
    assert (outputs <= high + 1e-9).all()


STOCK = [
    nn.Linear(6, 3),
    nn.Linear(6, 3, bias=False),
    nn.Flatten(),
    nn.Unflatten(3, (2, 3)),
    nn.Identity(),
    nn.Dropout(0.5),
    nn.ZeroPad2d((1, 0, 2, 1)),
    nn.ConstantPad2d(1, -3.0),
    nn.ReflectionPad2d(1),
    nn.ReplicationPad2d(2),
    nn.CircularPad2d(1),
    nn.PixelUnshuffle(2),
    nn.PixelShuffle(2),
    nn.ChannelShuffle(2),
    nn.MaxPool2d(2),
    nn.MaxPool2d(3, 2, 1, ceil_mode=True),
    nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    nn.AvgPool2d(2, divisor_override=3),
    nn.AdaptiveAvgPool2d(4),
    nn.AdaptiveMaxPool2d((4, 1)),
    nn.BatchNorm2d(4),
    nn.BatchNorm2d(4, affine=False),
    nn.ReLU(),
    nn.ReLU(inplace=True),
    nn.ReLU6(),
    nn.LeakyReLU(-0.5),
    nn.PReLU(4),
    nn.RReLU(-0.5, 0.1),
    nn.ELU(),
    nn.ELU(-1.0),
    nn.SELU(),
    nn.CELU(2.0),
    nn.GELU(),
    nn.GELU("tanh"),
    nn.SiLU(),
    nn.Mish(),
    nn.Hardswish(),
    nn.Hardsigmoid(),
    nn.Hardtanh(-0.3, 0.4),
    nn.Hardshrink(),
    nn.Softshrink(),
    nn.Softplus(),
    nn.Softplus(2.0, 0.5),
    nn.Softplus(-2.0, 0.5),
    nn.Softsign(),
    nn.Tanh(),
    nn.Tanhshrink(),
    nn.Sigmoid(),
    nn.LogSigmoid(),
    LinearSpline(4, 9, 1.0),
    Absolute(4),
    GELU(4),
    ELU(4),
    PReLU(4),
    GroupSort(4, 3),
    Scale(-2.0),
    BatchNorm(4),
    Unitize(4),
]


@pytest.mark.parametrize("layer", STOCK, ids=str)
@pytest.mark.parametrize("width", [0.3, 6.0])
def test_single_layers_contain_their_outputs(layer, width):
    layer = layer.double() if type(layer) is nn.AdaptiveMaxPool2d else randomised(layer.double())
    assert_inside(*image(layer, 4, 6, 6, width=width))


CONVOLUTIONS = [
    (nn.Conv1d(4, 6, 3, 2, 1, 2, groups=2, padding_mode="reflect"), (4, 8)),
    (nn.Conv1d(3, 2, 2), (3, 5)),
    (nn.Conv2d(2, 3, 3, padding="same", padding_mode="circular"), (2, 5, 4)),
    (nn.Conv2d(2, 4, (3, 2), (2, 1), (1, 2), groups=2, padding_mode="replicate"), (2, 5, 4)),
    (nn.Conv2d(2, 4, 3, 2, 1, bias=False), (2, 5, 4)),
    (nn.Conv3d(2, 2, 2, padding=1), (2, 3, 2, 3)),
    (nn.ConvTranspose1d(2, 3, 3, 2, 1, 1), (2, 4)),
    (nn.ConvTranspose2d(4, 2, 3, 2, 1, 1, groups=2, dilation=2), (4, 3, 3)),
    (nn.ConvTranspose3d(2, 2, 2, 2), (2, 2, 2, 2)),
]


@pytest.mark.parametrize(("layer", "shape"), CONVOLUTIONS, ids=str)
def test_images_of_affine_layers_are_exact(layer, shape):
    """The largest value of an output is bias + W c + |W| r, W from the images of the unit vectors.

    Where padding copies values, two taps may meet one value, and the box may be larger.
    """
    layer = randomised(layer.double())
    size = torch.Size(shape).numel()
    with torch.no_grad():
        bias = layer(torch.zeros(1, *shape)).flatten(1)
        matrix_DO = layer(torch.eye(size).view(size, *shape)).flatten(1) - bias
    low, high, outputs = image(layer, *shape)
    assert_inside(low, high, outputs)
    lo, hi = torch.randn(3, *shape), torch.randn(3, *shape).abs()
    low, high = propagate(read(layer, shape), lo, lo + hi)
    centre, radius = (bias + (lo + hi / 2).flatten(1) @ matrix_DO), (hi / 2).flatten(1) @ matrix_DO.abs()
    assert_inside(low.flatten(1), high.flatten(1), torch.stack([centre - radius, centre + radius]))
    if getattr(layer, "padding_mode", "zeros") in ("zeros", "circular"):
        torch.testing.assert_close((low.flatten(1), high.flatten(1)), (centre - radius, centre + radius))


@pytest.mark.parametrize("seed", range(6))
def test_whole_networks_contain_their_outputs_in_training_mode(seed):
    torch.manual_seed(seed)
    block = Residual(nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), BatchNorm(3), LinearSpline(3, 7, 2.0)), nn.Identity())
    net = randomised(
        nn.Sequential(
            nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.SiLU(), block,
            Concatenation(nn.MaxPool2d(2), nn.AvgPool2d(2)), nn.Dropout(0.5), nn.Flatten(), nn.Linear(24, 5),
        )
    ).train()  # fmt: skip
    before = {name: value.clone() for name, value in net.state_dict().items()}
    low, high, outputs = image(net, 2, 4, 4, width=0.2)
    assert_inside(low, high, outputs)
    for name, value in net.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)


def test_flags_and_power_iterations_stay():
    net = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(5, 4)), nn.Dropout(0.5)).train()
    before = [buffer.clone() for buffer in net.buffers()]
    chain = read(net, (5,))
    propagate(chain, -torch.ones(2, 5), torch.ones(2, 5))
    assert all(module.training for module in net.modules())
    assert all(torch.equal(a, b) for a, b in zip(before, net.buffers(), strict=True))
    net.eval()
    low, high, outputs = image(net, 5)
    assert_inside(low, high, outputs)


def test_parametrised_weights_are_looked_through():
    class Triple(nn.Module):
        def forward(self, weight):
            return 3 * weight

    layer = nn.Conv2d(1, 1, 1, bias=False)
    nn.init.ones_(layer.weight)
    parametrize.register_parametrization(layer, "weight", Triple())
    low, high = propagate(read(layer, (1, 1, 1)), torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1))
    assert (low.item(), high.item()) == (0.0, 3.0)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.Softmax(1), "no rule"),
        (nn.LayerNorm(4), "no rule"),
        (nn.BatchNorm1d(3, track_running_stats=False), "statistics of the batch"),
        (type("Mine", (nn.Linear,), {})(4, 4), "no rule"),
    ],
)
def test_layers_without_a_rule_are_named(layer, reason):
    net = nn.Sequential(nn.Identity(), Residual(nn.Sequential(layer), nn.Identity()))
    with pytest.raises(Unbounded, match=rf"1\.body\.0 \({type(layer).__name__}\): .*{reason}"):
        propagate(read(net.double(), (3, 4)), torch.zeros(1, 3, 4), torch.ones(1, 3, 4))


def test_hooks_and_negative_divisors_are_refused():
    layer = nn.Linear(3, 3)
    layer.register_forward_hook(lambda *_: None)
    with pytest.raises(Unbounded, match="with hooks"):
        propagate(read(layer, (3,)), torch.zeros(1, 3), torch.ones(1, 3))
    chain = read(nn.AvgPool2d(2, divisor_override=-1), (1, 2, 2))
    with pytest.raises(Unbounded, match="negative divisor"):
        propagate(chain, torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2))


def test_derivatives_are_those_of_the_ends():
    net = randomised(
        nn.Sequential(nn.Conv2d(1, 2, 2), LinearSpline(2, 5, 1.0), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2))
    )
    chain = read(net, (1, 3, 3))
    lo = torch.randn(2, 1, 3, 3, requires_grad=True)
    half = torch.rand(2, 1, 3, 3, requires_grad=True)
    weight, coefficients = net[0].weight, net[1].coefficients

    def function(lo, half, *_):
        return propagate(chain, lo, lo + half)

    assert torch.autograd.gradcheck(function, (lo, half, weight, coefficients))


def test_half_precision_is_widened_under_autocast():
    net = nn.Sequential(nn.Linear(4, 4), LinearSpline(4)).float()
    lo, hi = torch.zeros(1, 4, dtype=torch.float32), torch.ones(1, 4, dtype=torch.float32)
    expected = propagate(read(net, (4,)), lo, hi)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = propagate(read(net, (4,)), lo.bfloat16(), hi.bfloat16())
    assert actual[0].dtype == torch.float32
    torch.testing.assert_close(actual, expected)


# --- ranges of splines ------------------------------------------------------------------------------------------------


def looped_interval(lo, hi, coefficients_CK, grid_range):
    """The oracle: every knot is looked at."""
    ends = [functional.evaluate(end, coefficients_CK, grid_range) for end in (lo, hi)]
    low, high = torch.minimum(*ends), torch.maximum(*ends)
    knots = functional.knot_positions(coefficients_CK.shape[1], grid_range).tolist()
    for knot, value_C in zip(knots, coefficients_CK.unbind(1), strict=True):
        inside, value = (lo <= knot) & (knot <= hi), functional.beside(lo, value_C)
        low = torch.where(inside, torch.minimum(low, value), low)
        high = torch.where(inside, torch.maximum(high, value), high)
    return low, high


def looped_slopes(lo, hi, coefficients_CK, grid_range):
    knots = functional.knot_positions(coefficients_CK.shape[1], grid_range).tolist()
    smallest, largest = torch.full_like(lo, INF), torch.full_like(lo, -INF)
    slopes_CK = functional.slopes(coefficients_CK, grid_range).unbind(1)
    for start, end, slope_C in zip([-INF, *knots[1:-1]], [*knots[1:-1], INF], slopes_CK, strict=True):
        touched, slope = (lo <= end) & (start <= hi), functional.beside(lo, slope_C)
        smallest = torch.where(touched, torch.minimum(smallest, slope), smallest)
        largest = torch.where(touched, torch.maximum(largest, slope), largest)
    return smallest, largest


def boxes(num_knots, grid_range):
    """Boxes of all lengths, with ends inside, outside, at knots and infinite."""
    lo = 2 * grid_range * torch.randn(300, 3, 2)
    hi = lo + 2 * grid_range * torch.rand_like(lo) ** 4
    knots = functional.knot_positions(num_knots, grid_range)
    lo[:80] = knots[torch.randint(num_knots, (80, 3, 2))]
    hi[40:120] = knots[torch.randint(num_knots, (80, 3, 2))]
    hi[120:130], lo[125:140], hi[200:205] = INF, -INF, lo[200:205]
    return lo, torch.maximum(lo, hi)


@pytest.mark.parametrize(("num_knots", "grid_range"), [(3, 1.0), (4, 1.5), (8, 4.0), (9, 4.0), (51, 4.0), (64, 1e-3)])
@pytest.mark.parametrize("num_curves", [1, 3])
def test_ranges_of_splines_are_those_of_a_loop_over_all_knots(num_knots, grid_range, num_curves):
    coefficients, (lo, hi) = torch.randn(num_curves, num_knots), boxes(num_knots, grid_range)
    for actual, expected in (
        (functional.interval(lo, hi, coefficients, grid_range), looped_interval(lo, hi, coefficients, grid_range)),
        (
            functional.local_slope_range(lo, hi, coefficients, grid_range),
            looped_slopes(lo, hi, coefficients, grid_range),
        ),
    ):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def test_derivatives_of_ranges_reach_the_coefficients_that_decide():
    coefficients, (lo, hi) = torch.randn(3, 11, requires_grad=True), boxes(11, 2.0)
    lo, hi = lo[40:100].clone().requires_grad_(), hi[40:100].clone().requires_grad_()
    for ours, oracle in (
        (functional.interval, looped_interval),
        (functional.local_slope_range, looped_slopes),
    ):
        weights = torch.randn(2, *lo.shape)
        grads = [
            torch.autograd.grad(
                (torch.stack(f(lo, hi, coefficients, 2.0)) * weights).sum(), (coefficients, lo, hi), allow_unused=True
            )
            for f in (ours, oracle)
        ]
        torch.testing.assert_close(grads[0][0], grads[1][0], rtol=1e-10, atol=1e-10)
    lo, half = torch.randn(20, 3, 1, requires_grad=True), torch.rand(20, 3, 1, requires_grad=True)  # ends off the knots
    assert torch.autograd.gradcheck(lambda c, a, b: functional.interval(a, a + b, c, 2.0), (coefficients, lo, half))


def test_one_range_has_a_gradient_for_its_extreme_alone():
    coefficients = torch.tensor([[0.0, 3.0, 1.0, -2.0, 0.0]], requires_grad=True)
    low, high = functional.interval(torch.full((1, 1), -1.9), torch.full((1, 1), 1.9), coefficients, 2.0)
    assert (low.item(), high.item()) == (-2.0, 3.0)
    assert torch.autograd.grad(low.sum(), coefficients, retain_graph=True)[0].tolist() == [[0, 0, 0, 1, 0]]
    assert torch.autograd.grad(high.sum(), coefficients)[0].tolist() == [[0, 1, 0, 0, 0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_both_slopes_count_within_rounding_of_a_knot(dtype):
    coefficients = torch.tensor([[0.0, 0, 0, 0, 1, 2, 3, 4]], dtype=dtype)  # a kink at knot 3, not a binary fraction
    for grid_range in (1.0, 0.7, 3.1):
        knot = functional.knot_positions(8, grid_range)[3]
        ends = torch.nextafter(knot.to(dtype), torch.tensor([-9.0, 9.0], dtype=dtype)).view(2, 1)
        low, high = functional.local_slope_range(ends, ends, coefficients, grid_range)
        assert (low == 0).all()
        assert (high > 0.9 / grid_range).all()


def test_nan_ends_give_nan():
    coefficients, x = torch.randn(2, 7), torch.tensor([[float("nan"), 0.3]])
    for function in (functional.interval, functional.local_slope_range):
        for lo, hi in ((x, x.nan_to_num(9.0)), (x.nan_to_num(-9.0), x), (x, x)):
            ends = torch.stack(function(lo, hi, coefficients, 1.0))
            assert ends[:, 0, 0].isnan().all()
            assert ends[:, 0, 1].isfinite().all()
