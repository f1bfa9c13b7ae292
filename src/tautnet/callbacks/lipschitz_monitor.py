"""The Lipschitz sandwich of the network while it trains."""

from __future__ import annotations

import logging
from math import ceil, isfinite, isinf
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
    lower value comes from samples spread over the evaluation. Training is not touched: the weights are bit-identical
    with and without.

    Args:
        num_samples: how many samples the lower value looks at, at least 1; at least one a batch.
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
        self._samples: list[Tensor] = []
        self._told = False

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep some samples."""
        self._keep(batch[0], sum(trainer.num_val_batches))

    def on_test_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep some samples."""
        self._keep(batch[0], sum(trainer.num_test_batches))

    def _keep(self, x: Tensor, num_batches: float) -> None:
        """The batch's share of ``num_samples``, evenly spread over it: data may be sorted."""
        if sum(map(len, self._samples)) >= self.num_samples and isinf(num_batches):
            return
        share = max(1, ceil(self.num_samples / num_batches))  # a stream may not know how many batches it has
        self._samples.append(x[:: max(1, len(x) // share)][:share])

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at every n-th epoch, and at a validation outside training."""
        outside_training = trainer.state.fn != TrainerFn.FITTING
        due = outside_training or (trainer.current_epoch + 1) % self.every_n_epochs == 0
        if due and not trainer.sanity_checking:
            self._look(pl_module)
        self._samples = []

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look."""
        self._look(pl_module)
        self._samples = []

    def _look(self, model: pl.LightningModule) -> None:
        assert isinstance(model, AbstractModel)
        by_shape: dict[torch.Size, list[Tensor]] = {}  # images to be denoised come in several sizes
        for x in self._samples:
            by_shape.setdefault(x.shape[1:], []).append(x)
        reports = [lipschitz_bound(model.net, shape) for shape in by_shape]
        report = max(reports, key=lambda report: report.log_total)
        lower = max(lipschitz_lower(model.net, torch.cat(group)) for group in by_shape.values())
        model.log(logkeys.LIPSCHITZ_BOUND, _rounded_up(report.total))
        model.log(logkeys.LIPSCHITZ_LOWER, lower)
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
