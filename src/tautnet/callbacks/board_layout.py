"""Charts of TensorBoard that show side by side what belongs together."""

from __future__ import annotations

import re
from collections.abc import Iterable

import pytorch_lightning as pl
from pytorch_lightning.loggers import TensorBoardLogger

_P = ("1", "2", "inf")
# Category, chart, patterns of the names in it, each of which a whole name has to match. The same for every run, so that
# TensorBoard, which joins the charts of runs that are looked at together, joins them to one.
_CHARTS = (
    *(("Lipschitz", f"bound and observed, p = {p}", (f"lipschitz/(bound|lower)_p{p}",)) for p in _P),
    *(("Lipschitz", f"log10 of bound and observed, p = {p}", (f"lipschitz/log10_(bound|lower)_p{p}",)) for p in _P),
    *(("Lipschitz", f"bound / observed, p = {p}", (f"lipschitz/tightness_p{p}",)) for p in _P),
    *(("Lipschitz", f"guarantees, p = {p}", (f"lipschitz/(product|folded|lmi|paper)_p{p}",)) for p in _P),
    ("Lipschitz", "constants of the layers", ("lipschitz/layer/.*",)),
    ("Quality", "accuracy", ("(train|val|test)/acc",)),
    ("Quality", "accuracy certified and under attack", ("certified/.*", "attacked/.*")),
    ("Quality", "R2", ("(train|val|test)/r2",)),
    ("Quality", "PSNR, dB", ("(train|val|test)/psnr",)),
    ("Splines", "active knots", ("spline/active_knots",)),
    ("Splines", "TV2", ("spline/tv2",)),
    ("Splines", "share of inputs outside the grid", ("spline/outside/.*",)),
    ("Loss", "training and evaluation", ("(train|val|test)/loss",)),
    ("Loss", "terms of the training loss", ("train/loss", "loss/.*")),
)


class BoardLayout(pl.Callback):
    """Gives TensorBoard its page of custom scalars: bound beside observed, knots beside TV(2), the terms of the loss.

    Of all charts those are put on it of which the run logs something. That is known after the first epoch; what comes
    later, as certificates come with the test, has the page written again.
    """

    def __init__(self) -> None:
        self._names: set[str] = set()
        self._written: dict[str, dict[str, list[str | list[str]]]] = {}

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write, if there is anything new."""
        self._write(trainer)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write, if there is anything new."""
        self._write(trainer)

    def _write(self, trainer: pl.Trainer) -> None:
        boards = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if not boards or not trainer.is_global_zero:
            return
        self._names |= trainer.callback_metrics.keys()
        found = layout(self._names)
        if found != self._written:
            self._written = found
            for board in boards:
                board.experiment.add_custom_scalars(found)


def layout(names: Iterable[str]) -> dict[str, dict[str, list[str | list[str]]]]:
    """The charts of which there is something to be shown, as ``SummaryWriter.add_custom_scalars`` takes them.

    Args:
        names: under which something is logged.
    """
    found: dict[str, dict[str, list[str | list[str]]]] = {}
    known = list(names)
    for category, chart, patterns in _CHARTS:
        if any(re.fullmatch(pattern, name) for pattern in patterns for name in known):
            # TensorBoard wants a pattern to match the beginning of a name.
            found.setdefault(category, {})[chart] = ["Multiline", [f"{pattern}$" for pattern in patterns]]
    return found
