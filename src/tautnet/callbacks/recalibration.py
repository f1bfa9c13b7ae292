"""Running statistics for the final weights, once training has ended."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from math import inf
from pathlib import Path

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.data import _set_sampler_epoch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tautnet.activations.slaf import Slaf
from tautnet.callbacks.spline_sparsifier import SplineSparsifier
from tautnet.lipschitz.structure import eval_mode
from tautnet.models.base import AbstractModel

_log = logging.getLogger(__name__)


class Recalibration(pl.Callback):
    """Recomputes the running statistics of all batch normalisations, those of SLAFs included, after training.

    Running statistics follow the batches of a training during which the weights moved, and trail behind, the more so
    for high powers. At the end of a fit one pass over the training data sets them for the final weights, see
    ``recalibrate_``. Averaged weights are in place by then. Data come in the order and with the augmentation of an
    epoch of its own, without a last, smaller batch where training leaves it out; random states stay as they are. On
    several ranks each goes through its part of every batch, and statistics are those of the whole batch.

    The recalibrated weights stay in the model, so a test that follows tests them, and go to ``folder`` as
    ``recalibrated.ckpt``. The checkpoints of training, which continue it, and the last validation have the statistics
    of training.

    Source: the need for it is measured on SLAF, whose authors do without; the procedure is that of
    ``torch.optim.swa_utils.update_bn``.

    Args:
        folder: where ``recalibrated.ckpt`` goes; None for nowhere.
    """

    def __init__(self, folder: str | None = None) -> None:
        self.folder = folder

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse, before training, a network without statistics and a sparsifier that would save older ones."""
        if stage != "fit":
            return
        assert isinstance(pl_module, AbstractModel)
        if not with_statistics(pl_module.net):
            raise MisconfigurationException(
                "callbacks.recalibrate: the network has no running statistics; choose norm=batch, norm=unitize or "
                "activation=slaf"
            )
        callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by a helper of Lightning
        if any(isinstance(callback, SplineSparsifier) for callback in callbacks[: callbacks.index(self)]):
            raise MisconfigurationException("callbacks.recalibrate: before sparsify, callbacks=[recalibrate,sparsify]")

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Recompute the statistics, keep them."""
        assert isinstance(pl_module, AbstractModel)
        model, device = pl_module, pl_module.device
        model.to(trainer.strategy.root_device)  # Lightning has taken it to the CPU
        with torch.random.fork_rng(devices=[]), trainer.precision_plugin.train_step_context():  # loaders may draw
            num_batches = recalibrate_(model.net, _training_inputs(trainer))
        model.to(device)
        _log.info("Running statistics recalibrated over %d training batches.", num_batches)
        if self.folder is not None:
            trainer.save_checkpoint(Path(self.folder) / "recalibrated.ckpt", weights_only=True)


def with_statistics(net: nn.Module) -> list[_BatchNorm | Slaf]:
    """The modules that keep running statistics: torch's batch normalisations, and SLAFs with a running maximum."""
    return [
        module
        for module in net.modules()
        if (isinstance(module, _BatchNorm) and module.running_mean is not None)
        or (isinstance(module, Slaf) and module.running_max is not None)
    ]


@torch.no_grad()
def recalibrate_(net: nn.Module, batches: Iterable[Tensor]) -> int:
    """Set running means, variances and maxima to the means, over the batches, of the batches' own.

    Each layer sees what it sees in training: inputs that the layers before it normalised by the batch. Running
    variances are means of unbiased variances of batches, so they estimate the variance over all data without bias if
    batches are drawn at random, and leave out how the batches' means differ. All else is in eval mode: no unit is
    dropped, power iterations rest. What the network holds beside the statistics does not change, nor does its mode;
    doing it twice with the same batches changes nothing.

    Args:
        net: the network.
        batches: inputs (N, *) on its device; each counts the same.

    Returns:
        The number of batches.

    Raises:
        ValueError: no batch, the network is unchanged then.
    """
    modules = with_statistics(net)
    num_batches = 0
    with eval_mode(net), _momenta_kept(modules):
        for module in modules:
            module.train()
        for num_batches, x in enumerate(batches, start=1):
            for module in modules:
                _count(module, num_batches)
            net(x)
    if num_batches == 0:
        raise ValueError("batches=[]: one or more")
    return num_batches


def _count(module: _BatchNorm | Slaf, number: int) -> None:
    """Have this batch enter as one of ``number``; a batch normalisation counts by itself."""
    if isinstance(module, Slaf):
        module.momentum = 1 / number
    elif number == 1:
        module.reset_running_stats()
        module.momentum = None


@contextmanager
def _momenta_kept(modules: Iterable[_BatchNorm | Slaf]) -> Iterator[None]:
    momenta = [(module, module.momentum) for module in modules]
    try:
        yield
    finally:
        for module, momentum in momenta:
            module.momentum = momentum


def _training_inputs(trainer: pl.Trainer) -> Iterator[Tensor]:
    """Inputs of one epoch, on the device."""
    loader = trainer.train_dataloader
    assert loader is not None
    # Of an epoch that no training has begun: loaders would take one that has for an interrupted one, and go on in it.
    _set_sampler_epoch(loader, trainer.current_epoch + 1)
    trainer.training = False
    try:
        count = trainer.num_training_batches
        for batch in loader if count == inf else islice(loader, int(count)):
            yield trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(batch))[0]
    finally:
        trainer.training = True
