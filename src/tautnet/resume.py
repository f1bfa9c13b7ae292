"""Continuing a run from one of its checkpoints: which settings come from the file, and whether they fit it.

Two ways. ``ckpt=<file>`` starts a run of its own, in a directory of its own, from a checkpoint. A run that was cut off
goes on in its directory, from its newest checkpoint that is whole.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

from hydra import compose

from tautnet.config import ConfigError, plain

_log = logging.getLogger(__name__)

# What a trained model depends on; with ``ckpt`` these must be as they were.
_BUILDING = ("model", "activation", "norm")
_TRAINING = (*_BUILDING, "optimizer", "scheduler", "regularizer", "seed")
_SPLIT = ("split_seed", "val_fraction", "test_fraction", "num_val")  # who validates and tests
# What the position inside an epoch counts in.
_POSITION = (
    *(("data", "batch_size"), ("data", "shuffle")),
    *(("trainer", "limit_train_batches"), ("trainer", "accumulate_grad_batches")),
)
_CARRIED_OVER = (*_TRAINING, "loss", "data", "trainer", "experiment", "debug")

# What training depends on among the callbacks: that weights are averaged, and plain values that say how; the penalty
# that comes with a callback; who rests when.
_NAMES = "ema|variance|alternate|release|divergence"
_TRAINING_CALLBACKS = re.compile(
    rf"callbacks=({_NAMES}|\[[\w, ]*\b({_NAMES})\b[\w, ]*\])|callbacks\.({_NAMES})\.[a-z]\w*=[\w.+-]+"
)


# A choice is a word or a list of words, which lead out of no group; a key is set where it stands, without @.
_PLAIN = re.compile(r"[+]{0,2}[\w/]+=([\w-]*|\[[\w, -]*\])|~[\w/.]+|[+]{0,2}\w+(\.\w+)+=[^\n\r]*")


def continued(settings: dict[str, Any], overrides: list[str]) -> tuple[dict[str, Any], list[str]]:
    """The settings of the checkpoint that ``ckpt`` names with this command line's on top, and all the overrides.

    Under ``trained_on`` the settings carry the checkpoint's ``input_shape`` and ``num_outputs``, for the data to match.

    Args:
        settings: of this command line alone; ``ckpt`` names the checkpoint.
        overrides: of this command line.

    Raises:
        ConfigError: the file is no checkpoint, or the settings do not fit what it holds.
    """
    path = settings["ckpt"]
    saved = _saved_settings(path)
    if "fit" in settings["run"] and not saved["training"]:
        raise ConfigError(f"ckpt={path}: holds weights alone; test it by run=[test], or continue from last.ckpt")
    kept = _kept(saved["overrides"], overrides)
    settings = plain(compose("train", overrides=kept + overrides))
    _check(settings, saved, path)
    epochs, finished = settings["trainer"].get("max_epochs"), saved["finished_epochs"]
    if "fit" in settings["run"] and isinstance(epochs, int) and epochs <= finished:
        raise ConfigError(f"trainer.max_epochs={epochs}: {path} has finished {finished}; name more")
    settings["trained_on"] = {key: saved[key] for key in ("input_shape", "num_outputs")}
    return settings, kept + overrides


def going_on(settings: dict[str, Any], run_dir: Path) -> dict[str, Any]:
    """The settings of a run that was cut off in its directory, to go on there.

    Under ``resumed`` they name the newest checkpoint that is whole and its optimizer step. Without one the run starts
    anew, at step 0.

    Raises:
        ConfigError: the settings do not fit what the checkpoint holds.
    """
    from tautnet.checkpoints import newest_

    if "fit" not in settings["run"] and any((run_dir / "checkpoints").glob("*.ckpt")):
        why = f"{run_dir} holds training that was cut off; test its checkpoints in another directory"
        raise ConfigError(f"run={settings['run']}: {why}")
    path = newest_(run_dir / "checkpoints") if "fit" in settings["run"] else None
    if path is None:
        _log.info("%s was cut off before its first checkpoint; it starts anew", run_dir)
        return settings | {"resumed": {"ckpt": None, "step": 0}}
    saved = _saved_settings(str(path))
    _check(settings, saved, str(path))
    epochs, finished = settings["trainer"].get("max_epochs"), saved["finished_epochs"]
    if isinstance(epochs, int) and epochs < finished + saved["inside_epoch"]:
        raise ConfigError(f"trainer.max_epochs={epochs}: {path} has begun or finished more; {finished} are finished")
    _log.info("%s was cut off; it goes on after step %d, from %s", run_dir, saved["step"], path.name)
    return settings | {
        "resumed": {"ckpt": str(path), "step": saved["step"]},
        "trained_on": {key: saved[key] for key in ("input_shape", "num_outputs")},
    }


def _check(settings: dict[str, Any], saved: dict[str, Any], path: str) -> None:
    """Raise ConfigError where settings differ from those of a checkpoint's run that its training depends on."""
    for key in _TRAINING if "fit" in settings["run"] else _BUILDING:
        difference = _difference(saved[key], settings[key], key)
        if difference is not None:
            raise ConfigError(f"{difference[0]}={difference[2]}: {path} was trained with {difference[1]}")
    for group, name in _POSITION if "fit" in settings["run"] and saved["inside_epoch"] else ():
        before, now = (each[group].get(name) for each in (saved, settings))
        if before != now:
            raise ConfigError(f"{group}.{name}={now}: {path} was written inside an epoch with {before}")
    for name in _SPLIT if "fit" in settings["run"] else ():
        before, now = (data.get(name) for data in (saved["data"], settings["data"]))
        if None not in (before, now) and before != now:
            raise ConfigError(f"data.{name}={now}: {path} was trained with {before}, another part would validate")


def saved_overrides(path: str, overrides: list[str]) -> list[str]:
    """Those overrides of a checkpoint's run that a run with further ``overrides`` takes over.

    Raises:
        ConfigError: the file is no checkpoint.
    """
    return _kept(_saved_settings(path)["overrides"], overrides)


def _kept(saved: list[str], overrides: list[str]) -> list[str]:
    # A group that is named again as it was keeps what was set inside it.
    changed = {
        override_name(override) for override in overrides if "." in override_name(override) or override not in saved
    }
    repeated = set(overrides)
    return [o for o in saved if carried_over(o) and o not in repeated and not replaced(override_name(o), changed)]


def carried_over(override: str) -> bool:
    """Whether a continued run takes an override from its checkpoint: what is trained and how, as plain values.

    The file may be hostile. Directories, loggers and other callbacks are the new run's own matter, and a target or an
    interpolation comes from the command line or not at all.
    """
    if _TRAINING_CALLBACKS.fullmatch(override):
        return True
    top = override_name(override).partition(".")[0].partition("/")[0].partition("@")[0]
    plain = _PLAIN.fullmatch(override) and "_target_" not in override and "$" not in override
    return top in _CARRIED_OVER and bool(plain)


def replaced(name: str, named: set[str]) -> bool:
    """Whether the command line names this key or a group above it."""
    return any(name == other or name.startswith((f"{other}.", f"{other}/")) for other in named)


def override_name(override: str) -> str:
    """The key that an override sets."""
    return override.partition("=")[0].lstrip("+~")


def _difference(saved: Any, asked: Any, key: str) -> tuple[str, Any, Any] | None:
    """Key, saved and asked value of the first place where two plain settings differ."""
    if isinstance(saved, dict) and isinstance(asked, dict):
        for name in sorted((saved.keys() | asked.keys()) - {"backend"}):  # who computes may change
            found = _difference(saved.get(name), asked.get(name), f"{key}.{name}")
            if found is not None:
                return found
        return None
    return None if saved == asked else (key, saved, asked)


def _saved_settings(path: str) -> dict[str, Any]:
    """The settings inside a checkpoint and how far it has come; nothing in the file is executed."""
    from tautnet.checkpoints import DamagedError, read  # torch: not needed for --help

    if not Path(path).is_file():
        raise ConfigError(f"ckpt={path}: no such file; a checkpoint is, for example, <run>/checkpoints/last.ckpt")
    try:
        checkpoint = read(Path(path))
        saved = checkpoint["hyper_parameters"]["config"]
        saved = {key: saved[key] for key in (*_TRAINING, "data", "trainer", "overrides", "input_shape", "num_outputs")}
        saved["training"] = "optimizer_states" in checkpoint
        saved["step"] = int(checkpoint["global_step"])
        saved["finished_epochs"] = int(checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])
        saved["inside_epoch"] = bool(checkpoint.get("run_state", {}).get("inside_epoch"))
        if not all(isinstance(override, str) for override in saved["overrides"]) or not checkpoint["state_dict"]:
            raise TypeError("overrides or weights of another kind")
    except DamagedError as error:
        raise ConfigError(f"ckpt={error}") from error
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise ConfigError(f"ckpt={path}: not a checkpoint of tautnet") from error
    return saved
