"""The directory of a sweep: which jobs are finished, and where the others run."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tautnet.config import ConfigError
from tautnet.run_directory import RESULT, SETTINGS

try:
    import fcntl
except ImportError:  # Windows: two sweeps in one directory go unnoticed there
    fcntl = None  # type: ignore[assignment]

_LOCK = ".sweep.lock"


@dataclass(frozen=True)
class Run:
    """A finished job: where it is, the overrides that its result.json names, the final metrics."""

    directory: Path
    overrides: tuple[str, ...]
    metrics: Mapping[str, float]


class SweepFolder:
    """The jobs below a sweep's directory, each known by its overrides in any order.

    A job with ``result.json`` is finished. One with ``config.yaml`` alone was cut off and goes on there. Any other
    directory that is not empty is somebody else's and is left alone.

    Args:
        path: ``hydra.sweep.dir``; need not exist.

    Raises:
        ConfigError: the directory is that of a single run.
    """

    def __init__(self, path: Path) -> None:
        if any((path / name).exists() for name in (SETTINGS, RESULT)):
            raise ConfigError(f"hydra.sweep.dir={path}: holds a single run; name another directory for the sweep")
        self.path = path
        self._runs: dict[Path, Run] = {}
        self._unfinished: dict[Path, tuple[str, ...]] = {}
        self._taken: set[str] = set()
        for entry in sorted(path.iterdir()) if path.exists() else []:
            if not entry.is_dir():
                self._taken.add(entry.name)
            elif any(entry.iterdir()):
                self._taken.add(entry.name)
                self._look_at(entry)

    def _look_at(self, directory: Path) -> None:
        run = read_run(directory)
        if run is not None:
            self._runs[directory] = run
            return
        overrides = _overrides(_loaded(directory / SETTINGS))
        if overrides is not None:
            self._unfinished[directory] = overrides

    def runs(self) -> list[Run]:
        """All finished runs, by the numbers of their directories."""
        return sorted(self._runs.values(), key=lambda run: (_number(run.directory), run.directory.name))

    def find(self, overrides: Sequence[str]) -> Run | None:
        """The finished run of a job."""
        return next((run for run in self._runs.values() if _same_job(run.overrides, overrides)), None)

    def place(self, overrides: Sequence[str]) -> Path:
        """The directory for a job that is to run: its own from before, or the next free number."""
        for directory, started in self._unfinished.items():
            if _same_job(started, overrides):
                del self._unfinished[directory]
                return directory
        number = next(n for n in range(len(self._taken) + 1) if str(n) not in self._taken)
        self._taken.add(str(number))
        return self.path / str(number)

    def record(self, directory: Path) -> Run | None:
        """Take in what a job left; None if it did not finish."""
        run = read_run(directory)
        if run is not None:
            self._runs[directory] = run
        return run


def read_run(directory: Path) -> Run | None:
    """The finished run in a directory, or None."""
    result = _loaded(directory / RESULT)
    overrides = _overrides(result)
    if overrides is None or not isinstance(result.get("metrics"), dict):
        return None
    try:
        metrics = {name: float(value) for name, value in result["metrics"].items()}
    except (TypeError, ValueError):  # changed by hand
        return None
    return Run(directory, overrides, metrics)


def _loaded(path: Path) -> Any:
    """Content of a JSON or YAML file; None if there is none, or it was cut off while it was written."""
    try:
        text = path.read_text()
        return json.loads(text) if path.suffix == ".json" else yaml.load(text, _Loader)
    except (FileNotFoundError, UnicodeDecodeError, json.JSONDecodeError, yaml.YAMLError):
        return None


_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C where it was built: ten times as fast


def _overrides(content: Any) -> tuple[str, ...] | None:
    found = content.get("overrides") if isinstance(content, dict) else None
    return tuple(map(str, found)) if isinstance(found, list) else None


def _same_job(saved: Sequence[str], overrides: Sequence[str]) -> bool:
    """Whether saved overrides are those of a job, in any order."""
    if any(override.startswith("ckpt=") for override in overrides):
        saved = saved[-len(overrides) :]  # in front stand those of the checkpoint's run
    return len(saved) == len(overrides) and set(saved) == set(overrides)


def _number(directory: Path) -> float:
    return int(directory.name) if directory.name.isdecimal() else float("inf")


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Make a sweep's directory and keep other sweeps out of it; an empty one is removed in the end.

    Raises:
        ConfigError: another sweep is at work in it.
    """
    path.mkdir(parents=True, exist_ok=True)
    with (path / _LOCK).open("a+") as lock:
        try:
            if fcntl is not None:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise ConfigError(f"hydra.sweep.dir={path}: {lock.read()} is at work in it; wait for its end") from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        lock.flush()
        try:
            yield
        finally:
            if [file.name for file in path.iterdir()] == [_LOCK]:
                (path / _LOCK).unlink()
                path.rmdir()
