"""How far a training is: a bar on a terminal, or one line an epoch in a log."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from math import inf, isfinite
from typing import Any, TextIO, final

import pytorch_lightning as pl
from pytorch_lightning.callbacks import RichProgressBar
from pytorch_lightning.callbacks.progress.rich_progress import BatchesProcessedColumn, CustomBarColumn
from rich.progress import ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

from tautnet import logkeys

_EVERY = 0.1  # seconds between two looks of the bar at what it shows


class Pace:
    """How fast a training goes, and how long it will still take at this rate.

    Counted from the first optimizer step of this process, which takes longer than others, and over everything between
    the steps: validation, figures, checkpoints.
    """

    def __init__(self) -> None:
        self._began: tuple[float, int] | None = None
        self.rate = self.seconds_left = 0.0  # 0: not known

    def note(self, step: int, total: float) -> None:
        """Take in that ``step`` optimizer steps of ``total`` are done, those of earlier processes included."""
        if self._began is None:
            self._began = time.monotonic(), step
        start, first = self._began
        seconds = time.monotonic() - start
        if step > first and seconds > 0:
            self.rate = (step - first) / seconds
            self.seconds_left = (total - step) / self.rate if isfinite(total) else 0.0

    def __str__(self) -> str:
        if self.rate == 0:
            return ""
        left = f" {timedelta(seconds=round(self.seconds_left))} left" if self.seconds_left >= 0.5 else ""
        return f"{self.rate:.3g} steps/s{left}"


def numbers(trainer: pl.Trainer) -> dict[str, float]:
    """The latest training loss, validation metric and Lipschitz bound, as far as they are measured."""
    shown = {logkeys.loss("train"): "loss"}
    shown |= {key: key for key in (logkeys.accuracy("val"), logkeys.r2("val"), logkeys.psnr("val"))}
    shown |= {logkeys.lipschitz("bound", p): "bound" for p in (1, 2, inf)}
    metrics = trainer.callback_metrics
    return {word: float(metrics[key]) for key, word in shown.items() if key in metrics}


def _said(values: Mapping[str, float]) -> str:
    return "  ".join(f"{word} {value:.4g}" for word, value in values.items())


@final
class PlainProgress(pl.Callback):
    """Writes one line an epoch to the standard output, without control characters."""

    def __init__(self) -> None:
        self._pace = Pace()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the clock after the first step."""
        if self._pace.rate == 0:
            self._pace.note(trainer.global_step, trainer.estimated_stepping_batches)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write."""
        said = _said(numbers(trainer))  # asked for on every rank: what is measured may be reduced over them
        if trainer.is_global_zero:
            self._pace.note(trainer.global_step, trainer.estimated_stepping_batches)
            epoch = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
            sys.stdout.write("  ".join(filter(None, (epoch, str(self._pace), said))) + "\n")
            sys.stdout.flush()


@final
class RichProgress(RichProgressBar):
    """A bar of the epoch with the rate, the time that the whole training will still take, and the numbers that matter.

    Messages of loggers appear above the bar, not inside it.
    """

    def __init__(self) -> None:
        super().__init__(refresh_rate=10)
        self._pace, self._looked = Pace(), 0.0
        self._numbers: dict[str, float] = {}
        self._redirected: list[tuple[logging.StreamHandler[TextIO], TextIO]] = []

    def configure_columns(self, trainer: pl.Trainer) -> list[ProgressColumn]:
        """Description, bar, batches, and in words what only the bar of the training has."""
        words = _Words(self._words)
        bar = CustomBarColumn(bar_width=24, complete_style="cyan", finished_style="cyan", pulse_style="cyan")
        return [
            TextColumn("{task.description}", table_column=Column(no_wrap=True)),
            bar,
            BatchesProcessedColumn(style=""),
            words,
        ]

    def _words(self, task: Task) -> str:
        return f"{self._pace}  {_said(self._numbers)}" if task.id == self.train_progress_bar_id else ""

    def get_metrics(self, *_: Any) -> dict[str, Any]:
        """Nothing for the column that Lightning adds."""
        return {}

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar, unless it has just been moved."""
        last = batch_idx + 1 == trainer.num_training_batches
        if time.monotonic() - self._looked >= _EVERY or last:
            self._looked = time.monotonic()
            self._pace.note(trainer.global_step, trainer.estimated_stepping_batches)
            loss = float(outputs["loss"]) * trainer.accumulate_grad_batches  # Lightning has divided it
            self._numbers = {"loss": 0.0} | self._numbers | {"loss": loss}
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the numbers of the epoch."""
        self._numbers = numbers(trainer)
        self._pace.note(trainer.global_step, trainer.estimated_stepping_batches)
        super().on_train_epoch_end(trainer, pl_module)

    def _get_train_description(self, current_epoch: int) -> str:
        text = f"Epoch {current_epoch + 1}/{self.trainer.max_epochs}"
        return f"{text:{len(self.validation_description)}}"  # the bar of the validation appears below

    def _init_progress(self, trainer: pl.Trainer) -> None:
        streams = {id(sys.stdout): "stdout", id(sys.stderr): "stderr"}
        super()._init_progress(trainer)
        for handler in logging.getLogger().handlers:  # rich has taken over the streams; handlers have the old ones
            if isinstance(handler, logging.StreamHandler) and id(handler.stream) in streams:
                now = getattr(sys, streams[id(handler.stream)])
                if now is not handler.stream:
                    self._redirected.append((handler, handler.stream))
                    handler.setStream(now)

    def _stop_progress(self) -> None:
        super()._stop_progress()
        for handler, stream in self._redirected:
            handler.setStream(stream)
        self._redirected = []


@final
class _Words(ProgressColumn):
    """A column of text on one line."""

    def __init__(self, words: Callable[[Task], str]) -> None:
        super().__init__(Column(no_wrap=True))
        self._words = words

    def render(self, task: Task) -> Text:
        return Text(self._words(task))
