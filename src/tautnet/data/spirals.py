"""Two intertwined spirals."""

from __future__ import annotations

from math import pi

import torch

from tautnet.data.base import AbstractTensorData, Splits
from tautnet.data.loader import TensorSamples
from tautnet.data.split import drawn_splits


class Spirals(AbstractTensorData):
    """Which of two spirals does a noisy point of the plane belong to?

    With the radius r = sqrt(u), u uniform, and the angle t = 2 pi ``turns`` r, the first spiral is r (-cos t, sin t),
    the second its mirror image through the origin; Gaussian noise of deviation ``noise`` / ``turns`` is added.

    Source: the two-spiral task of Goyal et al. (2019), whose code draws 100,000 points a spiral with noise. The formula
    is reconstructed: scale, number of turns and relative noise are ours.

    Args:
        batch_size: samples a batch; the authors' 256.
        seed: of the training order.
        shuffle: False keeps one training order.
        num_points: of the training part, half a spiral each, at least 2; validation and test have a quarter of it each.
        turns: of each spiral, above 0.
        noise: deviation of the noise, in units of the distance between neighbouring arms, >= 0.
        sample_seed: of the random points, apart from ``seed``.

    Shape:
        inputs (N, 2) float32, targets (N,) int64.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        batch_size: int = 256,
        seed: int = 0,
        shuffle: bool = True,
        num_points: int = 20_000,
        turns: float = 1.75,
        noise: float = 0.1,
        sample_seed: int = 0,
    ) -> None:
        if num_points < 8:
            raise ValueError(f"num_points={num_points}: an integer of at least 8")
        if not 0 < turns < float("inf"):
            raise ValueError(f"turns={turns}: a finite number above 0")
        if not 0 <= noise < float("inf"):
            raise ValueError(f"noise={noise}: a finite number of at least 0")
        self.num_points, self.turns, self.noise, self.sample_seed = num_points, turns, noise, sample_seed
        super().__init__(batch_size, seed, shuffle)

    @property
    def num_outputs(self) -> int:
        """Two spirals."""
        return 2

    def load(self) -> Splits:
        """Draw the points."""
        return drawn_splits(self.num_points, self.sample_seed, self._draw)

    def _draw(self, count: int, generator: torch.Generator) -> TensorSamples:
        radius = torch.rand(count, generator=generator).sqrt()
        angle = 2 * pi * self.turns * radius
        spiral = torch.arange(count) % 2
        points = (radius * torch.stack([-angle.cos(), angle.sin()])).T * (1 - 2 * spiral).view(-1, 1)
        noise = torch.randn(count, 2, generator=generator) * (self.noise / self.turns)
        return TensorSamples(points + noise, spiral)
