"""What a finished job leaves: result.json, the settings beside the final metrics, a summary on the terminal."""

from __future__ import annotations

import json
import platform
import shlex
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from math import isfinite
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from pytorch_lightning.loggers import TensorBoardLogger
from rich.console import Console
from rich.table import Table

from tautnet import logkeys


def write_down(settings: dict[str, Any], metrics: dict[str, float], trainer: pl.Trainer, run_dir: Path) -> None:
    """Write ``result.json``, hand settings and final metrics to the loggers, print the summary."""
    result = {
        # JSON has no inf and nan: they stand there as text.
        "metrics": {name: value if isfinite(value) else str(value) for name, value in metrics.items()},
        "seed": settings["seed"],
        "overrides": settings["overrides"],
        "git": _git_hash(),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("tautnet", "torch", "pytorch-lightning", "hydra-core")},
    }
    _log_settings(settings, metrics, trainer)
    part = run_dir / "result.json.part"  # the file itself says that a run is finished: it comes last, and whole
    part.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n")
    part.replace(run_dir / "result.json")
    _print_summary(settings, metrics, trainer, run_dir)


def _log_settings(settings: dict[str, Any], metrics: Mapping[str, float], trainer: pl.Trainer) -> None:
    """The settings and, where the logger has a table for both, the final metrics beside them."""
    shown = dict.fromkeys([settings["objective"], *(key for _, key, _ in logkeys.SUMMARY)])
    final = {f"final/{name}": metrics[name] for name in shown if name in metrics}
    for logger in trainer.loggers:
        logger.log_hyperparams(_flat(settings))
        if isinstance(logger, TensorBoardLogger):
            logger.log_metrics(final, step=0)
            _add_row(logger, settings, final)
        logger.finalize("success")


def _add_row(logger: TensorBoardLogger, settings: dict[str, Any], final: dict[str, float]) -> None:
    """One row of TensorBoard's hparams page; its first columns are what the command line has set."""
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData  # type: ignore[import-untyped]
    from torch.utils.tensorboard.summary import hparams

    classes, values = _columns(settings)
    row = hparams(classes | values, final)  # type: ignore[no-untyped-call]
    plugin = row[0].value[0].metadata.plugin_data
    table = HParamsPluginData.FromString(plugin.content)
    named = [override.partition("=")[0].lstrip("+~").replace("/", ".") for override in settings["overrides"]]
    for column in table.experiment.hparam_infos:
        of_group = column.name in classes and any(column.name.startswith(f"{name}.") for name in named)
        column.differs = of_group or column.name in named  # TensorBoard puts them first
    plugin.content = table.SerializeToString()
    for summary in row:
        logger.experiment._get_file_writer().add_summary(summary)


def _columns(settings: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Short names of classes by the keys of their groups, and values; what says nothing in a table is left out."""
    classes, values = {}, {}
    for key, value in _flat(settings).items():
        if key.endswith("._target_") and not key.startswith(("callbacks.", "logger.", "trainer.")):
            classes[key.removesuffix("._target_")] = value.rpartition(".")[2]
        elif not (key == "overrides" or key.endswith(("._target_", "._partial_")) or settings["run_dir"] in str(value)):
            values[key] = str(value).lower() if isinstance(value, bool) else value
    return classes, values


def _flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted keys, which the hparams table needs."""
    if not isinstance(settings, dict):
        return {prefix: settings if isinstance(settings, (int, float, str, bool)) else str(settings)}
    parts = (_flat(value, f"{prefix}.{name}" if prefix else name) for name, value in settings.items())
    return {key: value for part in parts for key, value in part.items()}


def _git_hash() -> str | None:
    """Commit of the checkout that this file lies in, with ``+`` if tracked files differ; None outside one."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        clean = subprocess.run([*git, "diff", "--quiet", "HEAD"], check=False).returncode == 0
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit if clean else f"{commit}+"


def _print_summary(
    settings: Mapping[str, Any], metrics: Mapping[str, float], trainer: pl.Trainer, run_dir: Path
) -> None:
    table = Table(show_header=False)
    for label, key, form in logkeys.SUMMARY:
        if key in metrics:
            table.add_row(label, form.format(metrics[key]))
    console = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
    console.print(table)
    console.print(f"results in {_relative(run_dir)}")
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        return  # a sweep has many of them, and ends with a summary of its own
    commands = next_commands(
        _relative(run_dir),
        on_tensorboard=any(isinstance(logger, TensorBoardLogger) for logger in trainer.loggers),
        with_weights=any((run_dir / "checkpoints").glob("*.ckpt")),
        classifies=settings["metric"] == "acc",
    )
    width = max(len(command) for command in commands)
    for command, what in commands.items():
        console.print(f"  {command:<{width}}  # {what}")


def next_commands(run_dir: Path, on_tensorboard: bool, with_weights: bool, classifies: bool) -> dict[str, str]:
    """What can be typed next, as a shell takes it, and what it is for.

    Args:
        run_dir: of the finished run, absolute or from here.
        on_tensorboard: whether it has logged there.
        with_weights: whether it holds a checkpoint.
        classifies: whether there are predictions to be certified.
    """
    run = shlex.quote(str(run_dir))
    commands = {f"tautnet report {run}": "one page with all of it"}
    if on_tensorboard:
        commands[f"tensorboard --logdir {run}"] = "curves and pictures over time"
    if with_weights:
        commands[f"tautnet plot {run}"] = "what it has learned"
        if classifies:
            commands[f"tautnet certify {run}"] = "predictions that provably stay the same"
        commands[f"tautnet export {run}"] = "files that run elsewhere"
    return commands


def _relative(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
