"""Lipschitz bounds against materialised operators, counter-examples and refused settings."""

import copy
import math
from itertools import product

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from tautnet.activations import ELU, LeakyReLU, LinearSpline, ReLU
from tautnet.backbones import LayerFactory, Residual, convnet, mlp
from tautnet.functional.operator_norm import conv_spectral_norm, spectral_norm
from tautnet.lipschitz import lipschitz_bound, lipschitz_lower
from tautnet.normalizers import BatchNorm, Unitize, no_weight_norm

INF = float("inf")


pytestmark = pytest.mark.usefixtures("float64_on_one_thread")


def bound(net, *input_shape):
    return lipschitz_bound(net, input_shape).total


@torch.no_grad()
def operator_norm(net, *input_shape):
    """Spectral norm of an affine net, from its matrix: the images of the unit vectors."""
    size = math.prod(input_shape)
    images = net(torch.cat([torch.zeros(1, size), torch.eye(size)]).view(-1, *input_shape)).flatten(1)
    return float(torch.linalg.matrix_norm(images[1:] - images[:1], ord=2))


def linear(*rows):
    weight = torch.tensor(rows, dtype=torch.float64)
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        layer.weight.copy_(weight)
    return layer


def randomised(layer):
    """Random parameters, and running statistics where the layer has some."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
        for name, buffer in layer.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_()
            elif name.endswith("running_var"):
                buffer.uniform_(0.1, 2.0)
    return layer


def conv2d_norm(kernel, size, dilation=1):
    """Bound for stride 1 and padding that keeps the image's size."""
    padding = [(dilation * (k - 1) // 2,) * 2 for k in kernel.shape[2:]]
    return conv_spectral_norm(kernel, size, (1, 1), padding, (dilation, dilation), 1, "zeros")


# --- convolutions -----------------------------------------------------------------------------------------------------

CHANNELS = [(1, 1, 1), (2, 3, 1), (3, 2, 1), (2, 2, 1), (4, 2, 2), (2, 2, 2)]  # in, out, groups


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize("dilation", [1, 2])
def test_convolution_bound_is_never_below_the_operator_norm(kernel, stride, padding, dilation):
    for (inputs, outputs, groups), size in product(CHANNELS, [(4, 4), (5, 7)]):
        if min(size) + 2 * padding <= dilation * (kernel - 1):
            continue  # no output
        conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups)
        truth = operator_norm(conv, inputs, *size)
        assert bound(conv, inputs, *size) >= truth
        if kernel == stride == 1:
            assert bound(conv, inputs, *size) == pytest.approx(truth, rel=1e-9)


@pytest.mark.parametrize(("kernel", "dilation", "factor"), [(3, 1, 1.15), (5, 1, 1.4), (3, 2, 1.4)])
@pytest.mark.parametrize(("inputs", "outputs", "groups"), CHANNELS)
def test_convolution_bound_is_tight_where_the_image_keeps_its_size(kernel, dilation, factor, inputs, outputs, groups):
    conv = nn.Conv2d(inputs, outputs, kernel, 1, "same", dilation, groups)
    assert bound(conv, inputs, 8, 8) <= factor * operator_norm(conv, inputs, 8, 8)


@pytest.mark.parametrize(("kernel", "dilation"), [((1, 5), (3, 1)), ((3, 2), (2, 1)), ((2, 3), (1, 3))])
@pytest.mark.parametrize("stride", [(1, 1), (2, 1)])
def test_convolution_bound_of_rectangular_kernels_and_images(kernel, dilation, stride):
    conv = nn.Conv2d(2, 3, kernel, stride, padding=(1, 2), dilation=dilation)
    truth = operator_norm(conv, 2, 5, 8)
    assert truth <= bound(conv, 2, 5, 8) <= 1.7 * truth


@pytest.mark.parametrize(
    ("taps", "truth"), [((1.0, -1.0), 2**0.5 * (1 + 0.5**0.5) ** 0.5), ((1.0, -1.0, 0.0), 1.8019377)]
)
def test_difference_kernel_on_three_pixels_exceeds_the_circular_norm_of_three(taps, truth):
    conv = nn.Conv2d(1, 1, (1, len(taps)), padding=(0, 1), bias=False)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor(taps).view_as(conv.weight))
    circular = torch.fft.fft(torch.tensor([1.0, -1.0, 0.0])).abs().max()
    assert circular == pytest.approx(3**0.5)
    assert operator_norm(conv, 1, 1, 3) == pytest.approx(truth)
    assert truth <= bound(conv, 1, 1, 3) <= 2 + 1e-9


def test_all_ones_kernel_multiplies_a_constant_by_its_size():
    assert conv2d_norm(torch.ones(1, 1, 3, 3), (8, 8)) == pytest.approx(9)


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (4, 4), (1, 7)])
def test_dense_bound_is_the_largest_singular_value(shape):
    weight = torch.randn(shape)
    truth = float(torch.linalg.svdvals(weight)[0])
    assert truth <= spectral_norm(weight) <= truth * (1 + 1e-9)
    assert bound(linear(*weight.tolist()), shape[1]) == pytest.approx(truth)


# --- pooling and other stock layers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "exact"),
    [
        (nn.AvgPool2d(2), True),
        (nn.AvgPool2d((2, 3)), True),
        (nn.AvgPool2d(6), True),
        (nn.AvgPool2d(1), True),
        (nn.AvgPool2d(2, stride=3), True),
        (nn.AvgPool2d(3, stride=1), False),
        (nn.AvgPool2d(3, stride=1, padding=1), False),
        (nn.AvgPool2d(3, stride=2, padding=1), False),
        (nn.AvgPool2d(3, stride=2), False),
        (nn.AvgPool2d((3, 2), stride=(1, 2), padding=(1, 0)), False),
        (nn.AvgPool2d(2, count_include_pad=False), True),
        (nn.AdaptiveAvgPool2d(1), True),
        (nn.AdaptiveAvgPool2d(3), True),
        (nn.AdaptiveAvgPool2d((2, 3)), True),
        (nn.AdaptiveAvgPool2d((None, 2)), True),
        (nn.Flatten(), True),
        (nn.Identity(), True),
        (nn.Dropout(0.5), True),
    ],
    ids=str,
)
def test_bound_of_linear_stock_layers(layer, exact):
    truth = operator_norm(layer.eval(), 2, 6, 6)
    value = bound(layer, 2, 6, 6)
    assert value >= truth * (1 - 1e-12)
    assert value <= truth * (1 + 1e-9 if exact else 1.6)


@pytest.mark.parametrize(
    ("layer", "truth"),
    [
        (nn.MaxPool2d(2), 1.0),
        (nn.MaxPool2d(2, stride=3), 1.0),
        (nn.MaxPool2d(3, stride=1, padding=1), 3.0),
        (nn.MaxPool2d(3, stride=2, padding=1), 2.0),
        (nn.MaxPool2d(3, stride=2), 2.0),
        (nn.MaxPool2d((3, 2), stride=(1, 2)), 3**0.5),
        (nn.MaxPool2d(3, stride=2, ceil_mode=True), 2.0),
    ],
    ids=str,
)
def test_max_pool_bound_is_attained_by_a_single_bright_pixel(layer, truth):
    pixels = torch.eye(49).view(49, 1, 7, 7)
    assert layer(pixels).flatten(1).norm(dim=1).max() == pytest.approx(truth)
    assert bound(layer, 1, 7, 7) == pytest.approx(truth)
    x, y = torch.randn(2, 1000, 1, 7, 7)
    ratios = (layer(x) - layer(y)).flatten(1).norm(dim=1) / (x - y).flatten(1).norm(dim=1)
    assert ratios.max() <= truth


@pytest.mark.parametrize(
    ("layer", "input_shape"), [(nn.BatchNorm1d(3), (3,)), (nn.BatchNorm2d(3), (3, 2, 2)), (BatchNorm(3), (3, 2))]
)
@pytest.mark.parametrize("random", [True, False])
def test_batch_norm_bound_is_exact(layer, input_shape, random):
    layer = copy.deepcopy(layer).double()  # the parameters are those of all cases
    layer = randomised(layer) if random else layer
    assert bound(layer, *input_shape) == pytest.approx(operator_norm(layer.eval(), *input_shape), rel=1e-10)


class SubLinear(nn.Linear):
    def forward(self, x):
        return 10 * super().forward(x)


class SubSequential(nn.Sequential):
    def forward(self, x):
        return 10 * super().forward(x)


class SubResidual(Residual):
    def forward(self, x):
        return 10 * super().forward(x)


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm2d(2, track_running_stats=False),
        nn.Softmax(dim=0),
        nn.LayerNorm(6, eps=0.0),
        nn.Upsample(scale_factor=2, mode="bicubic"),
        nn.GLU(1),
        nn.Hardshrink(),
        nn.LocalResponseNorm(2),
        SubLinear(6, 6),
        SubSequential(nn.Linear(6, 6)),
        SubResidual(nn.Identity(), nn.Identity()),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_what_has_no_rule_is_unbounded_and_named(layer):
    net = nn.Sequential(nn.Identity(), nn.Sequential(nn.Identity(), layer.double()))
    for p in (1, 2, INF):
        report = lipschitz_bound(net, (2, 6, 6), p)
        assert report.total == report.log_total == INF
        assert [message.partition(":")[0] for message in report.unbounded] == [f"1.1 ({type(layer).__name__}"]
        assert report.layers[-1].reason


def test_an_unbounded_net_itself_is_named():
    assert lipschitz_bound(nn.Hardshrink(), (3,)).unbounded == ("(net) (Hardshrink: jumps)",)


def test_unbounded_layers_in_a_residual_are_named():
    net = nn.Sequential(Residual(nn.Sequential(nn.Linear(3, 3), nn.Hardshrink()), SubLinear(3, 3)))
    reasons = ("0.body.1 (Hardshrink: jumps)", "0.shortcut (SubLinear: no rule for this type)")
    assert lipschitz_bound(net, (3,)).unbounded == reasons


# --- nets -------------------------------------------------------------------------------------------------------------


def identity_spline(channels):
    return LinearSpline(channels, 5, 1.0, init="identity")


def rotation(angle):
    return linear([math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)])


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (linear([2, 0], [0, 1]), linear([3, 0], [0, 1]), 6.0),
        (rotation(0.3), rotation(1.1), 1.0),
        (linear([2, 0], [0, 1]), linear([1, 0], [0, 3]), 6.0),  # the truth is 3: the product is a bound only
    ],
)
def test_product_of_known_factors(first, second, expected):
    net = nn.Sequential(first, identity_spline(2), second).double()
    assert math.exp(lipschitz_bound(net, (2,)).log_product) == pytest.approx(expected)


def test_scalar_relu_net_has_bound_one():
    assert bound(nn.Sequential(linear([1.0]), LinearSpline(1, 5, 1.0, init="relu")), 1) == pytest.approx(1)


@pytest.mark.parametrize(
    ("body", "shortcut", "expected"),
    [
        (linear([2, 0], [0, 1]), nn.Identity(), 3.0),
        (linear([2, 0], [0, 1]), linear([0, 0], [0, 0.5]), 2.5),
        (nn.Sequential(linear([2, 0], [0, 1]), linear([3, 0], [0, 1])), nn.Identity(), 7.0),
        (linear([0, 0], [0, 0]), linear([0, 0], [0, 0]), 0.0),
        (Residual(nn.Identity(), nn.Identity()), nn.Identity(), 3.0),
    ],
)
def test_residual_is_the_sum_of_its_branches(body, shortcut, expected):
    net = Residual(body, shortcut).double()
    assert bound(net, 2) == pytest.approx(expected)
    assert operator_norm(net, 2) <= bound(net, 2) + 1e-9


def test_sum_of_huge_branches_does_not_overflow():
    huge = nn.Sequential(*[linear([1e200]) for _ in range(3)])
    report = lipschitz_bound(Residual(huge, nn.Identity()), (1,))
    assert report.log_total == pytest.approx(600 * math.log(10))


def test_branches_that_broadcast_are_not_bounded_by_their_sum():
    net = Residual(nn.AdaptiveAvgPool2d(1), nn.Identity())
    assert bound(net, 1, 4, 4) >= operator_norm(net, 1, 4, 4)  # 2, the factors are 1/4 and 1


def test_a_layer_used_twice_counts_twice():
    layer = linear([3.0])
    assert bound(nn.Sequential(layer, layer), 1) == pytest.approx(9)


def test_a_layer_used_again_after_a_change_of_shape_is_bounded_for_every_shape():
    activation = ReLU(2)
    net = nn.Sequential(nn.Conv2d(1, 2, 3), activation, nn.Conv2d(2, 2, 3), activation, nn.Flatten(), nn.Linear(8, 1))
    assert [layer.path for layer in lipschitz_bound(net, (1, 6, 6)).layers] == ["0", "1", "2", "3", "4", "5"]


def test_report_lists_every_leaf_in_order_of_evaluation():
    net = nn.Sequential(linear([2.0]), Residual(nn.Sequential(linear([3.0]), ReLU(1)), nn.Identity()))
    report = lipschitz_bound(net, (1,))
    assert [(layer.path, layer.kind) for layer in report.layers] == [
        ("0", "Linear"),
        ("1.body.0", "Linear"),
        ("1.body.1", "ReLU"),
        ("1.shortcut", "Identity"),
    ]
    assert [layer.value for layer in report.layers] == pytest.approx([2, 3, 1, 1])
    assert report.total == pytest.approx(8)
    assert report.unbounded == ()


def test_parametrised_weight_is_looked_through():
    class Triple(nn.Module):
        def forward(self, weight):
            return 3 * weight

    layer = linear([2.0])
    parametrize.register_parametrization(layer, "weight", Triple())
    assert bound(nn.Sequential(layer), 1) == pytest.approx(6)


def test_claims_of_the_reference_code_that_fail_hold_here():
    conv = nn.Conv2d(1, 1, 3, padding=1)
    nn.init.ones_(conv.weight)
    wide = linear(*[[1.0]] * 100)
    batch = nn.BatchNorm1d(1)
    batch.running_var.fill_(1e-4)
    image, point = torch.ones(1, 1, 16, 16), torch.ones(1, 1)
    for net, x, observed in (
        (nn.Sequential(conv, LinearSpline(1, 5, 1.0, init="relu")), image, 8.4),
        (wide, point, 10.0),
        (batch.double(), point, 95.3),
    ):
        lower = lipschitz_lower(nn.Sequential(net, nn.Flatten()), x)
        assert lower >= observed
        assert lower <= bound(net, *x.shape[1:]) <= 1.1 * lower


def test_product_beyond_float_range_is_finite_in_the_logarithm():
    report = lipschitz_bound(nn.Sequential(*[linear([1e3]) for _ in range(400)]), (1,))
    assert report.total == INF
    assert report.unbounded == ()
    assert report.log_total == pytest.approx(1200 * math.log(10))


def test_product_below_float_range_is_finite_in_the_logarithm():
    report = lipschitz_bound(nn.Sequential(*[linear([1e-3]) for _ in range(400)]), (1,))
    assert report.log_total == pytest.approx(-1200 * math.log(10))


@pytest.mark.parametrize("position", range(3))
def test_a_zero_layer_makes_the_bound_zero(position):
    layers = [linear([2.0]) for _ in range(3)]
    nn.init.zeros_(layers[position].weight)
    report = lipschitz_bound(nn.Sequential(*layers), (1,))
    assert (report.total, report.log_total) == (0, -INF)


def test_unbounded_wins_over_zero():
    assert bound(nn.Sequential(linear([0.0]), nn.Hardshrink()), 1) == INF
    assert bound(nn.Sequential(nn.Hardshrink(), linear([0.0])), 1) == INF


@pytest.mark.parametrize("value", [float("nan"), INF, -INF])
@pytest.mark.parametrize(
    ("layer", "name", "input_shape"),
    [
        (nn.Linear(2, 2), "weight", (2,)),
        (nn.Conv2d(2, 2, 3), "weight", (2, 4, 4)),
        (nn.BatchNorm2d(2), "weight", (2, 4, 4)),
        (BatchNorm(2), "batch_norm.weight", (2,)),
        (Unitize(2), "weight", (2,)),
        (Unitize(2), "alpha", (2,)),
        (LinearSpline(2, 5), "coefficients", (2,)),
        (LinearSpline(2, 5, linear_term=True), "linear", (2,)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
)
def test_weights_that_are_not_finite_bound_nothing(layer, name, input_shape, value):
    layer = nn.Sequential(layer).double()
    parameter = layer[0].get_parameter(name)
    with torch.no_grad():
        kept = parameter.clone()
        parameter.view(-1)[1] = value
    report = lipschitz_bound(layer, input_shape)
    with torch.no_grad():
        parameter.copy_(kept)
    assert report.total == INF
    assert [message.partition(":")[0] for message in report.unbounded] == [f"0 ({type(layer[0]).__name__}"]


@pytest.mark.parametrize("p", [3, 0, -1, 1.5])
def test_other_exponents_are_refused(p):
    net = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=f"p={p}"):
        lipschitz_bound(net, (2,), p=p)
    with pytest.raises(ValueError, match=f"p={p}"):
        lipschitz_lower(net, torch.zeros(1, 2), p=p)


# --- normalizers ------------------------------------------------------------------------------------------------------


def largest_jacobian(layer, x):
    """Largest spectral norm of the layer's Jacobian over a batch."""
    return lipschitz_lower(nn.Sequential(layer, nn.Flatten()), x)


def normalised_points(layer, shape, seed=0):
    """Inputs whose normalised values are random on many scales, the origin first, (N, *shape)."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(60, *shape, generator=generator) * torch.logspace(-5, 1, 60).view(-1, *[1] * len(shape))
    z[0] = 0
    column = [-1, *[1] * (len(shape) - 1)]
    norm = layer.batch_norm
    return norm.running_mean.view(column) + z * (norm.running_var + norm.eps).sqrt().view(column)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("norm_axes", ["sample", "pixel"])
@pytest.mark.parametrize("norm_scale", ["official", "l2", "per_pixel", "rms"])
@pytest.mark.parametrize("shape", [(3,), (3, 2, 2)])
def test_unitize_bound_is_never_below_a_jacobian(seed, norm_axes, norm_scale, shape):
    torch.manual_seed(seed)
    layer = randomised(Unitize(3, eps=0.01, norm_axes=norm_axes, norm_scale=norm_scale)).eval()
    assert largest_jacobian(layer, normalised_points(layer, shape, seed)) <= bound(layer, *shape) * (1 + 1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_unitize_bound_holds_where_gradient_ascent_leads(seed):
    torch.manual_seed(seed)
    layer = randomised(Unitize(2, eps=0.1)).eval()
    x, y = (normalised_points(layer, (2,), s)[1:].requires_grad_() for s in (seed, seed + 10))
    optimizer = torch.optim.Adam([x, y], lr=0.02)
    for _ in range(100):
        optimizer.zero_grad()
        ratio = (layer(x) - layer(y)).norm(dim=1) / (x - y).norm(dim=1).clamp(min=1e-6)
        (-ratio.log().sum()).backward()
        optimizer.step()
    assert 0.5 * bound(layer, 2) <= ratio.max() <= bound(layer, 2) * (1 + 1e-9)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("shape", [(3,), (3, 2, 2)])
@pytest.mark.parametrize("norm_axes", ["sample", "pixel"])
def test_unitize_bound_is_attained_at_the_normalised_origin_for_one_alpha(alpha, shape, norm_axes):
    layer = Unitize(3, norm_axes=norm_axes).eval()
    nn.init.constant_(layer.alpha, alpha)
    nn.init.constant_(layer.weight, -1.7)
    layer.batch_norm.running_mean.normal_()
    layer.batch_norm.running_var.fill_(0.4)
    origin = normalised_points(layer, shape)[:1]
    assert largest_jacobian(layer, origin) == pytest.approx(bound(layer, *shape), rel=1e-10)


def test_unitize_bound_for_alpha_zero_is_batch_normalisations():
    layer, batch = randomised(Unitize(5, eps=1e-3)), BatchNorm(5, eps=1e-3)
    nn.init.zeros_(layer.alpha)
    batch.batch_norm.load_state_dict({**layer.batch_norm.state_dict(), "weight": layer.weight, "bias": layer.bias})
    assert bound(layer, 5) == pytest.approx(bound(batch, 5), rel=1e-12)


# --- rounding of the bound itself -------------------------------------------------------------------------------------


def offset_spline(channels):
    """Large values and small slopes, a part of them in the linear term."""
    spline = randomised(LinearSpline(channels, 51, 3.7, linear_term=True))
    with torch.no_grad():
        spline.coefficients.mul_(0.01).add_(1000)
    return spline


@pytest.mark.parametrize("make", [BatchNorm, Unitize, lambda c: LinearSpline(c, 51, 3.7), offset_spline])
def test_bound_of_a_float32_layer_is_not_below_that_of_its_stored_parameters(make):
    for _ in range(20):
        layer = make(4).float()
        if make is not offset_spline:
            randomised(layer)
        assert bound(layer, 4) >= bound(layer.double(), 4) * (1 - 1e-12)


@pytest.mark.parametrize(
    "make",
    [lambda: LeakyReLU(1, 1.3), lambda: LeakyReLU(1, -1.3), lambda: ELU(1, 1.3)],
    ids=["leaky_relu", "negative_leaky_relu", "elu"],
)
@pytest.mark.parametrize("default", [torch.float32, torch.float64])
def test_slopes_of_a_float64_net_are_not_rounded_to_the_default_dtype(make, default):
    net = nn.Sequential(linear([1.0]), make())
    torch.set_default_dtype(default)
    assert bound(net, 1) >= 1.3


# --- scaling laws -----------------------------------------------------------------------------------------------------


def spline_net():
    """Two hidden layers of randomised splines."""
    factory = LayerFactory(lambda c: randomised(LinearSpline(c, 7, 2.0)), BatchNorm, no_weight_norm)
    return mlp(factory, (3,), 2, widths=(4, 5))


@pytest.mark.parametrize("factor", [0.1, -3.0])
@pytest.mark.parametrize("layer", [1, 4, 7])
def test_scaling_a_weight_scales_the_bound(factor, layer):
    net = spline_net()
    before = bound(net, 3)
    with torch.no_grad():
        net[layer].weight *= factor
    assert bound(net, 3) == pytest.approx(abs(factor) * before)


def test_biases_and_shifts_do_not_matter():
    net = spline_net()
    before = bound(net, 3)
    with torch.no_grad():
        for module in net:
            for name in ("bias", "running_mean"):
                if getattr(getattr(module, "batch_norm", module), name, None) is not None:
                    getattr(getattr(module, "batch_norm", module), name).normal_()
    assert bound(net, 3) == pytest.approx(before)


def test_order_of_neurons_does_not_matter():
    net = randomised(mlp(LayerFactory(lambda c: LinearSpline(c, 7, 2.0), BatchNorm, no_weight_norm), (3,), 2, (5,)))
    x = torch.randn(4, 3)
    before, value = bound(net, 3), net.eval()(x)
    order = torch.tensor([3, 0, 4, 1, 2])
    norm, head = net[2].batch_norm, net[4]
    with torch.no_grad():
        for tensor in (net[1].weight, norm.weight, norm.bias, norm.running_mean, norm.running_var, net[3].coefficients):
            tensor.copy_(tensor[order].clone())
        head.weight.copy_(head.weight[:, order].clone())
    torch.testing.assert_close(net(x), value)
    assert bound(net, 3) == pytest.approx(before)


def test_moving_a_scale_from_the_spline_to_the_next_layer_does_not_matter():
    net = spline_net()
    before = bound(net, 3)
    with torch.no_grad():
        net[3].coefficients *= 5
        net[4].weight /= 5
    assert bound(net, 3) == pytest.approx(before)


# --- lower bound and side effects -------------------------------------------------------------------------------------


def test_lower_bound_of_a_linear_net_is_its_operator_norm():
    net = nn.Linear(5, 3)
    assert lipschitz_lower(net, torch.randn(4, 5)) == pytest.approx(operator_norm(net, 5))


def test_lower_bound_is_the_largest_over_the_batch():
    net = LeakyReLU(1, 0.5)
    assert lipschitz_lower(net, torch.tensor([[-1.0], [-2.0]])) == pytest.approx(0.5)
    assert lipschitz_lower(net, torch.tensor([[-1.0], [2.0], [-3.0]])) == pytest.approx(1.0)


@pytest.mark.parametrize("context", [torch.inference_mode, torch.no_grad])
def test_lower_bound_works_without_gradients_around_it(context):
    net = nn.Sequential(nn.Linear(5, 3), ReLU(3), BatchNorm(3))
    x = torch.randn(4, 5)
    expected = lipschitz_lower(net, x)
    with context():
        assert lipschitz_lower(net, x.clone()) == pytest.approx(expected)
        assert lipschitz_bound(net, (5,)).total >= expected
        assert torch.is_inference_mode_enabled() == (context is torch.inference_mode)


@pytest.mark.parametrize(
    "look", [lambda net, x: lipschitz_bound(net, x.shape[1:]), lipschitz_lower], ids=["bound", "lower"]
)
def test_looking_changes_nothing(look):
    net = nn.Sequential(
        convnet(LayerFactory(lambda c: LinearSpline(c, 7), Unitize, no_weight_norm), (1, 6, 6), 4, widths=(2, 3)),
        nn.Dropout(),
        nn.BatchNorm1d(4),
    ).double()
    x = torch.randn(5, 1, 6, 6)
    net(x).sum().backward()
    net[1].eval()
    net[0][1].batch_norm.eval()

    def state():
        tensors = [*net.state_dict().values(), *(p.grad for p in net.parameters()), torch.get_rng_state(), x]
        return [tensor.clone() for tensor in tensors], [module.training for module in net.modules()]

    tensors, flags = state()
    look(net, x)
    tensors_after, flags_after = state()
    assert True in flags
    assert False in flags
    assert flags_after == flags
    for before, after in zip(tensors, tensors_after, strict=True):
        assert torch.equal(after, before)
    assert not x.requires_grad


def test_training_flags_come_back_after_an_error():
    net = nn.Sequential(nn.Linear(3, 3), nn.Dropout())
    with pytest.raises(ValueError, match="shape"):
        lipschitz_bound(net, (4,))
    assert all(module.training for module in net.modules())


def test_bound_of_a_float32_net_is_that_of_its_stored_weights():
    net = nn.Linear(6, 5).float()
    assert bound(net, 6) >= float(torch.linalg.svdvals(net.weight.detach().double())[0])


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_a_layer_with_hooks_is_unbounded(register):
    layer = linear([1.0])
    getattr(layer, register)(lambda *_: None)
    report = lipschitz_bound(nn.Sequential(layer), (1,))
    assert report.total == math.inf
    assert report.unbounded == ("0 (Linear: with hooks or patched methods)",)


def test_a_layer_whose_forward_was_replaced_is_unbounded():
    layer = linear([1.0])
    layer.forward = lambda x: 5 * x
    for net in (layer, nn.Sequential(layer)):
        report = lipschitz_bound(net, (1,))
        assert report.total == INF
        assert len(report.unbounded) == 1


def test_lower_of_a_diverged_network_is_nan():
    assert math.isnan(lipschitz_lower(linear([math.nan]), torch.ones(2, 1)))


# --- images as outputs, and large images ------------------------------------------------------------------------------


def image_net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), LinearSpline(3, num_knots=9, init="leaky_relu"), nn.Conv2d(3, 1, 3, padding=1)
    ).double()


def test_observed_value_of_a_net_with_images_as_outputs_is_below_the_jacobians_and_close():
    net, x = image_net(), torch.randn(3, 1, 6, 6, dtype=torch.float64)
    exact = max(
        torch.linalg.matrix_norm(
            torch.autograd.functional.jacobian(lambda y: net(y[None])[0], image).view(36, 36), ord=2
        ).item()
        for image in x
    )
    observed = lipschitz_lower(net, x)
    assert 0.9 * exact <= observed <= exact * (1 + 1e-12)
    assert observed <= lipschitz_bound(net, (1, 6, 6)).total


def test_observing_images_leaves_no_gradients_behind():
    net = image_net()
    lipschitz_lower(net, torch.randn(2, 1, 6, 6, dtype=torch.float64))
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize(("size", "dilation"), [(2, 1), (3, 1), (3, 2), (5, 1), (7, 1)])
def test_large_images_take_a_coarse_grid_that_still_bounds(size, dilation, monkeypatch):
    kernel = torch.randn(3, 2, size, size, dtype=torch.float64)
    coarse = conv2d_norm(kernel, (300, 90), dilation)
    monkeypatch.setattr("tautnet.functional.operator_norm._MOST_FREQUENCIES", 10_000)
    fine = conv2d_norm(kernel, (300, 90), dilation)
    assert fine <= coarse <= 1.03 * fine


def test_the_allowance_between_frequencies_is_needed_and_exact(monkeypatch):
    """|1 - e^{2iw}| = 2 |sin w| peaks at pi / 2, midway between two points of a grid of 10."""
    for name in ("_MOST_FREQUENCIES", "_LEAST_FREQUENCIES"):
        monkeypatch.setattr(f"tautnet.functional.operator_norm.{name}", 10)
    kernel = torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64).view(1, 1, 1, 3)
    assert conv2d_norm(kernel, (1, 1000)) == pytest.approx(2, rel=1e-9)
