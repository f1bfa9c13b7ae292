"""One-dimensional functions of Lipschitz constant 1."""

from __future__ import annotations

from math import pi
from typing import Literal, get_args

import torch
from torch import Tensor

from tautnet.data.base import AbstractTensorData, Splits
from tautnet.data.loader import TensorSamples
from tautnet.factories import Task

Function = Literal["zigzag", "plateaus", "cosine"]
NUM_KNOTS = 9
NUM_TEST = 10_000


class Fit1d(AbstractTensorData):
    """Fit f: [-1, 1] -> R of Lipschitz constant 1 and mean 0.

    ``zigzag``: continuous, slopes +1 and -1 in turn between 9 random knots; ``plateaus``: slopes drawn from -1, 0, 1,
    no two neighbours alike; ``cosine``: cos(7 pi x) / (7 pi). Uniform points to train and to validate, a grid to test.

    Source: the targets f1, f2, f3 of Ducotterd et al. (2024), 1000 training and 10,000 test points, after their
    configuration files; the random knots and slopes are ours.

    Args:
        batch_size: samples a batch; the authors' 10.
        seed: of the training order.
        shuffle: False keeps one training order.
        function: which target.
        num_points: of the training part, at least 8; as many again to validate.
        sample_seed: of function and points, apart from ``seed``.

    Shape:
        inputs (N, 1) float32, targets (N, 1) float32.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        batch_size: int = 10,
        seed: int = 0,
        shuffle: bool = True,
        function: Function = "zigzag",
        num_points: int = 1000,
        sample_seed: int = 0,
    ) -> None:
        if function not in get_args(Function):
            raise ValueError(f"function={function}: one of {', '.join(get_args(Function))}")
        if num_points < 8:
            raise ValueError(f"num_points={num_points}: an integer of at least 8")
        self.function, self.num_points, self.sample_seed = function, num_points, sample_seed
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
        """Draw function and points."""
        generator = torch.Generator().manual_seed(self.sample_seed)
        knots = (torch.rand(NUM_KNOTS, generator=generator) * 2 - 1).sort().values
        slopes = random_slopes(self.function, generator)
        random = torch.rand(2, self.num_points, 1, generator=generator) * 2 - 1
        grid = torch.linspace(-1, 1, NUM_TEST).view(-1, 1)
        return Splits(*(TensorSamples(x, target(x, self.function, knots, slopes)) for x in (*random, grid)))


def random_slopes(function: Function, generator: torch.Generator) -> Tensor:
    """Slopes of the pieces between -1, the knots and 1, shape (NUM_KNOTS + 1,)."""
    if function == "zigzag":
        return 1.0 - 2.0 * (torch.arange(NUM_KNOTS + 1) % 2)
    steps = torch.randint(1, 3, (NUM_KNOTS + 1,), generator=generator)  # 1 or 2 further in the cycle -1, 0, 1
    return (steps.cumsum(0) % 3 - 1).float()


def target(x_N1: Tensor, function: Function, knots_K: Tensor, slopes: Tensor) -> Tensor:
    """The function, with mean 0 over [-1, 1], shape (N, 1)."""
    if function == "cosine":
        return (7 * pi * x_N1).cos() / (7 * pi)
    ends = torch.cat([knots_K.new_tensor([-1.0]), knots_K, knots_K.new_tensor([1.0])])
    widths = ends.diff()
    values = torch.cat([widths.new_zeros(1), (slopes * widths).cumsum(0)])  # at the ends of the pieces
    mean = (widths * (values[1:] + values[:-1])).sum() / 4
    piece = torch.bucketize(x_N1, knots_K)
    return values[piece] - mean + slopes[piece] * (x_N1 - ends[piece])
