"""Runs that are killed at random moments, and whether what they leave is what an uninterrupted one leaves."""

import json
import os
import signal
import subprocess
import time
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from forked import finish, start, train
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tautnet import checkpoints
from tautnet.stopping import Stopping

QUICK = ("trainer.enable_progress_bar=false", "callbacks.last.every_n_steps=3", "seed=3")
SMALL = ("data=iris", "model=mlp", "model.net.widths=[6,6]", "data.batch_size=10", "trainer.max_epochs=3")
# Together every callback, penalty and normalizer that has a state, and every activation that is learned.
JOBS = {
    "spline": (
        *(
            "trainer=cpu",
            "activation=spline",
            "norm=unitize",
            "norm/weight=aon",
            "callbacks=[ics,ema,sparsify,spectrum,variance]",
        ),
        *("callbacks.ics.every_n_steps=2", "callbacks.sparsify.budget=0.1", "optimizer=sgd", "optimizer.lr=0.01"),
        *("regularizer=orthonormality",),
    ),
    "slaf": (
        *("trainer=cpu", "activation=slaf", "norm=batch", "norm/weight=spectral", "callbacks=[alternate,recalibrate]"),
        *("trainer.accumulate_grad_batches=2", "regularizer=coefficients", "optimizer=muon"),
    ),
    "lipschitz": (
        *("trainer=cpu", "activation=spline_lipschitz", "norm=none", "regularizer=lipschitz"),
        "callbacks=[ema,sparsify]",
    ),
    "images": (
        *("trainer=cpu", "data=digits", "model=convnet", "model.net.widths=[4]", "data.batch_size=64"),
        *("trainer.max_epochs=2", "callbacks=[ics,spectrum]"),
    ),
    "ranks": (
        *("trainer=ddp_cpu", "data.batch_size=20", "norm=unitize", "activation=slaf"),
        *("callbacks=[ics,variance]", "trainer.max_epochs=4"),
    ),
}


def arguments_of(job: str, *further: str) -> tuple[str, ...]:
    """Of a command that does a job in the directory ``run`` below where it is started."""
    own = {argument.partition("=")[0] for argument in (*JOBS[job], *further)}
    small = [argument for argument in SMALL if argument.partition("=")[0] not in own]
    return (*QUICK, *small, *JOBS[job], *further, "hydra.run.dir=run")


def train_without_pictures(*arguments: str) -> None:
    """``python train.py`` with blank pictures: drawing takes most of the time of a short run."""
    for module, name in (("spline_monitor", "plot_activation"), ("lipschitz_monitor", "_figure")):
        setattr(import_module(f"tautnet.callbacks.{module}"), name, lambda *_: Figure(figsize=(1, 1)))
    for module, name in (("layer_history", "LayerHistory"), ("weight_spectrum", "WeightSpectrum")):
        drawing = {"LayerHistory": "figure", "WeightSpectrum": "_figure"}[name]
        setattr(getattr(import_module(f"tautnet.callbacks.{module}"), name), drawing, lambda *_: Figure(figsize=(1, 1)))
    train(*arguments)


def wait_for_signals() -> None:
    """A training whose step never ends."""
    Stopping("run").on_train_start(SimpleNamespace(global_step=0), None)
    print("ready", flush=True)
    while True:
        time.sleep(0.01)


def uninterrupted(folder: Path, *arguments: str) -> tuple[float, float]:
    """Do it in one go; processor seconds up to the moment when its settings are written, and to its end."""
    process = start(train_without_pictures, *arguments, folder=folder)
    while not (folder / "run" / "config.yaml").exists() and process.is_alive():
        time.sleep(0.002)
    begun = end = _processor_seconds(process)
    while process.is_alive():
        time.sleep(0.01)
        end = max(end, _processor_seconds(process))
    result = finish(process, folder)
    assert result.returncode == 0, result.stderr
    return begun, end


def killed(folder: Path, processor_seconds: float, *arguments: str) -> str:
    """Begin it and kill it after so many processor seconds, which other programs change less than those of the clock.

    Returns:
        The file of its directory that was written last; empty if none was.
    """
    process = start(train_without_pictures, *arguments, folder=folder)
    while process.is_alive() and _processor_seconds(process) < processor_seconds:
        time.sleep(0.002)
    ranks = _children(process.pid)
    if process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    while any(Path(f"/proc/{rank}").exists() for rank in ranks):  # they end when they see that it is gone
        time.sleep(0.01)
    files = [path for path in (folder / "run").rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_mtime).name if files else ""


def finished(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Give the command again, and let it come to its end."""
    finished_before = (folder / "run" / "result.json").exists()
    result = finish(start(train_without_pictures, *arguments, folder=folder), folder)
    assert result.returncode == (2 if finished_before else 0), result.stderr
    return result


def _processor_seconds(process: Any) -> float:
    """Of a process and of those that it has started and that are running, 0 if it is gone."""
    return _processor_ticks(process.pid) / os.sysconf("SC_CLK_TCK")


def _processor_ticks(number: int) -> int:
    try:
        fields = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(fields[11]) + int(fields[12]) + sum(map(_processor_ticks, _children(number)))


def _children(number: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{number}/task/{number}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def left_in(folder: Path) -> dict[str, Any]:
    """All that a run leaves, but for seconds of the clock and the names of directories."""
    run = folder / "run"
    left: dict[str, Any] = {"metrics": json.loads((run / "result.json").read_text())["metrics"]}
    del left["metrics"]["time/fit_seconds"]
    for path in sorted((run / "checkpoints").iterdir()):
        content = checkpoints.read(path)
        content.get("run_state", {}).pop("seconds", None)
        for callback in content.get("callbacks", {}).values():
            callback.pop("current_score", None)  # of the last epoch, which Lightning writes and does not read
        left[path.name] = _without(content, str(run.resolve()))
    if not (run / "tensorboard").exists():
        return left
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    for tag in events.Tags()["scalars"]:
        if "time/" not in tag:
            left[f"events {tag}"] = sorted({(event.step, event.value) for event in events.Scalars(tag)})
    return left


def _without(value: Any, folder: str) -> Any:
    if isinstance(value, str):
        return value.replace(folder, "")
    if isinstance(value, dict):
        return {_without(key, folder): _without(each, folder) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without(each, folder) for each in value]
    return value


def difference(a: Any, b: Any, path: str = "") -> str | None:
    """Where two contents differ first, by a single bit; None if they do not."""
    if isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys():
            return f"{path}: keys {sorted(map(str, a.keys() ^ b.keys()))}"
        return next((d for key in a if (d := difference(a[key], b[key], f"{path}/{key}"))), None)
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return next((d for n in range(len(a)) if (d := difference(a[n], b[n], f"{path}/{n}"))), None)
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape and _bytes(a) == _bytes(b)
        return None if same else f"{path}: {a} against {b}"
    return None if a == b or (a != a and b != b) else f"{path}: {a} against {b}"


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
