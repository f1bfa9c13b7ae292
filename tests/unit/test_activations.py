"""Every activation states its slopes and images exactly."""

import pytest
import torch

from tautnet.activations import ELU, GELU, Absolute, LeakyReLU, LinearSpline, PReLU, ReLU, Tanh

CHANNELS = 3
KINKS = (0.0, -(2.0**0.5), 2.0**0.5, GELU.minimum_at)


pytestmark = pytest.mark.usefixtures("float64")


def prelu(*weights):
    activation = PReLU(CHANNELS)
    with torch.no_grad():
        activation.weight.copy_(torch.tensor(weights))
    return activation


def spline(num_knots=9, grid_range=2.0, **settings):
    activation = LinearSpline(CHANNELS, num_knots, grid_range, **settings)
    with torch.no_grad():
        for parameter in activation.parameters():
            parameter.normal_()
    return activation


ACTIVATIONS = {
    "relu": lambda: ReLU(CHANNELS),
    **{f"leaky_relu({s})": lambda s=s: LeakyReLU(CHANNELS, s) for s in (0.01, 0.0, -0.5, -2.0, 1.0, 3.0)},
    **{f"elu({a})": lambda a=a: ELU(CHANNELS, a) for a in (0.0, 0.5, 1.0, 2.5)},
    "gelu": lambda: GELU(CHANNELS),
    "tanh": lambda: Tanh(CHANNELS),
    "absolute": lambda: Absolute(CHANNELS),
    "prelu": lambda: prelu(0.25, -3.0, 4.0),
    "prelu_start": lambda: PReLU(CHANNELS, init=-0.3),
    "spline": spline,
    "spline_even": lambda: spline(num_knots=6, grid_range=1.5),
    "spline_layer": lambda: spline(sharing="layer"),
    "spline_neuron": lambda: spline(sharing="neuron", spatial_shape=(2,)),
    "spline_linear": lambda: spline(linear_term=True),
    "spline_limited": lambda: spline(slope_min=-0.5, slope_max=1.5, init="relu"),
}


@pytest.fixture(params=list(ACTIVATIONS))
def activation(request):
    return ACTIVATIONS[request.param]()


def derivative(activation, x):
    leaf = x.detach().clone().requires_grad_()
    return torch.autograd.grad(activation(leaf).sum(), leaf)[0]


def special_points(activation):
    knots = activation.knots().tolist() if isinstance(activation, LinearSpline) else []
    return [*KINKS, *knots]


def boxes(activation):
    """Boxes (N, C, 2): wide, narrow, far out, degenerate, and with ends on kinks."""
    start, width = 3 * torch.randn(40, CHANNELS, 2), torch.rand(40, CHANNELS, 2)
    random = [(start, start + scale * width) for scale in (0.0, 0.1, 1.0, 8.0)]
    on_kinks = [
        (torch.full((1, CHANNELS, 2), point - left), torch.full((1, CHANNELS, 2), point + right))
        for point in special_points(activation)
        for left, right in ((0.0, 0.0), (0.0, 0.05), (0.05, 0.0), (0.0, 3.0), (3.0, 0.0))
    ]
    lo, hi = zip(*random, *on_kinks, strict=True)
    return torch.cat(lo), torch.cat(hi)


def samples(activation, lo, hi, margin=0.0):
    """Points of every box, (M, N, C, 2): a dense grid, and kinks from both sides as far as ``margin`` lets them in."""
    grid = [lo + fraction * (hi - lo) for fraction in torch.linspace(0, 1, 201)]
    kinks = [
        torch.minimum(torch.maximum(torch.full_like(lo, point + shift), lo - margin), hi + margin)
        for point in special_points(activation)
        for shift in (-margin, 0.0, margin)
    ]
    return torch.stack(grid + kinks)


def on_samples(function, points):
    return function(points.flatten(0, 1)).view_as(points).detach()


def test_slope_range_is_that_of_a_dense_scan(activation):
    x = torch.linspace(-45, 45, 90_001).view(-1, 1, 1).expand(-1, CHANNELS, 2)
    scan = derivative(activation, x).transpose(1, 2).flatten(0, 1)
    lo, hi = activation.slope_range()
    assert lo.shape == hi.shape == (CHANNELS,)
    torch.testing.assert_close(lo.double(), scan.amin(0), rtol=0, atol=1e-7)
    torch.testing.assert_close(hi.double(), scan.amax(0), rtol=0, atol=1e-7)
    assert activation.lipschitz_constant(2).detach().item() == pytest.approx(scan.abs().max().item(), abs=1e-7)


def test_interval_is_the_image_of_the_box(activation):
    lo, hi = boxes(activation)
    values = on_samples(activation, samples(activation, lo, hi))
    low, high = activation.interval(lo, hi)
    assert low.shape == high.shape == lo.shape
    assert (low <= values + 1e-12).all()
    assert (values <= high + 1e-12).all()
    torch.testing.assert_close(low.detach(), values.amin(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(high.detach(), values.amax(0), rtol=1e-12, atol=1e-12)


def test_local_slope_range_is_the_set_of_slopes_around_the_box(activation):
    lo, hi = boxes(activation)

    def slopes(margin):
        return on_samples(lambda x: derivative(activation, x), samples(activation, lo, hi, margin))

    low, high = activation.local_slope_range(lo, hi)
    assert low.shape == high.shape == lo.shape
    inside, around = slopes(margin=0.0), slopes(margin=1e-9)
    assert (low <= inside + 1e-9).all()
    assert (inside <= high + 1e-9).all()
    torch.testing.assert_close(low.detach(), around.amin(0), rtol=0, atol=1e-7)
    torch.testing.assert_close(high.detach(), around.amax(0), rtol=0, atol=1e-7)


def test_local_slopes_lie_in_the_global_range(activation):
    lo, hi = boxes(activation)
    low, high = activation.local_slope_range(lo, hi)
    lo_C, hi_C = (bound.view(1, -1, 1) for bound in activation.slope_range())
    assert (lo_C - 1e-12 <= low).all()
    assert (high <= hi_C + 1e-12).all()


def test_degenerate_box_gives_the_value_and_the_derivative(activation):
    x = 3 * torch.randn(40, CHANNELS, 2)
    for bound in activation.interval(x, x):
        torch.testing.assert_close(bound, activation(x), rtol=1e-12, atol=1e-12)
    for bound in activation.local_slope_range(x, x):
        torch.testing.assert_close(bound.detach(), derivative(activation, x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("make", [LeakyReLU, ReLU, ELU, GELU, PReLU])
def test_forward_is_torchs(make):
    x = 3 * torch.randn(10, CHANNELS, 4)
    reference = {
        LeakyReLU: torch.nn.LeakyReLU(),
        ReLU: torch.nn.ReLU(),
        ELU: torch.nn.ELU(),
        GELU: torch.nn.GELU(),
        PReLU: torch.nn.PReLU(CHANNELS),
    }[make]
    torch.testing.assert_close(make(CHANNELS)(x), reference(x), rtol=0, atol=0)


def test_gelu_minimum_is_the_root_of_the_derivative():
    around = torch.tensor([[-1e-6, 0.0, 1e-6]]) + GELU.minimum_at
    before, at, after = derivative(GELU(3), around)[0].tolist()
    assert before < 0 < after
    assert abs(at) < 1e-15


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_prelu_keeps_a_half_precision_dtype(dtype):
    x = torch.randn(4, CHANNELS, dtype=dtype)
    y = PReLU(CHANNELS).float()(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y, torch.where(x > 0, x, 0.25 * x))


@pytest.mark.parametrize("make", [LeakyReLU, ReLU, ELU, GELU, PReLU, LinearSpline])
def test_number_of_channels_below_one_is_refused(make):
    with pytest.raises(ValueError, match="num_channels=0"):
        make(0)


@pytest.mark.parametrize("alpha", [-0.5, float("nan")])
def test_elu_alpha_below_zero_is_refused(alpha):
    with pytest.raises(ValueError, match=f"alpha={alpha}"):
        ELU(1, alpha)
