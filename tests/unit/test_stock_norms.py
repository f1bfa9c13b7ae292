"""Group, layer, instance and RMS normalisation: torch's values, and bounds that hold."""

import re
from math import inf, sqrt

import pytest
import torch
from conftest import options
from jacobians import jacobians, norms
from torch import nn
from torch.nn import functional as F

from tautnet.backbones import LayerFactory, convnet, mlp
from tautnet.config import ConfigError, build
from tautnet.functional.groupwise import largest_slope, normalised_box, slope_bound
from tautnet.lipschitz import lipschitz_bound, lipschitz_lower
from tautnet.lipschitz.boxes import propagate
from tautnet.lipschitz.certify import Certifier
from tautnet.lipschitz.local import local_lipschitz_bound
from tautnet.lipschitz.normalization import normalizer_constant
from tautnet.lipschitz.structure import read
from tautnet.models.network import build_net
from tautnet.normalizers.group import GroupNorm, instance_norm, layer_norm
from tautnet.normalizers.none import no_weight_norm
from tautnet.normalizers.rms import RmsNorm

P = [1, 2, inf]
SHAPES = [(4,), (4, 3), (4, 3, 2), (4, 2, 1, 3)]
NORMS = {
    "layer": layer_norm,
    "group": lambda c, eps=1e-5: GroupNorm(c, num_groups=2, eps=eps),
    "sized": lambda c, eps=1e-5: GroupNorm(c, group_size=2, eps=eps),
    "instance": instance_norm,
    "rms": RmsNorm,
}
CASES = [(name, shape) for name in NORMS for shape in SHAPES if name != "instance" or len(shape) > 1]

pytestmark = pytest.mark.usefixtures("float64_on_one_thread")


@torch.no_grad()
def randomised(layer):
    for parameter in layer.parameters():
        parameter.normal_()
    return layer


def column(vector, x):
    return vector.view(-1, *[1] * (x.dim() - 2))


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("name", "groups"), [("layer", 1), ("group", 2), ("sized", 2)])
def test_group_norms_are_torchs(name, groups, shape):
    layer, twin = randomised(NORMS[name](4, eps=0.02)), nn.GroupNorm(groups, 4, eps=0.02)
    twin.load_state_dict(layer.state_dict())
    x = torch.randn(5, *shape)
    assert torch.equal(layer(x), twin(x))


def test_groups_by_number_and_by_size():
    assert [NORMS[name](8).num_groups for name in ("layer", "group", "sized", "instance")] == [1, 2, 4, 8]


@pytest.mark.parametrize("shape", SHAPES[1:])
def test_instance_norm_is_torchs(shape):
    layer, x = instance_norm(4, eps=0.02), torch.randn(5, *shape)
    torch.testing.assert_close(layer(x), F.instance_norm(x, eps=0.02), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_rms_norm_is_the_formula(shape):
    layer, x = randomised(RmsNorm(4, eps=0.02)), torch.randn(5, *shape)
    root = (x.square().mean(tuple(range(1, x.dim())), keepdim=True) + 0.02).sqrt()
    expected = column(layer.weight, x) * x / root + column(layer.bias, x)
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)
    of_torch = F.rms_norm(x, x.shape[1:], eps=0.02)
    torch.testing.assert_close(RmsNorm(4, eps=0.02)(x), of_torch, rtol=1e-12, atol=1e-12)


def test_values_by_hand():
    x = torch.tensor([[3.0, 4.0]])
    torch.testing.assert_close(RmsNorm(2, eps=1e-20)(x), x / sqrt(12.5))
    torch.testing.assert_close(layer_norm(2, eps=1e-20)(x), torch.tensor([[-1.0, 1.0]]))
    torch.testing.assert_close(layer_norm(2, eps=0.75)(x), torch.tensor([[-0.5, 0.5]]))  # variance 1/4


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_a_sample_sees_neither_the_batch_nor_the_mode(name, shape):
    layer, x = randomised(NORMS[name](4)), torch.randn(5, *shape)
    alone = torch.cat([layer.eval()(sample.unsqueeze(0)) for sample in x])
    torch.testing.assert_close(layer.train()(x), alone, rtol=1e-12, atol=1e-12)
    assert not list(layer.buffers())


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_gradients_agree_with_finite_differences(name, shape):
    layer = randomised(NORMS[name](4, eps=0.1))
    parameters = dict(layer.named_parameters())

    def function(x, *values):
        return torch.func.functional_call(layer, dict(zip(parameters, values, strict=True)), x)

    x = torch.randn(2, *shape, requires_grad=True)
    assert torch.autograd.gradcheck(function, (x, *parameters.values()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", NORMS)
def test_half_precision_sums_do_not_overflow(name, dtype):
    layer = NORMS[name](64).float()
    x = (3 * torch.randn(1, 64, 56, 56, dtype=torch.float32)).to(dtype)
    y = layer(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), layer(x.float()), rtol=2e-2, atol=1e-2)
    assert (layer(x.float()).square().mean() - 1).abs() < 1e-4


@pytest.mark.parametrize("name", NORMS)
def test_autocast_does_not_shorten_the_sums(name):
    layer, x = NORMS[name](8).float(), torch.randn(2, 8, 32, 32, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    torch.testing.assert_close(y, layer(x), rtol=1e-5, atol=1e-5)


# --- bounds -----------------------------------------------------------------------------------------------------------


def boxes(shape, count=60):
    """Points and boxes: wide, narrow, of one point, off the origin, with values of every size and equal ones."""
    x = torch.randn(count, *shape) * 10 ** (4 * torch.rand(count, *[1] * len(shape)) - 2)
    x += torch.randn(count, *[1] * len(shape)) * (torch.rand(count, *[1] * len(shape)) < 0.5)
    x[::7] = x[::7, :1]  # equal values across channels
    radius = torch.rand_like(x) * 10 ** (5 * torch.rand(count, *[1] * len(shape)) - 4)
    radius[::5] = 0
    return x - radius, x + radius


def within(lo, hi, draws=150):
    """Points of each box, corners and faces among them, (draws, N, *)."""
    share = torch.rand(draws, *lo.shape)
    corners = torch.rand(draws, *[1] * lo.dim()) < 0.6
    share = torch.where(corners, share.round(), share)
    return lo + share * (hi - lo)


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_boxes_contain_the_images_of_their_points(name, shape):
    layer = randomised(NORMS[name](4, eps=0.01))
    lo, hi = boxes(shape)
    low, high = layer.interval(lo, hi)
    slack = 1e-9 * (1 + low.abs().maximum(high.abs()))
    for point in within(lo, hi):
        y = layer(point)
        assert (y >= low - slack).all()
        assert (y <= high + slack).all()
    assert torch.allclose(low[::5], high[::5], atol=1e-7)  # of a point it is the point


def choices(num_choices, n):
    return torch.cartesian_prod(*[torch.arange(num_choices)] * n)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_boxes_without_centring_are_exact(n):
    """Each value is extreme where every coordinate is at an end or nearest to 0."""
    lo, hi = boxes((n,), 20)
    candidates = torch.stack([lo, hi, torch.zeros_like(lo).clamp(lo, hi)])
    x = torch.stack([candidates[choice, :, torch.arange(n)].T for choice in choices(3, n)])
    z = x * (x.square().mean(-1, keepdim=True) + 0.05).rsqrt()
    low, high = normalised_box(lo, hi, 0.05, centred=False)
    torch.testing.assert_close(low, z.amin(0), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(high, z.amax(0), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_boxes_with_centring_hold_where_ascent_leads(n):
    """From all corners and the middle."""
    lo, hi = boxes((n,), 20)
    low, high = normalised_box(lo, hi, 0.05, centred=True)
    starts = torch.cat([choices(2, n), torch.full((1, n), 0.5)])
    for i in range(n):
        for sign, stated in ((1.0, high[:, i]), (-1.0, -low[:, i])):
            x = lo + starts.unsqueeze(1) * (hi - lo)
            for step in (0.3, 0.1, 0.03, 0.01) * 8:
                x = x.detach().requires_grad_()
                c = x - x.mean(-1, keepdim=True)
                z = sign * c[..., i] * (c.square().mean(-1) + 0.05).rsqrt()
                assert (z.amax(0) <= stated + 1e-9).all()
                (grad,) = torch.autograd.grad(z.sum(), x)
                x = (x + step * (hi - lo) * grad.sign()).clamp(lo, hi)


def test_boxes_without_centring_are_exact_by_hand():
    lo, hi = torch.tensor([[1.0, -2.0]]), torch.tensor([[3.0, 1.0]])
    low, high = normalised_box(lo, hi, 0.5, centred=False)
    # The first is largest at (3, 0), smallest at (1, -2); the second smallest at (1, -2), largest at (1, 1).
    assert low.tolist() == [pytest.approx([1 / sqrt(3), -2 / sqrt(3)])]
    assert high.tolist() == [pytest.approx([3 / sqrt(5), 1 / sqrt(1.5)])]


@pytest.mark.parametrize("n", [2, 5])
@pytest.mark.parametrize("centred", [True, False])
def test_of_infinite_boxes_the_largest_value_remains(n, centred):
    everything = torch.full((1, n), inf)
    limit = sqrt(n - 1) if centred else sqrt(n)
    low, high = normalised_box(-everything, everything, 1e-3, centred)
    assert torch.allclose(high, torch.full((1, n), limit))
    assert torch.equal(low, -high)
    half = torch.zeros(1, n)
    low, high = normalised_box(half, everything, 1e-3, centred)
    assert not (low.isnan() | high.isnan()).any()
    x = 100 * torch.rand(5000, n) ** 8
    layer = layer_norm(n, eps=1e-3) if centred else RmsNorm(n, eps=1e-3)
    assert (layer(x) <= high + 1e-12).all()
    assert (layer(x) >= low - 1e-12).all()


@pytest.mark.parametrize("p", P)
@pytest.mark.parametrize(("name", "shape"), CASES)
def test_local_constants_are_never_below_the_jacobians_in_the_box(name, shape, p):
    layer = randomised(NORMS[name](4, eps=0.01))
    lo, hi = boxes(shape, 24)
    local = layer.local_lipschitz_constant(lo, hi, p)
    assert local.shape == (24,)
    assert (local <= layer.lipschitz_constant(p)).all()
    for point in within(lo, hi, 12):
        assert (norms(jacobians(layer, point), p) <= local * (1 + 1e-9)).all()


@pytest.mark.parametrize("p", P)
@pytest.mark.parametrize("name", NORMS)
def test_local_constants_of_points_are_near_the_jacobians(name, p):
    layer, x = NORMS[name](4, eps=0.01), torch.randn(40, 4, 3)
    local, truth = layer.local_lipschitz_constant(x, x, p), norms(jacobians(layer, x), p)
    assert (truth >= (0.99 if p == 2 else 0.4) * local).all()


@pytest.mark.parametrize("p", P)
@pytest.mark.parametrize("centred", [True, False])
def test_of_everything_the_local_constant_is_the_global_one(centred, p):
    everything = torch.full((1, 6), inf)
    found = largest_slope(-everything, everything, 1e-3, centred, p)
    assert found.item() == pytest.approx(normalizer_constant(6, centred, 1e-3, None, p), rel=1e-9)


def test_centring_does_not_widen_a_box_twice():
    """Around +-1 the point of least variance is that of the values +-0.7, the box of centred values reaches 0.4."""
    middle = torch.tensor([1.0, -1.0]).repeat(50)
    slope = largest_slope(middle - 0.3, middle + 0.3, 1e-5, centred=True, p=2)
    assert slope.item() == pytest.approx((0.49 + 1e-5) ** -0.5, rel=1e-9)


@pytest.mark.parametrize("p", P)
def test_slope_bound_is_the_largest_over_its_range(p):
    r = torch.linspace(0.3, 8.0, 20_001)
    for n, centred in ((1, False), (2, True), (9, True), (50, False)):
        of_points = slope_bound(r, r, n, 1 / 64, centred, p)
        for a, b in ((0, 100), (3000, 9000), (100, 20_000), (15_000, 20_000)):
            found = slope_bound(r[a], r[b], n, 1 / 64, centred, p)
            assert found.item() == pytest.approx(of_points[a : b + 1].max().item(), rel=1e-6)


@pytest.mark.parametrize("name", NORMS)
def test_constant_is_attained_for_one_weight(name):
    layer = NORMS[name](4, eps=1e-4)
    nn.init.constant_(layer.weight, -1.5)
    at_zero = jacobians(layer, torch.zeros(1, 4, 2))
    assert layer.lipschitz_constant(2).item() == pytest.approx(150)
    assert norms(at_zero, 2).item() == pytest.approx(150)
    assert layer.lipschitz_constant(2).requires_grad
    assert layer.lipschitz_constant(1) == layer.lipschitz_constant(inf) == inf  # for images of any size


@pytest.mark.parametrize("name", NORMS)
def test_boxes_are_differentiable(name):
    layer = randomised(NORMS[name](4, eps=0.1))
    lo = torch.randn(3, 4, 2, requires_grad=True)
    low, high = layer.interval(lo, lo + 0.1)
    (low.square().sum() + high.square().sum()).backward()
    for tensor in (lo, layer.weight, layer.bias):
        assert tensor.grad.isfinite().all()
        assert tensor.grad.abs().sum() > 0


# --- networks ---------------------------------------------------------------------------------------------------------


def nets(name):
    factory = LayerFactory(lambda _: nn.ReLU(), lambda c: NORMS[name](c, eps=0.1), no_weight_norm)
    found = [(convnet(factory, (1, 4, 4), 3, widths=(4,)), (1, 4, 4))]
    return found if name == "instance" else [*found, (mlp(factory, (5,), 3, widths=(6, 4)), (5,))]


@pytest.mark.parametrize("p", P)
@pytest.mark.parametrize("name", NORMS)
def test_networks_are_bounded_locally_and_as_a_whole(name, p):
    for net, shape in nets(name):
        x = torch.randn(4, *shape)
        radius = 0.05
        local = local_lipschitz_bound(net, x, radius, p)
        assert local.isfinite().all()
        step = torch.randn(200, *x.shape)
        length = torch.linalg.vector_norm(step.flatten(2), ord=p, dim=2).view(200, 4, *[1] * len(shape))
        points = x + radius * step / length * torch.rand_like(length)
        for a, b in zip(points[:100], points[100:], strict=True):
            rise = torch.linalg.vector_norm(net(a) - net(b), ord=p, dim=1)
            assert (rise <= local * torch.linalg.vector_norm((a - b).flatten(1), ord=p, dim=1) * (1 + 1e-9)).all()
        if p == 2:
            whole = lipschitz_bound(net, shape).total
            assert lipschitz_lower(net, x) <= whole < inf
            assert (local <= whole).all()


@pytest.mark.parametrize("name", NORMS)
def test_networks_have_boxes_and_certificates(name):
    for net, shape in nets(name):
        x = torch.randn(6, *shape)
        lo, hi = propagate(read(net, shape), x - 0.01, x + 0.01)
        for share in torch.rand(50, *x.shape).round():
            y = net(x - 0.01 + 0.02 * share)
            assert (y >= lo - 1e-12).all()
            assert (y <= hi + 1e-12).all()
        labels = net(x).argmax(1)
        for p in P:
            certifier = Certifier(net, shape, p)
            assert certifier.certified(x, labels, 1e-6).any()
            assert not certifier.certified(x, labels, 100.0).any()


@pytest.mark.parametrize("option", ["layer", "group", "instance", "rms"])
def test_the_presets_build_nets_without_biases_in_front(settings, option):
    made = settings(f"norm={option}", "model=convnet", "activation=relu")
    assert option in options("norm")
    net = build_net(made | {"input_shape": [3, 8, 8], "num_outputs": 4}).float()
    assert all(conv.bias is None for conv in net.modules() if isinstance(conv, nn.Conv2d))
    assert net(torch.randn(1, 3, 8, 8, dtype=torch.float32)).shape == (1, 4)


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_instance_norm_of_a_dense_net_is_refused_by_name(settings):
    made = settings("norm=instance", "model=mlp", "activation=relu")
    with pytest.raises(ConfigError, match=r"num_groups=64: .* is one value.* norm=instance needs several pixels"):
        build_net(made | {"input_shape": [5], "num_outputs": 4})


@pytest.mark.parametrize(("layer", "shape"), [(instance_norm(4), (2, 4)), (instance_norm(3), (9, 3, 1, 1))])
def test_groups_of_one_value_are_refused(layer, shape):
    with pytest.raises(ValueError, match="is one value, which has no spread"):
        layer(torch.randn(shape))


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("eps", [0.0, -1e-5, inf, float("nan")])
def test_eps_out_of_range_is_named(name, eps):
    with pytest.raises(ValueError, match=re.escape(f"eps={eps}: above 0")):
        NORMS[name](4, eps=eps)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_groups": 3}, "num_groups=3: has to divide the layer's 8 channels, so one of 1, 2, 4, 8"),
        ({"num_groups": 0}, "num_groups=0: has to divide"),
        ({"group_size": 16}, "group_size=16: has to divide the layer's 8 channels"),
        ({"group_size": -2}, "group_size=-2: has to divide"),
        ({"num_groups": 2, "group_size": 4}, "num_groups=2: either num_groups or group_size=4"),
        ({}, "num_groups=None: either num_groups or group_size=None"),
    ],
)
def test_groups_that_do_not_fit_are_named(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        GroupNorm(8, **arguments)


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("shape", [(4,), (2, 3, 5), (2, 1, 5), (2, 4, 0)])
def test_inputs_of_other_shapes_are_refused(name, shape):
    with pytest.raises(ValueError, match=re.escape(f"x.shape={shape}: (N, 4, *)")):
        NORMS[name](4)(torch.randn(shape))


@pytest.mark.parametrize("make", [RmsNorm, layer_norm, instance_norm])
def test_no_channels_are_refused(make):
    with pytest.raises(ValueError, match="num_channels=0"):
        make(0)


def test_the_key_of_groups_that_do_not_fit_is_named(settings):
    made = settings("norm=group", "norm.output.num_groups=32")["norm"]["output"]
    with pytest.raises(ConfigError, match=r"norm\.output\.num_groups=32: has to divide the layer's 16 channels"):
        build(made, "norm.output")(16)
