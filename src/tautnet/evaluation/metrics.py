"""Metrics of a trained model on batches: those of a test, and what belongs to the task beside them."""

from __future__ import annotations

import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from tautnet.errors import ConfigError
from tautnet.evaluation.prepared import PreparedBatches
from tautnet.lipschitz.certify import two_logits
from tautnet.trained import Trained

NUM_BINS = 15  # of confidence
TOP = 5
TOP_FROM = 10  # classes; of fewer the best five say little


@dataclass(frozen=True)
class Evaluation:
    """What a part of some data gave.

    Attributes:
        num_samples: that were evaluated.
        metrics: by log key, ``<part>/loss`` and so on.
        confusion: of a classification, samples by true class (rows) and predicted class (columns); None of other tasks.
    """

    num_samples: int
    metrics: dict[str, float]
    confusion: list[list[int]] | None = None

    @property
    def per_class(self) -> list[float | None]:
        """Accuracy among the samples of each class; None for a class without samples."""
        rows = self.confusion or []
        return [row[number] / sum(row) if sum(row) else None for number, row in enumerate(rows)]


class _Tally(pl.Callback, ABC):
    """Counts what a task asks for beside the model's own metrics."""

    def __init__(self) -> None:
        self.num_samples = 0
        self._outputs: Tensor | None = None

    def watch(self, module: nn.Module, inputs: tuple[Any, ...], outputs: Tensor) -> None:
        """Forward hook of the model."""
        self._outputs = outputs

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count a batch."""
        assert self._outputs is not None
        self.num_samples += len(batch[1])
        self.add(self._outputs.double().cpu(), batch[1].cpu())

    @abstractmethod
    def add(self, outputs: Tensor, targets: Tensor) -> None:
        """Count outputs and targets."""

    @abstractmethod
    def metrics(self, part: str) -> dict[str, float]:
        """By log key."""


class _Classes(_Tally):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.confusion_KK = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        self.in_top = 0
        self.bins = torch.zeros(NUM_BINS, dtype=torch.float64)  # sum of (confidence - right)

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        logits_NK = two_logits(outputs)
        classes = targets if targets.dim() == 1 else targets.argmax(1)
        predicted, K = logits_NK.argmax(1), len(self.confusion_KK)
        self.confusion_KK += torch.bincount(classes * K + predicted, minlength=K * K).view(K, K)
        if K >= TOP_FROM:
            self.in_top += int((logits_NK.topk(TOP).indices == classes.unsqueeze(1)).sum())
        confidence = logits_NK.softmax(1).amax(1)
        number = (confidence.nan_to_num(1.0) * NUM_BINS).ceil().long().clamp(1, NUM_BINS) - 1
        self.bins.index_add_(0, number, confidence - (predicted == classes).double())

    def metrics(self, part: str) -> dict[str, float]:
        found = {f"{part}/ece": float(self.bins.abs().sum()) / self.num_samples}
        return {f"{part}/top{TOP}": self.in_top / self.num_samples, **found} if self._has_top else found

    @property
    def _has_top(self) -> bool:
        return len(self.confusion_KK) >= TOP_FROM


class _Values(_Tally):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale, self.squares, self.sizes, self.count = scale, 0.0, 0.0, 0

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        errors = (outputs - targets.double()) * self.scale
        self.squares += float(errors.square().sum())
        self.sizes += float(errors.abs().sum())
        self.count += errors.numel()

    def metrics(self, part: str) -> dict[str, float]:
        return {f"{part}/rmse": (self.squares / self.count) ** 0.5, f"{part}/mae": self.sizes / self.count}


class _Images(_Tally):
    def add(self, outputs: Tensor, targets: Tensor) -> None:
        """The model's own metrics say it all."""

    def metrics(self, part: str) -> dict[str, float]:
        return {}


def evaluate(trained: Trained, batches: PreparedBatches, part: str) -> Evaluation:
    """Test a model as its run did, in the run's precision, and count on.

    ``ece`` is the expected calibration error: over 15 equal bins of the largest probability, the mean distance of
    accuracy and probability, weighted by samples. ``top5`` is the share whose class is among the best five, of ten
    classes or more; ``rmse`` and ``mae`` are errors of a regression in the unit of its target.

    Source: Guo, Pleiss, Sun, Weinberger (2017) for ece.

    Args:
        trained: whose weights stay as they are.
        batches: of ``batches_of``.
        part: its name, which log keys begin with.

    Raises:
        ConfigError: no samples, or a model that does not give (N, K) logits.
    """
    tally = _tally(trained)
    hook = trained.model.register_forward_hook(tally.watch)
    try:
        with _quiet():
            trainer = pl.Trainer(
                accelerator="auto",
                devices=1,
                precision=trained.settings["trainer"].get("precision"),
                logger=False,
                callbacks=[tally],
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                use_distributed_sampler=False,
            )
            trainer.test(trained.model, dataloaders=batches, verbose=False)
    finally:
        hook.remove()
    if tally.num_samples == 0:
        raise ConfigError(f"{batches.description}: no samples")
    own = {name: float(value) for name, value in trainer.callback_metrics.items()}
    metrics = {name.replace("test/", f"{part}/", 1): value for name, value in own.items()}
    confusion = tally.confusion_KK.tolist() if isinstance(tally, _Classes) else None
    return Evaluation(tally.num_samples, metrics | tally.metrics(part), confusion)


def _tally(trained: Trained) -> _Tally:
    if trained.model.task == "classification":
        return _Classes(trained.settings["num_outputs"])
    return _Values(trained.preparation.target_scale) if trained.model.task == "regression" else _Images()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without messages of libraries that a user can do nothing about."""
    logger = logging.getLogger("pytorch_lightning")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in ("does not have many workers", "LeafSpec"):
                warnings.filterwarnings("ignore", message=f".*{message}.*")
            yield
    finally:
        logger.setLevel(level)
