"""Fixed activations, thin wrappers around torch's that state their slopes and images exactly."""

from __future__ import annotations

from math import inf, isfinite, pi, sqrt

import torch
from torch import Tensor
from torch.nn import functional as F

from tautnet.activations.base import AbstractActivation
from tautnet.functional.elementwise import range_on_box


def _constants(*values: float, num_channels: int) -> tuple[Tensor, ...]:
    return tuple(torch.full((num_channels,), value, dtype=torch.float64) for value in values)


class LeakyReLU(AbstractActivation):
    """max(x, 0) + negative_slope * min(x, 0).

    Args:
        num_channels: size of dimension 1 of the input.
        negative_slope: slope for x < 0, any finite number.

    Lipschitz: max(1, |negative_slope|), exact.

    Raises:
        ValueError: ``negative_slope`` not finite.
    """

    def __init__(self, num_channels: int, negative_slope: float = 0.01) -> None:
        super().__init__(num_channels)
        if not isfinite(negative_slope):
            raise ValueError(f"negative_slope={negative_slope}: a finite number")
        self.negative_slope = negative_slope

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *) to the same shape."""
        return F.leaky_relu(x, self.negative_slope)

    def slope_range(self) -> tuple[Tensor, Tensor]:
        """The two slopes, sorted."""
        lo, hi = sorted((self.negative_slope, 1.0))
        lo_C, hi_C = _constants(lo, hi, num_channels=self.num_channels)
        return lo_C, hi_C

    def tv2(self) -> Tensor:
        """|1 - negative_slope|."""
        return _constants(abs(1 - self.negative_slope), num_channels=self.num_channels)[0]

    def interval(self, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        """Exact image of the box."""
        return range_on_box(self, lo, hi, turning_points=[0.0])

    def local_slope_range(self, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        """Slopes met in the box; both where it touches 0."""
        left, right = torch.full_like(lo, self.negative_slope), torch.ones_like(lo)
        at_lo, at_hi = torch.where(lo > 0, right, left), torch.where(hi < 0, left, right)
        return torch.minimum(at_lo, at_hi), torch.maximum(at_lo, at_hi)


class ReLU(AbstractActivation):
    """max(x, 0). Lipschitz: 1, exact.

    Args:
        num_channels: size of dimension 1 of the input.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *) to the same shape."""
        return F.relu(x)

    def slope_range(self) -> tuple[Tensor, Tensor]:
        """0 and 1."""
        lo_C, hi_C = _constants(0.0, 1.0, num_channels=self.num_channels)
        return lo_C, hi_C

    def tv2(self) -> Tensor:
        """1."""
        return _constants(1.0, num_channels=self.num_channels)[0]

    def interval(self, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        """Exact image of the box."""
        return F.relu(lo), F.relu(hi)

    def local_slope_range(self, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        """Slopes met in the box; both where it touches 0."""
        return (lo > 0).to(lo.dtype), (hi >= 0).to(hi.dtype)


class Absolute(AbstractActivation):
    """|x|. Lipschitz: 1, exact.

    Args:
        num_channels: size of dimension 1 of the input.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *) to the same shape."""
        return x.abs()

    def slope_range(self) -> tuple[Tensor, Tensor]:
        """-1 and 1."""
        lo_C, hi_C = _constants(-1.0, 1.0, num_channels=self.num_channels)
        return lo_C, hi_C

    def tv2(self) -> Tensor:
        """2."""
        return _constants(2.0, num_channels=self.num_channels)[0]

    def interval(self, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        """Exact image of the box."""
        return range_on_box(self, lo, hi, turning_points=[0.0])

    def local_slope_range(self, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        """Slopes met in the box; both where it touches 0."""
        right = torch.ones_like(lo)
        return torch.where(lo > 0, right, -right), torch.where(hi < 0, -right, right)


class ELU(AbstractActivation):
    """x for x > 0, else alpha * (exp(x) - 1). Lipschitz: max(1, alpha), exact.

    Args:
        num_channels: size of dimension 1 of the input.
        alpha: minus the limit at minus infinity, at least 0.

    Raises:
        ValueError: ``alpha`` below 0 or not finite.
    """

    def __init__(self, num_channels: int, alpha: float = 1.0) -> None:
        super().__init__(num_channels)
        if not 0 <= alpha < inf:
            raise ValueError(f"alpha={alpha}: a finite number of at least 0")
        self.alpha = alpha

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *) to the same shape."""
        return F.elu(x, self.alpha)

    def slope_range(self) -> tuple[Tensor, Tensor]:
        """0 (approached) and max(1, alpha)."""
        lo_C, hi_C = _constants(0.0, max(1.0, self.alpha), num_channels=self.num_channels)
        return lo_C, hi_C

    def tv2(self) -> Tensor:
        """The slope rises from 0 to alpha and jumps to 1."""
        return _constants(self.alpha + abs(1 - self.alpha), num_channels=self.num_channels)[0]

    def interval(self, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        """Exact image of the box: the function never falls."""
        return self(lo), self(hi)

    def local_slope_range(self, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        """Exact: the slope alpha exp(x) rises up to 0 and is 1 from there; the ends and both sides of 0 decide."""
        left_lo, left_hi = (self.alpha * torch.exp(end.clamp(max=0.0)) for end in (lo, hi))
        smallest = torch.where(lo > 0, torch.ones_like(lo), left_lo)
        smallest = torch.where(hi >= 0, smallest.clamp(max=1.0), smallest)
        largest = torch.where(hi < 0, left_hi, torch.where(lo > 0, torch.ones_like(lo), left_hi.clamp(min=1.0)))
        return smallest, largest


class GELU(AbstractActivation):
    """x * Phi(x), Phi the standard normal distribution function (the exact form, not the tanh approximation).

    The derivative Phi(x) + x phi(x) has its extrema at x = -sqrt(2) and sqrt(2).
    Lipschitz: Phi(sqrt 2) + sqrt 2 phi(sqrt 2) = 1.1289..., exact.

    Args:
        num_channels: size of dimension 1 of the input.
    """

    minimum_at = -0.7517915246935645  # the root of Phi(x) + x phi(x)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *) to the same shape."""
        return F.gelu(x)

    @staticmethod
    def _derivative(x: Tensor) -> Tensor:
        return torch.special.ndtr(x) + x * torch.exp(-0.5 * x * x) / sqrt(2 * pi)

    def slope_range(self) -> tuple[Tensor, Tensor]:
        """The derivative's two extrema."""
        extrema_2C = self._derivative(torch.tensor([[-sqrt(2.0)], [sqrt(2.0)]], dtype=torch.float64))
        lo_C, hi_C = extrema_2C.expand(2, self.num_channels).unbind()
        return lo_C, hi_C

    def tv2(self) -> Tensor:
        """The slope goes from 0 to its minimum, to its maximum, to 1."""
        lo_C, hi_C = self.slope_range()
        return -lo_C + (hi_C - lo_C) + (hi_C - 1)

    def interval(self, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        """Exact image of the box: falling up to ``minimum_at``, then rising."""
        return range_on_box(self, lo, hi, turning_points=[self.minimum_at])

    def local_slope_range(self, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        """Exact: the derivative turns at -sqrt(2) and sqrt(2)."""
        return range_on_box(self._derivative, lo, hi, turning_points=[-sqrt(2.0), sqrt(2.0)])


class Tanh(AbstractActivation):
    """tanh(x). Lipschitz: 1, exact, the slope at 0.

    Args:
        num_channels: size of dimension 1 of the input.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *) to the same shape."""
        return x.tanh()

    @staticmethod
    def _derivative(x: Tensor) -> Tensor:
        return x.cosh().square().reciprocal()

    def slope_range(self) -> tuple[Tensor, Tensor]:
        """0 (approached) and 1."""
        lo_C, hi_C = _constants(0.0, 1.0, num_channels=self.num_channels)
        return lo_C, hi_C

    def tv2(self) -> Tensor:
        """The slope rises from 0 to 1 and falls back."""
        return _constants(2.0, num_channels=self.num_channels)[0]

    def interval(self, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        """Exact image of the box: the function rises."""
        return lo.tanh(), hi.tanh()

    def local_slope_range(self, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        """Exact: the derivative 1 / cosh(x)^2 turns at 0."""
        return range_on_box(self._derivative, lo, hi, turning_points=[0.0])
