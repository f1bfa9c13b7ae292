"""Classification."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy

from tautnet import logkeys
from tautnet.factories import Task
from tautnet.models.base import AbstractModel, stage_metrics


class Classifier(AbstractModel):
    """Cross entropy on logits, accuracy as metric.

    A network with one output and two classes gives z, read as the logits (0, z): its cross entropy is the binary one.

    Args:
        config: see ``AbstractModel``; ``num_outputs`` is the number of classes.
    """

    task: ClassVar[Task] = "classification"

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        self.accuracies = stage_metrics(lambda: MulticlassAccuracy(config["num_outputs"], average="micro"))

    def task_loss(self, batch: tuple[Tensor, Tensor], stage: str) -> Tensor:
        """Mean cross entropy over the batch of inputs (N, *) and classes (N,) or probabilities (N, K)."""
        x, targets = batch
        logits = self(x)
        if logits.shape[1] == 1:
            logits = F.pad(logits, (1, 0))
        classes = targets if targets.dim() == 1 else targets.argmax(1)
        self.log_metric(logkeys.accuracy(stage), self.accuracies[f"{stage}_"], logits.argmax(1), classes)
        return F.cross_entropy(logits, targets)
