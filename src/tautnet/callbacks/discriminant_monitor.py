"""How the direction that a network looks along stands to Fisher's discriminant."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from tautnet import logkeys
from tautnet.models.base import AbstractModel
from tautnet.models.ranks import gathered, log_alike

Sums = dict[int, tuple[int, Tensor, Tensor]]  # by class: count, sum, sum of products


class DiscriminantMonitor(pl.Callback):
    """Logs, after every epoch, how near the first dense layer's one projection is to that of linear discriminants.

    With w its weight, d the difference of the means of the two classes in the epoch's training batches and S the
    covariance within classes: ``discriminant/alignment`` is |cos| of the angle between w and S^-1 d, and
    ``discriminant/ratio`` r / r_max for r = (w . d)^2 / (w . S w), 0 where w joins the classes and 1 at S^-1 d.

    The batches of all ranks count. For two classes, inputs that are vectors, and a first dense layer with one output.
    """

    def __init__(self) -> None:
        self._weight: Tensor | None = None
        self._sums: Sums = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Find the layer."""
        assert isinstance(pl_module, AbstractModel)
        layers = [module for module in pl_module.net.modules() if isinstance(module, nn.Linear)]
        if not layers or layers[0].out_features != 1 or len(pl_module.input_shape) != 1:
            raise MisconfigurationException(
                "callbacks.discriminant: for vectors and a first layer of one output; take model.net.widths=[1]"
            )
        self._weight = layers[0].weight

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin with no samples."""
        self._sums = {}

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add the batch to the moments of its classes."""
        for label in batch[1].unique().tolist():
            x_ND = batch[0][batch[1] == label].double()
            _add(self._sums, label, (len(x_ND), x_ND.sum(0), x_ND.T @ x_ND))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare and log."""
        assert self._weight is not None
        sums = _of_all_ranks(self._sums, self._weight.device)
        if len(sums) != 2:
            raise MisconfigurationException(f"callbacks.discriminant: for two classes, there are {len(sums)}")
        means = [total_D / count for count, total_D, _ in sums.values()]
        scatters = [
            products_DD - count * torch.outer(mean_D, mean_D)
            for mean_D, (count, _, products_DD) in zip(means, sums.values(), strict=True)
        ]
        within_DD = torch.stack(scatters).sum(0) / sum(count for count, _, _ in sums.values())
        alignment, ratio = discriminant(self._weight.detach()[0].double(), means[0] - means[1], within_DD)
        log_alike(pl_module, logkeys.DISCRIMINANT_ALIGNMENT, alignment)
        log_alike(pl_module, logkeys.DISCRIMINANT_RATIO, ratio)


def _add(sums: Sums, label: int, found: tuple[int, Tensor, Tensor]) -> None:
    if label in sums:
        count, total_D, products_DD = sums[label]
        found = (count + found[0], total_D + found[1], products_DD + found[2])
    sums[label] = found


def _of_all_ranks(mine: Sums, device: torch.device) -> Sums:
    """The sums over the ranks, which need not have met the same classes."""
    sums: Sums = {}
    for of_rank in gathered({label: (n, total.cpu(), products.cpu()) for label, (n, total, products) in mine.items()}):
        for label, (count, total_D, products_DD) in of_rank.items():
            _add(sums, label, (count, total_D.to(device), products_DD.to(device)))
    return dict(sorted(sums.items()))


def discriminant(w_D: Tensor, gap_D: Tensor, within_DD: Tensor) -> tuple[Tensor, Tensor]:
    """|cos| of w and S^-1 d, and (w . d)^2 / (w . S w) over its largest value d . S^-1 d, both 0 to 1.

    Args:
        w_D: direction of a projection.
        gap_D: d, difference of the classes' means.
        within_DD: S, covariance within the classes, positive definite.
    """
    best_D = torch.linalg.solve(within_DD, gap_D)
    alignment = (w_D @ best_D).abs() / (w_D.norm() * best_D.norm())
    return alignment, (w_D @ gap_D).square() / (w_D @ within_DD @ w_D) / (gap_D @ best_D)
