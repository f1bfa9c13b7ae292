"""What is measured of a stage: a metric of its own for each, and the mean of a loss over samples."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchmetrics import Metric


def stage_metrics(metric: Callable[[], Metric]) -> nn.ModuleDict:
    """A metric of its own for each stage, under ``train_``, ``val_``, ``test_``."""
    # "train" is an attribute of every module and cannot be a name here
    return nn.ModuleDict({f"{stage}_": metric() for stage in ("train", "val", "test")})


class SampleMean(Metric):
    """Mean over the samples of all batches and ranks, from the batches' means.

    Batches and ranks may have different numbers of samples. What Lightning itself logs divides by the integer mean over
    the ranks of these numbers.
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, mean: Tensor, size: int) -> None:
        """Add a batch.

        Args:
            mean: of its samples, a scalar.
            size: their number, at least 1.
        """
        self.total = self.total + mean.detach() * size  # not in place, which would not widen the dtype
        self.count = self.count + size

    def compute(self) -> Tensor:
        """The mean."""
        return self.total / self.count
