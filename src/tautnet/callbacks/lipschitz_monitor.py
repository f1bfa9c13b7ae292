"""The Lipschitz sandwich of the network while it trains."""

from __future__ import annotations

import logging
from dataclasses import asdict
from math import ceil, inf, isfinite, isinf, log, nan
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor, nn

from tautnet import logkeys
from tautnet.callbacks.figure_times import last_due
from tautnet.lipschitz import LayerBound, LipschitzReport, lipschitz_bound, lipschitz_lower, paper_bound
from tautnet.lipschitz.lower import NUM_PAIRS, ascend, start_pairs
from tautnet.lipschitz.product import log_of, to_float
from tautnet.models.base import AbstractModel
from tautnet.models.ranks import joined, log_alike, spread

_log = logging.getLogger(__name__)
_MOST_BARS = 200


class LipschitzMonitor(pl.Callback):
    """Logs guaranteed bounds and the observed lower value after every validation and test epoch.

    All speak of the eval-mode network as a function of the input it is given, after the data's standardisation. The
    lower value comes from the steepest of the samples spread over the evaluation, and from pairs of points that climb
    ``num_steps`` from there, in the next look from where they came to; its cost does not depend on the batch size.
    Training is not touched: the weights are bit-identical with and without. On several ranks each computes all of it
    alike, with the samples of all ranks.

    A guarantee is logged rounded up to float32, inf beyond its range, where ``log10_bound`` goes on. A bound that
    training makes explode is named in a warning, once, and so are layers without a bound.

    Args:
        num_samples: how many samples the lower value looks at, at least 1; at least one a batch.
        every_n_epochs: validation epochs between two looks, at least 1.
        per_layer: log ``lipschitz/layer/<path>`` too.
        p: exponent of the vector norm, 1, 2 or inf.
        num_steps: of gradient ascent at each look, 0 to 10000; 0: the samples alone, all of them.
        warn_factor: growth of the bound since the first look that is warned of, above 1.
        figure_every_n_epochs: between two figures and tables in TensorBoard, at least 1; doubles after 20 (last_due).
        folder: where the last figure and table go, made when needed; None for nowhere.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        num_samples: int = 128,
        every_n_epochs: int = 1,
        per_layer: bool = True,
        p: float = 2,
        num_steps: int = 15,
        warn_factor: float = 100.0,
        figure_every_n_epochs: int = 10,
        folder: str | None = None,
    ) -> None:
        counts = {"num_samples": num_samples, "every_n_epochs": every_n_epochs}
        for name, count in (counts | {"figure_every_n_epochs": figure_every_n_epochs}).items():
            if count < 1:
                raise ValueError(f"{name}={count}: at least 1")
        if p not in (1, 2, inf):
            raise ValueError(f"p={p}: 1, 2 or inf")
        if not 0 <= num_steps <= 10_000:
            raise ValueError(f"num_steps={num_steps}: at least 0, at most 10000")
        if not warn_factor > 1:
            raise ValueError(f"warn_factor={warn_factor}: above 1")
        self.num_samples, self.every_n_epochs, self.per_layer, self.p = num_samples, every_n_epochs, per_layer, p
        self.num_steps, self.warn_factor = num_steps, warn_factor
        self.figure_every_n_epochs, self.folder = figure_every_n_epochs, folder
        self._samples: list[Tensor] = []
        self._num_kept = 0  # by all ranks
        self._pairs: dict[torch.Size, tuple[Tensor, Tensor]] = {}  # where the last ascent came to, by sample shape
        self._report: LipschitzReport | None = None  # of the last look in training
        self._looked_after = self._drawn_after = 0  # epochs of training
        self._first_log = nan  # of the bound
        self._warned: set[str] = set()

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
        if self._num_kept >= self.num_samples and isinf(num_batches):
            return
        share = max(1, ceil(self.num_samples / num_batches))  # a stream may not know how many batches it has
        (rows,), count = spread((x,), share)
        self._samples.append(rows)
        self._num_kept += count

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at every n-th epoch, and at a validation outside training."""
        training, epochs = trainer.state.fn == TrainerFn.FITTING, trainer.current_epoch + 1
        if (not training or epochs % self.every_n_epochs == 0) and not trainer.sanity_checking:
            report = self._look(pl_module)
            if training:
                self._watch(report, epochs)
                if last_due(epochs, self.figure_every_n_epochs) > self._drawn_after:
                    self._draw(trainer)
        self._samples, self._num_kept = [], 0

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look."""
        self._look(pl_module)
        self._samples, self._num_kept = [], 0

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the last look, into ``folder`` too."""
        if self._report is None:
            return
        if self._drawn_after != self._looked_after:
            self._draw(trainer)
        if self.folder is not None and trainer.is_global_zero:
            Path(self.folder).mkdir(parents=True, exist_ok=True)
            _figure(self._report).savefig(Path(self.folder, "lipschitz.png"), dpi=120)
            Path(self.folder, "lipschitz.md").write_text(_table(self._report))

    def state_dict(self) -> dict[str, Any]:
        """What the next look begins with, and what is drawn at the end."""
        pairs = [tuple(end.detach().cpu() for end in ends) for ends in self._pairs.values()]
        report = None if self._report is None else asdict(self._report)
        counts = {"looked_after": self._looked_after, "drawn_after": self._drawn_after, "first_log": self._first_log}
        return counts | {"pairs": pairs, "report": report, "warned": sorted(self._warned)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self._pairs = {x.shape[1:]: (x, y) for x, y in state_dict["pairs"]}
        if (report := state_dict["report"]) is not None:
            self._report = LipschitzReport(
                **report | {"layers": tuple(LayerBound(**each) for each in report["layers"])}
            )
        self._looked_after, self._drawn_after = state_dict["looked_after"], state_dict["drawn_after"]
        self._first_log, self._warned = state_dict["first_log"], set(state_dict["warned"])

    def _look(self, model: pl.LightningModule) -> LipschitzReport:
        assert isinstance(model, AbstractModel)
        by_shape: dict[torch.Size, list[Tensor]] = {}  # images to be denoised come in several sizes
        for (x,) in joined([(rows,) for rows in self._samples]):
            by_shape.setdefault(x.shape[1:], []).append(x)
        report = max((lipschitz_bound(model.net, s, self.p) for s in by_shape), key=lambda report: report.log_total)
        lowers = [self._observe(model.net, torch.cat(group)) for group in by_shape.values()]
        lower = torch.tensor(lowers, dtype=torch.float64).max().item()  # NaN if one is
        logs = {"bound": report.log_total, "product": report.log_product, "folded": report.log_folded}
        logs |= {"lmi": report.log_lmi} if self.p == 2 else {}
        paper = max(paper_bound(model.net, shape, self.p).log_value for shape in by_shape)
        if paper < inf:
            logs["paper"] = paper
        values = {name: to_float(value) for name, value in logs.items()}
        values["log10_bound"] = report.log_total / log(10)
        values["log10_lower"] = log_of(lower) / log(10) if lower > 0 else nan
        values["tightness"] = to_float(report.log_total - log_of(lower)) if lower > 0 else nan
        for name, value in values.items():
            log_alike(model, logkeys.lipschitz(name, self.p), _rounded_up(value))
        log_alike(model, logkeys.lipschitz("lower", self.p), lower)
        for layer in report.layers if self.per_layer else ():
            if layer.value != 1.0 and isfinite(layer.value):  # flatten, identity and the like say nothing
                log_alike(model, logkeys.layer_bound(layer.path), layer.value)
        if report.unbounded:
            self._warn_once("unbounded", "No finite Lipschitz bound because of %s.", ", ".join(report.unbounded))
        return report

    def _observe(self, net: nn.Module, x: Tensor) -> float:
        """The lower value: at the steepest samples, and where pairs climb to, half of them from the last look."""
        if self.num_steps == 0:
            return lipschitz_lower(net, x, self.p)
        known = self._pairs.get(x.shape[1:], (x[:0], x[:0]))
        known = known[0][: NUM_PAIRS // 2].to(x), known[1][: NUM_PAIRS // 2].to(x)
        fresh = start_pairs(net, x, self.p, NUM_PAIRS - len(known[0]))
        pairs = torch.cat([known[0], fresh[0]]), torch.cat([known[1], fresh[1]])
        climbed, *ends = ascend(net, *pairs, self.p, self.num_steps)
        self._pairs[x.shape[1:]] = ends[0], ends[1]
        return max(lipschitz_lower(net, fresh[0], self.p), climbed)  # NaN if the first is, not the second

    def _watch(self, report: LipschitzReport, epochs: int) -> None:
        """Warn of a bound that has grown too much."""
        self._report, self._looked_after = report, epochs
        if isfinite(report.log_total) and not isfinite(self._first_log):
            self._first_log = report.log_total
        growth = report.log_total - self._first_log
        if growth > log(self.warn_factor) and not report.unbounded:
            self._warn_once(
                "growth",
                "The Lipschitz bound has grown 10^%.1f-fold to 10^%.1f by epoch %d; a lower learning rate, weight "
                "decay, a penalty on the bound or normalised weights hold it.",
                growth / log(10), report.log_total / log(10), epochs,
            )  # fmt: skip

    def _warn_once(self, key: str, message: str, *arguments: object) -> None:
        if key not in self._warned:
            self._warned.add(key)
            _log.warning(message, *arguments)

    def _draw(self, trainer: pl.Trainer) -> None:
        assert self._report is not None
        self._drawn_after = self._looked_after
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
                board, step = logger.experiment, trainer.global_step
                board.add_text(logkeys.LIPSCHITZ_LAYERS, _table(self._report), step)
                board.add_figure(logkeys.LIPSCHITZ_LAYERS, _figure(self._report), step, close=False)


def _table(report: LipschitzReport) -> str:
    """Every layer's constant, as Markdown."""
    rows = [f"| {layer.path} | {layer.kind} | {layer.value:.6g} | {layer.reason} |" for layer in report.layers]
    total = f"| all | bound, p = {report.p:g} | {report.total:.6g} | 10^{report.log_total / log(10):.3f} |"
    return "\n".join(["| layer | kind | constant | remark |", "| --- | --- | --- | --- |", *rows, total, ""])


def _figure(report: LipschitzReport) -> Figure:
    """Bars of the layers' constants in order of evaluation, from 1 up or down; unbounded ones in red to the top."""
    layers = [layer for layer in report.layers if layer.value != 1.0][:_MOST_BARS]
    finite = [layer.value for layer in layers if isfinite(layer.value) and layer.value > 0] + [1.0]
    lo, hi = min(finite) / 2, max(finite) * 2
    tops = [min(max(layer.value, lo), hi) for layer in layers]
    figure = Figure(figsize=(max(5, 0.13 * len(layers) + 1), 3.6), layout="constrained")
    axes = figure.subplots()
    colors = ["C3" if isinf(layer.value) else "C0" for layer in layers]
    axes.bar(range(len(layers)), [top - 1 for top in tops], bottom=1.0, color=colors)
    axes.set_yscale("log")
    axes.set_ylim(lo, hi)
    axes.axhline(1.0, color="black", linewidth=0.5)
    axes.set_xticks(range(len(layers)), [layer.path for layer in layers], rotation=90, fontsize=5)
    axes.set_ylabel("Lipschitz constant")
    axes.set_title(f"layers of constant other than 1; bound, p = {report.p:g}: {report.total:.4g}", fontsize=9)
    return figure


def _rounded_up(value: float) -> Tensor:
    """As float32, what Lightning logs, without rounding a guarantee down."""
    nearest = torch.tensor(value, dtype=torch.float32)
    return nearest if not nearest.item() < value else torch.nextafter(nearest, torch.tensor(inf))
