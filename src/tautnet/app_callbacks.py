"""Callbacks that the application itself adds to a run."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from pytorch_lightning.callbacks import LambdaCallback

from tautnet.callbacks.progress import PlainProgress, RichProgress
from tautnet.errors import ConfigError


def settings_writer(settings: dict[str, Any], path: Path) -> pl.Callback:
    """Writes the settings down once no callback has refused them; it stands last."""

    def write(trainer: pl.Trainer, _: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            part = path.with_name(f"{path.name}.part")  # a run that is cut off here goes on by a whole file or none
            OmegaConf.save(OmegaConf.create(settings), part)
            part.replace(path)

    return LambdaCallback(on_fit_start=write, on_test_start=write)


def compiled(model: pl.LightningModule) -> pl.Callback:
    """See to it that training, and only training, runs the network compiled.

    What compiles is the model's forward around the network, of which torch makes one piece; a bare ``Sequential`` comes
    out layer by layer. The whole model would not do: with several ranks Lightning calls the training step through it.
    Evaluations hang hooks into the network, at which compiled code would be made anew.
    """
    fast = torch.compile(model.forward)

    def compiled_code(*_: Any) -> None:
        vars(model)["forward"] = fast

    def plain_code(*_: Any) -> None:
        vars(model).pop("forward", None)  # what the class has

    return LambdaCallback(
        on_train_start=compiled_code,
        on_validation_start=plain_code,
        on_validation_end=compiled_code,
        on_train_end=plain_code,
        on_exception=plain_code,
    )


def display(trainer: Mapping[str, Any]) -> tuple[dict[str, Any], list[pl.Callback]]:
    """What shows the progress of a training, as ``trainer.progress`` says, and the other settings of the trainer.

    Args:
        trainer: settings of ``conf/trainer/``.

    Raises:
        ConfigError: another word, or one that ``enable_progress_bar=false`` contradicts.
    """
    settings = dict(trainer)
    choice, shown = settings.pop("progress", "auto"), settings.get("enable_progress_bar", True)
    if choice not in ("auto", "rich", "plain", "none"):
        raise ConfigError(f"trainer.progress={choice}: auto, rich, plain or none")
    if not shown and choice in ("rich", "plain"):
        raise ConfigError(f"trainer.progress={choice}: trainer.enable_progress_bar=false shows nothing; leave out one")
    if choice == "auto":
        choice = "none" if not shown else "rich" if sys.stdout.isatty() else "plain"
    settings["enable_progress_bar"] = choice == "rich"  # Lightning's word for a bar; lines are no bar
    shows: dict[str, list[pl.Callback]] = {"rich": [RichProgress()], "plain": [PlainProgress()]}
    return settings, shows.get(choice, [])
