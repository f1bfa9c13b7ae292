"""How the direction that a network looks along stands to Fisher's discriminant."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from tautnet import logkeys
from tautnet.models.base import AbstractModel


class DiscriminantMonitor(pl.Callback):
    """Logs, after every epoch, how near the first dense layer's one projection is to that of linear discriminants.

    With w its weight, d the difference of the means of the two classes in the epoch's training batches and S the
    covariance within classes: ``discriminant/alignment`` is |cos| of the angle between w and S^-1 d, and
    ``discriminant/ratio`` r / r_max for r = (w . d)^2 / (w . S w), 0 where w joins the classes and 1 at S^-1 d.

    For two classes, inputs that are vectors, and a first dense layer with one output.
    """

    def __init__(self) -> None:
        self._weight: Tensor | None = None
        self._sums: dict[int, tuple[int, Tensor, Tensor]] = {}  # by class: count, sum, sum of products

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
            count, total_D, products_DD = self._sums.get(label, (0, torch.tensor(0.0), torch.tensor(0.0)))
            self._sums[label] = (
                count + len(x_ND),
                x_ND.sum(0) + total_D.to(x_ND),
                x_ND.T @ x_ND + products_DD.to(x_ND),
            )

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare and log."""
        assert self._weight is not None
        if len(self._sums) != 2:
            raise MisconfigurationException(f"callbacks.discriminant: for two classes, there are {len(self._sums)}")
        means = [total_D / count for count, total_D, _ in self._sums.values()]
        scatters = [
            products_DD - count * torch.outer(mean_D, mean_D)
            for mean_D, (count, _, products_DD) in zip(means, self._sums.values(), strict=True)
        ]
        within_DD = torch.stack(scatters).sum(0) / sum(count for count, _, _ in self._sums.values())
        alignment, ratio = discriminant(self._weight.detach()[0].double(), means[0] - means[1], within_DD)
        pl_module.log(logkeys.DISCRIMINANT_ALIGNMENT, alignment)
        pl_module.log(logkeys.DISCRIMINANT_RATIO, ratio)


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
