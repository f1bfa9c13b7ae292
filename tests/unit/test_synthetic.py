"""Spirals, two Gaussians, polynomials and one-dimensional functions against their formulas."""

import math
import re

import pytest
import torch

from tautnet.data.fit_1d import NUM_KNOTS, Fit1d, random_slopes, target
from tautnet.data.polynomials import Polynomials, polynomial
from tautnet.data.spirals import Spirals
from tautnet.data.two_gaussians import TwoGaussians

SETS = [Spirals, TwoGaussians, Polynomials, Fit1d]


def parts(data):
    return [(part.inputs, part.targets) for part in (data.splits.train, data.splits.val, data.splits.test)]


@pytest.mark.parametrize("make", SETS)
def test_points_depend_on_the_sample_seed_and_not_on_the_order_seed(make):
    small = {"num_points": 64, "batch_size": 8}
    base, again, other = make(**small), make(**small, seed=5), make(**small, sample_seed=5)
    for (x, y), (x_again, y_again) in zip(parts(base), parts(again), strict=True):
        assert torch.equal(x, x_again)
        assert torch.equal(y, y_again)
    assert not torch.equal(parts(base)[0][0], parts(other)[0][0])
    train, val, test = (x for x, _ in parts(base))
    assert not torch.equal(train[:16], val[:16])
    assert not torch.equal(val[:16], test[:16])
    first, second = (next(iter(data.train_dataloader()))[0] for data in (base, again))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("make", SETS)
def test_the_global_random_state_has_no_part(make):
    before = torch.get_rng_state()
    points = make(num_points=64, batch_size=8).splits.train.inputs
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(77)
    assert torch.equal(make(num_points=64, batch_size=8).splits.train.inputs, points)


@pytest.mark.parametrize(
    ("make", "task", "outputs", "shape", "sizes"),
    [
        (Spirals, "classification", 2, (2,), [101, 25, 25]),
        (TwoGaussians, "classification", 2, (10,), [101, 25, 25]),
        (Polynomials, "regression", 1, (10,), [101, 25, 25]),
        (Fit1d, "regression", 1, (1,), [101, 101, 10_000]),
    ],
)
def test_sizes_and_types(make, task, outputs, shape, sizes):
    data = make(num_points=101, batch_size=8)
    assert (data.task, data.num_outputs, data.input_shape) == (task, outputs, shape)
    assert [len(x) for x, _ in parts(data)] == sizes
    for x, y in parts(data):
        assert (x.shape[1:], x.dtype) == (shape, torch.float32)
        assert (y.dtype, y.shape[1:]) == ((torch.int64, ()) if task == "classification" else (torch.float32, (1,)))


BAD = [
    (Spirals, {"num_points": 7}, "num_points=7: "),
    (Spirals, {"turns": 0.0}, "turns=0.0: "),
    (Spirals, {"noise": -0.1}, "noise=-0.1: "),
    (Spirals, {"noise": float("nan")}, "noise=nan: "),
    (TwoGaussians, {"num_points": 7}, "num_points=7: "),
    (TwoGaussians, {"num_features": 0}, "num_features=0: "),
    (TwoGaussians, {"prior": 0.0}, "prior=0.0: "),
    (TwoGaussians, {"prior": 1.0}, "prior=1.0: "),
    (TwoGaussians, {"separation": float("inf")}, "separation=inf: "),
    (Polynomials, {"num_points": 7}, "num_points=7: "),
    (Polynomials, {"num_features": 0}, "num_features=0: "),
    (Polynomials, {"num_terms": 0}, "num_terms=0: "),
    (Polynomials, {"degree": 11}, "degree=11: "),
    (Fit1d, {"num_points": 7}, "num_points=7: "),
    (Fit1d, {"function": "sine"}, "function=sine: one of zigzag, "),
    (Fit1d, {"num_points": 8, "batch_size": 9}, "batch_size=9: "),
]


@pytest.mark.parametrize(("make", "settings", "message"), BAD)
def test_bad_arguments_are_named_with_their_value(make, settings, message):
    with pytest.raises(ValueError, match=rf"\A{re.escape(message)}"):
        make(**settings)


# --- spirals ----------------------------------------------------------------------------------------------------------


def test_points_of_the_spirals_lie_on_their_formula():
    data = Spirals(num_points=4000, turns=1.75, noise=0.0)
    x, y = data.splits.train.inputs.double(), data.splits.train.targets
    radius = x.norm(dim=1)
    angle = 2 * math.pi * 1.75 * radius
    sign = 1 - 2 * y
    expected = torch.stack([-radius * angle.cos() * sign, radius * angle.sin() * sign], 1)
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-5)
    assert radius.max() <= 1 + 1e-6
    assert radius.square().mean().item() == pytest.approx(0.5, abs=4 / math.sqrt(12 * 4000))  # r^2 is uniform
    assert torch.bincount(y).tolist() == [2000, 2000]


def test_noise_of_the_spirals_is_in_units_of_the_distance_of_neighbouring_arms():
    clean, noisy = (Spirals(num_points=4000, turns=2.0, noise=noise).splits.train.inputs for noise in (0.0, 0.2))
    assert (noisy - clean).std().item() == pytest.approx(0.2 / 2, rel=0.05)


# --- two Gaussians ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prior", [0.5, 0.2])
def test_prior_is_the_share_of_the_first_class(prior):
    y = TwoGaussians(num_points=10_000, prior=prior).splits.train.targets
    assert (y == 0).double().mean().item() == pytest.approx(prior, abs=0.016)


def test_means_and_covariances_of_the_two_gaussians():
    x, y = parts(TwoGaussians(num_points=20_000, num_features=4, separation=3.0))[0]
    first, second = (x[y == k].double() for k in (0, 1))
    assert (first.mean(0) - 0.75).abs().max() < 0.07  # (3 / 2) / sqrt(4)
    assert (second.mean(0) + 0.75).abs().max() < 0.07
    assert (first.mean(0) - second.mean(0)).norm().item() == pytest.approx(3, abs=0.15)
    for points in (first, second):
        expected = torch.diag(torch.linspace(1, 2, 4, dtype=torch.float64).square())
        torch.testing.assert_close(points.T.cov(), expected, rtol=0.05, atol=0.1)


# --- polynomials ------------------------------------------------------------------------------------------------------


def test_polynomial_at_points_by_hand():
    x = torch.tensor([[2.0, 3.0, 5.0], [1.0, 0.0, -1.0]])
    factors, coefficients = torch.tensor([[0, 1], [2, 2]]), torch.tensor([1.0, 0.5])
    assert polynomial(x, factors, coefficients).tolist() == [[18.5], [0.5]]


def test_polynomial_against_a_loop(float64):
    x, coefficients = torch.randn(20, 5), torch.randn(7)
    factors = torch.randint(5, (7, 4))
    expected = [
        [sum(c * math.prod(row[f] for f in t) for c, t in zip(coefficients, factors, strict=True))] for row in x
    ]
    torch.testing.assert_close(polynomial(x, factors, coefficients), torch.tensor(expected))


def test_targets_are_scaled_by_the_training_part_and_one_polynomial_serves_all_parts():
    train, val, test = parts(Polynomials(num_points=4000, num_features=3, num_terms=5, degree=1))
    assert train[1].std().item() == pytest.approx(1, abs=1e-5)
    weights = torch.linalg.lstsq(train[0].double(), train[1].double()).solution
    for x, y in (train, val, test):
        torch.testing.assert_close(x.double() @ weights, y.double(), rtol=0, atol=1e-5)
    assert abs(val[1].std().item() - 1) > 1e-4


# --- one-dimensional functions ----------------------------------------------------------------------------------------

FUNCTIONS = pytest.mark.parametrize("function", ["zigzag", "plateaus", "cosine"])


@FUNCTIONS
@pytest.mark.parametrize("sample_seed", [0, 1, 2])
def test_constant_one_mean_zero(function, sample_seed):
    data = Fit1d(function=function, num_points=8, batch_size=8, sample_seed=sample_seed)
    x, y = (values[:, 0].double() for values in (data.splits.test.inputs, data.splits.test.targets))
    torch.testing.assert_close(x, torch.linspace(-1, 1, 10_000, dtype=torch.float64), rtol=0, atol=1e-6)
    slopes = y.diff() / x.diff()
    assert slopes.abs().max().item() == pytest.approx(1, abs=2e-3)
    assert torch.trapezoid(y, x).item() == pytest.approx(0, abs=1e-5)
    if function != "cosine":  # straight between the knots
        straight = (slopes - slopes.round()).abs() < 2e-3
        assert (~straight).sum() <= NUM_KNOTS
        assert set(slopes[straight].round().tolist()) == ({1, -1} if function == "zigzag" else {1, 0, -1})


def test_zigzag_by_hand(float64):
    knots, slopes = torch.tensor([-0.5, 0.5]), torch.tensor([1.0, -1.0, 1.0])
    x = torch.tensor([-1.0, -0.75, -0.5, 0.0, 0.5, 1.0]).view(-1, 1)
    torch.testing.assert_close(target(x, "zigzag", knots, slopes)[:, 0], torch.tensor([0, 0.25, 0.5, 0, -0.5, 0]))


def test_mean_is_taken_off(float64):
    x = torch.tensor([[-1.0], [0.0], [1.0]])
    found = target(x, "plateaus", torch.tensor([0.0]), torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(found[:, 0], torch.tensor([-0.25, -0.25, 0.75]))


def test_cosine_by_hand(float64):
    x = torch.tensor([[0.0], [1 / 7], [1 / 14]])
    expected = torch.tensor([[1.0], [-1.0], [0.0]]) / (7 * math.pi)
    torch.testing.assert_close(target(x, "cosine", torch.empty(0), torch.empty(0)), expected)


def test_slopes_of_neighbouring_pieces_differ_and_all_occur():
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([random_slopes("plateaus", generator) for _ in range(300)])
    assert draws.shape == (300, NUM_KNOTS + 1)
    assert (draws.diff(dim=1) != 0).all()
    for value in (-1, 0, 1):
        assert (draws == value).double().mean().item() == pytest.approx(1 / 3, abs=0.05)
    assert random_slopes("zigzag", generator).tolist() == [1, -1] * 5
