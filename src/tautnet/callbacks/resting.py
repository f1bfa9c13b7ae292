"""Parameters that rest while others are trained: alternating updates, and coefficients that are released later."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import pytorch_lightning as pl
from lightning_fabric.utilities.exceptions import MisconfigurationException
from torch.optim import Optimizer

from tautnet.factories import Role
from tautnet.models.base import AbstractModel
from tautnet.regularizers import SecondOrderVariation

_COEFFICIENTS: tuple[Role, ...] = ("activation",)
_WEIGHTS: tuple[Role, ...] = ("weight", "bias", "norm")


class AbstractResting(pl.Callback, ABC):
    """Takes the gradients of some roles' parameters away before an optimizer step, so that these stay as they are.

    Without a gradient an optimizer passes a parameter over: no decay, no momentum moves it, and its state waits. The
    gradients are there for the backward pass, and gradient clipping sees those of the others alone. What rests and when
    follows from the number of the step and the epoch, which a checkpoint has; a continued run goes on in its phase and
    has to have the same schedule. Running statistics of a resting SLAF follow the batches all the same. On several
    ranks each takes away the gradients that they have averaged, alike.

    Args:
        schedule: the one setting that counts, by its name.
    """

    key: ClassVar[str]

    def __init__(self, schedule: dict[str, int]) -> None:
        for name, value in schedule.items():
            if value < 1:
                raise ValueError(f"{name}={value}: at least 1")
        self.schedule = schedule

    @abstractmethod
    def resting(self, step: int, epoch: int) -> tuple[Role, ...]:
        """The roles that rest in an update.

        Args:
            step: updates behind.
            epoch: epochs behind.
        """

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse what has no effect."""
        callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by a helper of Lightning
        if any(isinstance(callback, AbstractResting) and callback is not self for callback in callbacks):
            raise MisconfigurationException("callbacks=[alternate,release]: one of them")
        roles = {group["role"] for optimizer in trainer.optimizers for group in optimizer.param_groups}
        if not roles & set(_COEFFICIENTS) or not roles & set(_WEIGHTS):
            raise MisconfigurationException(
                f"callbacks.{self.key}: needs learned activations, such as activation=slaf, and weights; trained are "
                f"{', '.join(sorted(roles))}"
            )
        assert isinstance(pl_module, AbstractModel)
        if any(isinstance(term, SecondOrderVariation) and term.prox > 0 for term in pl_module.regularizers.values()):
            raise MisconfigurationException(f"callbacks.{self.key}: the prox of TV(2) would move splines that rest")
        for name, value in self.schedule.items():
            length = trainer.estimated_stepping_batches if name == "every_n_steps" else trainer.max_epochs
            if length is not None and 0 < length <= value:
                raise MisconfigurationException(
                    f"callbacks.{self.key}.{name}={value}: below {length:g}, what the fit has, or the coefficients "
                    "never move"
                )

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Take the gradients away."""
        resting = self.resting(trainer.global_step, trainer.current_epoch)
        for group in optimizer.param_groups:
            for parameter in group["params"] if group["role"] in resting else []:
                parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """The schedule, for ``load_state_dict``."""
        return dict(self.schedule)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse to go on by another schedule."""
        if state_dict != self.schedule:
            raise MisconfigurationException(f"callbacks.{self.key}: {self.schedule}, trained so far by {state_dict}")


class Alternation(AbstractResting):
    """Trains weights, biases and normalizers, then the activations' coefficients, then the former again.

    Parameters of the role ``regularizer`` move in both phases.

    Source: Goyal, Goyal, Lall (2019) by their code, where it is commented out; which goes first is ours.

    Args:
        every_n_steps: updates of a phase, at least 1; None with the other.
        every_n_epochs: epochs of a phase, at least 1; None with the other.

    Raises:
        ValueError: not exactly one of the two, or one out of range.
    """

    key = "alternate"

    def __init__(self, every_n_steps: int | None = None, every_n_epochs: int | None = None) -> None:
        given = {"every_n_steps": every_n_steps, "every_n_epochs": every_n_epochs}
        schedule = {name: value for name, value in given.items() if value is not None}
        if len(schedule) != 1:
            raise ValueError(f"every_n_steps={every_n_steps}: that or every_n_epochs={every_n_epochs}, the other null")
        super().__init__(schedule)

    def resting(self, step: int, epoch: int) -> tuple[Role, ...]:
        """The coefficients in phases 0, 2, ..., the weights in phases 1, 3, ..."""
        ((name, period),) = self.schedule.items()
        phase = (step if name == "every_n_steps" else epoch) // period
        return _COEFFICIENTS if phase % 2 == 0 else _WEIGHTS


class Release(AbstractResting):
    """Has the activations' coefficients rest during the first epochs, as they were initialised, then trains all.

    With ``init="fit"`` the network begins as one with, for example, ReLU, or nearly so.

    Source: pre-fitting and release are ours; the code of Goyal, Goyal, Lall (2019) has no such routine.

    Args:
        num_epochs: epochs of rest, at least 1.

    Raises:
        ValueError: ``num_epochs`` out of range.
    """

    key = "release"

    def __init__(self, num_epochs: int) -> None:
        super().__init__({"num_epochs": num_epochs})

    def resting(self, step: int, epoch: int) -> tuple[Role, ...]:
        """The coefficients at first, then none."""
        return _COEFFICIENTS if epoch < self.schedule["num_epochs"] else ()
