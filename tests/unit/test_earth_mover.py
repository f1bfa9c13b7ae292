"""Distances between clouds of points: exact values, order, metric properties."""

from itertools import permutations
from math import gamma, isnan, nan, pi, sqrt

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tautnet.functional.earth_mover import (
    coupling_distance,
    earth_mover_exact,
    norm_gap,
    norm_sum,
    per_unit,
    sliced,
)


def points(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def generator():
    return torch.Generator().manual_seed(0)


def clouds(seed, n=None, d=None):
    chance = torch.Generator().manual_seed(seed)
    n = n or int(torch.randint(1, 12, (), generator=chance))
    d = d or int(torch.randint(1, 6, (), generator=chance))
    return (torch.randn(n, d, generator=chance, dtype=torch.float64) * 3 for _ in range(3))


def sliced_64(a, b):
    return sliced(a, b, 64, generator())


ALL = [earth_mover_exact, sliced_64, per_unit, coupling_distance, norm_gap, norm_sum]


def test_values_by_hand():
    a, b = points([0, 0], [0, 3]), points([4, 3], [0, 0])
    assert earth_mover_exact(a, b) == 2.0  # the second to the first, the first stays
    assert coupling_distance(a, b) == 4.0
    assert per_unit(a, b) == 1.0  # 2 in the first unit, 0 in the second
    assert norm_gap(a, b) == 1.0
    assert norm_sum(a, b) == 4.0


@pytest.mark.parametrize("seed", range(6))
def test_the_exact_distance_is_the_best_of_all_assignments(seed):
    a, b, _ = clouds(seed, n=6)
    best = min(float((a - b[list(order)]).norm(dim=1).mean()) for order in permutations(range(6)))
    assert earth_mover_exact(a, b) == pytest.approx(best, rel=1e-12)


@given(st.integers(0, 10**6))
def test_the_distances_stand_in_their_order(seed):
    a, b, _ = clouds(seed)
    w1 = earth_mover_exact(a, b)
    above, below = w1 * (1 + 1e-12), w1 * (1 - 1e-12)
    assert norm_gap(a, b) <= above
    assert per_unit(a, b) <= above
    assert sliced_64(a, b) <= above
    assert coupling_distance(a, b) >= below
    assert norm_sum(a, b) >= below


@given(st.integers(0, 10**6))
def test_the_exact_distance_is_a_metric(seed):
    a, b, c = clouds(seed)
    assert earth_mover_exact(a, b) == pytest.approx(earth_mover_exact(b, a), rel=1e-12)
    assert earth_mover_exact(a, c) <= (earth_mover_exact(a, b) + earth_mover_exact(b, c)) * (1 + 1e-12)
    assert earth_mover_exact(a, a.flip(0)) == 0


@pytest.mark.parametrize("distance", [earth_mover_exact, coupling_distance])
def test_a_translation_costs_its_length(distance):
    a, _, _ = clouds(1, 40, 3)
    assert distance(a, a + points(1, 2, 2)) == pytest.approx(3.0, rel=1e-12)


@pytest.mark.parametrize("distance", [earth_mover_exact, sliced_64, per_unit])
def test_the_order_of_the_points_does_not_matter(distance):
    a, b, _ = clouds(2, 30, 4)
    assert distance(a, b) == pytest.approx(distance(a.flip(0), b), rel=1e-12)
    assert coupling_distance(a, b) != pytest.approx(coupling_distance(a.flip(0), b), rel=1e-3)


def test_in_one_dimension_all_three_agree():
    a, b, _ = clouds(3, 50, 1)
    assert earth_mover_exact(a, b) == pytest.approx(per_unit(a, b), rel=1e-12)
    assert earth_mover_exact(a, b) == pytest.approx(sliced(a, b, 1, generator()), rel=1e-12)


def test_slices_of_a_translation_are_its_mean_projection():
    a, _, _ = clouds(4, 20, 5)
    found = sliced(a, a + points(0, 0, 3, 0, 4), 20_000, generator())
    assert found == pytest.approx(5 * gamma(5 / 2) / (sqrt(pi) * gamma(3)), rel=0.02)  # mean |u_1| on the sphere


def test_slices_are_those_of_the_generator():
    a, b, _ = clouds(5, 20, 5)
    assert sliced_64(a, b) == sliced_64(a, b)
    assert sliced_64(a, b) != sliced(a, b, 64, torch.Generator().manual_seed(1))


def test_small_ways_of_far_points_are_exact():
    """A matrix of distances by products would lose them."""
    a, b, _ = clouds(6, 64, 32)
    a = 1e4 + a
    moved = a + 1e-6 * b
    assert earth_mover_exact(a, moved) == pytest.approx(coupling_distance(a, moved), rel=1e-9)


@pytest.mark.parametrize("distance", ALL)
def test_half_precision_and_gradients_are_taken(distance):
    a, b = torch.full((4, 3), 60000.0, dtype=torch.float16), torch.zeros(4, 3, requires_grad=True)
    assert distance(a, b.half()) > 30000
    assert distance(a, b) == distance(a, b.half())


@pytest.mark.parametrize("value", [nan, float("inf")])
@pytest.mark.parametrize("distance", ALL)
def test_what_is_not_finite_stays_visible(distance, value):
    a, b, _ = clouds(7, 5, 2)
    a[2, 1] = value
    assert not distance(a, b) < float("inf")
    assert isnan(earth_mover_exact(a, b))


@pytest.mark.parametrize("distance", ALL)
@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ((4, 2), (3, 2), r"b_ND=\(3, 2\): as many points as a_ND, shape \(4, 2\)"),
        ((4, 2), (4, 1), r"b_ND=\(4, 1\): as many points as a_ND, shape \(4, 2\)"),
        ((4, 2, 1), (4, 2, 1), r"a_ND=\(4, 2, 1\): the shape \(N, D\), N and D at least 1"),
        ((0, 2), (0, 2), r"a_ND=\(0, 2\): the shape \(N, D\), N and D at least 1"),
    ],
)
def test_bad_shapes_are_named(distance, a, b, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        distance(torch.zeros(a), torch.zeros(b))


def test_no_direction_is_refused():
    with pytest.raises(ValueError, match=r"^num_projections=0: at least 1$"):
        sliced(torch.zeros(2, 2), torch.zeros(2, 2), 0, generator())
