"""A training that diverges stops before the step that would spoil the weights, and says where that began."""

from __future__ import annotations

import logging
from math import isfinite
from pathlib import Path
from typing import Any, NoReturn

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.precision import MixedPrecision
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor
from torch.optim import Optimizer

from tautnet import logkeys
from tautnet.callbacks.post_mortem import Finding, bad_parameter, earliest, examine, write_down
from tautnet.callbacks.step_start import KeptBuffers, StartedBatch, drawing_from, random_states
from tautnet.distributed import WorkerError
from tautnet.models.base import AbstractModel
from tautnet.models.ranks import gathered, log_alike, num_ranks, summed

_log = logging.getLogger(__name__)


class Diverged(WorkerError):
    """A loss, a gradient or a parameter is not finite; the message is one line."""


class DivergenceGuard(pl.Callback):
    """Stops training before an optimizer step whose loss or gradient is not finite, or skips a few such steps.

    Weights, optimizer and buffers (running statistics, vectors of power iterations) stay those of the last finite step,
    and so they are in checkpoints. Once a step the guard looks at the losses of its batches and at the gradient,
    and waits for the device. All ranks decide alike. It changes no bit of a training that stays
    finite.

    When it stops, it runs the network once more on each batch of the step, with the same weights and random numbers,
    and writes into ``folder`` what shows where it began: ``batch.pt``, ``weights.pt``, the model's ``state_dict``, and
    ``report.json``. That names the first value that is not finite (of an input, a target, a parameter, a module's
    output, a penalty, the loss, a gradient in the order of the backward pass), and lists the range of what entered and
    left each module, in the order of the forward pass. Both ``.pt`` files load with ``weights_only=True``.

    A skipped step counts in the schedules; nothing moves in it but what a projection or ``prox`` moves. The means of
    its epoch that are logged are not finite either. With ``precision=16-mixed`` a gradient that overflows for the
    loss's scale is no divergence: the scaler skips such a step and lowers the scale; at scale 1 the guard acts.

    Parameters are looked at before each validation and at the end of each epoch.

    It stands before callbacks that take gradients away.

    Args:
        skip_steps: steps in a row that are skipped, at least 0; the one after them stops the training.
        folder: for the post-mortem, made when needed; None for nowhere.

    Raises:
        ValueError: ``skip_steps`` below 0.
    """

    def __init__(self, skip_steps: int = 0, folder: str | None = None) -> None:
        if skip_steps < 0:
            raise ValueError(f"skip_steps={skip_steps}: at least 0")
        self.skip_steps, self.folder = skip_steps, folder
        self._num_skipped = self._in_a_row = 0
        self._batches: list[StartedBatch] = []  # of one optimizer step
        self._losses: list[Tensor] = []  # of these
        self._buffers: KeptBuffers | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin with no batch."""
        self._batches, self._losses = [], []
        self._buffers = KeptBuffers(pl_module)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note the batch and the random states, and at the beginning of a step the buffers."""
        assert self._buffers is not None
        if not self._batches:
            self._buffers.keep()
        self._batches.append(StartedBatch(batch_idx, batch, random_states(pl_module.device)))

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Note the loss."""
        self._losses.append(loss.detach())

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Look at losses and gradient; skip the step or stop if they are not finite.

        Raises:
            Diverged: the training stops.
        """
        bad_loss, bad_gradient = self._bad(optimizer)
        if bad_loss or (bad_gradient and not _scale_can_fall(trainer)):
            assert self._buffers is not None
            self._buffers.put_back()
            what = "the loss" if bad_loss else "the gradient"
            if self._in_a_row == self.skip_steps:
                self._stop(trainer, pl_module, what)
            self._skip(trainer, optimizer, what)
        elif not bad_gradient:
            self._in_a_row = 0
        self._batches, self._losses = [], []

    def _bad(self, optimizer: Optimizer) -> tuple[bool, bool]:
        """Whether a loss of any rank is not finite, and whether the gradient is not."""
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        found = torch.stack([*self._losses, *_lengths(gradients)])
        values = (summed(found) if num_ranks() > 1 else found).tolist()  # sums are finite only if all ranks' values are
        losses, lengths = values[: len(self._losses)], values[len(self._losses) :]
        bad_gradient = not all(map(isfinite, lengths)) and not all(bool(each.isfinite().all()) for each in gradients)
        return not all(map(isfinite, losses)), bad_gradient

    def _skip(self, trainer: pl.Trainer, optimizer: Optimizer, what: str) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None  # an optimizer passes over it
        self._in_a_row += 1
        self._num_skipped += 1
        numbers = f"{self._in_a_row} of at most {self.skip_steps} in a row"
        _log.warning("step %d is skipped, %s: %s is not finite", trainer.global_step, numbers, what)

    def _stop(self, trainer: pl.Trainer, model: pl.LightningModule, what: str) -> NoReturn:
        bad = [not loss.isfinite() for loss in self._losses]
        found = [self._examined(trainer, model, *each) for each in zip(self._batches, bad, strict=True)]
        suspects = [number for number, loss_is_bad in enumerate(bad) if loss_is_bad] or list(range(len(bad)))
        number = suspects[earliest([found[suspect] for suspect in suspects])]
        self._end(trainer, model, found[number], what, self._batches[number])

    def _examined(self, trainer: pl.Trainer, model: pl.LightningModule, batch: StartedBatch, bad_loss: bool) -> Finding:
        """What a batch shows when it runs once more; buffers and generators are left as they were."""
        assert isinstance(model, AbstractModel)
        assert self._buffers is not None
        net = model.net

        def forward() -> None:
            with drawing_from(batch.states, model.device), trainer.precision_plugin.train_step_context():
                net(batch.data[0])

        try:
            return examine(model, batch.data, forward, bad_loss)
        finally:
            self._buffers.put_back()

    def _end(
        self,
        trainer: pl.Trainer,
        model: pl.LightningModule,
        finding: Finding,
        what: str,
        batch: StartedBatch | None = None,
    ) -> NoReturn:
        """Tell what the ranks have found; the one that found the earliest writes it down."""
        findings = gathered(finding)
        rank = earliest(findings)
        report = {"not_finite": what, "step": trainer.global_step, "epoch": trainer.current_epoch, "rank": rank}
        report |= {"batch": batch and batch.number, "skipped_steps": self._num_skipped}
        report |= {"lr": {group["role"]: float(group["lr"]) for group in trainer.optimizers[0].param_groups}}
        where = "" if self.folder is None else f"; {self.folder} has the batch, the weights before it and a report"
        if self.folder is not None and trainer.global_rank == rank:
            try:
                write_down(Path(self.folder), model, batch and batch.data, finding, report)
            except OSError as error:
                where = f"; {error.filename or self.folder} could not be written: {error.strerror}"
        place = f"step {trainer.global_step}, epoch {trainer.current_epoch}"
        first = f"first of all {findings[rank]}{f', in rank {rank}' if len(findings) > 1 else ''}"
        raise Diverged(f"training diverged in {place}: {what} is not finite, {first}{where}{findings[rank].cure}")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at the parameters: no step may follow that would show what they are.

        Raises:
            Diverged: one is not finite.
        """
        if trainer.state.fn == TrainerFn.FITTING:
            self._look_at_parameters(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at the parameters; log the number of skipped steps.

        Raises:
            Diverged: one is not finite.
        """
        self._look_at_parameters(trainer, pl_module)
        if self.skip_steps > 0:
            log_alike(pl_module, logkeys.SKIPPED_STEPS, float(self._num_skipped))

    def _look_at_parameters(self, trainer: pl.Trainer, model: pl.LightningModule) -> None:
        parameters = [parameter.detach() for parameter in model.parameters()]
        if not torch.stack(_lengths(parameters)).isfinite().all():
            found = bad_parameter(model)
            if found is not None:
                self._end(trainer, model, found, "a parameter")

    def state_dict(self) -> dict[str, Any]:
        """How many steps were skipped, in all and just now."""
        return {"num_skipped": self._num_skipped, "in_a_row": self._in_a_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Count on."""
        self._num_skipped, self._in_a_row = state_dict["num_skipped"], state_dict["in_a_row"]


def _lengths(tensors: list[Tensor]) -> tuple[Tensor, ...]:
    """Scalars that are finite only if all entries are, at next to no cost; they overflow earlier."""
    return torch._foreach_norm(tensors) if tensors else ()


def _scale_can_fall(trainer: pl.Trainer) -> bool:
    """Whether gradients are those of a loss scaled up, so that a smaller scale may make them finite."""
    plugin = trainer.precision_plugin
    scaler = plugin.scaler if isinstance(plugin, MixedPrecision) else None
    return scaler is not None and scaler.get_scale() > 1
