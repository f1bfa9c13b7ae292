"""A mixture of two Gaussians."""

from __future__ import annotations

from math import sqrt

import torch

from tautnet.data.base import AbstractTensorData, Splits
from tautnet.data.loader import TensorSamples
from tautnet.data.split import drawn_splits


class TwoGaussians(AbstractTensorData):
    """Which of two Gaussians of equal covariance does a point come from?

    x ~ N(+-(``separation`` / 2) d, S) with prior ``prior`` of the first, d = (1, ..., 1) / sqrt(D), and S diagonal with
    deviations from 1 to 2, so that the best direction is not the one between the means.

    Source: the setting of the mixture theorem of Littwin, Wolf (2018); dimension, separation and covariance are ours.

    Args:
        batch_size: samples a batch.
        seed: of the training order.
        shuffle: False keeps one training order.
        num_points: of the training part, at least 8; validation and test have a quarter of it each.
        num_features: D, at least 1.
        prior: of the first class, in (0, 1).
        separation: distance of the means, >= 0.
        sample_seed: of the random points, apart from ``seed``.

    Shape:
        inputs (N, D) float32, targets (N,) int64.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        batch_size: int = 256,
        seed: int = 0,
        shuffle: bool = True,
        num_points: int = 4000,
        num_features: int = 10,
        prior: float = 0.5,
        separation: float = 6.0,
        sample_seed: int = 0,
    ) -> None:
        for name, value, least in (("num_points", num_points, 8), ("num_features", num_features, 1)):
            if value < least:
                raise ValueError(f"{name}={value}: an integer of at least {least}")
        if not 0 < prior < 1:
            raise ValueError(f"prior={prior}: between 0 and 1")
        if not 0 <= separation < float("inf"):
            raise ValueError(f"separation={separation}: a finite number of at least 0")
        self.num_points, self.num_features, self.prior = num_points, num_features, prior
        self.separation, self.sample_seed = separation, sample_seed
        super().__init__(batch_size, seed, shuffle)

    @property
    def num_outputs(self) -> int:
        """Two classes."""
        return 2

    def load(self) -> Splits:
        """Draw the points."""
        return drawn_splits(self.num_points, self.sample_seed, self._draw)

    def _draw(self, count: int, generator: torch.Generator) -> TensorSamples:
        classes = (torch.rand(count, generator=generator) >= self.prior).long()
        shift = self.separation / 2 / sqrt(self.num_features) * (1 - 2 * classes).view(-1, 1)
        deviations = torch.linspace(1, 2, self.num_features)
        return TensorSamples(torch.randn(count, self.num_features, generator=generator) * deviations + shift, classes)
