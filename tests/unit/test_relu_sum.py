"""ReluSum: exact values, derivatives at knots, the activation contract, export."""

import copy
import math
import re

import pytest
import torch
from torch import nn

from tautnet.activations.relu_sum import ReluSum

pytestmark = pytest.mark.usefixtures("float64")

SHARINGS = [("channel", 3, ()), ("layer", 1, ()), ("neuron", 3, ()), ("neuron", 3 * 4 * 5, (4, 5))]


def random_sum(sharing="channel", spatial_shape=(), num_channels=3, num_knots=6) -> ReluSum:
    curves = {"channel": num_channels, "layer": 1, "neuron": num_channels * math.prod(spatial_shape)}[sharing]
    knots = torch.rand(curves, num_knots).add(0.05).cumsum(1) - 2.0
    return ReluSum(num_channels, knots, torch.randn(curves, num_knots + 1), torch.randn(curves), sharing, spatial_shape)


def naive(x: torch.Tensor, knots, slopes, value_at_0) -> torch.Tensor:
    """The single ReLUs of one curve, one after the other."""

    def without_offset(x):
        y = slopes[0] * x
        for knot, change in zip(knots, slopes.diff(), strict=True):
            y = y + change * torch.relu(x - knot)
        return y

    return without_offset(x) - without_offset(torch.zeros(())) + value_at_0


def close(actual, expected, tolerance=1e-12):
    expected = torch.as_tensor(expected, dtype=actual.dtype).expand_as(actual)
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("knots", "slopes", "value_at_0", "expected"),
    [
        ([0.0], [0.0, 1.0], 0.0, [0.0, 0.0, 0.0, 0.25, 3.0]),
        ([0.0], [-1.0, 1.0], 0.5, [3.5, 1.5, 0.5, 0.75, 3.5]),
        ([-1.0, 1.0], [0.0, 1.0, 0.0], 0.0, [-1.0, -1.0, 0.0, 0.25, 1.0]),
        ([-0.5, 0.5], [1.0, 0.0, 1.0], 0.0, [-2.5, -0.5, 0.0, 0.0, 2.5]),
        ([1.0, 2.0], [2.0, 0.0, -1.0], -1.0, [-7.0, -3.0, -1.0, -0.5, 0.0]),
        ([-2.0, -1.0], [2.0, 0.0, -1.0], -1.0, [-2.0, 0.0, -1.0, -1.25, -4.0]),
        ([], [2.0], 1.0, [-5.0, -1.0, 1.0, 1.5, 7.0]),
        ([], [0.0], -3.0, [-3.0, -3.0, -3.0, -3.0, -3.0]),
    ],
)
def test_exact_values(knots, slopes, value_at_0, expected):
    function = ReluSum(1, torch.tensor([knots]), torch.tensor([slopes]), torch.tensor([value_at_0]))
    x = torch.tensor([-3.0, -1.0, 0.0, 0.25, 3.0]).unsqueeze(1)
    assert torch.equal(function(x).flatten(), torch.tensor(expected))


@pytest.mark.parametrize(("sharing", "curves", "spatial_shape"), SHARINGS)
@pytest.mark.parametrize("num_knots", [0, 1, 6])
def test_is_the_sum_of_relus_of_the_right_curve(sharing, curves, spatial_shape, num_knots):
    function = random_sum(sharing, spatial_shape, num_knots=num_knots)
    assert function.num_curves == len(function.knots) == curves
    x = 3 * torch.randn(7, 3, *(spatial_shape or (2, 2) * (sharing != "neuron")))
    y = function(x)
    assert y.shape == x.shape
    curve_of = {
        "channel": lambda c, *_: c,
        "layer": lambda *_: 0,
        "neuron": lambda c, *place: c * math.prod(spatial_shape) + (place[0] * 5 + place[1] if place else 0),
    }[sharing]
    for position in torch.cartesian_prod(*(torch.arange(size) for size in x.shape[1:])).view(-1, x.dim() - 1).tolist():
        c = curve_of(*position)
        expected = naive(x[:, *position], function.knots[c], function.slopes[c], function.value_at_0[c])
        close(y[:, *position], expected)


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 5), (2, 3, 2, 3, 4), (0, 3), (0, 3, 5, 2)])
def test_every_rank_and_batch_size(shape):
    function, x = random_sum(), 2 * torch.randn(shape)
    expected = [naive(x[:, c], function.knots[c], function.slopes[c], function.value_at_0[c]) for c in range(3)]
    close(function(x), torch.stack(expected, dim=1))


def test_memory_layout_does_not_matter_and_is_kept():
    function, x = random_sum(), torch.randn(2, 3, 4, 5)
    last = x.to(memory_format=torch.channels_last)
    assert torch.equal(function(last), function(x))
    assert function(last).is_contiguous(memory_format=torch.channels_last)


def test_input_is_left_alone():
    for num_knots in (0, 1, 4):
        x = torch.randn(5, 3)
        before = x.clone()
        random_sum(num_knots=num_knots)(x)
        assert torch.equal(x, before)


def test_fifty_steep_knots_cost_no_accuracy_in_float32():
    knots = torch.linspace(-4, 4, 50).expand(64, -1)
    slopes = 6 * torch.randn(64, 51)
    function = ReluSum(64, knots, slopes, torch.randn(64)).float()
    x = (12 * torch.rand(2000, 64) - 6).float()
    y, expected = function(x), copy.deepcopy(function).double()(x.double())
    assert expected.abs().max() > 20
    close(y.double(), expected, 5e-6)


# --- NaN, infinity, dtypes --------------------------------------------------------------------------------------------


def test_nan_stays_where_it_is():
    function, x = random_sum(), torch.randn(4, 3)
    expected = function(x)
    x[1, 2] = expected[1, 2] = float("nan")
    torch.testing.assert_close(function(x), expected, rtol=0, atol=0, equal_nan=True)


def test_infinite_inputs_follow_the_border_lines():
    function = ReluSum(1, torch.tensor([[-1.0, 1.0]]), torch.tensor([[2.0, 0.0, -1.0]]), torch.zeros(1))
    assert function(torch.tensor([[-math.inf], [math.inf]])).flatten().tolist() == [-math.inf, -math.inf]
    flat = ReluSum(1, torch.tensor([[-1.0, 1.0]]), torch.tensor([[0.0, 1.0, 0.0]]), torch.zeros(1))
    assert flat(torch.tensor([[-math.inf], [math.inf]])).isnan().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_input_costs_no_more_than_the_rounding_of_the_result(dtype):
    function, x = random_sum().float(), (3 * torch.randn(100, 3)).to(dtype)
    y = function(x)
    assert y.dtype == dtype
    assert torch.equal(y, function(x.float()).to(dtype))


# --- derivatives ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("between", [True, False])
def test_derivative_is_the_slope_and_at_a_knot_the_mean_of_both(between):
    function = random_sum(num_channels=1)
    knots, slopes = function.knots[0], function.slopes[0]
    edges = torch.cat([knots[:1] - 1, knots, knots[-1:] + 1])
    x = ((edges[1:] + edges[:-1]) / 2 if between else knots).unsqueeze(1).requires_grad_()
    function(x).sum().backward()
    close(x.grad.flatten(), slopes if between else (slopes[1:] + slopes[:-1]) / 2)


def test_vmap_of_jacobians():
    function, x = random_sum(), torch.randn(5, 3)
    jacobians = torch.func.vmap(torch.func.jacrev(lambda row: function(row.unsqueeze(0)).squeeze(0)))(x)
    leaf = x.clone().requires_grad_()
    function(leaf).sum().backward()
    close(jacobians, torch.diag_embed(leaf.grad))


# --- the contract of activations --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sharing", "curves", "spatial_shape"), SHARINGS)
def test_slope_range_is_exact(sharing, curves, spatial_shape):
    function = random_sum(sharing, spatial_shape).float()
    lo, hi = function.slope_range()
    assert lo.dtype == hi.dtype == torch.float64
    slopes = function.slopes.double()
    rows = slopes.expand(3, -1) if sharing == "layer" else slopes.reshape(3, -1)
    assert lo.tolist() == rows.amin(1).tolist()
    assert hi.tolist() == rows.amax(1).tolist()
    assert function.lipschitz_constant(2) == slopes.abs().max()


@pytest.mark.parametrize(("sharing", "curves", "spatial_shape"), SHARINGS)
@pytest.mark.parametrize("width", [0.2, 4.0])
def test_boxes_give_the_exact_range_of_values_and_slopes(sharing, curves, spatial_shape, width):
    function = random_sum(sharing, spatial_shape)
    lo = 2 * torch.randn(30, 3, *spatial_shape)
    hi = lo + width * torch.rand_like(lo)
    grid = torch.linspace(0, 1, 401).view(-1, *[1] * lo.dim())
    x = (lo + (hi - lo) * grid).requires_grad_()
    y = function(x.flatten(0, 1)).view_as(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    for observed, (low, high), slack in (
        (y, function.interval(lo, hi), 0.1 * width),
        (slope, function.local_slope_range(lo, hi), 0.0),
    ):
        assert (observed >= low - 1e-12).all()
        assert (observed <= high + 1e-12).all()
        if slack:  # attained, up to the distance of two points of the grid
            close(observed.amin(0), low, slack)
            close(observed.amax(0), high, slack)


def test_slopes_of_boxes_at_knots_and_off_them():
    function = ReluSum(1, torch.tensor([[-1.0, 1.0]]), torch.tensor([[2.0, 0.0, -1.0]]), torch.zeros(1))
    boxes = [(-3, -2, 2, 2), (-3, -1, 0, 2), (-1, -1, 0, 2), (-0.5, 0.5, 0, 0), (-3, 3, -1, 2), (1, 9, -1, 0)]
    for lo, hi, smallest, largest in boxes:
        low, high = function.local_slope_range(torch.tensor([[float(lo)]]), torch.tensor([[float(hi)]]))
        assert (low.item(), high.item()) == (smallest, largest)


def test_affine_function_in_boxes():
    function = ReluSum(2, torch.zeros(2, 0), torch.tensor([[2.0], [-1.0]]), torch.tensor([1.0, 0.0]))
    low, high = function.interval(torch.full((1, 2), -1.0), torch.full((1, 2), 3.0))
    assert low.tolist() == [[-1.0, -3.0]]
    assert high.tolist() == [[7.0, 1.0]]
    low, high = function.local_slope_range(torch.zeros(1, 2), torch.ones(1, 2))
    assert low.tolist() == high.tolist() == [[2.0, -1.0]]


def test_nothing_is_trained_and_everything_is_saved():
    function, twin = random_sum(), random_sum()
    assert list(function.parameters()) == []
    twin.load_state_dict(function.state_dict())
    x = torch.randn(5, 3)
    assert torch.equal(twin(x), function(x))


def test_tensors_given_are_copied():
    knots, slopes, value = torch.zeros(1, 1), torch.tensor([[0.0, 1.0]]), torch.zeros(1)
    function = ReluSum(1, knots, slopes, value)
    for tensor in (knots, slopes, value):
        tensor.add_(1)
    assert function(torch.tensor([[2.0]])).item() == 2.0


# --- leaving torch ----------------------------------------------------------------------------------------------------


CORE = {
    *("add", "sub", "mul", "maximum", "minimum", "addmm", "permute"),
    *("view", "unsqueeze", "squeeze", "slice", "full_like", "full", "clone", "_to_copy", "_assert_tensor_metadata"),
}


def test_exports_to_core_operators_with_a_free_batch_size():
    net = nn.Sequential(nn.Linear(4, 3), random_sum(num_knots=3), nn.Linear(3, 2), random_sum(num_channels=2)).eval()
    x = torch.randn(5, 4)
    batch = torch.export.Dim("batch")
    program = torch.export.export(net, (x,), dynamic_shapes=({0: batch},)).run_decompositions()
    close(program.module()(torch.cat([x, x])), net(torch.cat([x, x])))
    names = {str(node.target).split(".")[1] for node in program.graph.nodes if node.op == "call_function"}
    assert names <= CORE, names - CORE


# --- bad arguments ----------------------------------------------------------------------------------------------------

GOOD = {
    "num_channels": 2,
    "knots_CJ": torch.tensor([[0.0, 1.0], [0.0, 2.0]]),
    "slopes_CP": torch.zeros(2, 3),
    "value_at_0_C": torch.zeros(2),
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_channels": 0}, "num_channels=0"),
        ({"num_channels": 3}, "knots_CJ=(2, 2): (3, J)"),
        ({"sharing": "row"}, "sharing=row"),
        ({"sharing": "layer"}, "knots_CJ=(2, 2): (1, J)"),
        ({"spatial_shape": (2,)}, "spatial_shape=(2,)"),
        ({"sharing": "neuron", "spatial_shape": (2,)}, "knots_CJ=(2, 2): (4, J)"),
        ({"knots_CJ": torch.zeros(2)}, "knots_CJ=(2,)"),
        ({"knots_CJ": torch.zeros(2, 2)}, "strictly rising"),
        ({"knots_CJ": torch.tensor([[0.0, 1.0], [0.0, math.inf]])}, "finite"),
        ({"slopes_CP": torch.zeros(2, 2)}, "slopes_CP=(2, 2)"),
        ({"slopes_CP": torch.full((2, 3), math.nan)}, "slopes_CP=(2, 3): finite"),
        ({"value_at_0_C": torch.zeros(2, 1)}, "value_at_0_C=(2, 1)"),
    ],
)
def test_bad_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ReluSum(**(GOOD | change))


@pytest.mark.parametrize(
    ("sharing", "spatial_shape", "shape"),
    [
        ("channel", (), (4, 2)),
        ("layer", (), (4, 1, 3)),
        ("channel", (), (3,)),
        ("neuron", (), (2, 3, 4)),
        ("neuron", (4, 5), (2, 3)),
        ("neuron", (4, 5), (2, 3, 5, 4)),
        ("neuron", (4, 5), (2, 3, 1, 5)),
    ],
)
def test_inputs_of_another_shape_are_refused(sharing, spatial_shape, shape):
    with pytest.raises(ValueError, match=re.escape(str(shape))):
        random_sum(sharing, spatial_shape)(torch.zeros(shape))
