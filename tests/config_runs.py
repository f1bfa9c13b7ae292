"""One job after another with settings that may be bad, each in a process of its own, and what is wrong with its end."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from math import isfinite
from pathlib import Path
from typing import NamedTuple

from forked import start, train
from matplotlib.figure import Figure

MEMORY = 3 << 30  # bytes that a job may take beside what its process starts with
SECONDS = 120  # of a core; a step of the largest nets with the slowest norm takes 30
LINE = 1200  # characters of a refusal


class Ended(NamedTuple):
    """How a job has ended.

    Attributes:
        status: of the process; None if it was stopped after ``SECONDS`` of a core, or many more of waiting.
        error: lines on stderr.
        out: what it printed.
        left: files that are there now, relative to its folder.
        metrics: of result.json.
        seconds: of a core that it took.
    """

    status: int | None
    error: list[str]
    out: str
    left: list[str]
    metrics: dict[str, float | str]
    seconds: float


def without_pictures() -> list[tuple[str, Callable[..., Figure]]]:
    """What draws, and what to put in its place: drawing takes most of the time of a short run."""
    blank = partial(_blank, figsize=(1, 1))
    return [
        (f"tautnet.callbacks.{name}", blank) for name in ("spline_monitor.plot_activation", "lipschitz_monitor._figure")
    ]


def _blank(*_: object, figsize: tuple[int, int]) -> Figure:
    return Figure(figsize=figsize)


def job(seconds: str, *arguments: str) -> None:
    """``python train.py`` with blank pictures and little memory; ``seconds`` is a file for the time that it took."""
    for name, blank in without_pictures():
        module, _, attribute = name.rpartition(".")
        setattr(import_module(module), attribute, blank)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    try:
        train(*arguments)
    finally:
        Path(seconds).write_text(str(time.process_time()))


def run(arguments: list[str], folder: Path) -> Ended:
    """Do a job in ``folder``, which is gone afterwards."""
    folder.mkdir(parents=True)
    file = folder / "seconds"
    process = start(job, str(file), *arguments, "hydra.run.dir=run", folder=folder, HYDRA_FULL_ERROR="0")
    process.join(10 * SECONDS)
    if process.exitcode is None:
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
    status = None if process.exitcode in (-signal.SIGXCPU, -signal.SIGKILL) else process.exitcode
    seconds = float(file.read_text()) if file.exists() else float(SECONDS)
    error, out = ((folder / name).read_text(errors="replace") for name in ("err", "out"))
    for name in ("err", "out", "seconds"):
        (folder / name).unlink(missing_ok=True)
    return ended(status, error, out, folder, seconds)


def ended(status: int | None, error: str, out: str, folder: Path, seconds: float = 0.0) -> Ended:
    """How a job has ended whose run directory is ``run`` in ``folder``, which is removed."""
    result = folder / "run" / "result.json"
    metrics = json.loads(result.read_text())["metrics"] if result.exists() else {}
    left = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*"))]
    shutil.rmtree(folder)
    return Ended(status, [line for line in error.splitlines() if line.strip()], out, left, metrics, seconds)


def fault(ended: Ended, named: tuple[str, ...] = ()) -> str | None:
    """What is wrong with how a job has ended; None if it ran, diverged, or was refused in a line with ``named``."""
    last = ended.error[-1] if ended.error else ""
    if ended.status is None:
        return f"still running after {SECONDS} s of a core"
    if last.startswith(("error: training diverged", "error: trainer.detect_anomaly=True")) and ended.status == 1:
        return None
    if "Traceback" in "".join(ended.error) + ended.out:
        return f"traceback: {last}"
    if ended.status == 0:
        if "run/result.json" not in ended.left:
            return "no result.json"
        lost = [name for name, value in ended.metrics.items() if "loss" in name and not isfinite(float(value))]
        told = re.search("finite|nan|diverg", (" ".join(ended.error) + ended.out).lower())
        return f"not finite, and nothing says so: {', '.join(lost)}" if lost and not told else None
    refusals = [line for line in ended.error if line.startswith("error: ")]
    if ended.status != 2 or len(refusals) != 1 or refusals[0] != last:
        return f"exit status {ended.status}: {' | '.join(ended.error[-3:])}"
    if len(last) > LINE:
        return f"a line of {len(last)} characters: {last[:200]}"
    if ended.left:
        return f"left behind {', '.join(ended.left[:5])}: {last}"
    missing = [words for words in named if words not in last]
    return f"does not name {', '.join(missing)}: {last}" if missing else None
