"""Classification."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy

from tautnet import logkeys
from tautnet.models.base import AbstractModel


class Classifier(AbstractModel):
    """Cross entropy on logits, accuracy as metric.

    Args:
        config: see ``AbstractModel``; ``num_outputs`` is the number of classes.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        self.accuracies = nn.ModuleDict(
            # "train" is an attribute of every module and cannot be a name here
            {
                f"{stage}_": MulticlassAccuracy(config["num_outputs"], average="micro")
                for stage in ("train", "val", "test")
            }
        )

    def task_loss(self, batch: tuple[Tensor, Tensor], stage: str) -> Tensor:
        """Mean cross entropy over the batch of (inputs (N, *), classes (N,))."""
        x, classes = batch
        logits = self(x)
        accuracy = self.accuracies[f"{stage}_"]
        assert isinstance(accuracy, MulticlassAccuracy)
        accuracy(logits, classes)
        self.log(logkeys.accuracy(stage), accuracy, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(x))
        return F.cross_entropy(logits, classes)
