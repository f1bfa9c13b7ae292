"""Regression of a sparse random polynomial."""

from __future__ import annotations

import torch
from torch import Tensor

from tautnet.data.base import AbstractTensorData, Splits
from tautnet.data.loader import TensorSamples
from tautnet.factories import Task


class Polynomials(AbstractTensorData):
    """y = sum of ``num_terms`` random monomials of one degree in ``num_features`` normal features.

    Each monomial is a product of ``degree`` features drawn with replacement, with a normal coefficient; y is divided by
    the deviation of the training part. Noise-free.

    Source: the polynomial regression of Goyal et al. (2019), after their code: 100 or 1000 features, sums of 10
    monomials of degree 3 or 4, 100,000 samples. The distribution of the coefficients is ours.

    Args:
        batch_size: samples a batch; the authors' 2048.
        seed: of the training order.
        shuffle: False keeps one training order.
        num_points: of the training part, at least 8; validation and test have a quarter of it each.
        num_features: at least 1.
        num_terms: monomials, at least 1.
        degree: of each monomial, 1 to 10.
        sample_seed: of polynomial and points, apart from ``seed``.

    Shape:
        inputs (N, num_features) float32, targets (N, 1) float32.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        batch_size: int = 256,
        seed: int = 0,
        shuffle: bool = True,
        num_points: int = 20_000,
        num_features: int = 10,
        num_terms: int = 10,
        degree: int = 3,
        sample_seed: int = 0,
    ) -> None:
        for name, value, least, most in (
            ("num_points", num_points, 8, 10**9),
            ("num_features", num_features, 1, 10**6),
            ("num_terms", num_terms, 1, 10**6),
            ("degree", degree, 1, 10),
        ):
            if not least <= value <= most:
                raise ValueError(f"{name}={value}: an integer from {least} to {most}")
        self.num_points, self.num_features, self.num_terms = num_points, num_features, num_terms
        self.degree, self.sample_seed = degree, sample_seed
        super().__init__(batch_size, seed, shuffle)

    @property
    def task(self) -> Task:
        """Real targets."""
        return "regression"

    @property
    def num_outputs(self) -> int:
        """One value."""
        return 1

    def load(self) -> Splits:
        """Draw polynomial and points."""
        generator = torch.Generator().manual_seed(self.sample_seed)
        factors_TD = torch.randint(self.num_features, (self.num_terms, self.degree), generator=generator)
        coefficients_T = torch.randn(self.num_terms, generator=generator)
        counts = (self.num_points, self.num_points // 4, self.num_points // 4)
        inputs = [torch.randn(count, self.num_features, generator=generator) for count in counts]
        values = [polynomial(x, factors_TD, coefficients_T) for x in inputs]
        scale = values[0].std()
        return Splits(*(TensorSamples(x, y / scale) for x, y in zip(inputs, values, strict=True)))


def polynomial(x_NF: Tensor, factors_TD: Tensor, coefficients_T: Tensor) -> Tensor:
    """sum_t c_t prod_d x[factors[t, d]], shape (N, 1); one factor at a time, which needs N x T numbers."""
    products_NT = coefficients_T.expand(len(x_NF), -1)
    for factor_T in factors_TD.unbind(1):
        products_NT = products_NT * x_NF[:, factor_T]
    return products_NT.sum(1, keepdim=True)
