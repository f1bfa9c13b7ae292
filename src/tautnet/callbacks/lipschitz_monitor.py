"""The Lipschitz sandwich of the network while it trains."""

from __future__ import annotations

import logging
from math import isfinite
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor

from tautnet import logkeys
from tautnet.lipschitz import lipschitz_bound, lipschitz_lower
from tautnet.models.base import AbstractModel

_log = logging.getLogger(__name__)


class LipschitzMonitor(pl.Callback):
    """Logs the guaranteed bound and the observed lower value, p = 2, after every validation and test epoch.

    Both speak of the eval-mode network as a function of the input it is given, after the data's standardisation. The
    lower value comes from the first batch of the evaluation. Training is not touched: the weights are bit-identical
    with and without.

    Args:
        num_samples: how many samples of the batch the lower value looks at, at least 1.
        every_n_epochs: validation epochs between two looks, at least 1.
        per_layer: log ``lipschitz/layer/<path>`` too.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(self, num_samples: int = 128, every_n_epochs: int = 1, per_layer: bool = True) -> None:
        if num_samples < 1:
            raise ValueError(f"num_samples={num_samples}: at least 1")
        if every_n_epochs < 1:
            raise ValueError(f"every_n_epochs={every_n_epochs}: at least 1")
        self.num_samples, self.every_n_epochs, self.per_layer = num_samples, every_n_epochs, per_layer
        self._samples: Tensor | None = None
        self._told = False

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep the first samples."""
        if batch_idx == 0:
            self._samples = batch[0][: self.num_samples]

    def on_test_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep the first samples."""
        self.on_validation_batch_start(trainer, pl_module, batch, batch_idx, dataloader_idx)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at every n-th epoch, and at a validation outside training."""
        if trainer.sanity_checking:
            return
        if trainer.state.fn != TrainerFn.FITTING or (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._look(pl_module)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look."""
        self._look(pl_module)

    def _look(self, model: pl.LightningModule) -> None:
        assert isinstance(model, AbstractModel)
        assert self._samples is not None
        report = lipschitz_bound(model.net, model.input_shape)
        model.log(logkeys.LIPSCHITZ_BOUND, _rounded_up(report.total))
        model.log(logkeys.LIPSCHITZ_LOWER, lipschitz_lower(model.net, self._samples))
        self._samples = None
        for layer in report.layers if self.per_layer else ():
            if layer.value != 1.0 and isfinite(layer.value):  # flatten, identity and the like say nothing
                model.log(logkeys.layer_bound(layer.path), layer.value)
        if report.unbounded and not self._told:
            self._told = True
            _log.warning("No finite Lipschitz bound because of %s.", ", ".join(report.unbounded))


def _rounded_up(value: float) -> Tensor:
    """As float32, what Lightning logs, without rounding a guarantee down."""
    nearest = torch.tensor(value, dtype=torch.float32)
    return nearest if nearest.item() >= value else torch.nextafter(nearest, torch.tensor(float("inf")))
