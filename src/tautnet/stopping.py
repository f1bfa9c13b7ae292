"""Signals that end a run: what was learned is saved first."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
import time
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch

from tautnet.callbacks.checkpointing import Checkpoints, completes_a_step

_log = logging.getLogger(__name__)
_SAME = 1.0  # seconds within which a second signal is the first once more: a launcher passes on what all have got
_PATIENCE = 3.0  # seconds that the rest of a validation may take before it is given up
REQUEUE: int | None = getattr(
    signal, "SIGUSR1", None
)  # that SLURM sends before the time is over: #SBATCH --signal=USR1@90


class Stopped(SystemExit):
    """A signal has ended the run; exit status 128 + its number, as shells expect."""


class Stopping(pl.callbacks.Checkpoint):
    """Ends training in an orderly way at SIGTERM and SIGINT, and under SLURM at SIGUSR1.

    During training a signal only sets a flag. At the end of the optimizer step the checkpoint is written and the run
    ends with exit status 143 or 130; in a validation when its batch is done, or with its epoch if it is nearly over.
    A second signal ends the process at once. Elsewhere signals do what they always do. Several ranks end together,
    whichever of them has got the signal. SIGUSR1 also has SLURM start the job again (``scontrol requeue``).

    Args:
        run_dir: of the run, for the message.
    """

    def __init__(self, run_dir: str) -> None:
        self.run_dir = run_dir
        self._signal = 0  # the first that came
        self._time = 0.0  # of it
        self._seen = 0  # optimizer steps
        self._validated = 0.0  # when the validation began
        self._before: dict[int, Any] = {}  # handlers

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Keep Lightning from the signals: in its handlers ranks talk to each other, where they may hang."""
        vars(trainer._signal_connector)["register_signal_handlers"] = lambda: None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take over the signals."""
        self._seen = trainer.global_step
        if threading.current_thread() is not threading.main_thread():
            return
        for number in _signals():
            if signal.getsignal(number) != signal.SIG_IGN:  # as by nohup
                self._before[number] = signal.signal(number, self._note)

    def _note(self, number: int, _: FrameType | None) -> None:
        if not self._signal:
            self._signal, self._time = number, time.monotonic()
        elif time.monotonic() - self._time > _SAME:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give the signals back; one that came too late for a step acts now."""
        self._give_back()
        if self._signal:
            self._stop(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Give the signals back."""
        self._give_back()

    def _give_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """At the end of an optimizer step: save and end if a rank was told to."""
        if not completes_a_step(trainer, self._seen):
            return
        self._seen = trainer.global_step
        if self._of_all_ranks(trainer, 0.0)[0]:
            self._save_and_stop(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at the clock."""
        self._validated = time.monotonic()

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """End if a rank was told to and much of the validation is to come."""
        if trainer.state.fn != "fit":
            return
        rest = sum(trainer.num_val_batches) - batch_idx - 1
        told, seconds = self._of_all_ranks(trainer, (time.monotonic() - self._validated) / (batch_idx + 1) * rest)
        if told and seconds > _PATIENCE:
            self._stop(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save and end if a rank was told to."""
        if self._of_all_ranks(trainer, 0.0)[0]:
            self._save_and_stop(trainer)

    def _of_all_ranks(self, trainer: pl.Trainer, seconds: float) -> tuple[int, float]:
        """The signal that one of the ranks has got, and the longest time."""
        if trainer.world_size == 1:
            return self._signal, seconds
        both = torch.tensor([float(self._signal), seconds], device=trainer.strategy.root_device)
        torch.distributed.all_reduce(both, torch.distributed.ReduceOp.MAX)
        self._signal = int(both[0])
        return self._signal, float(both[1])

    def _save_and_stop(self, trainer: pl.Trainer) -> None:
        for callback in self._checkpoints(trainer):
            if callback.saved_at < trainer.global_step:
                callback.save(trainer)
        self._stop(trainer)

    @staticmethod
    def _checkpoints(trainer: pl.Trainer) -> list[Checkpoints]:
        return [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, Checkpoints)]

    def _stop(self, trainer: pl.Trainer) -> None:
        trainer.strategy.checkpoint_io.teardown()  # waits for what is being written
        if trainer.is_global_zero:
            name, saves = signal.Signals(self._signal).name, any(self._checkpoints(trainer))
            then = f"resume={self.run_dir} goes on" if saves else "nothing is saved without callbacks.last"
            _log.warning("Stopped by %s after step %d; %s.", name, trainer.global_step, then)
            if self._signal == REQUEUE:
                requeue()
        raise Stopped(128 + self._signal)


def requeue() -> None:
    """Have SLURM start this job again, with the same command."""
    job = os.environ["SLURM_JOB_ID"]
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        _log.warning("scontrol requeue %s: %s", job, getattr(error, "stderr", None) or error)


def _signals() -> list[int]:
    also = [REQUEUE] if REQUEUE is not None and "SLURM_JOB_ID" in os.environ else []
    return [signal.SIGTERM, signal.SIGINT, *also]
