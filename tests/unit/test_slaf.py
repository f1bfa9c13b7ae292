"""SLAF against its formula, exact values of its initial functions, and boxes that contain what they have to."""

import re
from itertools import product
from math import factorial, inf, nan, pi, sqrt
from typing import get_args

import pytest
import torch
from torch import nn

from tautnet.activations import Slaf
from tautnet.activations.slaf_init import FitTo
from tautnet.functional.bases import elements
from tautnet.kernels import polynomial as native
from tautnet.lipschitz import lipschitz_bound
from tautnet.lipschitz.local import local_lipschitz_bound
from tautnet.optim.roles import parameters_by_role
from tautnet.splines.plot import plot_activation

pytestmark = pytest.mark.usefixtures("float64")

POLYNOMIALS = ["power", "taylor", "chebyshev", "legendre", "hermite"]
BASES = [*POLYNOMIALS, "fourier"]
NORMALIZE = ["basis", "input", "maxabs", "none"]
SHAPES = [(64, 3), (16, 3, 5), (8, 3, 2, 4)]


@torch.no_grad()
def randomised(slaf):
    """Random parameters and running statistics, in eval mode."""
    for parameter in slaf.parameters():
        parameter.normal_()
    for name, buffer in slaf.named_buffers():
        if name.endswith("mean"):
            buffer.normal_()
        elif name.endswith(("var", "max")):
            buffer.uniform_(0.1, 3)
    return slaf.eval()


def with_coefficients(slaf, bias, *coefficients):
    with torch.no_grad():
        slaf.coefficients.copy_(torch.tensor(coefficients))
        slaf.bias.fill_(bias)
    return slaf


def by_formula(slaf, x):
    """The definition, in training mode, channel by channel."""
    results = []
    gate = 1 if slaf.gate_logits is None else slaf.gate_logits.sigmoid()
    for c, z in enumerate(x.unbind(1)):
        if slaf.normalize == "input":
            z = (z - z.mean()) / (z.var(correction=0) + slaf.eps).sqrt()
        elif slaf.normalize == "maxabs":
            z = z / (slaf.scale * z.abs().max() + slaf.eps)
        values = elements(z, slaf.basis, slaf.degree)
        if slaf.normalize == "basis":
            values = [(e - e.mean()) / (e.var(correction=0) + slaf.eps).sqrt() for e in values]
        terms = zip(gate * slaf.coefficients[c], values, strict=True)
        results.append(slaf.bias[c] + sum(weight * value for weight, value in terms))
    y = torch.stack(results, dim=1)
    return y + torch.relu(x) if slaf.hybrid == "relu" else y


# --- values -----------------------------------------------------------------------------------------------------------


def test_exact_values_without_normalisation():
    slaf = with_coefficients(Slaf(1, 2, normalize="none"), 1.0, [2.0, 3.0])
    x = torch.tensor([-2.0, -1, 0, 1, 2]).view(5, 1)
    assert slaf(x).flatten().tolist() == [9, 2, 1, 6, 17]
    assert slaf.eval()(x).flatten().tolist() == [9, 2, 1, 6, 17]
    assert slaf.function().polynomial().tolist() == [[1, 2, 3]]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("basis", "normalize"), list(product(BASES, NORMALIZE)))
def test_training_follows_the_formula(basis, normalize, shape):
    for gate, hybrid in ((False, "none"), (True, "relu")):
        slaf = randomised(Slaf(3, 4, basis, normalize, gate=gate, hybrid=hybrid)).train()
        x = 0.3 + torch.randn(shape)
        torch.testing.assert_close(slaf(x), by_formula(slaf, x), rtol=1e-9, atol=1e-9)


def test_a_channels_mean_is_its_bias_and_scaling_the_input_changes_nothing():
    slaf = randomised(Slaf(3, 4, eps=1e-12)).train()
    x = torch.randn(64, 3, 5)
    y = slaf(x)
    torch.testing.assert_close(y.mean((0, 2)), slaf.bias, rtol=0, atol=1e-12)
    torch.testing.assert_close(slaf(7 * x), y, rtol=1e-8, atol=1e-8)
    with torch.no_grad():
        slaf.coefficients[:, ::2].neg_()
    torch.testing.assert_close(slaf(-7 * x), y, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("basis", "normalize"), list(product(BASES, NORMALIZE)))
def test_eval_mode_uses_the_running_statistics_and_updates_nothing(basis, normalize):
    slaf = randomised(Slaf(3, 3, basis, normalize))
    before = {name: buffer.clone() for name, buffer in slaf.named_buffers()}
    z = torch.randn(20, 3)
    y = slaf(z)
    mean, deviation = 0.0, 1.0
    if normalize == "maxabs":
        deviation = slaf.scale * slaf.running_max + slaf.eps
    elif normalize == "input":
        mean, deviation = slaf.batch_norm.running_mean, (slaf.batch_norm.running_var + slaf.eps).sqrt()
    values = torch.stack(elements((z - mean) / deviation, basis, 3), dim=2)
    if normalize == "basis":
        values = slaf.batch_norm(values.flatten(1)).view_as(values)
    torch.testing.assert_close(y, (values * slaf.coefficients).sum(2) + slaf.bias, rtol=1e-10, atol=1e-10)
    assert all(torch.equal(buffer, before[name]) for name, buffer in slaf.named_buffers())
    points = torch.randn(9)
    torch.testing.assert_close(slaf.curves(points).T, slaf(points.view(9, 1).expand(9, 3)))
    if basis != "fourier":
        powers = torch.stack([z**p for p in range(4)], dim=2)
        torch.testing.assert_close((powers * slaf.function().polynomial()).sum(2), y, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("basis", ["power", "legendre"])
@pytest.mark.parametrize("momentum", [0.1, 1.0, None])
def test_running_statistics_are_those_that_torch_keeps(basis, momentum):
    slaf, twin = Slaf(3, 3, basis), nn.BatchNorm1d(9, affine=False, momentum=momentum)
    slaf.batch_norm.momentum = momentum
    for _ in range(3):
        x = torch.randn(16, 3, 5)
        slaf(x)
        twin(torch.stack(elements(x, basis, 3), dim=2).flatten(1, 2))
    for name, buffer in twin.named_buffers():
        torch.testing.assert_close(slaf.batch_norm.get_buffer(name), buffer, rtol=1e-10, atol=1e-12)


def test_the_running_maximum_and_a_frozen_normaliser():
    slaf, x = Slaf(2, normalize="maxabs", momentum=0.25), torch.randn(8, 2, 3)
    slaf(x)
    torch.testing.assert_close(slaf.running_max, 3 + 0.25 * x.abs().amax((0, 2)))
    slaf = randomised(Slaf(2)).train()
    expected = slaf.eval()(x)
    slaf.train().batch_norm.eval()
    torch.testing.assert_close(slaf(x), expected)
    assert slaf.batch_norm.num_batches_tracked == 0


@pytest.mark.parametrize("basis", ["power", "chebyshev"])
def test_recalibration_of_the_statistics_is_idempotent(basis):
    net, batches = nn.Sequential(nn.Linear(4, 6), Slaf(6, 3, basis), nn.Linear(6, 1)), list(torch.randn(5, 32, 4))
    states = []
    for _ in range(2):
        torch.optim.swa_utils.update_bn(batches, net)
        states.append({name: buffer.clone() for name, buffer in net.named_buffers()})
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    mean = net[1].batch_norm.running_mean.view(6, 3)
    torch.testing.assert_close(mean[:, 1], elements(net[0](torch.cat(batches)), basis, 3)[1].mean(0))


# --- sharing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("normalize", NORMALIZE)
def test_one_curve_for_the_layer_has_statistics_over_all_channels(normalize, shape):
    shared, single = Slaf(3, 3, normalize=normalize, sharing="layer"), Slaf(1, 3, normalize=normalize)
    single.load_state_dict(shared.state_dict())
    x = torch.randn(shape)
    for mode in (True, False):
        y = shared.train(mode)(x)
        torch.testing.assert_close(y, single.train(mode)(x.reshape(-1, 1)).view(shape), rtol=1e-10, atol=1e-10)
    assert shared.coefficients.shape == (1, 3)
    assert shared.slope_range()[0].shape == (3,)


def test_one_curve_a_neuron():
    slaf = randomised(Slaf(2, 3, sharing="neuron", spatial_shape=(3, 2)))
    channels = Slaf(12, 3)
    channels.load_state_dict(slaf.state_dict())
    x = torch.randn(16, 2, 3, 2)
    for mode in (True, False):
        torch.testing.assert_close(slaf.train(mode)(x), channels.train(mode)(x.flatten(1)).view_as(x))
    assert slaf.coefficients.shape == (12, 3)
    assert slaf.slope_range()[0].shape == (2,)
    low, high = slaf.interval(x, x + 1)
    assert low.shape == high.shape == x.shape
    with pytest.raises(ValueError, match="sharing=neuron"):
        slaf(torch.randn(4, 2, 2, 3))


@pytest.mark.parametrize("sharing", ["channel", "layer"])
@pytest.mark.parametrize("basis", ["power", "hermite"])
def test_memory_layouts_give_the_same(sharing, basis):
    slaf = Slaf(3, 3, basis, sharing=sharing)
    x = torch.randn(4, 3, 5, 6)
    for mode in (True, False):
        expected = slaf.train(mode)(x)
        torch.testing.assert_close(slaf(x.to(memory_format=torch.channels_last)), expected, rtol=1e-10, atol=1e-10)


def test_parameter_counts_and_roles():
    count = {name: p.numel() for name, p in Slaf(5, 4, gate=True, normalize="maxabs").named_parameters()}
    assert count == {"coefficients": 20, "bias": 5, "gate_logits": 4, "scale": 1}
    assert sum(p.numel() for p in Slaf(5, 3).parameters()) == 5 * (3 + 1)
    assert sum(p.numel() for p in Slaf(5, 3, sharing="layer").parameters()) == 3 + 1
    assert sum(p.numel() for p in Slaf(5, 3, "fourier", bias=False).parameters()) == 5 * 6
    assert set(parameters_by_role(Slaf(5, gate=True, normalize="maxabs"))) == {"activation"}


# --- initial functions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize(("basis", "normalize"), list(product(POLYNOMIALS, NORMALIZE)))
def test_identity(basis, normalize, gate):
    slaf = Slaf(3, 4, basis, normalize, init="identity", gate=gate).eval()
    x = torch.randn(10, 3, requires_grad=True)
    y = slaf(x)
    tolerance = 0 if normalize == "none" else 1e-12
    torch.testing.assert_close(y, x, rtol=0, atol=tolerance)
    torch.testing.assert_close(torch.autograd.grad(y.sum(), x)[0], torch.ones(10, 3), rtol=0, atol=tolerance)
    lo, hi = slaf.slope_range()  # a straight line
    torch.testing.assert_close(torch.stack([lo, hi]), torch.ones(2, 3), rtol=0, atol=tolerance)
    assert slaf.tv2().tolist() == [0] * 3


RELU_2 = [1 / (2 * sqrt(2 * pi)), 0.5, 1 / (2 * sqrt(2 * pi))]
RELU_4 = [0.149603, 0.5, 0.299207, 0.0, -0.016623]


@pytest.mark.parametrize("normalize", NORMALIZE)
@pytest.mark.parametrize("basis", POLYNOMIALS)
def test_the_fit_to_relu_is_the_known_one(basis, normalize):
    for degree, expected in ((2, RELU_2), (4, RELU_4)):
        slaf = Slaf(2, degree, basis, normalize, init="fit", gate=True)
        torch.testing.assert_close(slaf.function().polynomial(), torch.tensor([expected] * 2), rtol=0, atol=1e-6)
    z = torch.linspace(-8, 8, 4001)
    density = torch.exp(-z.square() / 2) / torch.exp(-z.square() / 2).sum()
    mse = ((slaf.curves(z)[0] - torch.relu(z)).square() @ density).item()
    assert mse == pytest.approx(0.0046, abs=5e-5)  # and 0.0112 for degree 2


def test_fits_to_other_functions_and_with_other_parts():
    z = torch.linspace(-2, 2, 41)
    slaf = Slaf(1, 7, init="fit", fit_to="tanh")
    torch.testing.assert_close(slaf.curves(z)[0], z.tanh(), rtol=0, atol=0.04)
    near = z[z.abs() <= 1]
    fourier = Slaf(1, 4, "fourier", init="fit", fit_to="sigmoid")
    torch.testing.assert_close(fourier.curves(near)[0], near.sigmoid(), rtol=0, atol=0.1)
    # the rest of a hybrid: of ReLU to itself nothing
    hybrid = Slaf(1, 4, init="fit", hybrid="relu").eval()
    torch.testing.assert_close(hybrid(z.view(-1, 1))[:, 0], z.relu(), rtol=0, atol=1e-6)
    # without a constant the elements have mean 0 under N(0, 1), and so has the fit
    slaf = Slaf(1, 2, init="fit", bias=False)
    expected = torch.tensor([[-RELU_2[2], 0.5, RELU_2[2]]])
    torch.testing.assert_close(slaf.function().polynomial(), expected, rtol=0, atol=1e-5)


def test_a_fit_is_kept_in_training_on_normal_inputs():
    slaf, x = Slaf(1, 4, init="fit"), torch.randn(200_000, 1)
    torch.testing.assert_close(slaf(x), slaf.eval()(x), rtol=0.05, atol=0.05)


def test_official_start():
    torch.manual_seed(0)
    slaf = Slaf(4000, 3, gate=True)
    assert (slaf.bias == 0.1).all()
    torch.testing.assert_close(slaf.coefficients.mean(0), torch.tensor([1.0, 0, 0]), rtol=0, atol=0.05)
    torch.testing.assert_close(slaf.coefficients.std(0), torch.ones(3), rtol=0, atol=0.05)
    assert slaf.gate_logits.std() > 0.1
    assert (slaf.batch_norm.running_mean == 0).all()
    assert (slaf.batch_norm.running_var == 1).all()


# --- a network of them ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("degree", "depth"), [(2, 1), (2, 2), (3, 1), (4, 1), (2, 3)])
def test_a_network_is_a_polynomial_of_degree_k_to_the_depth(degree, depth):
    """Along a line: interpolation at Chebyshev nodes leaves nothing at k^L, and something below."""
    torch.manual_seed(1)
    net = nn.Sequential(*[part for _ in range(depth) for part in (nn.Linear(4, 4), randomised(Slaf(4, degree)))])
    start, direction = torch.randn(2, 1, 4)
    total = degree**depth
    nodes = torch.cos(pi * (torch.arange(total + 8) + 0.5) / (total + 8))
    with torch.no_grad():
        values = net(start + nodes.unsqueeze(1) * direction)
    vandermonde = torch.cos(nodes.arccos().unsqueeze(1) * torch.arange(total + 8))
    coefficients = torch.linalg.solve(vandermonde, values).abs().amax(1) / values.abs().max()
    assert coefficients[total + 1 :].max() < 1e-12
    if depth == 1 or degree == 2:
        assert coefficients[total] > 1e-9


# --- bounds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hybrid", ["none", "relu"])
@pytest.mark.parametrize(("basis", "normalize"), list(product(BASES, NORMALIZE)))
def test_boxes_contain_values_and_slopes(basis, normalize, hybrid):
    for degree in (1, 2, 4, 7):
        slaf = randomised(Slaf(3, degree, basis, normalize, gate=True, hybrid=hybrid))
        lo = 2 * torch.randn(50, 3)
        hi = lo + torch.rand(50, 3) * torch.logspace(-5, 0.8, 50).unsqueeze(1)
        low, high = slaf.interval(lo, hi)
        least, most = slaf.local_slope_range(lo, hi)
        globally = slaf.slope_range()
        shares = torch.cat([torch.tensor([0.0, 1.0]), torch.rand(40)]).view(-1, 1, 1)
        x = torch.minimum(lo + (hi - lo) * shares, hi).requires_grad_()
        y = slaf(x.flatten(0, 1)).view_as(x)
        (slope,) = torch.autograd.grad(y.sum(), x)
        assert ((low <= y) & (y <= high)).all()
        allowed = 1e-12 * (1 + slope.abs())
        assert ((least - allowed <= slope) & (slope <= most + allowed)).all()
        assert ((globally[0] - allowed <= slope) & (slope <= globally[1] + allowed)).all()


def test_global_slopes():
    slaf = with_coefficients(Slaf(3, 3, normalize="none"), 0.5, [2.0, 0, 0], [-1.0, 0, 1e-300], [0.0, 0, 0])
    lo, hi = slaf.slope_range()
    assert (lo.tolist(), hi.tolist()) == ([2, -inf, 0], [2, inf, 0])
    assert slaf.tv2().tolist() == [0, inf, 0]
    assert slaf.lipschitz_constant(2) == inf
    assert slaf.bv2()[0] == 0.5 + 2.5
    lo, hi = slaf.local_slope_range(torch.full((1, 3), -inf), torch.full((1, 3), inf))
    assert (lo.tolist(), hi.tolist()) == ([[2, -inf, 0]], [[2, inf, 0]])
    fourier = with_coefficients(Slaf(1, 2, "fourier", normalize="none", hybrid="relu"), 0.0, [1.0, 0, 2.0, 0])
    lo, hi = fourier.slope_range()
    assert (lo.item(), hi.item()) == (pytest.approx(-2.5 * pi), pytest.approx(2.5 * pi + 1))
    assert fourier.tv2().item() == inf
    line = with_coefficients(Slaf(1, 1, normalize="none", hybrid="relu"), 0.0, [3.0])
    assert [end.item() for end in line.slope_range()] == [3, 4]
    assert line.tv2().item() == 1
    low, high = line.interval(torch.tensor([[1.0], [-2.0]]), torch.tensor([[2.0], [-1.0]]))
    torch.testing.assert_close(torch.cat([low, high], 1), torch.tensor([[4.0, 8.0], [-6.0, -3.0]]))


def test_statistics_make_no_difference_to_a_bound_read_in_training_mode():
    slaf = randomised(Slaf(2, 3))
    lo, hi = torch.randn(4, 2), 3 + torch.rand(4, 2)
    expected = [*slaf.interval(lo, hi), *slaf.local_slope_range(lo, hi), slaf.bv2()]
    before = slaf.batch_norm.running_mean.clone()
    slaf.train()
    found = [*slaf.interval(lo, hi), *slaf.local_slope_range(lo, hi), slaf.bv2()]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert torch.equal(slaf.batch_norm.running_mean, before)


@pytest.mark.parametrize("basis", ["power", "legendre", "fourier"])
def test_a_network_is_bounded_near_a_sample_alone(basis):
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(3, 8), randomised(Slaf(8, 3, basis)), nn.Linear(8, 8), randomised(Slaf(8, 2, basis)))
    report = lipschitz_bound(net, (3,))
    if basis == "fourier":
        assert report.total < inf
    else:
        assert report.total == inf
        assert len(report.unbounded) == 2
    x, radius = torch.randn(6, 3), 0.05
    for p in (1, 2, inf):
        local = local_lipschitz_bound(net, x, radius, p)
        assert local.isfinite().all()
        for _ in range(50):
            a, b = (x + radius * nn.functional.normalize(torch.randn(6, 3), p=p) * torch.rand(6, 1) for _ in range(2))
            ratio = (net(a) - net(b)).norm(p, dim=1) / (a - b).norm(p, dim=1)
            assert (ratio <= local).all()
    jacobian = torch.autograd.functional.jacobian(lambda x: net(x).sum(0), x).transpose(0, 1)
    truth = torch.linalg.matrix_norm(jacobian, ord=2)
    near = local_lipschitz_bound(net, x, 1e-7, 2)
    assert (near >= truth).all()
    assert (near <= 1.001 * truth).all()


def test_boxes_have_gradients():
    slaf = randomised(Slaf(2, 3, gate=True))
    lo, width = torch.randn(3, 2, requires_grad=True), (0.1 + torch.rand(3, 2)).requires_grad_()
    parameters = dict(slaf.named_parameters())

    def ends(lo, width, *values):
        found = torch.func.functional_call(slaf, dict(zip(parameters, values, strict=True)), (lo, lo + width))
        return tuple(found)

    slaf.forward = lambda lo, hi: (*slaf.interval(lo, hi), *slaf.local_slope_range(lo, hi))
    assert torch.autograd.gradcheck(ends, (lo, width, *parameters.values()))


# --- derivatives, dtypes, states --------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("basis", "normalize"), [*product(BASES, ["basis"]), *product(["power"], NORMALIZE)])
def test_gradients(basis, normalize, training):
    slaf = randomised(Slaf(2, 3, basis, normalize, gate=True)).train(training)
    names, values = zip(*slaf.named_parameters(), strict=True)

    def function(x, *values):
        return torch.func.functional_call(slaf, dict(zip(names, values, strict=True)), (x,))

    x = torch.randn(5, 2, 2, requires_grad=True)
    assert torch.autograd.gradcheck(function, (x, *values))


@pytest.mark.parametrize(
    ("dtype", "low_precision_layer"), [(torch.float16, False), (torch.bfloat16, False), (torch.bfloat16, True)]
)
@pytest.mark.parametrize("normalize", NORMALIZE)
def test_16_bit_inputs_keep_powers_in_float32(normalize, dtype, low_precision_layer):
    slaf = Slaf(3, 7, normalize=normalize, init="fit").float()
    x = (3 * torch.randn(64, 3, 4, dtype=torch.float32)).to(dtype)
    x[0, 0, 0] = 12.0  # 12^7 is beyond float16, the squares of powers still more
    with torch.no_grad():
        slaf.coefficients[:, 2:] *= 1e-3
    for mode in (True, False):
        expected = slaf.train(mode)(x.float())
        if low_precision_layer:
            slaf.to(dtype)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = slaf(x)
        slaf.float()
        assert y.dtype == dtype
        assert y.isfinite().all()
        if not low_precision_layer:
            torch.testing.assert_close(y.float(), expected, rtol=1e-2, atol=1e-2)


def test_autocast_changes_nothing():
    for basis, mode in product(BASES, (True, False)):
        slaf, x = Slaf(3, 4, basis).float().train(mode), torch.randn(16, 3, dtype=torch.float32)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = slaf(x)
        torch.testing.assert_close(inside, slaf(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("basis", "normalize"), list(product(["power", "legendre", "fourier"], NORMALIZE)))
def test_nan_gives_nan_and_a_batch_of_one(basis, normalize):
    slaf = Slaf(2, 3, basis, normalize)
    x = torch.randn(6, 2)
    x[1, 0] = nan
    assert slaf(x)[1, 0].isnan()
    assert slaf(x)[:, 1].isfinite().all()
    found = randomised(slaf)(x).isnan()
    assert found[1, 0]
    assert found.sum() == 1
    assert slaf.eval()(x[:1, 1:].expand(1, 2)).shape == (1, 2)
    slaf.train()
    assert slaf(torch.randn(1, 2, 3)).isfinite().all()
    if normalize in ("basis", "input"):
        with pytest.raises(ValueError, match="batch_size=1: in training at least 2 values"):
            slaf(torch.randn(1, 2))


@pytest.mark.parametrize("normalize", NORMALIZE)
def test_no_samples_and_no_statistics(normalize):
    slaf = Slaf(3, normalize=normalize)
    before = {name: buffer.clone() for name, buffer in slaf.named_buffers()}
    assert slaf(torch.empty(0, 3, 2)).shape == (0, 3, 2)
    assert all(torch.equal(buffer, before[name]) for name, buffer in slaf.named_buffers())


@pytest.mark.parametrize("normalize", NORMALIZE)
def test_state_dict_round_trip_holds_the_statistics(normalize):
    source, copy = randomised(Slaf(3, gate=True, normalize=normalize)), Slaf(3, gate=True, normalize=normalize).eval()
    copy.load_state_dict(source.state_dict())
    x = torch.randn(4, 3, 2)
    assert torch.equal(copy(x), source(x))
    statistics = {"basis": 3, "input": 3, "maxabs": 1, "none": 0}
    assert len(dict(source.named_buffers())) == statistics[normalize]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("basis", "normalize"), [("power", "basis"), ("hermite", "basis"), ("power", "input")])
def test_conversion_to_sync_batch_norm_keeps_everything(basis, normalize, shape):
    net, twin = (
        nn.Sequential(randomised(Slaf(3, 3, basis, normalize, gate=True))),
        Slaf(3, 3, basis, normalize, gate=True),
    )
    twin.load_state_dict(net[0].state_dict())
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    assert isinstance(converted[0].batch_norm, nn.SyncBatchNorm)
    assert {n: p.shape for n, p in converted[0].named_parameters()} == {n: p.shape for n, p in twin.named_parameters()}
    x = torch.randn(shape)
    for mode in (False, True, False):
        torch.testing.assert_close(converted.train(mode)(x), twin.train(mode)(x), rtol=1e-10, atol=1e-10)


def test_compiled_equals_eager():
    slaf, twin = Slaf(3, 2), Slaf(3, 2)
    twin.load_state_dict(slaf.state_dict())
    compiled = torch.compile(slaf, backend="aot_eager", fullgraph=True)
    for mode in (True, False):
        x = torch.randn(8, 3, requires_grad=True)
        results = []
        for function, module in ((compiled, slaf), (twin, twin)):
            module.train(mode)
            y = function(x)
            results.append([y, *torch.autograd.grad(y.square().sum(), [x, *module.parameters()]), *module.buffers()])
        torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-9)


def test_built_without_memory():
    with torch.device("meta"):
        slaf = Slaf(3, init="fit", gate=True)
        assert slaf(torch.empty(4, 3, 2)).shape == (4, 3, 2)
        assert slaf.eval()(torch.empty(4, 3, 2)).shape == (4, 3, 2)


# --- arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_channels": 0}, "num_channels=0"),
        ({"degree": 0}, "degree=0"),
        ({"degree": 17}, "degree=17"),
        ({"degree": 2.0}, "degree=2.0"),
        ({"basis": "wavelet"}, "basis=wavelet: one of power"),
        ({"normalize": "batch"}, "normalize=batch: one of basis"),
        ({"sharing": "all"}, "sharing=all: one of channel"),
        ({"spatial_shape": (2,)}, "spatial_shape=(2,)"),
        ({"spatial_shape": (0,), "sharing": "neuron"}, "spatial_shape=(0,)"),
        ({"init": "he"}, "init=he: one of official"),
        ({"fit_to": "relu"}, "fit_to=relu: has an effect with init=fit"),
        ({"fit_to": "cube", "init": "fit"}, "fit_to=cube: one of"),
        ({"init": "identity", "basis": "fourier"}, "init=identity"),
        ({"init": "identity", "hybrid": "relu"}, "init=identity"),
        ({"hybrid": "tanh"}, "hybrid=tanh: one of none"),
        ({"momentum": 0.0}, "momentum=0.0"),
        ({"momentum": 1.5}, "momentum=1.5"),
        ({"eps": 0.0}, "eps=0.0"),
        ({"momentum": 0.2, "normalize": "none"}, "momentum=0.2: has no effect with normalize=none"),
        ({"eps": 1e-3, "normalize": "none"}, "eps=0.001: has no effect with normalize=none"),
    ],
)
def test_bad_arguments_are_named_with_their_value(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Slaf(**{"num_channels": 3, **settings})


def test_inputs_of_another_shape():
    with pytest.raises(ValueError, match=re.escape("takes (N, 3, *)")):
        Slaf(3)(torch.randn(4, 2))


def test_drawing_a_curve_leaves_the_running_statistics_alone():
    torch.manual_seed(0)
    slaf = Slaf(3, degree=2).train()
    slaf(torch.randn(50, 3))
    before = {name: buffer.clone() for name, buffer in slaf.named_buffers()}
    plot_activation(slaf, "slaf", -2.0, 2.0)
    assert slaf.training
    assert all(torch.equal(buffer, before[name]) for name, buffer in slaf.named_buffers())


def test_a_channel_of_neurons_has_the_slopes_of_its_flattest_and_its_steepest_curve():
    slaf = Slaf(2, 1, normalize="none", sharing="neuron", spatial_shape=(3,))
    with_coefficients(slaf, 0.0, [1.0], [-2.0], [3.0], [4.0], [7.0], [5.0])
    lo, hi = slaf.slope_range()
    assert (lo.tolist(), hi.tolist()) == ([-2, 4], [3, 7])


def test_official_gates_are_standard_normal():
    logits = torch.cat([Slaf(1, 16, "fourier", gate=True).gate_logits for _ in range(100)])
    assert logits.mean().item() == pytest.approx(0, abs=0.06)
    assert logits.std().item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("name", get_args(FitTo))
def test_every_fit_is_the_projection_on_hermite_polynomials(name):
    z = torch.linspace(-10, 10, 4001)
    density = torch.exp(-z.square() / 2) / torch.exp(-z.square() / 2).sum()
    wanted = density * (z.abs() if name == "absolute" else getattr(nn.functional, name)(z))
    slaf = Slaf(1, 3, "hermite", "none", init="fit", fit_to=name)
    projections = [(e @ wanted).item() / factorial(j) for j, e in enumerate(elements(z, "hermite", 3), start=1)]
    assert slaf.coefficients[0].tolist() == pytest.approx(projections, abs=1e-5)
    assert slaf.bias.item() == pytest.approx(wanted.sum().item(), abs=1e-5)


def test_high_degrees_keep_the_digits_of_float32_in_eval_mode(monkeypatch):
    monkeypatch.setattr(native, "available", lambda degree: False)  # nothing to compile for this degree
    slaf = with_coefficients(Slaf(1, 14, "chebyshev", normalize="none"), 0.0, [0.0] * 13 + [1.0]).float().eval()
    x = torch.linspace(-1, 1, 201, dtype=torch.float32).view(-1, 1)
    torch.testing.assert_close(slaf(x).double(), torch.cos(14 * x.double().arccos()), rtol=0, atol=1e-6)


def test_slopes_at_the_kink_of_a_hybrid_hold_from_both_sides():
    line = with_coefficients(Slaf(1, 1, normalize="none", hybrid="relu"), 0.0, [3.0])
    low, high = line.local_slope_range(torch.tensor([[0.0], [-1.0]]), torch.tensor([[1.0], [0.0]]))
    assert (low <= 3).all()
    assert (high >= 4).all()


@pytest.mark.parametrize("basis", ["power", "legendre"])
def test_two_values_a_curve_are_enough_in_training(basis):
    slaf, x = Slaf(2, 2, basis), torch.tensor([[1.0, -2.0], [3.0, 0.5]])
    torch.testing.assert_close(slaf(x), by_formula(slaf, x), rtol=1e-9, atol=1e-9)
    mean_K, var_K = (each.view(2, 2)[:, 0] for each in (slaf.batch_norm.running_mean, slaf.batch_norm.running_var))
    torch.testing.assert_close(mean_K, 0.1 * x.mean(0))
    torch.testing.assert_close(var_K, 0.9 + 0.1 * x.var(0))


def test_a_fit_without_constant_is_the_best_that_vanishes_at_0():
    slaf = Slaf(1, 2, normalize="none", init="fit", bias=False)  # E z^4 = 3, E z^2 relu = 2 / sqrt(2 pi)
    assert slaf.coefficients[0].tolist() == pytest.approx([0.5, 2 / (3 * sqrt(2 * pi))], abs=1e-6)


def test_a_single_wave_is_no_straight_line():
    slaf = with_coefficients(Slaf(1, 1, "fourier", normalize="none"), 0.0, [1.0, 0.0])
    assert slaf.tv2().item() == inf
    assert with_coefficients(slaf, 0.0, [0.0, 0.0]).tv2().item() == 0
