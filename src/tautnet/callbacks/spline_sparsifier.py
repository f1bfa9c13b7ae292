"""Fewer knots at the end of training, as few as a metric allows."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from itertools import islice
from math import inf
from pathlib import Path
from typing import Any, get_args

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torchmetrics import Metric

from tautnet import logkeys
from tautnet.activations import LinearSpline
from tautnet.callbacks.output_change import output_change_bound
from tautnet.lipschitz.structure import eval_mode
from tautnet.models.base import AbstractModel
from tautnet.splines import SparsifyReport, search_thresholds, sparsify_
from tautnet.splines.sparsify import Method

_log = logging.getLogger(__name__)


class SplineSparsifier(pl.Callback):
    """Removes knots from the trained splines while the validation metric stays within a budget.

    At the end of a fit it searches for the largest threshold of ``sparsify_`` whose network loses at most ``budget`` of
    the metric: by bisection over the thresholds at which something changes, or, with the method ``threshold``, along
    the list of the authors up to the first failure. A bisection takes the metric to fall with the threshold; where it
    does not, what is found is within the budget all the same. The sparse weights stay in the model, so a test that
    follows tests them, and go to ``folder`` as ``sparse.ckpt``; the checkpoints of training keep the dense ones.
    Averaged weights are in place by then and are what is sparsified. On several ranks the metric is that of the whole
    validation, so that all of them find the same knots.

    Source: Aziznejad et al. (2020), the authors' code, for the method ``threshold`` and the budget of 0.25 points.
    Differences: they look at the accuracy on the training set; they never give up the last knot.

    Args:
        metric: what may fall, as it is logged, ``val/acc`` for example; the larger, the better.
        budget: by how much, at least 0, in the metric's unit: 0.0025 are 0.25 points of accuracy, R2 has no unit, a
            PSNR is in dB.
        method: threshold, refit or merge, see ``sparsify_``.
        folder: where ``sparse.ckpt`` goes; None for nowhere.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self, metric: str, budget: float = 0.0025, method: Method = "merge", folder: str | None = None
    ) -> None:
        if not 0 <= budget < inf:
            raise ValueError(f"budget={budget}: a finite number of at least 0")
        if method not in get_args(Method):
            raise ValueError(f"method={method}: one of {', '.join(get_args(Method))}")
        self.metric, self.budget, self.method, self.folder = metric, budget, method, folder

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse what could not be sparsified, before training."""
        if stage != "fit":
            return
        assert isinstance(pl_module, AbstractModel)
        if not any(isinstance(module, LinearSpline) for module in pl_module.net.modules()):
            raise MisconfigurationException("callbacks.sparsify: the network has no spline; choose activation=spline")
        if not trainer.enable_validation:
            raise MisconfigurationException("callbacks.sparsify: nothing is validated, and that is what it looks at")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse a metric that is not measured, at the first validation."""
        if not trainer.sanity_checking:
            self._check_metric(trainer.callback_metrics)

    def _check_metric(self, measured: dict[str, Any]) -> None:
        if self.metric not in measured:
            names = ", ".join(sorted(name for name in measured if name.startswith("val/")))
            raise MisconfigurationException(f"callbacks.sparsify.metric={self.metric}: measured are {names}")

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Search, keep the sparse weights, report."""
        assert isinstance(pl_module, AbstractModel)
        if not trainer.num_val_batches:
            raise MisconfigurationException("callbacks.sparsify: nothing was validated, and that is what it looks at")
        model, device = pl_module, pl_module.device
        if not all(tensor.isfinite().all() for tensor in (*model.net.parameters(), *model.net.buffers())):
            _log.warning("Not sparsified: the trained weights are not finite.")
            return
        model.to(trainer.strategy.root_device)  # Lightning has taken it to the CPU
        with torch.random.fork_rng(devices=[]):  # loaders may draw
            dense = deepcopy(model.net)
            before = self._measure(trainer, model)
            report, after = self._search(trainer, model, before)
            bound = output_change_bound(dense, model.net, (x for x, _ in _validation_batches(trainer)))
        model.to(device)
        self._report(trainer, report, before, after, bound)
        if self.folder is not None:
            trainer.save_checkpoint(Path(self.folder) / "sparse.ckpt", weights_only=True)

    def _search(self, trainer: pl.Trainer, model: AbstractModel, before: float) -> tuple[SparsifyReport, float]:
        """Leave the chosen splines in the model; return what has changed, and the metric now."""
        dense = {name: value.clone() for name, value in model.net.state_dict().items()}
        measured = {0.0: before}

        def accepted(threshold: float) -> bool:
            model.net.load_state_dict(dense)
            sparsify_(model.net, threshold, self.method)
            measured[threshold] = self._measure(trainer, model)
            return measured[threshold] >= before - self.budget

        search = last_before_failure if self.method == "threshold" else largest_by_bisection
        threshold = search(search_thresholds(model.net, self.method), accepted)
        model.net.load_state_dict(dense)
        return sparsify_(model.net, threshold, self.method), measured[threshold]

    def _measure(self, trainer: pl.Trainer, model: AbstractModel) -> float:
        """The metric on the validation data, as the validation of training computes it."""
        metrics: dict[str, Metric] = {}
        with torch.no_grad(), eval_mode(model), _metrics_into(metrics, model), _uncompiled(model):
            for batch in _validation_batches(trainer):
                with trainer.precision_plugin.val_step_context():
                    model.task_loss(batch, "val")
        self._check_metric(metrics)
        return float(metrics[self.metric].compute())

    def _report(self, trainer: pl.Trainer, report: SparsifyReport, before: float, after: float, bound: float) -> None:
        values = {
            logkeys.SPARSIFY_KNOTS_BEFORE: float(report.knots_before),
            logkeys.SPARSIFY_KNOTS_AFTER: float(report.knots_after),
            logkeys.SPARSIFY_METRIC_BEFORE: before,
            logkeys.SPARSIFY_METRIC_AFTER: after,
            logkeys.SPARSIFY_SUP_CHANGE: report.sup_change,
            logkeys.SPARSIFY_OUTPUT_CHANGE: bound,
        }
        for name, value in values.items():
            trainer.callback_metrics[name] = torch.tensor(value, dtype=torch.float64)
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)
        _log.info(
            "Sparsified: %d -> %d knots, %s %.4f -> %.4f; splines changed by at most %.3g on their grids, "
            "outputs by at most %.3g where inputs stay in the validated range.",
            *(report.knots_before, report.knots_after, self.metric, before, after, report.sup_change, bound),
        )


def largest_by_bisection(ascending: Sequence[float], accepted: Callable[[float], bool]) -> float:
    """An accepted value whose successor is not, the largest one if acceptance ends once; 0, untried, if none is."""
    good, bad = -1, len(ascending)
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if accepted(ascending[middle]) else (good, middle)
    return ascending[good] if good >= 0 else 0.0


def last_before_failure(ascending: Sequence[float], accepted: Callable[[float], bool]) -> float:
    """The value before the first that is not accepted; 0, untried, if that is the first."""
    last = 0.0
    for value in ascending:
        if not accepted(value):
            break
        last = value
    return last


def _validation_batches(trainer: pl.Trainer) -> Iterator[tuple[Tensor, Tensor]]:
    """What a validation of the fit goes through in this rank, on the device."""
    (count,) = trainer.num_val_batches
    loader = trainer.val_dataloaders
    assert loader is not None
    for batch in loader if count == inf else islice(loader, int(count)):
        if len(batch[0]) > 0:  # else other ranks have the rest
            yield trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(batch))


@contextmanager
def _metrics_into(metrics: dict[str, Metric], model: AbstractModel) -> Iterator[None]:
    """Collect what the model would log: outside of its loops Lightning refuses to log."""

    def collect(name: str, metric: nn.Module, outputs: Tensor, targets: Tensor) -> None:
        assert isinstance(metric, Metric)
        if name not in metrics:
            metrics[name] = metric.clone()
            metrics[name].reset()
        metrics[name].update(outputs, targets)

    vars(model)["log_metric"] = collect  # in front of the method
    try:
        yield
    finally:
        del vars(model)["log_metric"]


@contextmanager
def _uncompiled(model: nn.Module) -> Iterator[None]:
    """Evaluations run plain code; compiled, every change of mode would compile anew."""
    if model._compiled_call_impl is None:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
