"""A classifier that is no better than a guess."""

from __future__ import annotations

import logging
from math import sqrt
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from tautnet import logkeys
from tautnet.models.base import AbstractModel
from tautnet.models.ranks import summed

_log = logging.getLogger(__name__)
_AT_ONCE = 64  # batches whose classes wait to be counted together


class ChanceMonitor(pl.Callback):
    """Warns, once, when a classifier's training accuracy is not above chance.

    Chance is p, the share of the most frequent class among the samples, plus two standard errors,
    2 (p (1 - p) / n)^(1/2): what a network reaches that always gives the same answer. A loss near ln K is no sign by
    itself: networks of small Lipschitz constant have it at high accuracy.

    Looked at are whole epochs, as many as have ``num_steps`` together: those of a small data set hold a few steps each,
    after which a network may rightly know nothing. A run without that many steps is not judged, nor is one whose task
    loss is 0, which penalties alone train.

    Args:
        num_steps: optimizer steps that are looked at together, at least; at least 1.

    Raises:
        ValueError: ``num_steps`` below 1.
    """

    def __init__(self, num_steps: int = 100) -> None:
        if num_steps < 1:
            raise ValueError(f"num_steps={num_steps}: at least 1")
        self.num_steps = num_steps
        self._warned = False
        self._waiting: list[Tensor] = []
        self._counts_K: Tensor | None = None  # of the epoch
        self._begin(0)

    def _begin(self, step: int) -> None:
        self._first_step, self._right = step, 0.0
        self._seen_K: Tensor | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin with no epoch."""
        self._begin(trainer.global_step)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin with no samples of this epoch."""
        self._waiting, self._counts_K = [], None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the classes."""
        if self._warned or not _classifies(pl_module):
            return
        targets = batch[1]
        self._waiting.append(targets if targets.dim() == 1 else targets.argmax(1))
        if len(self._waiting) == _AT_ONCE:
            self._count(pl_module)

    def _count(self, model: pl.LightningModule) -> None:
        num_classes = max(2, model.hparams["config"]["num_outputs"])
        counts_K = torch.bincount(torch.cat(self._waiting), minlength=num_classes)
        self._counts_K = counts_K if self._counts_K is None else self._counts_K + counts_K
        self._waiting = []

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Judge, if there were enough steps."""
        if self._warned or not _classifies(pl_module):
            return
        if self._waiting:
            self._count(pl_module)
        if self._counts_K is None:
            return
        metrics = trainer.callback_metrics
        if metrics[logkeys.loss_term(logkeys.TASK)] == 0:
            return
        counts_K = summed(self._counts_K).cpu()
        self._seen_K = counts_K if self._seen_K is None else self._seen_K + counts_K
        self._right += float(metrics[logkeys.accuracy("train")]) * int(counts_K.sum())
        steps = trainer.global_step - self._first_step
        if steps >= self.num_steps:
            self._judge(self._right, self._seen_K, steps)
            self._begin(trainer.global_step)

    def _judge(self, right: float, seen_K: Tensor, steps: int) -> None:
        size = int(seen_K.sum())
        chance = int(seen_K.max()) / size
        if right / size > chance + 2 * sqrt(chance * (1 - chance) / size):
            return
        self._warned = True
        _log.warning(
            "%s=%.4f over the last %d steps is not above chance, the most frequent class has a share of %.4f: the "
            "training has collapsed or not begun; a smaller or larger optimizer.lr, or scheduler=warmup, may help",
            *(logkeys.accuracy("train"), right / size, steps, chance),
        )

    def state_dict(self) -> dict[str, Any]:
        """Whether it has warned."""
        return {"warned": self._warned}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Do not warn again."""
        self._warned = state_dict["warned"]


def _classifies(model: pl.LightningModule) -> bool:
    assert isinstance(model, AbstractModel)
    return model.task == "classification"
