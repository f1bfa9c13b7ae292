"""One job: build what the settings describe, fit, test, write the results down."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from tautnet import logkeys
from tautnet.config import ConfigError, build, plain
from tautnet.optim.settings import role_settings

if TYPE_CHECKING:
    import pytorch_lightning as pl

_log = logging.getLogger(__name__)

# What a trained model depends on; with ``ckpt`` these must be as they were.
_BUILDING = ("model", "activation", "norm")
_TRAINING = (*_BUILDING, "optimizer", "scheduler", "regularizer", "seed")


def run(config: DictConfig) -> float | None:
    """Run one job and return the objective, the metric that ``objective`` names, if it was measured.

    Nothing is written before every setting has proved usable; a refused job leaves no directory behind.

    Args:
        config: the composed ``conf/train.yaml``.

    Raises:
        ConfigError: a setting that cannot be used.
    """
    run_dir = Path(config.run_dir)
    try:
        job = _prepare(config)
    except BaseException:
        if run_dir.is_dir() and not any(run_dir.iterdir()):
            run_dir.rmdir()  # Hydra made it
        raise
    return _execute(*job, run_dir)


def _prepare(config: DictConfig) -> tuple[dict[str, Any], pl.Trainer, pl.LightningModule, pl.LightningDataModule]:
    overrides = list(HydraConfig.get().overrides.task)
    settings = plain(config)
    if settings["ckpt"] is not None:
        settings, overrides = _continued(settings, overrides)
    settings["overrides"] = overrides
    run_dir = Path(settings["run_dir"])
    if any((run_dir / name).exists() for name in ("config.yaml", "result.json")):
        raise ConfigError(f"{run_dir}: holds a run already; name another directory by hydra.run.dir or hydra.sweep.dir")
    _try_parts(settings)
    return settings, *_assemble(settings)


def _try_parts(settings: Mapping[str, Any]) -> None:
    """Try what needs torch alone, so that a mistake there is answered before Lightning's slow import."""
    for key in ("activation", "norm.output"):
        part = settings
        for name in key.split("."):
            part = part[name]
        build(part, key)(1)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))])
    build(settings["scheduler"], "scheduler", optimizer=optimizer, total_steps=1)
    role_settings(settings["optimizer"])


def _assemble(settings: dict[str, Any]) -> tuple[pl.Trainer, pl.LightningModule, pl.LightningDataModule]:
    import pytorch_lightning as pl
    from lightning_fabric.utilities.exceptions import MisconfigurationException

    _silence_known_messages()
    pl.seed_everything(settings["seed"], verbose=False)
    data = build(settings["data"], "data")
    spec = settings | {"input_shape": list(data.input_shape), "num_outputs": data.num_outputs}
    model = build({"_target_": settings["model"]["_target_"]}, "model", config=spec)
    callbacks = list(build(settings["callbacks"], "callbacks").values())
    saves = any(isinstance(callback, pl.callbacks.ModelCheckpoint) for callback in callbacks)
    try:
        trainer = build(
            settings["trainer"],
            "trainer",
            callbacks=callbacks,
            logger=list(build(settings["logger"], "logger").values()) or False,
            enable_checkpointing=saves,
            default_root_dir=settings["run_dir"],
        )
    except MisconfigurationException as error:
        raise ConfigError(f"trainer: {error}") from error
    return trainer, model, data


def _execute(
    settings: dict[str, Any],
    trainer: pl.Trainer,
    model: pl.LightningModule,
    data: pl.LightningDataModule,
    run_dir: Path,
) -> float | None:
    OmegaConf.save(OmegaConf.create(settings), run_dir / "config.yaml")
    metrics: dict[str, float] = {}
    weights = settings["ckpt"]
    if "fit" in settings["run"]:
        start = time.perf_counter()
        trainer.fit(model, data, ckpt_path=weights)
        metrics[logkeys.FIT_SECONDS] = time.perf_counter() - start
        metrics |= _numbers(trainer)
        weights = None  # the final weights are tested: schedules end there, and nothing is selected by chance
    if "test" in settings["run"]:
        trainer.test(model, data, ckpt_path=weights, verbose=False)
        metrics |= _numbers(trainer)
    if trainer.is_global_zero:
        from tautnet.results import write_down

        write_down(settings, metrics, trainer, run_dir)
    return _objective(settings, metrics)


def _objective(settings: dict[str, Any], metrics: Mapping[str, float]) -> float | None:
    name = settings["objective"]
    if name not in metrics and "fit" in settings["run"]:
        _log.warning("objective=%s was not measured; measured: %s", name, ", ".join(sorted(metrics)))
    return metrics.get(name)


def _numbers(trainer: pl.Trainer) -> dict[str, float]:
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def _continued(settings: dict[str, Any], overrides: list[str]) -> tuple[dict[str, Any], list[str]]:
    """The settings of the checkpoint's run with this command line's overrides on top."""
    path = settings["ckpt"]
    saved = _saved_settings(path)
    named = {_name(override) for override in overrides}
    combined = [o for o in saved["overrides"] if _name(o) not in named | {"ckpt", "run"}] + overrides
    settings = plain(compose("train", overrides=combined))
    for key in _TRAINING if "fit" in settings["run"] else _BUILDING:
        difference = _difference(saved[key], settings[key], key)
        if difference is not None:
            raise ConfigError(f"{difference[0]}={difference[2]}: {path} was trained with {difference[1]}")
    return settings, combined


def _name(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def _difference(saved: Any, asked: Any, key: str) -> tuple[str, Any, Any] | None:
    """Key, saved and asked value of the first place where two plain settings differ."""
    if isinstance(saved, dict) and isinstance(asked, dict):
        for name in sorted(saved.keys() | asked.keys()):
            found = _difference(saved.get(name), asked.get(name), f"{key}.{name}")
            if found is not None:
                return found
        return None
    return None if saved == asked else (key, saved, asked)


def _saved_settings(path: str) -> dict[str, Any]:
    """The settings inside a checkpoint; nothing in the file is executed."""
    if not Path(path).is_file():
        raise ConfigError(f"ckpt={path}: no such file; a checkpoint is, for example, <run>/checkpoints/last.ckpt")
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)["hyper_parameters"]["config"]
        saved["overrides"], *(saved[key] for key in _TRAINING)
    except (UnpicklingError, RuntimeError, EOFError, KeyError, TypeError, ValueError, OSError) as error:
        raise ConfigError(f"ckpt={path}: not a checkpoint of tautnet, or a damaged one") from error
    return dict(saved)


def _silence_known_messages() -> None:
    """Messages of libraries that a user can do nothing about."""
    warnings.filterwarnings("ignore", message=r".*LeafSpec.*", category=FutureWarning)  # Lightning with torch >= 2.9
    warnings.filterwarnings("ignore", message=r".*does not have many workers.*")  # the data is in memory
    warnings.filterwarnings("ignore", message=r".*smaller than the logging interval.*")  # everything is logged by epoch
    warnings.filterwarnings("ignore", message=r".*dirpath has changed.*")  # a continued run has its own directory
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)  # "GPU available: …", tips, restored paths
