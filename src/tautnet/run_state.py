"""What a run is made of beside what Lightning's checkpoints hold: random states, metrics under way, time."""

from __future__ import annotations

import logging
import os
import random
import time
from operator import methodcaller
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import LambdaCallback
from torch.utils import _pytree as pytree
from torchmetrics import Metric

from tautnet.models.ranks import gathered

_log = logging.getLogger(__name__)
_KEY = "run_state"  # in a checkpoint


class RunState(pl.Callback):
    """Makes a run that is continued the same as one that was never cut off, to the last bit.

    It stands first, so that no other callback draws random numbers before the saved states are back. Per rank: the
    random states of Python, NumPy, torch and the device, and the sums of metrics whose epoch is under way. In common:
    the metrics so far. A run that goes on in its directory also remembers whether it was told to stop, its seconds of
    training, and what Lightning logs after an epoch's checkpoint; if all of its epochs had ended, it still gets the
    hooks at the end of training, which Lightning would pass over.

    Args:
        in_place: the run goes on in its directory; False for a new one, from whatever checkpoint.
    """

    def __init__(self, in_place: bool) -> None:
        self.in_place = in_place
        self._seconds = 0.0  # of training, before this process
        self._start = time.perf_counter()
        self._saved: dict[str, Any] | None = None
        self._max_epochs: int | None = None
        self._extended = False
        self.begun = False  # training, with all states in place

    def total_seconds(self) -> float:
        """Of training, in this process and those before."""
        return self._seconds + time.perf_counter() - self._start

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Put the state into a checkpoint; all ranks have to call it."""
        inside_epoch = _inside_epoch(trainer)
        # Of this moment: logged_metrics has those of earlier epochs too.
        logged = {} if inside_epoch else trainer._logger_connector.metrics["log"]
        checkpoint[_KEY] = {
            "ranks": gathered(_random_states(trainer) | {"metrics": _metric_states(pl_module)}),
            "measured": {name: value.detach().cpu() for name, value in trainer.callback_metrics.items()},
            "logged": {name: float(value) for name, value in logged.items()},
            "inside_epoch": inside_epoch,
            "should_stop": trainer.should_stop,
            "seconds": self.total_seconds(),
        }

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take the state out of a checkpoint; it is put in place when training starts."""
        if trainer.state.fn == "fit" and _KEY in checkpoint:
            self._saved = checkpoint[_KEY]
            if self.in_place:  # else a run whose directory was renamed would forget its best score
                for callback in trainer.checkpoint_callbacks:
                    state = checkpoint["callbacks"].get(callback.state_key, {})
                    if isinstance(callback, pl.callbacks.ModelCheckpoint) and "dirpath" in state:
                        moved = _moved(state, state["dirpath"], str(callback.dirpath))
                        checkpoint["callbacks"][callback.state_key] = moved

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count the time."""
        self._start = time.perf_counter()
        if self._saved is not None and self.in_place:
            self._seconds = self._saved["seconds"]

    def behind(self) -> pl.Callback:
        """What has to stand behind all other callbacks, which ask for the number of epochs when a fit starts."""

        def have_training_start(trainer: pl.Trainer, _: pl.LightningModule) -> None:
            if self._saved is not None and self.in_place and trainer.fit_loop.max_epochs not in (None, -1):
                self._max_epochs, self._extended = trainer.fit_loop.max_epochs, True
                trainer.fit_loop.max_epochs += 1

        return LambdaCallback(on_fit_start=have_training_start)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put back what does not depend on the moment; a log that was cut off gets the end of its last epoch again."""
        saved, self.begun = self._saved, self._saved is None
        if saved is None:
            return
        if self._extended:
            trainer.fit_loop.max_epochs = self._max_epochs
            self._extended = False
        trainer.callback_metrics.update(saved["measured"])
        self._put_back_random_states(trainer)
        if self.in_place:
            trainer.should_stop = saved["should_stop"]
            for logger in trainer.loggers if not saved["inside_epoch"] else ():
                logger.log_metrics(saved["logged"], step=trainer.global_step - 1)
        self.begun = True

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The weights are in place."""
        self.begun = True

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put back the random states where an epoch begins."""
        if self._saved is not None and not self._saved["inside_epoch"]:
            self._put_back_random_states(trainer)
            self._saved = None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Put back the random states and the metrics under way inside an epoch."""
        if self._saved is not None:
            self._put_back_random_states(trainer)
            own, self._saved = self._own(trainer), None
            if own is not None:
                _put_back_metrics(pl_module, own["metrics"])
            else:
                _log.warning("Another number of ranks: the epoch's training metrics begin anew in its middle.")

    def _own(self, trainer: pl.Trainer) -> dict[str, Any] | None:
        """What this rank had; None if the number of ranks is another."""
        assert self._saved is not None
        ranks = self._saved["ranks"]
        return ranks[trainer.global_rank] if len(ranks) == trainer.world_size else None

    def _put_back_random_states(self, trainer: pl.Trainer) -> None:
        own = self._own(trainer)
        if own is None:
            return
        version, numbers, gauss = own["python"]
        random.setstate((version, tuple(numbers), gauss))
        kind, keys, *rest = own["numpy"]
        np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002  # users' code may draw from it
        torch.set_rng_state(own["torch"])
        if "device" in own and trainer.strategy.root_device.type == "cuda":
            torch.cuda.set_rng_state(own["device"], trainer.strategy.root_device)


def _moved(value: Any, before: str, now: str) -> Any:
    if isinstance(value, str):
        return now + value[len(before) :] if value == before or value.startswith(f"{before}{os.sep}") else value
    if isinstance(value, dict):
        return {_moved(key, before, now): _moved(each, before, now) for key, each in value.items()}
    return value


def _inside_epoch(trainer: pl.Trainer) -> bool:
    """Whether the epoch goes on after a checkpoint that is written now."""
    progress = trainer.fit_loop.epoch_progress.current
    return bool(progress.ready != progress.processed)  # type: ignore[attr-defined]  # Lightning's is a full tracker


def _random_states(trainer: pl.Trainer) -> dict[str, Any]:
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    states = {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
    }
    device = trainer.strategy.root_device
    return states | ({"device": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def _metric_states(model: pl.LightningModule) -> dict[str, Any]:
    """Sums of this rank, of all metrics that have seen a batch."""
    return {
        path: {"count": metric._update_count, "state": _on_cpu(metric.metric_state)}
        for path, metric in model.named_modules()
        if isinstance(metric, Metric) and metric.update_called
    }


def _on_cpu(state: dict[str, Any]) -> dict[str, Any]:
    """A metric's sums, which are tensors or lists of tensors."""
    copy = {name: value if isinstance(value, torch.Tensor) else list(value) for name, value in state.items()}
    return pytree.tree_map(lambda tensor: tensor.detach().cpu().clone(), copy)


def _put_back_metrics(model: pl.LightningModule, states: dict[str, Any]) -> None:
    for path, saved in states.items():
        metric = model.get_submodule(path)
        assert isinstance(metric, Metric)
        metric._update_count = saved["count"]
        for name, value in saved["state"].items():
            setattr(metric, name, pytree.tree_map(methodcaller("to", metric.device), value))
