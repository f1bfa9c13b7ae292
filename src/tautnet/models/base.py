"""What every model shares: building from a config, penalties, optimizers by role, projections."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from math import inf
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
from tautnet.backbones.layers import LayerFactory
from tautnet.config import ConfigError, build, key_of
from tautnet.factories import Projected, Task
from tautnet.models.activation_at import place_activations_
from tautnet.normalizers import no_weight_norm, synchronise_
from tautnet.normalizers.selection import normalize_weights_
from tautnet.optim.joint import JointOptimizer, current_rates
from tautnet.optim.roles import parameters_by_role
from tautnet.optim.settings import make_optimizer, role_settings
from tautnet.regularizers.base import AbstractRegularizer

_NO_WEIGHT_NORM = "tautnet.normalizers.no_weight_norm"


class AbstractModel(pl.LightningModule, ABC):
    """A network with its loss, penalties and optimizer, built from one plain dict.

    The dict is the hyper-parameter that checkpoints hold, so that they load with ``weights_only=True`` and rebuild the
    model without Hydra.

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
        self._total_steps = inf
        self._projected = [module for module in self.modules() if isinstance(module, Projected)]

    @abstractmethod
    def task_loss(self, batch: tuple[Tensor, Tensor], stage: str) -> Tensor:
        """Loss of a batch without penalties, a scalar; logs the stage's metrics."""

    def setup(self, stage: str) -> None:
        """On several ranks, batch statistics are those of the global batch."""
        if self.trainer.world_size > 1:
            synchronise_(self.net)

    def forward(self, x: Tensor) -> Tensor:
        """The network's output."""
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
            x: inputs of a training batch.

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
        size = len(batch[0])
        for name, term in terms.items():
            self.log(logkeys.loss_term(name), term, on_step=False, on_epoch=True, batch_size=size)
        self.log(logkeys.loss("train"), total, on_step=False, on_epoch=True, prog_bar=True, batch_size=size)
        return total

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
        self.log(logkeys.loss(stage), self.task_loss(batch, stage), batch_size=len(batch[0]))

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
            self.log(logkeys.rate(role), value)

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


def stage_metrics(metric: Callable[[], Metric]) -> nn.ModuleDict:
    """A metric of its own for each stage, under ``train_``, ``val_``, ``test_``."""
    # "train" is an attribute of every module and cannot be a name here
    return nn.ModuleDict({f"{stage}_": metric() for stage in ("train", "val", "test")})


def build_net(config: dict[str, Any]) -> nn.Module:
    """The bare network of a model's config, tried on one sample of zeros.

    Raises:
        ConfigError: a setting that a layer refuses.
    """
    layers = LayerFactory(
        activation=build(config["activation"], "activation"),
        output_norm=build(config["norm"]["output"], "norm.output"),
        weight_norm=no_weight_norm,  # put on below, where layers have paths
    )
    input_shape = tuple(config["input_shape"])
    net: nn.Module = build(
        config["model"]["net"], "model.net", layers=layers, input_shape=input_shape, num_outputs=config["num_outputs"]
    )
    place_activations_(net, config)
    _normalize_weights_(net, config["norm"])
    try:  # a layer that does not fit its input is a matter of the settings too
        with torch.no_grad():
            net.eval()(torch.zeros(1, *input_shape))
    except (ValueError, RuntimeError) as error:
        output_norm = key_of(error, config["norm"], "output")
        key = key_of(error, config, "activation") or (f"norm.{output_norm}" if output_norm else "model.net: ")
        raise ConfigError(f"{key}{error}") from error
    return net.train()


def _normalize_weights_(net: nn.Module, config: dict[str, Any]) -> None:
    """Put ``norm.weight`` on the layers that ``norm.include`` and ``norm.exclude`` choose."""
    weight_norm = build(config["weight"], "norm.weight")
    include, exclude = config.get("include", ["*"]), config.get("exclude", [])  # older checkpoints have neither
    for name, patterns in (("include", include), ("exclude", exclude)):
        if not isinstance(patterns, list) or not all(isinstance(pattern, str | int) for pattern in patterns):
            raise ConfigError(f"norm.{name}={patterns}: a list of patterns, as [body.*]")
    if config["weight"]["_target_"] == _NO_WEIGHT_NORM:
        if (include, exclude) != (["*"], []):
            raise ConfigError(f"norm.include={include} norm.exclude={exclude}: without effect, norm/weight is none")
        return
    try:
        normalize_weights_(net, weight_norm, include, exclude)
    except ValueError as error:
        named = str(error).startswith(("include=", "exclude="))
        raise ConfigError(f"norm.{'' if named else 'weight: '}{error}") from error
