"""What every model shares: building from a config, penalties, optimizers by role, projections."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from contextlib import nullcontext
from math import inf, isfinite
from typing import Any, ClassVar

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import Metric

from tautnet import logkeys
from tautnet.activations.grid_range import calibrate_grids_
from tautnet.config import ConfigError, build, key_of
from tautnet.factories import Projected, Task
from tautnet.models.network import build_net
from tautnet.models.ranks import log_alike
from tautnet.models.stage_metrics import SampleMean
from tautnet.normalizers import synchronise_
from tautnet.normalizers.weight import parametrised_layers, weights_at_once
from tautnet.optim.joint import JointOptimizer, current_rates
from tautnet.optim.roles import parameters_by_role
from tautnet.optim.settings import make_optimizer, role_settings
from tautnet.regularizers.base import AbstractRegularizer

_log = logging.getLogger(__name__)


class AbstractModel(pl.LightningModule, ABC):
    """A network with its loss, penalties and optimizer, built from one plain dict.

    The dict is the hyper-parameter that checkpoints hold, so that they load with ``weights_only=True`` and rebuild the
    model without Hydra.

    On several ranks each has an equal part of every training batch and a part of every evaluation batch. Gradients are
    averaged, batch statistics, metrics and logged losses are those of all ranks, so that the number of ranks changes no
    result beyond rounding. What is drawn in a forward, as by dropout, is each rank's own.

    Args:
        config: plain dicts, lists and scalars under the keys ``model`` (with ``net`` and, to classify, ``loss``),
            ``activation``, ``norm`` (with ``output`` and ``weight``), ``optimizer``, ``scheduler``, ``regularizer``,
            and, from the data, ``input_shape`` (of one sample) and ``num_outputs``.

    Raises:
        ConfigError: a setting that cannot be used, by its key.
    """

    task: ClassVar[Task]

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.save_hyperparameters({"config": config}, logger=False)
        self.input_shape: tuple[int, ...] = tuple(config["input_shape"])
        loss = config["model"].get("loss")
        if loss and self.task != "classification":
            raise ConfigError(f"loss={loss['_target_']}: default; a model for {self.task} has its own loss")
        self.net = build_net(config)
        self.regularizers = nn.ModuleDict(build(config["regularizer"], "regularizer"))
        for name, regularizer in self.regularizers.items():
            assert isinstance(regularizer, AbstractRegularizer)
            try:
                regularizer.attach(self.net, self.input_shape)
            except ValueError as error:
                named = key_of(error, config["regularizer"], name) or f"{name}: "
                raise ConfigError(f"regularizer.{named}{error}") from error
        role_settings(config["optimizer"])  # report bad settings now, not when training starts
        try:
            parameters_by_role(self)
        except ValueError as error:
            raise ConfigError(f"norm.weight: {error}") from error
        self.mean_losses = nn.ModuleDict({"val_": SampleMean(), "test_": SampleMean()})
        terms = [logkeys.loss("train"), *map(logkeys.loss_term, (logkeys.TASK, *self.regularizers))]
        self.mean_terms = nn.ModuleDict({name.replace(".", "_"): SampleMean() for name in terms})
        self._total_steps = inf
        self._warned: set[str] = set()  # stages
        self._projected = [module for module in self.modules() if isinstance(module, Projected)]
        self.parametrised = parametrised_layers(self.net)

    @abstractmethod
    def task_loss(self, batch: tuple[Tensor, Tensor], stage: str) -> Tensor:
        """Loss of a batch without penalties, a scalar; logs the stage's metrics."""

    def setup(self, stage: str) -> None:
        """On several ranks, batch statistics are those of the global batch.

        Raises:
            ConfigError: a penalty for which a rank's part of a batch is too small.
        """
        ranks = self.trainer.world_size
        if ranks == 1:
            return
        synchronise_(self.net)
        batch_size = self.hparams["config"].get("data", {}).get("batch_size")
        for name, regularizer in self.regularizers.items() if stage == "fit" and batch_size else ():
            assert isinstance(regularizer, AbstractRegularizer)
            try:
                regularizer.check_batch_size(batch_size // ranks)
            except ValueError as error:
                raise ConfigError(f"regularizer.{name}.{error} in each of {ranks} ranks") from error

    def forward(self, x: Tensor) -> Tensor:
        """The network's output."""
        with nullcontext() if torch.compiler.is_compiling() else weights_at_once(self.parametrised):
            return self.net(x)

    @property
    def progress(self) -> float:
        """Share of the training steps behind, 0 to 1; 0 before a fit."""
        return min(1.0, self.global_step / self._total_steps)

    def check_targets(self, targets: Tensor) -> None:
        """Look at the targets of a training batch before the fit.

        Raises:
            ConfigError: targets that the loss cannot take.
        """

    def calibrate_(self, x: Tensor) -> None:
        """Set what waits for data: ``grid_range=auto``, ``beta_from_data``. Before any copy, compilation or fit.

        Args:
            x: inputs of a training batch, on several ranks the same in each.

        Raises:
            ConfigError: a batch from which a spline gets no range, or beta no value.
        """
        try:
            calibrate_grids_(self.net, x)
        except ValueError as error:
            raise ConfigError(f"activation.{error}") from error
        for name, regularizer in self.regularizers.items():
            assert isinstance(regularizer, AbstractRegularizer)
            try:
                regularizer.calibrate_(self.net, x)
            except ValueError as error:
                raise ConfigError(f"regularizer.{name}.{error}") from error

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Task loss plus penalties, every term logged by name."""
        terms = {logkeys.TASK: self.task_loss(batch, "train")}
        for name, regularizer in self.regularizers.items():
            assert isinstance(regularizer, AbstractRegularizer)
            regularizer.progress = self.progress
            terms[name] = regularizer()
        total = sum(terms.values(), terms[logkeys.TASK].new_zeros(()))
        for name, term in terms.items():
            self._log_mean(logkeys.loss_term(name), term, len(batch[0]))
        self._log_mean(logkeys.loss("train"), total, len(batch[0]))
        return total

    def _log_mean(self, name: str, term: Tensor, size: int) -> None:
        """Have the mean over an epoch logged; as a metric, so that a checkpoint inside the epoch can hold it."""
        mean = self.mean_terms[name]
        assert isinstance(mean, SampleMean)
        mean.update(term, size)
        self.log(name, mean, on_step=False, on_epoch=True, prog_bar=name == logkeys.loss("train"), batch_size=size)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the network from a checkpoint of other penalties: they act in training alone.

        Whoever continues a training has the penalties of the checkpoint, which ``resume`` sees to.
        """
        own = self.regularizers.state_dict(prefix="regularizers.")
        saved = checkpoint["state_dict"]
        others = {name: value for name, value in saved.items() if not name.startswith("regularizers.")}
        checkpoint["state_dict"] = others | {name: saved.get(name, value) for name, value in own.items()}

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Task loss and metrics."""
        self._evaluate(batch, "val")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Task loss and metrics."""
        self._evaluate(batch, "test")

    def log_metric(self, name: str, metric: nn.Module, outputs: Tensor, targets: Tensor) -> None:
        """Update a stage's metric and have its value over the whole epoch logged."""
        assert isinstance(metric, Metric)
        metric.update(outputs, targets)
        self.log(name, metric, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(targets))

    def _evaluate(self, batch: tuple[Tensor, Tensor], stage: str) -> None:
        size = len(batch[0])
        if size == 0:  # other ranks have the rest of the batch
            return
        mean = self.mean_losses[f"{stage}_"]
        assert isinstance(mean, SampleMean)
        mean.update(self.task_loss(batch, stage), size)
        self.log(logkeys.loss(stage), mean, on_step=False, on_epoch=True, batch_size=size)

    def on_validation_end(self) -> None:
        """Warn of a loss that is not finite."""
        self._look_at_loss("val")

    def on_test_end(self) -> None:
        """Warn of a loss that is not finite."""
        self._look_at_loss("test")

    def _look_at_loss(self, stage: str) -> None:
        loss = float(self.trainer.callback_metrics.get(logkeys.loss(stage), 0.0))
        if not isfinite(loss) and stage not in self._warned:
            self._warned.add(stage)
            why = "evaluation uses running statistics, and sees inputs that training does not"
            _log.warning("%s is %s: %s", logkeys.loss(stage), loss, why)

    def on_fit_start(self) -> None:
        """On several ranks, what is drawn in a forward differs between them from here on."""
        if self.trainer.world_size > 1:
            torch.manual_seed(torch.initial_seed() + self.trainer.global_rank)

    def on_train_start(self) -> None:
        """Set the rates that the schedule has now: a continued run may have more steps than its checkpoint knew of."""
        schedule = self.lr_schedulers()
        assert isinstance(schedule, LambdaLR)
        for group, base, factor in zip(
            schedule.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True
        ):
            group["lr"] = base * factor(schedule.last_epoch)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Put constrained parameters back on their set after the step, before any callback averages them."""
        super().optimizer_step(*args, **kwargs)
        for module in self._projected:
            module.project_()

    def on_train_epoch_end(self) -> None:
        """Log the learning rate of each role."""
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, Optimizer)  # several would need manual optimization
        for role, value in current_rates(optimizer).items():
            log_alike(self, logkeys.rate(role), value)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """One joint optimizer with a member per role, and the schedule over all steps."""
        config = self.hparams["config"]
        settings = role_settings(config["optimizer"])
        members = [
            make_optimizer(parameters, role, *settings[role]) for role, parameters in parameters_by_role(self).items()
        ]
        optimizer = JointOptimizer(members)
        self._total_steps = total_steps = int(self.trainer.estimated_stepping_batches)
        scheduler = build(config["scheduler"], "scheduler", optimizer=optimizer, total_steps=total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
