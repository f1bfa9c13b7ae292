"""Sparsification of linear splines: which knots go, what stays of the function, what is reported."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tautnet.activations import LinearSpline
from tautnet.splines import double_knots_, doubled, search_thresholds, sparsify_
from tautnet.splines.difference import largest_difference
from tautnet.splines.refit import anchored, bends, refitted, removal_scores, with_limited_slopes

METHODS = ["threshold", "refit", "merge"]
SETTINGS = [
    {},
    {"sharing": "layer"},
    {"linear_term": True, "learn_scale": True},
    {"sharing": "neuron", "spatial_shape": (2,)},
    {"slope_min": -1.0, "slope_max": 1.0, "learn_scale": True},
    {"slope_min": 0.0},
]

pytestmark = pytest.mark.usefixtures("float64")


def random_spline(num_knots=13, grid_range=2.0, **settings_) -> LinearSpline:
    spline = LinearSpline(3, num_knots, grid_range, **settings_)
    with torch.no_grad():
        for parameter in spline.parameters():
            parameter.normal_()
    return spline


def kinked_spline(dtype: torch.dtype, **settings_) -> LinearSpline:
    """As after training: a few strong kinks, a lot of weak ones."""
    spline = random_spline(31, 4.0, **settings_).to(dtype)
    strong = torch.rand(spline.num_curves, 29) < 0.3
    slope_changes = torch.where(strong, 0.5, 0.01) * torch.randn(spline.num_curves, 29)
    slopes = torch.cat([torch.rand(spline.num_curves, 1), slope_changes], dim=1).cumsum(dim=1)
    steps = spline.points()[0].diff(dim=1)
    spline.set_values_(nn.functional.pad((slopes * steps).cumsum(dim=1), (1, 0)))
    return spline


def spline_of(values: list[float], grid_range: float) -> LinearSpline:
    spline = LinearSpline(1, len(values), grid_range)
    spline.set_values_(torch.tensor([values], dtype=torch.float64))
    return spline


def state(net: nn.Module) -> dict[str, torch.Tensor]:
    return copy.deepcopy(net.state_dict())


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def values(spline: LinearSpline) -> torch.Tensor:
    return spline.points()[1].detach().clone()


# --- thresholds -------------------------------------------------------------------------------------------------------


def test_the_authors_list():
    found = search_thresholds(LinearSpline(1), "threshold")
    pieces = [(0.0002, 0.004, 0.0002), (0.004, 1, 0.05), (1, 3, 0.2), (3, 10, 0.5), (10, 100, 2)]
    assert found == [0.0, *np.concatenate([np.arange(*piece) for piece in pieces])]
    assert len(found) == 1 + 19 + 20 + 10 + 14 + 45
    assert found[:3] == [0.0, 0.0002, 0.0004]
    assert found[19:22] == pytest.approx([0.0038, 0.004, 0.054], abs=1e-15)
    assert found[-1] == 98.0


@pytest.mark.parametrize("settings_", SETTINGS)
@pytest.mark.parametrize("method", METHODS)
def test_threshold_zero_changes_nothing(method, settings_):
    spline = random_spline(**settings_)
    before = state(spline)
    report = sparsify_(spline, 0.0, method)
    assert same(state(spline), before)
    assert (report.knots_removed, report.sup_change, report.border_slope_change) == (0, 0.0, 0.0)
    assert report.knots_before == (spline.slope_changes().abs() > 1e-12).sum()
    assert report.knots_before > 0.4 * 11 * spline.num_curves


@pytest.mark.parametrize("settings_", SETTINGS)
@pytest.mark.parametrize("method", METHODS)
def test_a_large_threshold_leaves_straight_lines(method, settings_):
    spline = random_spline(**settings_)
    largest = spline.tv2() if method == "merge" else spline.slope_changes().abs()
    report = sparsify_(spline, largest.max().item(), method)
    assert report.knots_after == 0
    assert spline.slope_changes().abs().max() < 1e-13


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("settings_", SETTINGS)
@pytest.mark.parametrize("method", METHODS)
def test_a_second_application_changes_nothing(method, settings_, dtype):
    for threshold in (0.02, 0.1, 0.3):
        spline = kinked_spline(dtype, **settings_)
        first = sparsify_(spline, threshold, method)
        assert 0 < first.knots_removed < first.knots_before
        before = state(spline)
        second = sparsify_(spline, threshold, method)
        assert second.knots_before == second.knots_after == first.knots_after
        assert same(state(spline), before)


@given(
    rows=st.lists(st.lists(st.floats(-2, 2, width=16), min_size=9, max_size=9), min_size=1, max_size=3),
    thresholds=st.tuples(st.floats(0, 4, width=16), st.floats(0, 4, width=16)),
)
@settings(max_examples=40, deadline=None)
def test_a_larger_threshold_keeps_fewer_knots(rows, thresholds):
    spline = LinearSpline(len(rows), 9, 2.0)
    spline.set_values_(torch.tensor(rows, dtype=torch.float64))
    kept = {}
    for method in METHODS:
        for threshold in sorted(thresholds):
            thinned = copy.deepcopy(spline)
            kept[method, threshold] = sparsify_(thinned, threshold, method).knots_after
            before = state(thinned)
            assert sparsify_(thinned, threshold, method).knots_removed == 0
            assert same(state(thinned), before)
    low, high = sorted(thresholds)
    for method in ("threshold", "merge"):
        assert kept[method, high] <= kept[method, low]
    assert kept["refit", low] <= kept["threshold", low]


@pytest.mark.parametrize("method", ["refit", "merge"])
def test_something_changes_at_every_search_threshold_and_nowhere_between(method):
    spline = random_spline(9)
    tried = search_thresholds(spline, method)
    assert tried == sorted(tried)
    counts = []
    for threshold in tried:
        at, below = copy.deepcopy(spline), copy.deepcopy(spline)
        counts.append(sparsify_(at, threshold, method).knots_after)
        if method == "merge":
            assert sparsify_(below, threshold * (1 - 1e-6), method).knots_after > counts[-1]
    assert counts[-1] == 0
    assert counts[0] < 3 * 7


# --- what stays of the function ---------------------------------------------------------------------------------------


def test_the_threshold_procedure_on_an_example():
    """Step 1, slope changes 0.1, 1, -0.2: without the small ones the line from 0 to 0 bends at the middle alone."""
    spline = spline_of([0.0, 0.0, 0.1, 1.2, 2.1], 2.0)
    report = sparsify_(spline, 0.2, "threshold")
    torch.testing.assert_close(values(spline), torch.tensor([[0.0, 0.0, 0.0, 1.0, 2.0]]), rtol=0, atol=1e-15)
    (change,) = report.splines
    assert (change.path, change.knots_before, change.knots_after) == ("", 3, 1)
    assert change.sup_change == pytest.approx(0.2, abs=1e-15)
    assert change.border_slope_change == pytest.approx(0.1, abs=1e-15)  # 0.9 becomes 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_slope_change_of_the_threshold_goes_however_it_was_rounded(dtype):
    slopes = 0.3 * torch.arange(-10.0, 11.0)
    spline = spline_of(nn.functional.pad((0.7 * slopes).cumsum(0), (1, 0)).tolist(), 0.7 * 10.5).to(dtype)
    stored = bends(values(spline)) / 0.7
    assert stored.min() < 0.3 < stored.max()
    assert sparsify_(spline, 0.3, "threshold").knots_after == 0


def test_a_tilt_outside_the_grid_is_reported():
    spline = spline_of([0.0, 0.0, 0.0, 0.0, 0.5], 2.0)
    report = sparsify_(spline, 1.0, "threshold")
    assert (report.sup_change, report.border_slope_change) == (0.5, 0.5)


def truncated_powers(survives: torch.Tensor) -> np.ndarray:
    grid = np.arange(len(survives) + 2.0)
    kinks = [np.maximum(grid - 1 - j, 0) for j in np.flatnonzero(survives)]
    return np.stack([np.ones_like(grid), grid, *kinks], axis=1)


def squared_error(curve: torch.Tensor, survives: torch.Tensor) -> float:
    """Of the least squares fit, in another basis than the code's."""
    basis = truncated_powers(survives)
    return float(np.square(curve.numpy() - basis @ np.linalg.lstsq(basis, curve.numpy(), rcond=None)[0]).sum())


def test_refit_is_the_least_squares_fit_and_bends_nowhere_else():
    curves, survives = torch.randn(20, 12), torch.rand(20, 10) < 0.4
    fitted = refitted(curves, survives)
    for curve, fit, knots in zip(curves, fitted, survives, strict=True):
        assert float((curve - fit).square().sum()) == pytest.approx(squared_error(curve, knots), rel=1e-10)
    assert bends(fitted)[~survives].abs().max() < 1e-13
    errors = [(curves - other).square().sum(1) for other in (fitted, anchored(curves, survives))]
    assert (errors[0] <= errors[1] + 1e-12).all()
    assert errors[0].sum() < 0.5 * errors[1].sum()


def test_knots_that_go_without_loss_are_lost_without_change():
    grid = torch.arange(9.0)
    curves = torch.stack([grid.clamp(min=3), (grid - 5).abs(), 2 * grid - 1])
    survives = bends(curves).abs() > 0.5
    torch.testing.assert_close(refitted(curves, survives), curves, rtol=0, atol=1e-13)
    torch.testing.assert_close(anchored(curves, survives), curves, rtol=0, atol=1e-13)


def test_elimination_takes_the_knot_that_costs_least():
    for curve in torch.randn(5, 9):
        scores = removal_scores(curve.unsqueeze(0))[0]
        lone = [
            squared_error(torch.arange(9.0).sub(1 + j).clamp(min=0), torch.zeros(7, dtype=torch.bool)) for j in range(7)
        ]
        survives, error, largest = torch.ones(7, dtype=torch.bool), 0.0, 0.0
        while survives.any():
            errors = {}
            for knot in np.flatnonzero(survives):
                without = survives.clone()
                without[knot] = False
                errors[knot] = squared_error(curve, without)
            cheapest = min(errors, key=errors.get)
            largest = max(largest, errors[cheapest] - error)
            assert float(scores[cheapest]) == pytest.approx(math.sqrt(largest / max(lone)), rel=1e-8)
            survives[cheapest], error = False, errors[cheapest]


def test_merging_makes_one_knot_of_neighbours():
    kink = LinearSpline(1, 50, 1.0, init="relu")  # 0 lies between two knots: half the kink each
    assert kink.num_active_knots() == 2
    kept = copy.deepcopy(kink)
    assert sparsify_(kept, 0.1, "refit").knots_after == 2
    report = sparsify_(kink, 0.1, "merge")
    assert report.knots_after == 1
    assert report.sup_change < 0.51 / 49  # a fourth of the step, and a little for the fit
    torch.testing.assert_close(kink.slope_changes().sum(), torch.tensor(1.0), rtol=0, atol=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", METHODS)
def test_removed_knots_are_zero_up_to_rounding(method, dtype):
    spline = kinked_spline(dtype)
    report = sparsify_(spline, 0.05, method)
    positions, stored = (tensor.detach() for tensor in spline.points())
    size = (stored.diff(dim=1) / positions.diff(dim=1)).diff(dim=1).abs().flatten().sort().values
    dead = size[: size.numel() - report.knots_after]
    assert dead.max() < 8 * torch.finfo(dtype).eps * stored.abs().max() * 30 / 8
    assert 0 < report.knots_after < report.knots_before
    assert size[-report.knots_after] > 1e-2


def test_slopes_are_clipped_piece_by_piece_and_the_mean_stays():
    curves = refitted(torch.randn(8, 15), torch.rand(8, 13) < 0.4)
    limited = with_limited_slopes(curves, torch.tensor([[-0.3]]), torch.tensor([[0.2]]))
    assert limited.diff(dim=1).min() >= -0.3 - 1e-15
    assert limited.diff(dim=1).max() <= 0.2 + 1e-15
    torch.testing.assert_close(limited.mean(1), curves.mean(1))
    straight = bends(curves).abs() < 1e-12
    assert straight.any()
    assert bends(limited)[straight].abs().max() < 1e-12
    inside = (curves / 10).clamp(-0.1, 0.1)
    torch.testing.assert_close(with_limited_slopes(inside, torch.tensor(-1.0), torch.tensor(1.0)), inside)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", METHODS)
def test_slope_limits_hold_afterwards(method, dtype):
    spline = kinked_spline(dtype, slope_min=-0.5, slope_max=0.5, learn_scale=True, init="zero")
    before = values(spline)
    report = sparsify_(spline, 0.1, method)
    assert 0 < report.knots_removed < report.knots_before
    assert report.knots_after == (spline.slope_changes().abs() > 1e-3).sum()
    assert spline.slopes().abs().max() <= 0.5
    if method != "threshold":
        torch.testing.assert_close(values(spline).mean(1), before.mean(1), rtol=0, atol=1e-5)


# --- known targets ----------------------------------------------------------------------------------------------------


def fit(target, num_knots: int, weight: float, steps: int) -> LinearSpline:
    """One spline neuron fitted to samples on [-1, 1]."""
    spline = LinearSpline(1, num_knots, 1.0, init="zero")
    x = torch.linspace(-1, 1, 601).unsqueeze(1)
    optimizer = torch.optim.Adam(spline.parameters(), lr=0.03)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        ((spline(x) - target(x)).square().mean() + weight * spline.tv2().sum()).backward()
        optimizer.step()
        schedule.step()
    return spline


@pytest.mark.parametrize("method", METHODS)
def test_of_the_absolute_value_one_knot_at_zero_survives(method):
    spline = fit(torch.abs, 21, 1e-3, 600)
    report = sparsify_(spline, 0.1, method)
    assert report.knots_after == 1
    assert int(spline.slope_changes()[0].abs().argmax()) + 1 == 10  # the knot at 0
    x = torch.linspace(-1, 1, 401).unsqueeze(1)
    if method != "threshold":  # whose tilts add up
        assert (spline(x) - x.abs()).abs().max() < 0.05


def test_a_parabola_keeps_what_its_error_allows():
    """Size 31 without a penalty: mean squared error at most T^4 / 30; on every fourth knot 256 times that."""
    spline = fit(torch.square, 31, 0.0, 600)
    x = torch.linspace(-1, 1, 3001).unsqueeze(1)
    assert (spline(x) - x.square()).square().mean() <= (1 / 15) ** 4 / 30
    for threshold in search_thresholds(spline, "merge"):
        halved = copy.deepcopy(spline)
        if sparsify_(halved, threshold, "merge").knots_after <= 15:
            break
    assert halved.num_active_knots() >= 8
    assert (halved(x) - x.square()).square().mean() <= 4**4 * (1 / 15) ** 4 / 30


# --- refinement -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("settings_", [*SETTINGS, {"num_knots": 10}])
def test_doubling_keeps_the_function(settings_, dtype):
    spline = random_spline(**settings_).to(dtype).requires_grad_(False).eval()
    before = state(spline)
    finer = doubled(spline)
    assert finer.num_knots == 2 * spline.num_knots - 1
    assert same(state(spline), before)
    assert not finer.coefficients.requires_grad
    x = 3 * torch.randn(200, 3, *spline.spatial_shape, dtype=dtype)
    torch.testing.assert_close(finer(x), spline(x))
    torch.testing.assert_close(finer.knots()[::2], spline.knots(), rtol=0, atol=0)
    torch.testing.assert_close(finer.tv2(), spline.tv2())


def test_doubling_inside_a_network():
    shared = random_spline(5)
    net = nn.Sequential(nn.Linear(2, 3), shared, nn.Sequential(nn.Linear(3, 3), random_spline(7)), shared)
    x = torch.randn(50, 2)
    before = net(x)
    double_knots_(net)
    assert [net[1].num_knots, net[2][1].num_knots] == [9, 13]
    assert net[3] is net[1]
    torch.testing.assert_close(net(x), before)
    net(x).sum().backward()
    assert net[1].coefficients.grad.shape == (3, 9)
    with pytest.raises(ValueError, match="net=LinearSpline: "):
        double_knots_(shared)


# --- differences and errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings_", SETTINGS)
def test_largest_difference_on_a_range(settings_):
    before = random_spline(**settings_)
    after = copy.deepcopy(before)
    sparsify_(after, 1.5, "refit")
    lo = torch.randn(before.num_curves)
    hi = lo + 3 * torch.rand(before.num_curves)
    bound = largest_difference(before, after, lo, hi)
    shares = torch.linspace(0, 1, 4001).unsqueeze(1)
    x = lo + shares * (hi - lo)
    if before.sharing == "layer":
        x = x.expand(-1, 3)
    x = x.reshape(-1, 3, *before.spatial_shape)
    seen = (after(x) - before(x)).abs().amax(0).flatten()[: before.num_curves]
    assert (seen <= bound + 1e-12).all()
    torch.testing.assert_close(seen, bound, rtol=0, atol=0.01)
    with pytest.raises(ValueError, match="after: not on the knots"):
        largest_difference(before, doubled(after), lo, hi)


def test_paths_and_sums_in_a_network():
    net = nn.Sequential(nn.Linear(2, 3), random_spline(9), nn.Sequential(random_spline(7, linear_term=True)))
    report = sparsify_(net, 1.0)
    assert [spline.path for spline in report.splines] == ["1", "2.0"]
    assert report.knots_before == 3 * 7 + 3 * 5
    assert report.knots_removed == report.knots_before - report.knots_after > 0
    assert report.sup_change == max(spline.sup_change for spline in report.splines) > 0


@pytest.mark.parametrize("threshold", [-1.0, math.nan])
def test_bad_arguments(threshold):
    with pytest.raises(ValueError, match=r"^threshold="):
        sparsify_(LinearSpline(1), threshold)
    with pytest.raises(ValueError, match=r"^method=fast: one of threshold, refit, merge"):
        sparsify_(LinearSpline(1), 0.1, "fast")
    with pytest.raises(ValueError, match=r"^method=fast"):
        search_thresholds(LinearSpline(1), "fast")
    with pytest.raises(ValueError, match=r"^net=Linear: no spline"):
        sparsify_(nn.Linear(1, 1), 0.1)
    spline = LinearSpline(1)
    nn.init.constant_(spline.coefficients, threshold if math.isnan(threshold) else math.inf)
    with pytest.raises(ValueError, match="not finite"):
        sparsify_(nn.Sequential(spline), 0.1)


def test_scores_of_many_curves_are_those_of_each_alone():
    curves = torch.randn(150, 6, dtype=torch.float64)
    alone = torch.cat([removal_scores(curve.unsqueeze(0)) for curve in curves])
    torch.testing.assert_close(removal_scores(curves), alone)
