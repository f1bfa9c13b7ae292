"""How flat the spectra of the weights are while they train."""

from __future__ import annotations

from collections.abc import Sequence
from math import nan
from pathlib import Path

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from matplotlib.figure import Figure
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor, nn

from tautnet import logkeys
from tautnet.callbacks.figure_times import last_due
from tautnet.lipschitz.structure import eval_mode
from tautnet.models.base import AbstractModel
from tautnet.models.ranks import log_alike
from tautnet.normalizers.selection import select_layers


class WeightSpectrum(pl.Callback):
    """Logs largest over median singular value of the weights in force, and draws all of them.

    Of each dense and convolutional layer the singular values of its effective weight as the matrix C_out x rest, the
    groups of a convolution together; rows that are orthonormal up to a common factor give the ratio 1. Looks after
    every validation and test epoch, in eval mode; training is not touched. The figure, singular values in falling order
    relative to the largest, goes to TensorBoard and at the end of training to ``folder`` as spectrum.png. Every rank
    computes all of it alike.

    Args:
        include: shell patterns of the layers' paths in the network; ``last`` is the last layer.
        exclude: patterns of layers that are left out.
        figure_every_n_epochs: epochs between two figures, at least 1, doubled again and again after 20 figures.
        folder: where the last figure goes, made when needed; None for nowhere.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        include: Sequence[str | int] = ("*",),
        exclude: Sequence[str | int] = (),
        figure_every_n_epochs: int = 10,
        folder: str | None = None,
    ) -> None:
        if figure_every_n_epochs < 1:
            raise ValueError(f"figure_every_n_epochs={figure_every_n_epochs}: at least 1")
        self.include, self.exclude = include, exclude
        self.figure_every_n_epochs, self.folder = figure_every_n_epochs, folder
        self._layers: dict[str, nn.Module] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Choose the layers.

        Raises:
            MisconfigurationException: a pattern that matches no layer.
        """
        assert isinstance(pl_module, AbstractModel)
        try:
            self._layers = select_layers(pl_module.net, self.include, self.exclude)
        except ValueError as error:
            raise MisconfigurationException(f"callbacks.spectrum.{error}") from error

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log; draw every n-th epoch."""
        self._log(pl_module)
        epochs = trainer.current_epoch + 1
        if trainer.state.fn == TrainerFn.FITTING and last_due(epochs, self.figure_every_n_epochs) == epochs:
            self._draw(trainer)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log."""
        self._log(pl_module)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the final spectra, into ``folder`` too."""
        epochs = trainer.current_epoch
        if last_due(epochs, self.figure_every_n_epochs) != epochs:  # otherwise the last epoch drew them
            self._draw(trainer)
        if self.folder is not None and trainer.is_global_zero:
            Path(self.folder).mkdir(parents=True, exist_ok=True)
            self._figure().savefig(Path(self.folder, "spectrum.png"), dpi=120)

    def _spectra(self) -> dict[str, Tensor]:
        return {path: singular_values(layer) for path, layer in self._layers.items()}

    def _log(self, model: pl.LightningModule) -> None:
        for path, values in self._spectra().items():
            log_alike(model, logkeys.spectrum(path), float(values[0] / values.quantile(0.5)))

    def _draw(self, trainer: pl.Trainer) -> None:
        boards = [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if boards and trainer.is_global_zero:
            figure = self._figure()
            for board in boards:
                board.add_figure("spectrum", figure, trainer.global_step, close=False)

    def _figure(self) -> Figure:
        figure = Figure(figsize=(5, 3.6), layout="constrained")
        axes = figure.subplots()
        for path, values in self._spectra().items():
            axes.plot(torch.linspace(0, 1, len(values)), values / values[0], ".-", markersize=3, label=path)
        axes.set_xlabel("singular values in falling order")
        axes.set_ylabel("relative to the largest")
        axes.set_ylim(0, 1.05)
        axes.grid(linewidth=0.3)
        axes.legend(fontsize=7)
        return figure


@torch.no_grad()
def singular_values(layer: nn.Module) -> Tensor:
    """Of the effective weight of a dense or convolutional layer as C_out x rest, falling, in float64 on the CPU.

    NaN if an entry is not finite.
    """
    with eval_mode(layer):
        weight = layer.weight
    assert isinstance(weight, Tensor)
    matrix = weight.to("cpu", torch.float64).flatten(1)
    if not matrix.isfinite().all():  # the decomposition would stop a training that has only gone astray
        return matrix.new_full((min(matrix.shape),), nan)
    return torch.linalg.svdvals(matrix)
