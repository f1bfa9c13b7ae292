"""Internal covariate shift: how far an update moves the outputs of layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from matplotlib.figure import Figure
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.optim import Optimizer

from tautnet import logkeys
from tautnet.callbacks.figure_times import last_due
from tautnet.callbacks.layer_history import LayerHistory
from tautnet.callbacks.layer_outputs import Positions, layer_outputs, watched_paths
from tautnet.functional.earth_mover import (
    coupling_distance,
    earth_mover_exact,
    norm_gap,
    norm_sum,
    per_unit,
    sliced,
)
from tautnet.models.base import AbstractModel
from tautnet.models.ranks import joined
from tautnet.normalizers.selection import matching


class IcsMeter(pl.Callback):
    """Logs the earth mover's distance between layers' outputs before and after an update, on a fixed probe batch.

    Every ``every_n_steps`` updates, the first included, the first samples of the first training batch go through the
    network twice, before the optimizer's step and after it with all that belongs to it, such as projections, in
    training mode: batch statistics are those of the probe. Of each layer ``ics/<path>`` is the exact W1 of the vectors
    of its channels, beside bounds that enclose it and cheaper distances, see ``logkeys.ics`` and
    ``tautnet.functional.earth_mover``. A W1 between samples, not between distributions: with the same samples on both
    sides it says what the update moved.

    Training is not touched, weights are bit-identical with and without: the passes run on copies of the buffers, with
    a random state of their own and without gradients. Values go straight to the loggers, at the number of the update;
    the final metrics hold the mean over all measured updates under the same keys, and the last figure, layers by time,
    goes to ``folder``. Nothing is kept in checkpoints: a continued run takes the first batch that it sees as its probe,
    and its means and figure start there.

    On several ranks each runs the passes on the same probe, the first samples of the first batch of all ranks, and
    measures alike. Power iterations that advance with gradients alone rest: both passes use the vectors of the last
    training forward.

    Source: Huang, Yu (2020) for W1 as the measure; the design of the meter is ours.

    Args:
        every_n_steps: updates between two measurements, at least 1; batches of one update count once.
        num_samples: of the probe, at least 2; a smaller batch gives all it has. The assignment's time grows with the
            cube.
        positions: what stands for an output with positions, (N, C, *): ``sample``, of each sample the channels at one
            drawn position, or ``mean``, their means over all positions, which hides what differs inside an image.
        num_projections: directions of the sliced distance, at least 1.
        include: patterns of paths inside the network, of any modules, see ``tautnet.normalizers.selection.matching``;
            integers are paths too; None: the output normalizers, or without any the dense and convolutional layers but
            the last.
        exclude: patterns of layers that are left out.
        figure_every_n_epochs: epochs between two figures in TensorBoard, at least 1, doubled again and again after 20.
        folder: where the last figure goes, made when needed; None for nowhere.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        every_n_steps: int = 50,
        num_samples: int = 128,
        positions: Positions = "sample",
        num_projections: int = 64,
        include: Sequence[str | int] | None = None,
        exclude: Sequence[str | int] = (),
        figure_every_n_epochs: int = 10,
        folder: str | None = None,
    ) -> None:
        counts = {"every_n_steps": every_n_steps, "num_projections": num_projections}
        for name, count in (counts | {"figure_every_n_epochs": figure_every_n_epochs}).items():
            if count < 1:
                raise ValueError(f"{name}={count}: at least 1")
        if num_projections > 10_000:
            raise ValueError(f"num_projections={num_projections}: at most 10000")
        if num_samples < 2:
            raise ValueError(f"num_samples={num_samples}: at least 2")
        if positions not in get_args(Positions):
            raise ValueError(f"positions={positions}: one of {', '.join(get_args(Positions))}")
        self.every_n_steps, self.num_samples, self.num_projections = every_n_steps, num_samples, num_projections
        self.positions = positions
        self.include = None if include is None else [str(pattern) for pattern in include]
        self.exclude = [str(pattern) for pattern in exclude]
        self.figure_every_n_epochs, self.folder = figure_every_n_epochs, folder
        self._begin([])

    def _begin(self, paths: list[str]) -> None:
        self._paths = paths
        self._probe: Tensor | None = None
        self._before: dict[str, Tensor] | None = None  # outputs, while an update that is measured is under way
        self._sums: Counter[str] = Counter()  # of all that was logged, by name
        self._num_measured = self._num_drawn = 0
        self._history = LayerHistory(paths)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Choose the layers, and begin anew; patterns that match nothing are refused before training."""
        if stage != "fit":
            return
        assert isinstance(pl_module, AbstractModel)
        try:
            self._begin(self._chosen(pl_module.net))
        except ValueError as error:
            raise MisconfigurationException(f"callbacks.ics.{error}") from error

    def _chosen(self, net: nn.Module) -> list[str]:
        if self.include is None:
            return matching(watched_paths(net), ["*"], self.exclude)
        return matching([path for path, _ in net.named_modules() if path], self.include, self.exclude)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keep the probe."""
        if self._probe is not None:
            self._probe = self._probe.to(batch[0].device)  # a checkpoint's lies on the CPU
        else:
            pieces = joined([(batch[0][: self.num_samples],)])
            self._probe = torch.cat([x for (x,) in pieces])[: self.num_samples].clone()

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Look at the layers before the update; a batch whose gradient is only added up does not come here."""
        if self._before is None and trainer.global_step % self.every_n_steps == 0:
            self._before = self._look(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look again, compare, log."""
        if self._before is None:
            return
        before, self._before = self._before, None
        after = self._look(trainer, pl_module)
        self._log(trainer, {path: self._quantities(before[path], after[path]) for path in self._paths})

    def state_dict(self) -> dict[str, Any]:
        """The probe and what was measured."""
        return {
            "probe": None if self._probe is None else self._probe.cpu(),
            "sums": dict(self._sums),
            "num_measured": self._num_measured,
            "num_drawn": self._num_drawn,
            "history": self._history.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with them."""
        self._probe, self._sums = state_dict["probe"], Counter(state_dict["sums"])
        self._num_measured, self._num_drawn = state_dict["num_measured"], state_dict["num_drawn"]
        self._history.load_state_dict(state_dict["history"])

    def _look(self, trainer: pl.Trainer, model: pl.LightningModule) -> dict[str, Tensor]:
        assert isinstance(model, AbstractModel)
        assert self._probe is not None
        try:
            with trainer.precision_plugin.train_step_context():
                return layer_outputs(model.net, self._paths, self._probe, self.positions)
        except ValueError as error:
            raise MisconfigurationException(f"callbacks.ics.{error}") from error

    def _quantities(self, before_NC: Tensor, after_NC: Tensor) -> dict[str, float]:
        """What is logged of one layer."""
        directions = torch.Generator().manual_seed(0)  # the same every time: values can be compared
        w1, upper = earth_mover_exact(before_NC, after_NC), norm_sum(before_NC, after_NC)
        return {
            "w1": w1,
            "lower": norm_gap(before_NC, after_NC),
            "upper": upper,
            "coupling": coupling_distance(before_NC, after_NC),
            "sliced": sliced(before_NC, after_NC, self.num_projections, directions),
            "per_unit": per_unit(before_NC, after_NC),
            "relative": 2 * w1 / upper if upper > 0 else 0.0,
        }

    def _log(self, trainer: pl.Trainer, found: dict[str, dict[str, float]]) -> None:
        values = {logkeys.ics(path, name): value for path, layer in found.items() for name, value in layer.items()}
        self._sums.update(values)
        self._num_measured += 1
        self._history.add(trainer.global_step, torch.tensor([values[logkeys.ics(path)] for path in self._paths]))
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw every n-th epoch."""
        epochs = trainer.current_epoch + 1
        if last_due(epochs, self.figure_every_n_epochs) == epochs:
            self._draw(trainer)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw what is not drawn yet, into ``folder`` too; put the means among the final metrics."""
        if not self._num_measured:
            return
        self._draw(trainer)
        if self.folder is not None and trainer.is_global_zero:
            Path(self.folder).mkdir(parents=True, exist_ok=True)
            self._figure().savefig(Path(self.folder, "ics.png"), dpi=120)
        for name, total in self._sums.items():
            trainer.callback_metrics[name] = torch.tensor(total / self._num_measured, dtype=torch.float64)

    def _draw(self, trainer: pl.Trainer) -> None:
        boards = [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if not boards or not trainer.is_global_zero or self._num_drawn == self._num_measured:
            return
        self._num_drawn = self._num_measured
        for board in boards:
            board.add_figure(logkeys.ICS_LAYERS, self._figure(), trainer.global_step, close=False)

    def _figure(self) -> Figure:
        return self._history.figure("earth mover's distance of a layer's outputs before and after an update")
