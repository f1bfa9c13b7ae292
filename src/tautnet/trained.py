"""A finished run, or one of its checkpoints, as a model to look at, to measure and to use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isfinite
from pathlib import Path
from typing import Any

import torch

from tautnet import checkpoints
from tautnet.config import ConfigError, build
from tautnet.data.base import AbstractData
from tautnet.data.preparation import Preparation
from tautnet.models.base import AbstractModel
from tautnet.run_directory import SETTINGS
from tautnet.targets import allowing

TESTED = "tested"
_FROM_LAST = ("recalibrated", "sparse", "last")  # what a run leaves, the latest first: its test had that


@dataclass(frozen=True)
class Trained:
    """A model with the weights of a checkpoint, in eval mode on the CPU.

    Attributes:
        checkpoint: the file.
        settings: of the run, plain, with ``input_shape`` and ``num_outputs`` of its data.
        model: built from them.
        preparation: what the data were put through before the network got them.
        epochs: that were finished.
        step: optimizer steps that were made.
    """

    checkpoint: Path
    settings: dict[str, Any]
    model: AbstractModel
    preparation: Preparation
    epochs: int
    step: int

    @property
    def run(self) -> Path | None:
        """The run's directory; None if the file has left it."""
        folder = self.checkpoint.parent.parent
        return folder if self.checkpoint.parent.name == "checkpoints" and (folder / SETTINGS).is_file() else None

    def data(self, **changed: Any) -> AbstractData:
        """The data that it was trained on, or other ones of the same kind.

        Args:
            **changed: settings below ``data`` that are not as they were, such as ``root``.

        Raises:
            ConfigError: data that cannot be used, or whose samples or outputs the network does not fit.
        """
        data = build(self.settings["data"] | changed, "data")
        assert isinstance(data, AbstractData)
        for key, trained in {key: self.settings[key] for key in ("input_shape", "num_outputs")}.items():
            found = list(data.input_shape) if key == "input_shape" else data.num_outputs
            if found != trained:
                raise ConfigError(f"data: {key} {found}; {self.checkpoint} was trained with {trained}")
        return data


def open_trained(path: Path | str, which: str = TESTED, allow: Sequence[str] = ()) -> Trained:
    """Rebuild the model of a run; nothing in its files is executed.

    Args:
        path: of a run's directory or of a checkpoint.
        which: checkpoint of a directory: ``tested``, the weights that the run's own test had: those of ``last``, the
            end of training, or ``sparse`` or ``recalibrated`` where that followed; or one of these, or ``best``.
        allow: packages or modules of the user whose targets the settings may name.

    Raises:
        ConfigError: no such run or file, one that is damaged or not of tautnet, or settings that cannot be built.
    """
    file = _checkpoint(Path(path), which)
    try:
        saved = checkpoints.read(file)
    except checkpoints.DamagedError as error:
        raise ConfigError(str(error)) from error
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from error
    try:
        settings: dict[str, Any] = saved["hyper_parameters"]["config"]
        target = settings["model"]["_target_"]
        preparation = Preparation(**settings["preparation"])
        weights = {name: value for name, value in saved["state_dict"].items() if name.startswith("net.")}
        epochs = int(saved["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])
        step = int(saved["global_step"])
        _check(settings, preparation, weights)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise ConfigError(f"{file}: not a checkpoint of tautnet, or of an earlier version") from error
    with allowing(allow):
        model = build({"_target_": target}, "model", config=settings)
    if not isinstance(model, AbstractModel):
        raise ConfigError(f"{file}: model._target_={target}: no model of tautnet")
    if all(
        value.dtype == torch.float64 for value in weights.values() if value.is_floating_point()
    ):  # of trainer.precision=64-true
        model.double()
    try:
        model.net.load_state_dict({name.removeprefix("net."): value for name, value in weights.items()})
    except RuntimeError as error:
        raise ConfigError(f"{file}: its weights do not fit its settings") from error
    return Trained(file, settings, model.eval(), preparation, epochs, step)


def _checkpoint(path: Path, which: str) -> Path:
    """The file of a run."""
    if path.is_file():
        if which != TESTED:
            raise ConfigError(f"{path}: a checkpoint itself; {which} chooses among those of a run's directory")
        return path
    folder = path / "checkpoints"
    there = sorted(file.stem for file in folder.glob("*.ckpt"))
    if not path.is_dir():
        raise ConfigError(f"{path}: no such run or checkpoint")
    if not there:
        raise ConfigError(f"{path}: not a run's directory, or one without checkpoints")
    if which == TESTED:
        which = next((name for name in _FROM_LAST if name in there), there[0])
    if which not in there:
        raise ConfigError(f"{path}: no checkpoint {which}; there are {', '.join(there)}")
    return folder / f"{which}.ckpt"


def _check(settings: dict[str, Any], preparation: Preparation, weights: dict[str, Any]) -> None:
    """Raise ValueError for parts that do not fit each other, which would be broadcast, or found out late."""
    shape, outputs = settings["input_shape"], settings["num_outputs"]
    names = (preparation.columns, preparation.classes)
    fits = [
        isinstance(settings["seed"], int),
        isinstance(settings["data"], dict) and isinstance(settings["trainer"], dict),
        len(preparation.offset) == len(preparation.scale) == shape[0],
        all(map(isfinite, preparation.offset)) and all(0 <= scale < inf for scale in preparation.scale),
        all(texts is None or len(texts) == num for texts, num in zip(names, (shape[0], max(2, outputs)), strict=True)),
        all(isinstance(value, torch.Tensor) for value in weights.values()),
    ]
    if not all(fits):
        raise ValueError("parts that do not fit each other")
