"""How sure a difference between two variants is, from runs that share their seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import mean, stdev

import numpy as np
from scipy.special import stdtrit

LEVEL = 0.05
_MOST_EXACT = 20  # pairs; beyond, signs are drawn
_NUM_DRAWN = 100_000


@dataclass(frozen=True)
class PairedDifference:
    """The mean of differences between runs with the same seed.

    Attributes:
        n: pairs.
        mean: of the differences.
        half_width: of the 95 % interval around it; None for a single pair.
        p: of the sign-flip permutation test, two-sided.
        least_p: the smallest p that n pairs can give.
    """

    n: int
    mean: float
    half_width: float | None
    p: float
    least_p: float

    @property
    def too_few(self) -> bool:
        """Whether not even the clearest difference could be told from chance at the level of 5 %."""
        return self.least_p > LEVEL

    @property
    def clear(self) -> bool:
        """Whether chance explains it with a probability of at most 5 %."""
        return self.p <= LEVEL


def paired_difference(differences: Sequence[float]) -> PairedDifference:
    """Student's interval and the permutation test of paired differences.

    The test holds the mean against those of all 2^n choices of signs: had the variants been exchangeable within each
    seed, every choice would have been as likely. Its p is exact up to 20 pairs; beyond, 100000 choices are drawn. The
    interval takes the differences to be normal.

    Source: Fisher (1935) for the test; Student (1908) for the interval.

    Args:
        differences: finite, one a seed, at least one.

    Raises:
        ValueError: no difference, or one that is not finite.
    """
    if not differences or not np.isfinite(differences).all():
        raise ValueError(f"differences={list(differences)}: finite numbers, at least one")
    n, center = len(differences), mean(differences)
    half_width = float(stdtrit(n - 1, 1 - LEVEL / 2)) * stdev(differences) / sqrt(n) if n > 1 else None
    return PairedDifference(n, center, half_width, _permutation_p(differences), max(2.0 ** (1 - n), 1 / _NUM_DRAWN))


def _permutation_p(differences: Sequence[float]) -> float:
    d = np.asarray(differences, dtype=np.float64)
    limit = abs(d.sum()) - 1e-9 * np.abs(d).sum()  # sums that are equal but for rounding count as reached
    if len(d) > _MOST_EXACT:
        signs = np.random.default_rng(0).choice([-1.0, 1.0], size=(_NUM_DRAWN, len(d)))
        return float((1 + (np.abs(signs @ d) >= limit).sum()) / (1 + _NUM_DRAWN))
    sums = np.zeros(1)
    for value in d:
        sums = np.concatenate([sums + value, sums - value])
    return float((np.abs(sums) >= limit).mean())
