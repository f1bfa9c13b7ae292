"""Classification."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy

from tautnet import logkeys
from tautnet.config import ConfigError, build
from tautnet.factories import Task
from tautnet.losses import AbstractClassificationLoss, CrossEntropy, NoLoss
from tautnet.models.base import AbstractModel
from tautnet.models.stage_metrics import stage_metrics


class Classifier(AbstractModel):
    """Cross entropy on logits, or another loss of them, with accuracy as metric.

    A network with one output and two classes gives z, read as the logits (0, z): its cross entropy is the binary one.

    Args:
        config: see ``AbstractModel``; ``num_outputs`` is the number of classes. ``model.loss`` builds an
            ``AbstractClassificationLoss``; cross entropy if it is empty or absent.
    """

    task: ClassVar[Task] = "classification"

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        self.accuracies = stage_metrics(lambda: MulticlassAccuracy(config["num_outputs"], average="micro"))
        self.loss: AbstractClassificationLoss = build(config["model"].get("loss"), "model.loss") or CrossEntropy()
        if not isinstance(self.loss, AbstractClassificationLoss):
            raise ConfigError(f"model.loss={config['model']['loss']}: a loss of tautnet.losses, one of conf/loss/")
        if isinstance(self.loss, NoLoss) and not config["regularizer"]:
            raise ConfigError("loss=none: needs a penalty, which alone would train the network; or another loss")
        try:
            self.loss.attach(self.net, self.input_shape)
        except ValueError as error:
            raise ConfigError(f"model.loss: {error}") from error

    def check_targets(self, targets: Tensor) -> None:
        """Probabilities are for losses that take them.

        Raises:
            ConfigError: another loss.
        """
        try:
            self.loss.check_targets(targets)
        except ValueError as error:
            raise ConfigError(f"model.loss={type(self.loss).__name__}: {error}") from error

    def task_loss(self, batch: tuple[Tensor, Tensor], stage: str) -> Tensor:
        """Mean loss over the batch of inputs (N, *) and classes (N,) or probabilities (N, K)."""
        x, targets = batch
        self.check_targets(targets)
        logits = self(x)
        if logits.shape[1] == 1:
            logits = F.pad(logits, (1, 0))
        classes = targets if targets.dim() == 1 else targets.argmax(1)
        self.log_metric(logkeys.accuracy(stage), self.accuracies[f"{stage}_"], logits.argmax(1), classes)
        loss: Tensor = self.loss(x, logits, targets, self.progress if stage == "train" else 1.0)
        return loss
