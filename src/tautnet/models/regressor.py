"""Regression."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor
from torch.nn import functional as F
from torchmetrics.regression import R2Score

from tautnet import logkeys
from tautnet.factories import Task
from tautnet.models.base import AbstractModel
from tautnet.models.stage_metrics import stage_metrics


class Regressor(AbstractModel):
    """Mean squared error, with the coefficient of determination R2 as metric.

    Args:
        config: see ``AbstractModel``; ``num_outputs`` is the number of target values.
    """

    task: ClassVar[Task] = "regression"

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        self.r2_scores = stage_metrics(R2Score)

    def task_loss(self, batch: tuple[Tensor, Tensor], stage: str) -> Tensor:
        """Mean squared error over the batch of inputs (N, *) and targets (N, K)."""
        x, targets = batch
        outputs = self(x)
        self.log_metric(logkeys.r2(stage), self.r2_scores[f"{stage}_"], outputs, targets)
        return F.mse_loss(outputs, targets)
