"""Slope limits and shrunk slope changes: against linear algebra, and float32 that never crosses a limit."""

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tautnet.functional.linear_spline import knot_step, slope_changes
from tautnet.functional.slope_limits import limit_slopes, shrink_slope_changes

LIMITS = [(-1.0, 1.0), (0.0, 1.0), (0.0, None), (None, 0.5), (0.25, 0.75), (-2.0, -0.1), (0.3, 0.3), (-0.7, -0.7)]


def step_C1(step: float) -> torch.Tensor:
    return torch.full((1, 1), step, dtype=torch.float64)


def by_pseudo_inverse(values: np.ndarray, step: float, low: float | None, high: float | None) -> np.ndarray:
    size = values.shape[1]
    difference = np.diff(np.eye(size), axis=0)
    clipped = np.clip(values @ difference.T, -math.inf if low is None else low * step, high and high * step)
    if high == 0:
        clipped = np.minimum(clipped, 0)
    return clipped @ np.linalg.pinv(difference).T + values.mean(axis=1, keepdims=True)


@pytest.mark.parametrize(("low", "high"), LIMITS)
@pytest.mark.parametrize(("num_knots", "step"), [(3, 0.5), (10, 2 / 3), (51, 0.16)])
def test_it_is_the_clip_through_the_pseudo_inverse(low, high, num_knots, step):
    values = torch.randn(4, num_knots, dtype=torch.float64) + torch.tensor([[0.0], [3.0], [-20.0], [0.5]]).double()
    actual = limit_slopes(values, step_C1(step), low, high)
    np.testing.assert_allclose(actual, by_pseudo_inverse(values.numpy(), step, low, high), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("low", "high"), LIMITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_idempotent_with_the_mean_kept_and_feasible_values_left_alone(low, high, dtype):
    values = torch.randn(5, 21, dtype=dtype)
    tolerance = 200 * torch.finfo(dtype).eps  # 20 differences, each off by at most 2 eps times a value below 4
    once = limit_slopes(values, step_C1(0.16), low, high)
    torch.testing.assert_close(once.mean(dim=1), values.mean(dim=1), rtol=0, atol=tolerance)
    torch.testing.assert_close(limit_slopes(once, step_C1(0.16), low, high), once, rtol=0, atol=tolerance)
    middle = ((-2.0 if low is None else low) + (2.0 if high is None else high)) / 2
    inside = middle * 0.16 * torch.arange(21).to(dtype) + 0.002 * torch.randn(5, 21, dtype=dtype)
    if low != high:
        torch.testing.assert_close(limit_slopes(inside, step_C1(0.16), low, high), inside, rtol=0, atol=tolerance)


def test_limits_on_the_lattice_are_met_exactly():
    knots = torch.linspace(-4, 4, 33)  # step 0.25: slope 1 is a multiple of every power of two in play
    for values in (knots, knots.abs(), knots.relu()):
        assert torch.equal(limit_slopes(values.unsqueeze(0), step_C1(0.25), -1.0, 1.0)[0], values)


@settings(max_examples=300, deadline=None)
@given(
    num_knots=st.integers(3, 80),
    grid_range=st.floats(1e-3, 1e3),
    magnitude=st.floats(-6, 6),
    offset=st.floats(-1, 1),
    offset_magnitude=st.floats(-3, 8),
    limits=st.sampled_from([*((low, high) for low, high in LIMITS if low != high), (-1e-3, 2e3), (-0.1, 0.3)]),
    scale=st.floats(0.01, 100),
    seed=st.integers(0, 2**31),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_stored_values_never_cross_a_limit(
    num_knots, grid_range, magnitude, offset, offset_magnitude, limits, scale, seed, dtype
):
    low, high = limits
    random = torch.Generator().manual_seed(seed)
    values = 10**magnitude * torch.randn(3, num_knots, generator=random, dtype=torch.float64)
    values = (values + offset * 10**offset_magnitude).to(dtype)
    step = knot_step(num_knots, grid_range) / scale
    stored = limit_slopes(values, step_C1(step), low, high)
    assert stored.dtype == dtype
    slopes = stored.double().diff(dim=1) / step
    quantum = 4 * torch.finfo(dtype).eps * float(stored.abs().max()) / step  # at least q / step, which is a slope
    contains_zero = (low is None or low <= 0) and (high is None or high >= 0)
    if contains_zero or quantum < (high if high is not None else math.inf) - (low if low is not None else -math.inf):
        assert low is None or slopes.min() >= low
        assert high is None or slopes.max() <= high
    else:  # nothing that float32 can hold lies between: the limit nearer to 0 gives way
        assert slopes.max() <= high if low > 0 else slopes.min() >= low
    if scale == 1 and high is not None:  # also in exact arithmetic, up to the rounding of the step
        rise = max(Fraction(b) - Fraction(a) for row in stored.tolist() for a, b in pairwise(row))
        assert rise <= (Fraction(high) + abs(Fraction(high)) / 2**52) * Fraction(step)


def test_limits_at_the_edge_of_float64():
    limits = torch.rand(2000, 1, dtype=torch.float64) + 0.5
    multiples = torch.randint(2**21, 2**22, (2000, 1))  # q = 1: the limit is a multiple of it, up to the last bit
    steps = multiples / limits
    ramps = (multiples * torch.tensor([[-3, 0, 3]])).float()
    for limit, step, ramp, multiple in zip(limits, steps, ramps, multiples, strict=True):
        for sign, limited in ((1, (None, limit.item())), (-1, (-limit.item(), None))):
            stored = limit_slopes(sign * ramp.unsqueeze(0), step.unsqueeze(0), *limited).double()
            slopes = sign * stored.diff(dim=1) / step
            assert (slopes <= limit).all()
            assert (sign * stored.diff(dim=1) >= multiple - 1).all()


@pytest.mark.parametrize("limit", [0.3, -0.7])
def test_a_single_slope_holds_up_to_the_rounding(limit):
    values = 3 * torch.randn(50, 51) + 5
    stored = limit_slopes(values, step_C1(0.16), limit, limit)
    slopes = stored.double().diff(dim=1) / 0.16
    assert (slopes.abs() <= abs(limit)).all()
    assert (slopes - limit).abs().max() <= 4 * torch.finfo(torch.float32).eps * float(stored.abs().max()) / 0.16


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.1, None), (0.3, 0.3)])
def test_derivatives_are_those_of_the_clip(low, high):
    values = torch.randn(2, 7, dtype=torch.float64, requires_grad=True)
    step = torch.tensor([[0.4], [0.9]], dtype=torch.float64, requires_grad=True)
    jacobian = torch.autograd.functional.jacobian(lambda v: limit_slopes(v, step, low, high)[0], values)[:, 0]
    difference = np.diff(np.eye(7), axis=0)
    rises = values[0].detach().diff() / 0.4
    free = ((rises > low) & (rises < (high or math.inf))).double().numpy()
    expected = np.linalg.pinv(difference) @ np.diag(free) @ difference + 1 / 7
    np.testing.assert_allclose(jacobian, expected, atol=1e-12)

    def smooth(v, s):  # finite differences would see the steps of the lattice, which are below 1e-14
        return limit_slopes(v, s, low, high)

    assert torch.autograd.gradcheck(smooth, (values, step), eps=1e-5, atol=1e-7)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_curve_that_is_not_finite_stays_so_and_alone(bad):
    values = torch.randn(3, 9)
    expected = limit_slopes(values, step_C1(0.5), -1.0, 1.0)
    values[1, 4] = bad
    actual = limit_slopes(values, step_C1(0.5), -1.0, 1.0)
    assert actual[1].isnan().all()
    assert torch.equal(actual[[0, 2]], expected[[0, 2]])


@pytest.mark.parametrize("value", [0.0, 1e-38, 1e-45, 3e38, -3e38])
def test_extreme_constants_stay(value):
    values = torch.full((1, 5), value)
    actual = limit_slopes(values, step_C1(0.5), -1.0, 1.0)
    assert (actual.diff() == 0).all()
    torch.testing.assert_close(actual, values, rtol=1e-6, atol=1e-36)


def test_ensembles_of_values_through_vmap():
    values = torch.randn(6, 3, 5)
    together = torch.func.vmap(lambda v: limit_slopes(v, step_C1(0.5), -1.0, 1.0))(values)
    assert torch.equal(together, torch.stack([limit_slopes(v, step_C1(0.5), -1.0, 1.0) for v in values]))


def test_autocast_does_not_touch_it():
    values = 3 * torch.randn(4, 51)
    expected = limit_slopes(values, step_C1(0.16), -1.0, 1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(limit_slopes(values, step_C1(0.16), -1.0, 1.0), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_limits_hold_on_a_gpu_and_two_runs_agree(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without which torch refuses deterministic products
    values = (3 * torch.randn(300, 51)).cuda()
    torch.use_deterministic_algorithms(True, warn_only=False)
    try:
        first, second = (limit_slopes(values, step_C1(0.16).cuda(), -1.0, 1.0) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(first, second)
    assert (first.cpu().double().diff(dim=1) / 0.16).abs().max() <= 1
    torch.testing.assert_close(first.cpu(), limit_slopes(values.cpu(), step_C1(0.16), -1.0, 1.0), rtol=0, atol=1e-5)


# --- shrinking --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("amount", [0.0, 0.3, 100.0])
def test_shrinking_is_a_soft_threshold_that_keeps_the_regression_line(amount):
    values = torch.randn(3, 11, dtype=torch.float64)
    shrunk = shrink_slope_changes(values, 0.2, amount)
    before, after = slope_changes(values, 1.0), slope_changes(shrunk, 1.0)
    torch.testing.assert_close(after, before.sign() * (before.abs() - amount).clamp(min=0), rtol=0, atol=1e-11)
    knots = np.linspace(-1, 1, 11)
    lines = [np.polyfit(knots, curves.T.numpy(), 1) for curves in (values, shrunk)]
    np.testing.assert_allclose(lines[1], lines[0], atol=1e-11)
    if amount == 100.0:
        np.testing.assert_allclose(shrunk, (np.outer(lines[0][0], knots) + lines[0][1][:, None]), atol=1e-11)


def test_changes_that_became_zero_are_so_to_the_rounding_of_the_values():
    values = torch.randn(20, 51)
    changes = slope_changes(values, 4.0)
    shrunk = shrink_slope_changes(values, 0.16, float(changes.abs().median()))
    gone = slope_changes(shrunk.double(), 4.0)[changes.abs() < changes.abs().median()]
    assert gone.abs().max() <= 2 * torch.finfo(torch.float32).eps * float(shrunk.abs().max()) / 0.16
    again = shrink_slope_changes(shrunk, 0.16, 1e-4)
    assert slope_changes(again.double(), 4.0)[changes.abs() < changes.abs().median()].abs().max() <= 2e-4


def test_low_precision_values_are_limited_in_float32():
    step = torch.full((1, 1), 0.16, dtype=torch.float64)
    for dtype in (torch.bfloat16, torch.float16):
        values = torch.randn(3, 21).to(dtype)
        stored = limit_slopes(values, step, -1.0, 1.0)
        assert torch.equal(stored, limit_slopes(values.float(), step, -1.0, 1.0))
        assert stored.dtype == torch.float32
