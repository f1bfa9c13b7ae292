"""Two-dimensional area classification."""

from __future__ import annotations

from math import pi
from typing import Literal, get_args

import torch
from torch import Tensor

from tautnet.data.base import AbstractTensorData, Splits
from tautnet.data.loader import TensorSamples

Shape = Literal["circle", "s_shape"]
GRID_SIDE = 200


class Area(AbstractTensorData):
    """Is a point of the square [-1, 1]^2 inside the area?

    ``circle``: x^2 + y^2 < 2 / pi, half of the square. ``s_shape``: |y| < 0.8 and |x - 0.4 sin(-5 y)| < 0.3.
    1500 uniform points to train, 1500 to validate, the centres of a 200x200 grid to test.

    Source: Aziznejad et al. (2020), formulas and counts after the authors' code. Difference: own sampling seed; their
    first S-shape validation set had 6000 points, later ones 1500.

    Args:
        batch_size: samples a batch; the authors' 10.
        seed: of the training order.
        shuffle: False keeps one training order.
        shape: ``circle`` or ``s_shape``.
        num_points: in each of the two random parts, at least 2.
        sample_seed: of the random points, apart from ``seed`` so that seeds are compared on the same points.

    Shape:
        inputs (N, 2) float32, targets (N,) int64.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        batch_size: int = 10,
        seed: int = 0,
        shuffle: bool = True,
        shape: Shape = "circle",
        num_points: int = 1500,
        sample_seed: int = 0,
    ) -> None:
        if shape not in get_args(Shape):
            raise ValueError(f"shape={shape}: one of {', '.join(get_args(Shape))}")
        if num_points < 2:
            raise ValueError(f"num_points={num_points}: an integer of at least 2")
        self.shape, self.num_points, self.sample_seed = shape, num_points, sample_seed
        super().__init__(batch_size, seed, shuffle)

    @property
    def num_outputs(self) -> int:
        """Outside and inside."""
        return 2

    def load(self) -> Splits:
        """Draw the points and label them."""
        generator = torch.Generator().manual_seed(self.sample_seed)
        random = torch.rand(2, self.num_points, 2, generator=generator) * 2 - 1
        centres = (torch.arange(GRID_SIDE) + 0.5) / GRID_SIDE * 2 - 1
        return Splits(*(self._labelled(points) for points in (*random, torch.cartesian_prod(centres, centres))))

    def _labelled(self, points_N2: Tensor) -> TensorSamples:
        return TensorSamples(points_N2, inside(points_N2, self.shape).long())


def inside(points_N2: Tensor, shape: Shape) -> Tensor:
    """Whether each point lies in the area, shape (N,)."""
    x, y = points_N2.unbind(1)
    if shape == "circle":
        return x.square() + y.square() < 2 / pi
    return (y.abs() < 0.8) & ((x - 0.4 * torch.sin(-5 * y)).abs() < 0.3)
