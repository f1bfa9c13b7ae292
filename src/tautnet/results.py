"""What a finished job leaves: result.json, the settings beside the final metrics, a summary on the terminal."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from math import isfinite
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
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
    _print_summary(metrics, run_dir, any(isinstance(logger, TensorBoardLogger) for logger in trainer.loggers))


def _log_settings(settings: dict[str, Any], metrics: Mapping[str, float], trainer: pl.Trainer) -> None:
    """The settings and, where the logger has a table for both, the final metrics beside them."""
    shown = {settings["objective"], *(key for _, key, _ in logkeys.SUMMARY)}
    final = {f"final/{name}": value for name, value in metrics.items() if name in shown}
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams(_flat(settings), final)
        else:
            logger.log_hyperparams(_flat(settings))
        logger.finalize("success")


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


def _print_summary(metrics: Mapping[str, float], run_dir: Path, on_tensorboard: bool) -> None:
    table = Table(show_header=False)
    for label, key, form in logkeys.SUMMARY:
        if key in metrics:
            table.add_row(label, form.format(metrics[key]))
    console = Console(soft_wrap=True, highlight=False)
    console.print(table)
    console.print(f"results in {_relative(run_dir)}", markup=False)
    if on_tensorboard:
        console.print(f"look at it: tensorboard --logdir {_relative(run_dir)}", markup=False)


def _relative(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
