"""One job: build what the settings describe, fit, test, write the results down."""

from __future__ import annotations

import logging
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from tautnet import logkeys
from tautnet.config import ConfigError, build, key_of, locate, plain
from tautnet.factories import DataError
from tautnet.optim.settings import role_settings
from tautnet.optim.steps import check_steps
from tautnet.resume import continued, override_name

if TYPE_CHECKING:
    import pytorch_lightning as pl

_log = logging.getLogger(__name__)
SETTINGS = "config.yaml"  # in the run directory, from the moment on when nothing has refused them


def run(config: DictConfig) -> float | None:
    """Run one job and return the objective, the metric that ``objective`` names, if it was measured.

    Nothing is written before every setting has proved usable; a refused job leaves no directory behind.

    Args:
        config: the composed ``conf/train.yaml``.

    Raises:
        ConfigError: a setting that cannot be used.
    """
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    fresh = not any(run_dir.iterdir())  # Hydra made it
    try:
        return _execute(*_prepare(config), run_dir)
    except BaseException:
        if fresh and not (run_dir / SETTINGS).exists():
            shutil.rmtree(run_dir)
        raise


def _prepare(config: DictConfig) -> tuple[dict[str, Any], pl.Trainer, pl.LightningModule, pl.LightningDataModule]:
    overrides = list(HydraConfig.get().overrides.task)
    if any(override_name(override) == "run_dir" for override in overrides):
        raise ConfigError(f"run_dir={config.run_dir}: name the directory by hydra.run.dir=…")
    settings = plain(config)
    if settings["ckpt"] is not None:
        settings, overrides = continued(settings, overrides)
    settings["overrides"] = overrides
    run_dir = Path(settings["run_dir"])
    if any((run_dir / name).exists() for name in (SETTINGS, "result.json")):
        raise ConfigError(f"{run_dir}: holds a run already; name another directory by hydra.run.dir or hydra.sweep.dir")
    _try_parts(settings)
    return settings, *_assemble(settings)


def _try_parts(settings: Mapping[str, Any]) -> None:
    """Try what needs torch alone, so that a mistake there is answered before Lightning's slow import."""
    build(settings["activation"], "activation")(1)  # a normalizer may depend on the number of channels
    epochs, devices = settings["trainer"].get("max_epochs"), settings["trainer"].get("devices")
    if not isinstance(epochs, int) or epochs < 1:
        raise ConfigError(f"trainer.max_epochs={epochs}: an integer of at least 1")
    if devices not in (1, "1"):
        raise ConfigError(f"trainer.devices={devices}: 1; training on several devices is not there yet")
    build(settings["scheduler"], "scheduler", optimizer=torch.optim.SGD([torch.zeros(())]), total_steps=1)
    role_settings(settings["optimizer"])
    if settings["compile"] and "fit" not in settings["run"]:
        raise ConfigError("compile=true: training alone is compiled, and run=[test] does not train")
    for name, stage, why in (
        ("sparsify", "fit", "follows training"),
        ("recalibrate", "fit", "follows training"),
        ("ics", "fit", "belongs to training"),
        ("alternate", "fit", "belongs to training"),
        ("release", "fit", "belongs to training"),
        ("certify", "test", "belongs to the test"),
    ):
        if name in settings["callbacks"] and stage not in settings["run"]:
            raise ConfigError(f"callbacks={name}: {why}, and run={settings['run']} has no {stage}")
    check_steps(settings["trainer"], settings["compile"])


def _assemble(settings: dict[str, Any]) -> tuple[pl.Trainer, pl.LightningModule, pl.LightningDataModule]:
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # Lightning imports it; a new font cache is no news
    import pytorch_lightning as pl
    from lightning_fabric.utilities.exceptions import MisconfigurationException

    from tautnet.app_callbacks import compiled, settings_writer

    _silence_known_messages()
    if "fit" not in settings["run"]:
        for message in ("callbacks used to create the checkpoint", "outside the 'fit' stage"):  # they watch training
            warnings.filterwarnings("ignore", message=f".*{message}.*")
    pl.seed_everything(settings["seed"], verbose=False)
    data = build(settings["data"], "data")
    trained_on = settings.pop("trained_on", {})  # of the checkpoint; no setting of this run
    spec = settings | {"input_shape": list(data.input_shape), "num_outputs": data.num_outputs}
    for key, trained in trained_on.items():
        if trained != spec[key]:
            raise ConfigError(f"ckpt={settings['ckpt']}: trained with {key} {trained}, the data has {spec[key]}")
    _check_task(settings["model"], data.task)
    if "certify" in settings["callbacks"] and data.task != "classification":
        raise ConfigError(f"callbacks=certify: predicted classes are certified, the data is for {data.task}")
    model = build({"_target_": settings["model"]["_target_"]}, "model", config=spec)
    if "fit" in settings["run"]:
        batch = next(iter(data.train_dataloader()))
        _try_batch(model, batch, settings)
        if settings["ckpt"] is None:  # else its state says
            model.calibrate_(batch[0])
    callbacks = list(build(settings["callbacks"], "callbacks").values())
    if settings["compile"]:
        callbacks.insert(0, compiled(model))
    callbacks.append(settings_writer(settings, Path(settings["run_dir"], SETTINGS)))
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


def _check_task(model: Mapping[str, Any], task: str) -> None:
    target = model.get("_target_")
    accepted = {"classification": "Classifier", "regression": "Regressor", "denoising": "Denoiser"}[task]
    if getattr(locate(str(target), "model"), "task", None) != task:
        raise ConfigError(f"model._target_={target}: the data is for {task}; for example tautnet.models.{accepted}")


def _try_batch(model: Any, batch: tuple[torch.Tensor, torch.Tensor], settings: Mapping[str, Any]) -> None:
    """One training forward of a copy: batch statistics, for example, need more than one value a channel."""
    x, targets = batch
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            outputs = deepcopy(model.net).train()(x)
    except (ValueError, RuntimeError) as error:
        batch_size = f"data.batch_size={settings['data'].get('batch_size')}: "
        raise ConfigError(f"{key_of(error, settings, 'activation') or batch_size}{error}") from error
    model.check_targets(targets)
    if outputs.shape != targets.shape and not (model.task == "classification" and outputs.dim() == 2):
        shape = tuple(outputs.shape)
        needed = "(batch, classes)" if model.task == "classification" else tuple(targets.shape)
        raise ConfigError(f"model.net._target_={settings['model']['net'].get('_target_')}: gives {shape}, not {needed}")


def _execute(
    settings: dict[str, Any],
    trainer: pl.Trainer,
    model: pl.LightningModule,
    data: pl.LightningDataModule,
    run_dir: Path,
) -> float | None:
    metrics: dict[str, float] = {}
    weights = settings["ckpt"]
    if "fit" in settings["run"]:
        start = time.perf_counter()
        _fit(trainer, model, data, weights)
        metrics[logkeys.FIT_SECONDS] = time.perf_counter() - start
        metrics |= _numbers(trainer)
        weights = None  # the final weights are tested: schedules end there, and nothing is selected by chance
    if "test" in settings["run"]:
        with _refusals():
            trainer.test(model, data, ckpt_path=weights, verbose=False)
        metrics |= _numbers(trainer)
    if trainer.is_global_zero:
        from tautnet.results import write_down

        write_down(settings, metrics, trainer, run_dir)
    return _objective(settings, metrics)


def _fit(trainer: pl.Trainer, model: pl.LightningModule, data: pl.LightningDataModule, ckpt: str | None) -> None:
    """Fit; a signal ends the program with the status that shells expect, which Lightning alone does not give."""
    try:
        with _refusals():
            trainer.fit(model, data, ckpt_path=ckpt)
    except SystemExit:
        if trainer.received_sigterm:
            raise SystemExit(143) from None
        raise KeyboardInterrupt("the epochs that ended are in checkpoints/last.ckpt of the run directory") from None


@contextmanager
def _refusals() -> Iterator[None]:
    """What Lightning or a callback refuses, and a sample that turns out bad, in a worker too, is told in one line."""
    from lightning_fabric.utilities.exceptions import MisconfigurationException

    try:
        yield
    except MisconfigurationException as error:
        raise ConfigError(str(error)) from error
    except DataError as error:
        raise ConfigError(f"data: {str(error).splitlines()[-1].partition('DataError: ')[2] or error}") from error


def _objective(settings: dict[str, Any], metrics: Mapping[str, float]) -> float | None:
    name = settings["objective"]
    if name not in metrics and "fit" in settings["run"]:
        _log.warning("objective=%s was not measured; measured: %s", name, ", ".join(sorted(metrics)))
    return metrics.get(name)


def _numbers(trainer: pl.Trainer) -> dict[str, float]:
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def _silence_known_messages() -> None:
    """Messages of libraries that a user can do nothing about."""
    warnings.filterwarnings("ignore", message=r".*LeafSpec.*", category=FutureWarning)  # Lightning with torch >= 2.9
    warnings.filterwarnings("ignore", message=r".*does not have many workers.*")  # the data is in memory
    warnings.filterwarnings("ignore", message=r".*smaller than the logging interval.*")  # everything is logged by epoch
    warnings.filterwarnings("ignore", message=r".*dirpath has changed.*")  # a continued run has its own directory
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)  # "GPU available: …", tips, restored paths
