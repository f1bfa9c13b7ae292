"""What the learned activations look like while they train."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tautnet import logkeys
from tautnet.activations import AbstractActivation, LinearSpline
from tautnet.callbacks.figure_times import last_due
from tautnet.models.base import AbstractModel
from tautnet.models.ranks import gathered, log_alike
from tautnet.splines.plot import plot_activation

_log = logging.getLogger(__name__)
MUCH_OUTSIDE = 0.5  # of a layer's inputs: most of its knots then learn nothing


class SplineMonitor(pl.Callback):
    """Logs active knots and TV(2) of all splines, the share of the inputs outside each grid, and figures of the curves.

    The inputs are those of all ranks in validation. A layer is named in a warning, once, when more than half of its
    inputs lie outside its grid, or all inputs of one of its curves: the inner knots of such a curve learn nothing.

    The figures show the curves, their knots and, shaded, the range that the layer's inputs visited in the last
    validation. They go to TensorBoard, those of the first epoch too, and at the end of training to ``folder`` as PNG.

    Args:
        figure_every_n_epochs: epochs between two sets of figures, at least 1, doubled again and again after 20.
        folder: where the PNG files go, made when needed; None for nowhere.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(self, figure_every_n_epochs: int = 10, folder: str | None = None) -> None:
        if figure_every_n_epochs < 1:
            raise ValueError(f"figure_every_n_epochs={figure_every_n_epochs}: at least 1")
        self.figure_every_n_epochs, self.folder = figure_every_n_epochs, folder
        self._visited: dict[str, tuple[float, float]] = {}
        self._inside: dict[str, tuple[Tensor, int]] = {}  # elements of each curve inside its grid, and of a curve all
        self._half_widths: dict[str, Tensor] = {}  # of the curves' grids, in units of the input
        self._warned: set[str] = set()
        self._handles: list[RemovableHandle] = []

    @staticmethod
    def _learned(model: pl.LightningModule) -> dict[str, AbstractActivation]:
        assert isinstance(model, AbstractModel)
        return {
            path: module
            for path, module in model.net.named_modules()
            if isinstance(module, AbstractActivation) and any(True for _ in module.parameters())
        }

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin with no inputs seen."""
        self._visited, self._inside, self._half_widths = {}, {}, {}

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Watch the inputs of the learned activations during this batch."""
        for path, activation in self._learned(pl_module).items():
            self._handles.append(activation.register_forward_pre_hook(self._recorder(path)))

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stop watching: a Lipschitz bound does not hold for layers with hooks."""
        self._forget_hooks()

    def _recorder(self, path: str) -> Any:
        def record(module: nn.Module, inputs: tuple[Tensor]) -> None:
            lo, hi = (float(end) for end in inputs[0].detach().aminmax())
            old_lo, old_hi = self._visited.get(path, (lo, hi))
            self._visited[path] = (min(lo, old_lo), max(hi, old_hi))
            if isinstance(module, LinearSpline):
                if path not in self._half_widths:
                    self._half_widths[path] = module.points()[0][:, -1].to(inputs[0].device, torch.float32)
                inside_C = _num_inside(module, inputs[0].detach(), self._half_widths[path])
                before_C, seen = self._inside.get(path, (torch.zeros_like(inside_C), 0))
                self._inside[path] = (before_C + inside_C, seen + inputs[0].numel() // module.num_curves)

        return record

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the counts and what lies outside; draw every n-th epoch."""
        self._join()
        self._log_counts(pl_module)
        self._log_outside(pl_module)
        if trainer.state.fn == TrainerFn.FITTING and self._is_due(trainer.current_epoch + 1):
            self._draw(trainer, pl_module)

    def _is_due(self, epochs: int) -> bool:
        """Whether figures are drawn after so many epochs: after the first too, where the way begins."""
        return epochs == 1 or last_due(epochs, self.figure_every_n_epochs) == epochs

    def _join(self) -> None:
        """Take in what the other ranks have seen."""
        of_ranks = gathered((self._visited, {path: (n.cpu(), seen) for path, (n, seen) in self._inside.items()}))
        for path in self._visited:
            lows, highs = zip(*(visited[path] for visited, _ in of_ranks), strict=True)
            self._visited[path] = (min(lows), max(highs))
        for path in self._inside:
            inside, seen = zip(*(counts[path] for _, counts in of_ranks), strict=True)
            self._inside[path] = (torch.stack(inside).sum(0), sum(seen))

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the counts."""
        self._log_counts(pl_module)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the final activations, into ``folder`` too; averaged weights are in place by now."""
        if not self._visited:
            return
        if not self._is_due(trainer.current_epoch):  # otherwise the last epoch drew them
            self._draw(trainer, pl_module)
        if self.folder is None or not trainer.is_global_zero:
            return
        Path(self.folder).mkdir(parents=True, exist_ok=True)
        for path, activation in self._learned(pl_module).items():
            plot_activation(activation, path, *self._visited[path]).savefig(Path(self.folder, f"{path}.png"), dpi=120)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave no hook behind."""
        self._forget_hooks()

    def _forget_hooks(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @staticmethod
    def _log_counts(model: pl.LightningModule) -> None:
        assert isinstance(model, AbstractModel)
        splines = [module for module in model.net.modules() if isinstance(module, LinearSpline)]
        if splines:
            log_alike(model, logkeys.ACTIVE_KNOTS, float(sum(spline.num_active_knots() for spline in splines)))
            log_alike(model, logkeys.TV2, float(sum(spline.tv2().sum().item() for spline in splines)))

    def _log_outside(self, model: pl.LightningModule) -> None:
        for path, (inside_C, seen) in self._inside.items():
            num_inside, num_lost = int(inside_C.sum()), int((inside_C == 0).sum())
            share = 1 - num_inside / (seen * len(inside_C))
            log_alike(model, logkeys.outside(path), share)
            if (share > MUCH_OUTSIDE or num_lost > 0) and path not in self._warned:
                self._warned.add(path)
                amount = "all inputs" if num_inside == 0 else f"{share:.0%} of the inputs"
                if 0 < num_lost < len(inside_C):
                    amount += f", for {num_lost} of {len(inside_C)} curves all,"
                largest = max(map(abs, self._visited[path]))
                _log.warning(
                    "%s: %s lie outside the spline's grid and teach its inner knots nothing; activation.grid_range="
                    "auto, or nearer to the largest input, %.4g",
                    *(path, amount, largest),
                )

    def state_dict(self) -> dict[str, Any]:
        """What is drawn at the end, and who was named."""
        return {"visited": dict(self._visited), "warned": sorted(self._warned)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self._visited, self._warned = dict(state_dict["visited"]), set(state_dict["warned"])

    def _draw(self, trainer: pl.Trainer, model: pl.LightningModule) -> None:
        boards = [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if not boards or not trainer.is_global_zero:
            return
        for path, activation in self._learned(model).items():
            figure = plot_activation(activation, path, *self._visited[path])
            for board in boards:
                board.add_figure(f"activation/{path}", figure, trainer.global_step, close=False)


def _num_inside(spline: LinearSpline, x: Tensor, half_width_C: Tensor) -> Tensor:
    """How many inputs (N, C, *) of each curve lie on its grid, shape (curves,).

    Args:
        spline: the layer.
        x: its input.
        half_width_C: of the grids in units of the input, shape (curves,) or (1,).
    """
    curves = x.flatten(1) if spline.sharing == "neuron" else x
    inside = curves.abs() <= half_width_C.view(-1, *(1,) * (curves.dim() - 2))
    if spline.num_curves == 1:
        return inside.sum().view(1)
    return inside.sum([dim for dim in range(curves.dim()) if dim != 1])
