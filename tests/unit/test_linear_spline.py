"""LinearSpline: exact values, derivatives, shapes, dtypes, persistence."""

import copy
import io
import pickle
import re
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

from tautnet.activations import LinearSpline
from tautnet.activations.grid_range import calibrate_grids_
from tautnet.activations.spline_cache import DerivedTensor
from tautnet.functional import linear_spline as functional

INITS = ["identity", "relu", "leaky_relu", "absolute", "soft_threshold", "even_odd", "maxmin", "zero"]
GRIDS = [(5, 1.0), (21, 1.0), (33, 4.0), (81, 4.0), (9, 2.0), (5, 16.0)]


pytestmark = pytest.mark.usefixtures("float64")


def random_spline(num_channels=3, num_knots=11, grid_range=2.0, **settings) -> LinearSpline:
    spline = LinearSpline(num_channels, num_knots, grid_range, **settings)
    with torch.no_grad():
        for parameter in spline.parameters():
            parameter.normal_()
    return spline


def reference(x: np.ndarray, values: np.ndarray, grid_range: float) -> np.ndarray:
    """One curve: numpy.interp inside, the border lines outside."""
    knots = np.linspace(-grid_range, grid_range, len(values))
    step = 2 * grid_range / (len(values) - 1)
    left = values[0] + (x - knots[0]) * (values[1] - values[0]) / step
    right = values[-1] + (x - knots[-1]) * (values[-1] - values[-2]) / step
    return np.where(x < -grid_range, left, np.where(x > grid_range, right, np.interp(x, knots, values)))


def close(actual, expected, tolerance=1e-12):
    torch.testing.assert_close(actual, torch.as_tensor(expected).expand_as(actual), rtol=tolerance, atol=tolerance)


# --- total variation and BV2 norm ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_knots", "grid_range"), [(5, 1.0), (21, 1.0), (33, 4.0), (81, 4.0), (9, 2.0)])
@pytest.mark.parametrize(
    ("init", "tv2", "points"),
    [
        ("identity", 0.0, 1.0),
        ("relu", 1.0, 1.0),
        ("leaky_relu", 0.99, 1.0),
        ("absolute", 2.0, 1.0),
        ("soft_threshold", 2.0, 0.5),
        ("zero", 0.0, 0.0),
    ],
)
def test_tv2_and_bv2_of_known_functions(num_knots, grid_range, init, tv2, points):
    spline = LinearSpline(2, num_knots, grid_range, init=init)
    close(spline.tv2(), tv2)
    close(spline.bv2(), tv2 + points)


@pytest.mark.parametrize("constant", [3.0, -0.5])
def test_constant_has_no_variation_and_bv2_of_twice_its_size(constant):
    spline = LinearSpline(1, 7, 1.0)
    nn.init.constant_(spline.coefficients, constant)
    close(spline.tv2(), 0.0)
    close(spline.bv2(), 2 * abs(constant))


@pytest.mark.parametrize("init", ["relu", "absolute"])
def test_bv2_takes_f_of_1_from_the_border_line_of_a_small_grid(init):
    spline = LinearSpline(1, 5, 0.5, init=init)
    close(spline.bv2() - spline.tv2(), 1.0)


@pytest.mark.parametrize(("num_knots", "grid_range"), [(4, 1.5), (10, 3.0), (50, 4.0)])
def test_even_number_of_knots_spreads_the_kink_of_relu_over_two(num_knots, grid_range):
    spline = LinearSpline(1, num_knots, grid_range, init="relu")
    step = 2 * grid_range / (num_knots - 1)
    changes = spline.slope_changes()[0]
    close(spline.tv2(), 1.0)
    close(changes[changes.abs() > 1e-9], [0.5, 0.5])
    close(spline(torch.zeros(1, 1)), step / 4)


@pytest.mark.parametrize(("num_knots", "grid_range"), GRIDS)
def test_affine_part_does_not_count(num_knots, grid_range):
    spline = random_spline(num_knots=num_knots, grid_range=grid_range)
    affine = copy.deepcopy(spline)
    with torch.no_grad():
        affine.coefficients += 3.0 - 2.0 * spline.knots()
    close(affine.slope_changes(), spline.slope_changes(), 1e-11)
    close(affine.tv2(), spline.tv2())


def test_affine_function_has_no_slope_changes():
    spline = LinearSpline(2, 51, 4.0)
    with torch.no_grad():
        spline.coefficients.copy_((0.3 - 1.7 * spline.knots()).expand(2, -1))
    close(spline.slope_changes(), 0.0)
    assert spline.num_active_knots() == 0


@pytest.mark.parametrize("factor", [-2.5, 0.0, 7.0])
def test_tv2_is_absolutely_homogeneous(factor):
    spline = random_spline()
    close(functional.slope_changes(factor * spline.coefficients, 2.0).abs().sum(dim=1), abs(factor) * spline.tv2())


@pytest.mark.parametrize("factor", [0.25, 3.0])
def test_tv2_is_invariant_under_joint_rescaling_of_both_axes(factor):
    spline = random_spline(grid_range=2.0)
    close(functional.slope_changes(spline.coefficients / factor, 2.0 / factor).abs().sum(dim=1), spline.tv2())


@pytest.mark.parametrize("seed", range(5))
def test_chain_of_inequalities_from_slopes_to_bv2(seed):
    torch.manual_seed(seed)
    spline = random_spline(grid_range=0.7 + seed)
    slopes = spline.slopes()
    rise = (spline(torch.ones(1, 3)) - spline(torch.zeros(1, 3))).abs()[0]
    slack = 1e-12
    assert (spline.tv2() >= (slopes[:, -1] - slopes[:, 0]).abs() - slack).all()
    assert (slopes.abs().amax(1) <= rise + spline.tv2() + slack).all()
    assert (rise + spline.tv2() <= spline.bv2() + slack).all()


def test_active_knots_are_the_slope_changes_above_the_threshold():
    spline = LinearSpline(3, 21, 1.0, init="absolute")
    assert spline.num_active_knots() == 3
    assert spline.num_active_knots(threshold=2.5) == 0


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_knots", "grid_range"), [*GRIDS, (3, 0.3), (10, 3.0), (51, 4.0)])
def test_values_agree_with_numpy_inside_and_with_border_lines_outside(num_knots, grid_range):
    spline = random_spline(num_knots=num_knots, grid_range=grid_range)
    edge = [sign * (grid_range + shift) for sign in (-1, 1) for shift in (-1e-9, 0.0, 1e-9, 0.5)]
    x = torch.cat([torch.linspace(-1.5 * grid_range, 1.5 * grid_range, 997), torch.tensor([*edge, 1e6, -1e6])])
    actual = spline(x.unsqueeze(1).expand(-1, 3)).detach().numpy()
    for channel, values in enumerate(spline.coefficients.detach().numpy()):
        expected = reference(x.numpy(), values, grid_range)
        np.testing.assert_allclose(actual[:, channel], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("num_knots", [3, 10, 51])
@pytest.mark.parametrize("grid_range", [1.0, 0.3, 4.0])
def test_value_at_a_knot_is_its_coefficient(num_knots, grid_range):
    spline = random_spline(num_knots=num_knots, grid_range=grid_range)
    close(spline(spline.knots().unsqueeze(1).expand(-1, 3)).T, spline.coefficients)


@pytest.mark.parametrize(("num_knots", "grid_range"), GRIDS)
def test_knots_are_uniform_symmetric_and_end_at_the_range(num_knots, grid_range):
    knots = LinearSpline(1, num_knots, grid_range).knots()
    assert torch.equal(knots, -knots.flip(0))
    close(knots, torch.linspace(-grid_range, grid_range, num_knots))


@pytest.mark.parametrize(("num_knots", "grid_range"), [(3, 1.0), (10, 3.0), (21, 1.0)])
def test_relu_basis_form_is_the_same_function(num_knots, grid_range):
    spline = random_spline(1, num_knots, grid_range)
    knots, step = spline.knots(), 2 * grid_range / (num_knots - 1)
    changes = spline.slope_changes()[0]
    start, first_slope = spline.coefficients[0, 0], (spline.coefficients[0, 1] - spline.coefficients[0, 0]) / step

    def relu_form(x):
        return start + first_slope * (x - knots[0]) + torch.relu(x.unsqueeze(1) - knots[1:-1]) @ changes

    close(relu_form(knots), spline.coefficients[0], 1e-11)
    x = torch.linspace(-2 * grid_range, 2 * grid_range, 301)
    close(spline(x.unsqueeze(1))[:, 0], relu_form(x), 1e-11)


def curve(name: str, x: torch.Tensor) -> torch.Tensor:
    return {
        "identity": x,
        "relu": x.clamp(min=0),
        "leaky_relu": x.clamp(min=0) + 0.01 * x.clamp(max=0),
        "absolute": x.clamp(min=0) - x.clamp(max=0),
        "soft_threshold": nn.functional.softshrink(x, 0.5),
        "zero": 0 * x,
    }[name]


@pytest.mark.parametrize(
    ("init", "names"),
    [
        *[(name, [name] * 3) for name in ("identity", "relu", "leaky_relu", "absolute", "soft_threshold", "zero")],
        ("even_odd", ["absolute", "absolute", "soft_threshold"]),
        ("maxmin", ["absolute", "identity", "absolute"]),
    ],
)
@pytest.mark.parametrize("linear_term", [False, True])
@pytest.mark.parametrize("num_knots", [10, 51])
def test_init_is_exact_at_the_knots(init, names, linear_term, num_knots):
    spline = LinearSpline(3, num_knots, 4.0, init=init, linear_term=linear_term)
    expected = torch.stack([curve(name, spline.knots()) for name in names])
    close(spline(spline.knots().unsqueeze(1).expand(-1, 3)).T, expected)
    close(spline.values_at_knots(), expected)


def test_even_odd_gives_a_single_curve_the_even_function():
    assert torch.equal(
        LinearSpline(1, 5, 1.0, init="even_odd").coefficients[0].detach(), torch.linspace(-1, 1, 5).abs()
    )


# --- derivatives ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
@pytest.mark.parametrize("num_knots", [3, 8])
def test_derivatives_agree_with_finite_differences(check, num_knots):
    step = 2.0 / (num_knots - 1)
    cells = torch.tensor([-3.0, -0.6, 0.4, 1.3, num_knots - 1.5, num_knots + 2.7])  # off knots, inside and outside
    x = (cells * step - 1.0).view(1, 2, 3).requires_grad_()
    coefficients = torch.randn(2, num_knots, requires_grad=True)
    assert check(lambda x, c: functional.evaluate(x, c, 1.0), (x, coefficients))


@pytest.mark.parametrize("x", [-5.0, -1.97, -0.13, 0.61, 1.99, 7.0])
def test_one_sample_moves_exactly_the_two_coefficients_of_its_cell(x):
    spline = random_spline(2, 11, 2.0)
    spline(torch.tensor([[x, float("nan")]]))[0, 0].backward()
    cell = min(max(int((x + 2.0) // 0.4), 0), 9)
    weight = (x + 2.0) / 0.4 - cell
    expected = torch.zeros(11)
    expected[cell], expected[cell + 1] = 1 - weight, weight
    close(spline.coefficients.grad[0], expected)
    assert spline.coefficients.grad[0].count_nonzero() == 2


def test_derivative_at_a_knot_is_the_right_hand_slope():
    spline = LinearSpline(1, 5, 1.0, init="absolute")
    x = torch.tensor([[-0.5], [0.0], [0.5], [1.0]], requires_grad=True)
    spline(x).sum().backward()
    close(x.grad, [[-1.0], [1.0], [1.0], [1.0]])


def test_per_sample_jacobians_through_torch_func():
    spline = random_spline()
    x = torch.randn(5, 3)
    jacobians = torch.func.vmap(torch.func.jacrev(lambda sample: spline(sample.unsqueeze(0)).squeeze(0)))(x)
    leaf = x.clone().requires_grad_()
    spline(leaf).sum().backward()
    close(jacobians, torch.diag_embed(leaf.grad))


# --- shapes and sharing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 5), (4, 3, 5, 2), (2, 3, 2, 3, 4), (0, 3), (0, 3, 5, 2), (1, 3)])
def test_every_rank_and_batch_size(shape):
    spline = random_spline()
    x = 2 * torch.randn(shape)
    y = spline(x)
    assert y.shape == shape
    for channel, values in enumerate(spline.coefficients.detach().numpy()):
        expected = reference(x[:, channel].numpy(), values, 2.0)
        np.testing.assert_allclose(y[:, channel].detach().numpy(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sharing", ["channel", "layer", "neuron"])
@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.to(memory_format=torch.channels_last),
        lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
        lambda x: torch.cat([x, x], dim=3)[..., : x.shape[3]],
        lambda x: torch.stack([x, x], dim=-1)[..., 0],
    ],
    ids=["channels_last", "transposed", "sliced", "strided"],
)
def test_memory_layout_does_not_matter(sharing, view):
    spline = random_spline(sharing=sharing, spatial_shape=(4, 5) if sharing == "neuron" else ())
    x = torch.randn(2, 3, 4, 5)
    assert not view(x).is_contiguous()
    assert torch.equal(spline(view(x)), spline(x))


@pytest.mark.parametrize(("sharing", "curves"), [("channel", 3), ("layer", 1), ("neuron", 3 * 2 * 4)])
def test_sharing_decides_which_curve_acts_where(sharing, curves):
    spline = random_spline(sharing=sharing, spatial_shape=(2, 4) if sharing == "neuron" else ())
    assert spline.coefficients.shape == (curves, 11)
    x = 2 * torch.randn(5, 3, 2, 4)
    curve_of = {
        "channel": torch.arange(3).view(3, 1, 1).expand(3, 2, 4),
        "layer": torch.zeros(3, 2, 4, dtype=torch.long),
        "neuron": torch.arange(24).view(3, 2, 4),
    }[sharing]
    y, values = spline(x).detach().numpy(), spline.coefficients.detach().numpy()
    for position in np.ndindex(3, 2, 4):
        expected = reference(x[:, *position].numpy(), values[curve_of[position]], 2.0)
        np.testing.assert_allclose(y[:, *position], expected, rtol=1e-12, atol=1e-12)


def test_neuron_sharing_of_a_dense_layer_is_channel_sharing():
    per_neuron, per_channel = random_spline(sharing="neuron"), random_spline()
    per_channel.load_state_dict(per_neuron.state_dict())
    x = torch.randn(6, 3)
    assert torch.equal(per_neuron(x), per_channel(x))


@pytest.mark.parametrize("sharing", ["channel", "layer", "neuron"])
@pytest.mark.parametrize("shape", [(4, 2), (4, 4), (3,), (4, 1, 3)])
def test_wrong_number_of_channels_raises(sharing, shape):
    with pytest.raises(ValueError, match=re.escape(str(shape))):
        random_spline(sharing=sharing)(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 5, 4), (2, 3, 4, 5, 1), (2, 3, 20)])
def test_neuron_sharing_refuses_another_spatial_shape(shape):
    spline = random_spline(sharing="neuron", spatial_shape=(4, 5))
    with pytest.raises(ValueError, match="sharing=neuron"):
        spline(torch.zeros(shape))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_channels": 0}, "num_channels=0"),
        ({"num_knots": 2}, "num_knots=2"),
        ({"num_knots": -5}, "num_knots=-5"),
        ({"grid_range": 0.0}, "grid_range=0.0"),
        ({"grid_range": -1.0}, "grid_range=-1.0"),
        ({"grid_range": float("inf")}, "grid_range=inf"),
        ({"grid_range": float("nan")}, "grid_range=nan"),
        ({"init": "sine"}, "init=sine"),
        ({"sharing": "pixel"}, "sharing=pixel"),
        ({"spatial_shape": (2, 2)}, "spatial_shape=(2, 2)"),
        ({"sharing": "layer", "spatial_shape": (2,)}, "spatial_shape=(2,)"),
    ],
)
def test_bad_arguments_are_named_with_their_value(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        LinearSpline(**{"num_channels": 3, **settings})


# --- NaN, dtypes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sharing", ["channel", "layer", "neuron"])
def test_nan_stays_where_it_is(sharing):
    spline = random_spline(sharing=sharing)
    x = torch.randn(4, 3)
    expected = spline(x).detach()
    x[1, 2] = expected[1, 2] = float("nan")
    torch.testing.assert_close(spline(x).detach(), expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("low_precision_parameters", [False, True])
def test_half_precision_input_costs_no_more_than_the_rounding_of_the_result(dtype, low_precision_parameters):
    spline = random_spline(num_knots=51, grid_range=4.0).float()
    if low_precision_parameters:
        spline = spline.to(dtype)
    x = (3 * torch.randn(100, 3)).to(dtype)
    y = spline(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y, spline.float()(x.float()).to(dtype), rtol=0, atol=0)


def test_autocast_keeps_the_spline_in_float32_and_the_dtype_of_its_input():
    linear, spline = nn.Linear(4, 3).float(), random_spline(num_knots=51, grid_range=4.0).float()
    x = torch.randn(20, 4, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = linear(x)
        y = spline(hidden)
    assert hidden.dtype == y.dtype == torch.bfloat16
    assert torch.equal(y, spline(hidden.float()).to(torch.bfloat16))


def test_double_spline_works_in_double():
    spline = random_spline().float().double()
    x = torch.randn(10, 3)
    values = spline.coefficients.detach().numpy()
    assert spline(x).dtype == torch.float64
    assert spline.tv2().dtype == spline.bv2().dtype == torch.float64
    np.testing.assert_allclose(spline(x)[:, 1].detach().numpy(), reference(x[:, 1].numpy(), values[1], 2.0), rtol=1e-12)


# --- linear term ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("sharing", ["channel", "layer", "neuron"])
def test_linear_term_leaves_the_initial_function_and_its_norms_alone(init, sharing):
    plain = LinearSpline(4, 21, 2.0, init=init, sharing=sharing)
    split = LinearSpline(4, 21, 2.0, init=init, sharing=sharing, linear_term=True)
    x = 3 * torch.randn(50, 4)
    close(split(x), plain(x))
    close(split.tv2(), plain.tv2())
    close(split.bv2(), plain.bv2())
    for actual, expected in zip(split.slope_range(), plain.slope_range(), strict=True):
        close(actual, expected)


def test_linear_term_is_an_explicit_slope():
    spline = random_spline(linear_term=True)
    without = random_spline()
    with torch.no_grad():
        without.coefficients.copy_(spline.coefficients)
    x = 3 * torch.randn(50, 3)
    close(spline(x), without(x) + spline.linear * x)


def test_linear_term_trains():
    spline = LinearSpline(2, 21, 2.0, init="zero", linear_term=True)
    x, output_gradient = 3 * torch.randn(50, 2), torch.randn(50, 2)
    spline(x).backward(output_gradient)
    close(spline.linear.grad, (output_gradient * x).sum(0))


# --- persistence ------------------------------------------------------------------------------------------------------


def through_state_dict(spline):
    fresh = LinearSpline(3, 11, 2.0, linear_term=True)
    buffer = io.BytesIO()
    torch.save(spline.state_dict(), buffer)
    buffer.seek(0)
    fresh.load_state_dict(torch.load(buffer, weights_only=True))
    return fresh


@pytest.mark.parametrize(
    "duplicate",
    [through_state_dict, copy.deepcopy, lambda spline: pickle.loads(pickle.dumps(spline))],
    ids=["state_dict", "deepcopy", "pickle"],
)
def test_copy_is_the_same_function_with_parameters_of_its_own(duplicate):
    spline = random_spline(linear_term=True)
    x = torch.randn(7, 3)
    expected = spline(x).detach()
    twin = duplicate(spline)
    with torch.no_grad():
        spline.coefficients.zero_()
    assert torch.equal(twin(x).detach(), expected)


def test_state_dict_of_another_size_is_refused():
    with pytest.raises(RuntimeError, match="coefficients"):
        LinearSpline(3, 13, 2.0).load_state_dict(random_spline(num_knots=11).state_dict())


def test_state_dict_of_another_grid_is_refused():
    with pytest.raises(ValueError, match=r"grid_range=4\.0"):
        LinearSpline(3, 11).load_state_dict(random_spline(num_knots=11, grid_range=2.0).state_dict())


@pytest.mark.parametrize("wrong", [{"num_knots": 5.5}, {"sharing": "neuron", "spatial_shape": (0,)}])
def test_sizes_that_are_no_counts_are_refused(wrong):
    with pytest.raises(ValueError, match="="):
        LinearSpline(3, **wrong)


# --- slope limits and scale -------------------------------------------------------------------------------------------

KINDS = [
    {"slope_min": -1.0, "slope_max": 1.0},
    {"slope_min": 0.0, "linear_term": True},
    {"slope_max": 0.7, "init": "zero", "learn_scale": True},
    {"slope_min": 0.0, "slope_max": 1.0, "linear_term": True, "learn_scale": True, "sharing": "layer"},
    {"learn_scale": True, "linear_term": True},
]


def wild(spline: LinearSpline) -> LinearSpline:
    with torch.no_grad():
        for parameter in spline.parameters():
            parameter.normal_()
    return spline


@pytest.mark.parametrize("kind", KINDS)
def test_the_function_is_the_line_through_its_points(kind):
    spline = wild(LinearSpline(3, 11, 2.0, **kind))
    positions, values = (ends.expand(3, -1).numpy() for ends in spline.points())
    x = 9 * torch.randn(400, 3)
    y = spline(x).detach().numpy()
    for c in range(3):
        steps, rises = np.diff(positions[c]), np.diff(values[c])
        left = values[c, 0] + (x[:, c].numpy() - positions[c, 0]) * rises[0] / steps[0]
        right = values[c, -1] + (x[:, c].numpy() - positions[c, -1]) * rises[-1] / steps[-1]
        inside = np.interp(x[:, c].numpy(), positions[c], values[c])
        expected = np.where(x[:, c] < positions[c, 0], left, np.where(x[:, c] > positions[c, -1], right, inside))
        np.testing.assert_allclose(y[:, c], expected, rtol=1e-11, atol=1e-11)
        slopes = spline.slopes().detach().expand(3, -1)[c].numpy()
        np.testing.assert_allclose(slopes, rises / steps, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(spline.slope_changes().detach().expand(3, -1)[c], np.diff(slopes), atol=1e-11)
        f01 = np.abs(spline(torch.tensor([[0.0] * 3, [1.0] * 3]))[:, c].detach().numpy()).sum()
        np.testing.assert_allclose(spline.bv2().detach().expand(3)[c], np.abs(np.diff(slopes)).sum() + f01, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS[:-1])
def test_limits_hold_for_what_float32_stores(kind):
    torch.set_default_dtype(torch.float32)
    for spread in (0.01, 1.0, 1e3):
        spline = wild(LinearSpline(3, 51, 4.0, **kind))
        with torch.no_grad():
            spline.coefficients.mul_(spread)
        low, high = spline.slope_range()
        assert low.dtype == torch.float64
        assert (low >= (-np.inf if spline.slope_min is None else spline.slope_min)).all()
        assert (high <= (np.inf if spline.slope_max is None else spline.slope_max)).all()
        x = torch.linspace(-8, 8, 4001, dtype=torch.float64).unsqueeze(1).expand(-1, 3)
        y = spline(x).detach()  # the stored float32 values, evaluated in double
        observed, rounding = y.diff(dim=0) / x.diff(dim=0), 1e-12 * (1 + y.abs().max())
        assert (observed >= low - rounding).all()
        assert (observed <= high + rounding).all()
    if spline.slope_min is not None and spline.slope_min >= 0:  # the limit is in force
        assert spline.slopes().min() < 1e-3


@pytest.mark.parametrize("init", ["identity", "relu", "absolute"])
@pytest.mark.parametrize("learn_scale", [False, True])
def test_limits_leave_a_start_that_keeps_them(init, learn_scale):
    torch.set_default_dtype(torch.float32)
    plain = LinearSpline(2, 51, 0.3, init=init)
    limited = LinearSpline(2, 51, 0.3, init=init, slope_min=-1.0, slope_max=1.0, learn_scale=learn_scale)
    x = torch.randn(100, 2)
    torch.testing.assert_close(limited(x), plain(x), rtol=0, atol=3e-5)
    assert limited.lipschitz_constant(2) <= 1
    assert limited.lipschitz_constant(2) > 1 - 3e-5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"slope_min": 1.0, "slope_max": 0.5}, "slope_min=1.0: at most"),
        ({"slope_min": float("nan")}, "slope_min=nan"),
        ({"slope_max": float("inf")}, "slope_max=inf"),
        ({"slope_min": 0.0, "init": "absolute"}, "slope_min=0.0: init=absolute starts with slopes down to -1"),
        ({"slope_max": 0.5, "init": "relu"}, "slope_max=0.5: init=relu starts with slopes up to 1"),
        ({"slope_min": 0.005, "slope_max": 0.99, "init": "leaky_relu"}, "slope_max=0.99"),
        (
            {"slope_min": 0.5, "init": "soft_threshold"},
            "init=soft_threshold starts with slopes down to 0",
        ),
        ({"slope_min": 0.5, "init": "maxmin", "num_channels": 1}, "down to -1"),
        ({"grid_range": "wide"}, "grid_range=wide"),
    ],
)
def test_bad_limits_are_named_with_what_breaks_them(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        LinearSpline(**{"num_channels": 3, **settings})


def test_derivatives_reach_every_parameter_through_limits_and_scale():
    spline = wild(LinearSpline(2, 7, 1.0, slope_min=-4.0, slope_max=4.0, linear_term=True, learn_scale=True))
    x = torch.randn(5, 2)

    def function(x, **parameters):
        return torch.func.functional_call(spline, parameters, (x,))

    names, values = zip(*spline.named_parameters(), strict=True)
    leaves = [value.detach().clone().requires_grad_() for value in (x, *values)]
    assert torch.autograd.gradcheck(
        lambda x, *parameters: function(x, **dict(zip(names, parameters, strict=True))), leaves, eps=1e-5, atol=1e-6
    )


def test_scale_leaves_slopes_and_variation_and_moves_the_knots():
    spline = random_spline(2, 11, 2.0)
    scaled = LinearSpline(2, 11, 2.0, learn_scale=True)
    with torch.no_grad():
        scaled.coefficients.copy_(spline.coefficients)
        scaled.log_scale.copy_(torch.tensor([0.5, -1.0]))
    alpha = torch.tensor([0.5, -1.0]).exp()
    x = 3 * torch.randn(50, 2)
    close(scaled(x), spline(alpha * x) / alpha)
    close(scaled.tv2(), spline.tv2())
    close(scaled.slopes(), spline.slopes())
    close(scaled.points()[0], spline.knots() / alpha.unsqueeze(1))
    assert scaled.share_outside(torch.tensor([[1.3, 5.3], [1.2, 5.5]])) == 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_points_go_in_and_come_out(kind):
    spline = wild(LinearSpline(3, 11, 2.0, **kind))
    _, values = spline.points()
    wanted = values + 0.01  # keeps the limits
    spline.set_values_(wanted)
    close(spline.points()[1], wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_boxes_of_limited_and_scaled_curves(kind):
    spline = wild(LinearSpline(3, 11, 2.0, **kind)).eval()
    lo = 3 * torch.randn(20, 3)
    hi = lo + torch.rand(20, 3)
    x = torch.stack([lo + share * (hi - lo) for share in torch.linspace(0, 1, 301)])
    y = spline(x.flatten(0, 1)).view_as(x)
    low, high = spline.interval(lo, hi)
    assert (low <= y + 1e-12).all()
    assert (y <= high + 1e-12).all()
    slopes = y.diff(dim=0) / x.diff(dim=0)
    low, high = spline.local_slope_range(lo, hi)
    assert (low <= slopes + 1e-9).all()
    assert (slopes <= high + 1e-9).all()
    assert (low >= spline.slope_range()[0] - 1e-12).all()
    assert (high <= spline.slope_range()[1] + 1e-12).all()


# --- values kept in eval mode -----------------------------------------------------------------------------------------


@pytest.fixture
def counted(monkeypatch):
    """A limited spline in eval mode, and how often its values were computed."""
    spline, counts = wild(LinearSpline(3, 11, 2.0, slope_min=-1.0, slope_max=1.0)).eval(), []
    compute = LinearSpline._effective_values
    monkeypatch.setattr(LinearSpline, "_effective_values", lambda self: counts.append(self) or compute(self))
    return spline, counts


def test_values_are_computed_once_in_an_evaluation(counted):
    spline, counts = counted
    x = torch.randn(4, 3)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            first = spline(x)
            assert torch.equal(spline(x), first)
            spline.slopes()
    assert len(counts) == 1
    spline.train()(x)
    spline.train()(x)
    assert len(counts) == 3


@pytest.mark.parametrize(
    "change",
    [
        lambda spline: spline.coefficients.mul_(0.3),
        lambda spline: spline.load_state_dict({**spline.state_dict(), "coefficients": torch.rand(3, 11)}),
        lambda spline: spline.load_state_dict({**spline.state_dict(), "coefficients": torch.rand(3, 11)}, assign=True),
        lambda spline: setattr(spline, "coefficients", nn.Parameter(torch.rand(3, 11))),
        lambda spline: setattr(spline.coefficients, "data", torch.rand(3, 11)),
        lambda spline: (spline.coefficients.data.mul_(0.3), spline.train(), spline.eval()),
        lambda spline: spline.float(),
        lambda spline: spline.set_values_(torch.rand(3, 11)),
        lambda spline: setattr(spline, "grid_range", 1.0),
    ],
)
def test_a_change_of_the_parameters_is_seen(counted, change):
    spline, counts = counted
    with torch.no_grad():
        spline(torch.randn(4, 3))
        change(spline)
        counts.clear()
        x = torch.randn(4, 3, dtype=spline.coefficients.dtype)
        y = spline(x)
        assert len(counts) == 1
        spline.train()
        assert torch.equal(spline(x), y)
        assert y.dtype == x.dtype


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda spline: pickle.loads(pickle.dumps(spline))])
def test_kept_values_are_nobody_elses(counted, duplicate):
    spline, _ = counted
    x = torch.randn(4, 3)
    with torch.no_grad():
        expected = spline(x)
        twin = duplicate(spline)
        spline.coefficients.zero_()
        assert torch.equal(twin(x), expected)
    assert set(twin.state_dict()) == {"coefficients", "_extra_state"}


def test_kept_values_serve_derivatives_too():
    spline = wild(LinearSpline(3, 11, 2.0, slope_min=-1.0, slope_max=1.0)).eval()
    with torch.inference_mode():
        spline(torch.randn(4, 3))
    x = torch.randn(4, 3, requires_grad=True)
    spline(x).sum().backward()  # of the coefficients as well: computed anew, with a graph
    assert spline.coefficients.grad is not None
    spline.requires_grad_(False)
    with torch.no_grad():
        assert spline(x).grad_fn is None
    frozen = x.detach().clone().requires_grad_()
    spline(frozen).sum().backward()
    close(frozen.grad, x.grad)


def test_nothing_is_kept_of_a_transform():
    kept, parameter = DerivedTensor(), nn.Parameter(torch.ones(3), requires_grad=False)
    torch.func.jacrev(lambda x: x * kept.get([parameter], 0.0, lambda: 2 * parameter))(torch.ones(3))
    again = kept.get([parameter], 0.0, lambda: 2 * parameter)
    assert again.data_ptr()  # a tensor of the transform has none
    assert again.tolist() == [2.0] * 3
    replaced = torch.func.functional_call(
        LinearSpline(1, 3, 1.0, slope_max=1.0).eval(), {"coefficients": torch.zeros(1, 3)}, (torch.ones(1, 1),)
    )
    close(replaced, 0.0)


def test_one_piece_under_the_compiler():
    torch._dynamo.reset()
    spline = wild(LinearSpline(3, 11, 2.0, slope_min=0.0, slope_max=1.0, linear_term=True, learn_scale=True))
    compiled = torch.compile(spline, fullgraph=True, backend="eager")
    x = torch.randn(4, 3)
    for mode in (True, False):
        spline.train(mode)
        close(compiled(x), spline(x))


# --- range from data --------------------------------------------------------------------------------------------------


def auto(**settings) -> LinearSpline:
    return LinearSpline(3, 11, "auto", **settings)


def test_range_is_that_of_the_first_batch_in_training():
    spline = auto(init="absolute", linear_term=True)
    assert spline.awaits_range
    assert spline.grid_range == 4.0
    spline.eval()(torch.tensor([[9.0, 0, 0]]))
    spline.train()(torch.zeros(0, 3))
    assert spline.awaits_range
    y = spline(torch.tensor([[0.5, -7.0, 2.0]]))
    assert not spline.awaits_range
    assert spline.grid_range == 7.0
    close(y, [[0.5, 7.0, 2.0]], 1e-1)
    close(spline.values_at_knots(), torch.linspace(-7, 7, 11).abs().expand(3, -1))
    spline(torch.tensor([[99.0, 0, 0]]))
    assert spline.grid_range == 7.0


@pytest.mark.parametrize("bad", [0.0, float("nan"), float("inf")])
def test_a_batch_that_gives_no_range_is_refused(bad):
    with pytest.raises(ValueError, match="grid_range=auto"):
        auto()(torch.tensor([[0.0, bad, 0.0]]))


def test_range_travels_with_the_state():
    waiting, other, found = auto(), auto(), auto()
    found(torch.tensor([[3.0, 1.0, -2.5]]))
    waiting.load_state_dict(other.state_dict())
    assert waiting.awaits_range
    waiting.load_state_dict(found.state_dict())
    assert not waiting.awaits_range
    x = torch.randn(7, 3)
    assert torch.equal(waiting(x), found(x))
    assert waiting.grid_range == found.grid_range == 3.0
    twin = copy.deepcopy(found)
    twin(torch.tensor([[8.0, 0.0, 0.0]]))
    assert twin.grid_range == 3.0
    for refused in (other, LinearSpline(3, 11)):
        with pytest.raises(ValueError, match=r"grid_range=3\.0"):
            found.load_state_dict(refused.state_dict())


def test_a_network_is_calibrated_layer_by_layer_and_left_as_it_was():
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), auto(), nn.Dropout(0.5), nn.Linear(3, 3), auto()).eval()
    x = 5 * torch.randn(20, 2)
    before = {name: value.clone() for name, value in net.state_dict().items() if "_extra" not in name}
    state = torch.get_rng_state()
    calibrate_grids_(net, x)
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module.training for module in net.modules())
    for name, value in net.state_dict().items():
        assert name not in before or "coefficients" in name or torch.equal(value, before[name])
    ranges = [net[2].grid_range, net[5].grid_range]
    with torch.no_grad():
        assert ranges[0] == float(net.train()[:2](x).abs().max())
        torch.set_rng_state(state)
        assert ranges[1] == float(net[:5](x).abs().max())
    calibrate_grids_(net, 100 * x)
    assert ranges == [net[2].grid_range, net[5].grid_range]


def test_a_range_is_not_sought_under_the_compiler():
    torch._dynamo.reset()
    spline = auto()
    with pytest.raises((ValueError, RuntimeError), match="calibrate_grids_"):
        torch.compile(spline, fullgraph=True, backend="eager")(torch.randn(4, 3))
    calibrate_grids_(spline, torch.randn(4, 3))
    torch.compile(spline, fullgraph=True, backend="eager")(torch.randn(4, 3))


def test_values_that_were_set_end_the_wait():
    spline = auto()
    spline.set_values_(torch.ones(3, 11))
    close(spline(9 * torch.randn(4, 3)), 1.0)
    assert not spline.awaits_range


@pytest.mark.parametrize("settings", [{"slope_min": -1.0, "slope_max": 1.0}, {"linear_term": True}])
def test_an_optimizer_that_leaves_no_trace_is_seen_in_evaluation(settings):
    """The fused optimizers change parameters without raising their version."""
    spline = LinearSpline(3, 9, 1.0, init="absolute", **settings).float().eval()
    optimizer = torch.optim.Adam(spline.parameters(), lr=0.1, fused=True)
    x = torch.randn(20, 3, dtype=torch.float32)
    for _ in range(3):
        optimizer.zero_grad()
        spline(x).sum().backward()
        optimizer.step()
        with torch.no_grad():
            kept = spline(x)
        torch.testing.assert_close(kept, spline(x).detach(), rtol=0, atol=0)


def test_threads_that_switch_modes_get_their_values():
    spline = LinearSpline(3, 9, 1.0, init="relu", slope_max=1.0)
    x = torch.randn(5, 3)
    expected = spline(x).detach()

    def serve(_):
        for _ in range(300):
            spline.eval()
            with torch.no_grad():
                torch.testing.assert_close(spline(x), expected)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(serve, range(4)))
    finally:
        sys.setswitchinterval(interval)


@pytest.mark.parametrize("grid_range", [1e-38, 1e39, float("inf"), float("nan"), 0.0, -1.0, None])
def test_a_range_that_float32_cannot_count_on_is_refused(grid_range):
    with pytest.raises(ValueError, match=re.escape(f"grid_range={grid_range}")):
        LinearSpline(2, 9, grid_range)


def test_a_scale_cannot_leave_the_numbers():
    spline = LinearSpline(1, 9, 1.0, init="relu", slope_max=1.0, learn_scale=True).float().eval()
    for log_scale in (-500.0, 500.0):
        nn.init.constant_(spline.log_scale, log_scale)
        assert spline(torch.tensor([[-1.0], [0.0], [1.0]])).isfinite().all()
