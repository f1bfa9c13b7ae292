"""Checkpoints that continue a run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import TensorBoardLogger

from tautnet.checkpoint_io import AtomicCheckpointIO


class Checkpoints(pl.callbacks.Checkpoint):
    """Saves all that continues a run exactly: by epochs, by optimizer steps, by minutes, and at the last epoch's end.

    ``last.ckpt`` is the newest, ``last-1.ckpt`` the one before, and so on. A step is saved when all of its batches are
    done; the last step of an epoch waits for the epoch's end, validation included. What loggers have is written out
    before a checkpoint says that it has happened.

    Args:
        folder: where the files go, made when needed.
        every_n_epochs: epochs from one to the next, at least 1; None: at the end alone.
        every_n_steps: optimizer steps from one to the next, at least 1; None: none inside an epoch for their sake.
        every_n_minutes: of time from one to the next, above 0; None: none for its sake.
        keep: how many files, at least 1.

    Attributes:
        saved_at: optimizer step of the newest file.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        folder: str,
        every_n_epochs: int | None = 1,
        every_n_steps: int | None = None,
        every_n_minutes: float | None = None,
        keep: int = 2,
    ) -> None:
        counts = {"every_n_epochs": every_n_epochs, "every_n_steps": every_n_steps, "keep": keep}
        for name, count in counts.items():
            if count is not None and count < 1:
                raise ValueError(f"{name}={count}: an integer of at least 1")
        if every_n_minutes is not None and not every_n_minutes > 0:
            raise ValueError(f"every_n_minutes={every_n_minutes}: a number above 0")
        self.path, self.keep = Path(folder, "last.ckpt"), keep
        self.every_n_epochs, self.every_n_steps, self.every_n_minutes = every_n_epochs, every_n_steps, every_n_minutes
        self.saved_at = self._seen = 0  # optimizer steps
        self._time = time.monotonic()  # of the last file

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Say how many to keep."""
        files = trainer.strategy.checkpoint_io
        if isinstance(files, AtomicCheckpointIO):  # else somebody's own, who decides this too
            files.keep(self.path, self.keep)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count from here."""
        self.saved_at = self._seen = trainer.global_step
        self._time = time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if it is time to and the batch has completed a step inside an epoch."""
        if not completes_a_step(trainer, self._seen):
            return
        self._seen = trainer.global_step
        by_steps = self.every_n_steps is not None and self._seen - self.saved_at >= self.every_n_steps
        if by_steps or self._by_time(trainer):
            self.save(trainer)

    def _by_time(self, trainer: pl.Trainer) -> bool:
        if self.every_n_minutes is None:
            return False
        due = time.monotonic() - self._time >= 60 * self.every_n_minutes
        return trainer.strategy.reduce_boolean_decision(due, all=False)  # clocks differ, and all ranks have to save

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save at every n-th epoch and at the last one."""
        epochs = trainer.current_epoch + 1
        last = trainer.should_stop or epochs == trainer.max_epochs
        if last or (self.every_n_epochs is not None and epochs % self.every_n_epochs == 0) or self._by_time(trainer):
            self.save(trainer)

    def save(self, trainer: pl.Trainer) -> None:
        """Save now; all ranks have to call it."""
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
                logger.experiment.flush()
            logger.save()
        trainer.save_checkpoint(self.path)
        self.saved_at, self._time = trainer.global_step, time.monotonic()


def completes_a_step(trainer: pl.Trainer, steps_before: int) -> bool:
    """Whether the batch that ends now has completed an optimizer step and is not the last of its epoch.

    Only there a training can be continued: the sum of a step's gradients is in no checkpoint, and behind the last batch
    Lightning would pass over the validation.
    """
    if trainer.global_step == steps_before or trainer.is_last_batch:
        return False
    loop = trainer.fit_loop
    assert loop._data_fetcher is not None
    return not loop.epoch_loop._should_check_val_fx(loop._data_fetcher)  # a validation in the middle would be lost too
