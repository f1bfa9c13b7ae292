"""Certificates of a trained classifier, held against attacks."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor

from tautnet import logkeys
from tautnet.evaluation.certificates import Effort, Row, examine
from tautnet.evaluation.curves import accuracy_figure, write_certificates
from tautnet.evaluation.selection import Selection
from tautnet.models.base import AbstractModel
from tautnet.models.ranks import log_alike


class Certification(pl.Callback):
    """Certifies predictions of the tested network, attacks them, and reports the shares that remain right.

    At the end of a test, for some test samples and every eps: the share certified (see ``Certifier``), the share that
    survives projected gradient descent, and the share right without either; certified <= attacked <= clean. An attack
    that flips a certified prediction would disprove a certificate, and stops the program. All on a copy in float64,
    with the input in raw units; perturbations are not confined to the range of valid pixels, by certificates and
    attacks alike. On several ranks each examines all of these samples, which it gets from the others.

    Args:
        epsilons_l2: radii in the Euclidean norm, rising, at least 0, in the raw units of the data's ``input_scale``.
        epsilons_linf: radii in the maximum norm.
        num_samples: how many samples, evenly spread over the test, at least 1; at least one a batch.
        num_steps: of each attack.
        num_restarts: starts of each attack.
        seed: of the starts.
        folder: where ``certificates.csv``, ``.json`` and ``.png`` go, made when needed; None for nowhere.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        epsilons_l2: Sequence[float],
        epsilons_linf: Sequence[float],
        num_samples: int = 128,
        num_steps: int = 40,
        num_restarts: int = 2,
        seed: int = 0,
        folder: str | None = None,
    ) -> None:
        self.epsilons = {"l2": list(epsilons_l2), "linf": list(epsilons_linf)}
        for norm, values in self.epsilons.items():
            if values != sorted(set(values)) or not all(0 <= eps < inf for eps in values):
                raise ValueError(f"epsilons_{norm}={values}: rising finite numbers of at least 0")
        if not any(self.epsilons.values()):
            raise ValueError("epsilons_l2=[]: at least one radius, here or in epsilons_linf")
        for name, count in {"num_samples": num_samples, "num_steps": num_steps, "num_restarts": num_restarts}.items():
            if count < 1:
                raise ValueError(f"{name}={count}: at least 1")
            if name != "num_samples" and count > 10_000:  # of samples there are as many as the test has
                raise ValueError(f"{name}={count}: at most 10000")
        self.num_samples, self.effort, self.folder = num_samples, Effort(num_steps, num_restarts, seed), folder
        self._selection = Selection(num_samples)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse what has no classes, before training."""
        assert isinstance(pl_module, AbstractModel)
        if pl_module.task != "classification":
            raise MisconfigurationException(f"callbacks.certify: for classification, the data is for {pl_module.task}")

    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin without samples."""
        self._selection = Selection(self.num_samples)

    def on_test_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep the batch's share of the samples."""
        self._selection.add(batch[0], batch[1], sum(trainer.num_test_batches))

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Certify, attack, compare, report."""
        assert isinstance(pl_module, AbstractModel)
        if trainer.datamodule is None:  # type: ignore[attr-defined]
            raise MisconfigurationException("callbacks.certify: needs a data module, which knows the unit of the data")
        scale_C: Tensor = trainer.datamodule.input_scale  # type: ignore[attr-defined]
        with torch.inference_mode(False):
            inputs, labels = self._selection.samples()
        self._selection = Selection(self.num_samples)
        rows, radii = examine(pl_module.net, scale_C, inputs, labels, self.epsilons, self.effort)
        log_alike(pl_module, logkeys.CERTIFIED_CLEAN, rows[0].clean)
        for row in rows:
            log_alike(pl_module, logkeys.certified(row.norm, row.eps), row.certified)
            log_alike(pl_module, logkeys.attacked(row.norm, row.eps), row.attacked)
        if trainer.is_global_zero:
            self._show(trainer, rows, radii)

    def _show(self, trainer: pl.Trainer, rows: Sequence[Row], radii: dict[str, list[float]]) -> None:
        if self.folder is not None:
            write_certificates(Path(self.folder), rows, radii)
        figure = accuracy_figure(rows)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_figure("certified/accuracy", figure, trainer.global_step, close=False)
