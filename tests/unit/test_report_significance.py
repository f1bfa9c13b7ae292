"""Differences by seed: Student's interval and the permutation test."""

from itertools import product
from math import inf, nan

import numpy as np
import pytest

from tautnet.report.significance import paired_difference

# Heights of 15 crossed minus self-fertilised plants, in eighths of an inch. Source: Darwin (1876), as in Fisher (1935),
# who counts 1726 of the 32768 choices of signs whose sum is as large.
MAIZE = (49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48)


def test_fishers_count():
    found = paired_difference(MAIZE)
    assert found.p * 2**15 == 1726
    assert (found.n, found.mean) == (15, pytest.approx(20.9333, abs=1e-4))
    assert found.half_width == pytest.approx(20.9023, abs=1e-3)  # 2.1448 * 37.744 / sqrt(15)
    assert not found.clear
    assert not found.too_few


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_every_choice_of_signs(n):
    rng = np.random.default_rng(n)
    for differences in (rng.normal(0.5, 1, n), rng.integers(-2, 3, n) / 10):
        sums = [abs(np.dot(signs, differences)) for signs in product((-1, 1), repeat=n)]
        reached = sum(value >= abs(differences.sum()) - 1e-12 for value in sums)
        assert paired_difference(list(differences)).p == reached / 2**n


def test_few_seeds_cannot_tell_and_six_can():
    assert [paired_difference([1.0 + i for i in range(n)]).too_few for n in (1, 3, 5, 6)] == [True, True, True, False]
    three, six = paired_difference([1.0, 2.0, 3.0]), paired_difference([1.0, 1.1, 1.2, 0.9, 1.0, 1.3])
    assert (three.p, three.least_p, three.clear) == (0.25, 0.25, False)
    assert (six.p, six.least_p, six.clear) == (2 / 64, 2 / 64, True)
    assert three.half_width == pytest.approx(4.302653 / 3**0.5, rel=1e-6)


def test_no_difference_and_a_single_pair():
    assert paired_difference([0.0, 0.0, 0.0]).p == 1
    alone = paired_difference([2.0])
    assert (alone.half_width, alone.p) == (None, 1)


def test_many_seeds_are_drawn_from():
    rng = np.random.default_rng(0)
    none, clear = (paired_difference(list(rng.normal(mean, 1, 30))) for mean in (0.0, 1.5))
    assert none.p > 0.05 > 1e-4 > clear.p > 0


@pytest.mark.parametrize("differences", [[], [1.0, nan], [inf]])
def test_what_has_no_difference(differences):
    with pytest.raises(ValueError, match="differences="):
        paired_difference(differences)
