"""From composed settings to a job: check them, then do the job here or in the processes that it asks for."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from tautnet import distributed
from tautnet.config import ConfigError, build, plain
from tautnet.job import execute
from tautnet.layout import launched, num_processes, shards, with_layout
from tautnet.optim.settings import role_settings
from tautnet.optim.steps import check_steps
from tautnet.origin import named_prefixes
from tautnet.resume import continued, going_on, override_name
from tautnet.run_directory import RESULT, SETTINGS, held, is_cut_off
from tautnet.targets import allowing
from tautnet.worker import do_with_others


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
        with held(run_dir):
            settings = _checked(config)
            with allowing(settings["allow"]):
                return _start(settings)
    except BaseException:
        if fresh and not (run_dir / SETTINGS).exists():
            _end_logs_below(run_dir)
            shutil.rmtree(run_dir)
        raise


def _end_logs_below(run_dir: Path) -> None:
    """A launcher may log on in this process, and a log file in a directory that is gone would end it."""
    for handler in logging.getLogger().handlers[:]:
        if isinstance(handler, logging.FileHandler) and Path(handler.baseFilename).is_relative_to(run_dir):
            logging.getLogger().removeHandler(handler)
            handler.close()


def _start(settings: dict[str, Any]) -> float | None:
    """Do a job in this process, together with others that torchrun or srun has started, or in new ones."""
    if launched() is not None:
        distributed.announce(settings)
        return do_with_others(settings)
    if num_processes(settings["trainer"]) == 1:
        return execute(settings)
    job_logging = OmegaConf.to_container(HydraConfig.get().job_logging, resolve=True)
    distributed.run_workers({"settings": settings, "job_logging": job_logging})
    metrics = json.loads(Path(settings["run_dir"], RESULT).read_text())["metrics"]
    objective = metrics.get(settings["objective"])
    return None if objective is None else float(objective)


def _checked(config: DictConfig) -> dict[str, Any]:
    overrides = list(HydraConfig.get().overrides.task)
    if any(override_name(override) == "run_dir" for override in overrides):
        raise ConfigError(f"run_dir={config.run_dir}: name the directory by hydra.run.dir=…")
    settings = plain(config)
    if settings.pop("resume") is not None:
        raise ConfigError("resume: for a single run; a sweep goes on with its unfinished jobs by itself")
    if settings["ckpt"] is not None:
        settings, overrides = continued(settings, overrides)
    settings["overrides"] = overrides
    run_dir = Path(settings["run_dir"])
    if (run_dir / RESULT).exists():
        raise ConfigError(f"{run_dir}: holds a run already; name another directory by hydra.run.dir or hydra.sweep.dir")
    if not (run_dir / SETTINGS).exists() and any((run_dir / "checkpoints").glob("*.ckpt")):
        raise ConfigError(f"{run_dir}: holds checkpoints and no {SETTINGS}; name another directory by hydra.run.dir")
    if is_cut_off(run_dir):
        settings = going_on(settings, run_dir)
    settings["trainer"] = with_layout(settings["trainer"])
    settings["allow"] = named_prefixes(settings["allow"], list(HydraConfig.get().overrides.task))
    with allowing(settings["allow"]):
        _try_parts(settings)
    return settings


def _try_parts(settings: Mapping[str, Any]) -> None:
    """Try what needs torch alone, so that a mistake there is answered before Lightning's slow import."""
    build(settings["activation"], "activation")(1)  # a normalizer may depend on the number of channels
    epochs = settings["trainer"].get("max_epochs")
    if not isinstance(epochs, int) or epochs < 1:
        raise ConfigError(f"trainer.max_epochs={epochs}: an integer of at least 1")
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
    if shards(settings["trainer"]):
        _check_callbacks_of_shards(settings["callbacks"])


def _check_callbacks_of_shards(callbacks: Mapping[str, Any]) -> None:
    for name, callback in callbacks.items():
        if str(callback.get("_target_")).rpartition(".")[2] not in ("Checkpoints", "ModelCheckpoint", "EarlyStopping"):
            why = "looks at weights between the steps, where no process of trainer=fsdp has them whole"
            raise ConfigError(f"callbacks.{name}: {why}; callbacks=checkpoints")
