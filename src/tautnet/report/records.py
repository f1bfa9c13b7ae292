"""A run's directory as a record: settings, final metrics, curves, certificates, as far as they are there."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from tautnet.errors import ConfigError
from tautnet.report.scalars import Curve, read_curves
from tautnet.run_directory import RESULT, SETTINGS

CERTIFICATES = Path("certificates", "certificates.json")
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class RunRecord:
    """What a run has left.

    Attributes:
        directory: of the run.
        settings: of ``config.yaml``; empty if there is none.
        result: of ``result.json``; empty for a run that is unfinished.
        metrics: the final ones, inf and NaN among them.
        certificates: of ``certificates.json``; empty if there are none.
        problems: a line on each file that cannot be read.
    """

    directory: Path
    settings: Mapping[str, Any]
    result: Mapping[str, Any]
    metrics: Mapping[str, float]
    certificates: Mapping[str, Any]
    problems: list[str]

    @cached_property
    def curves(self) -> dict[str, Curve]:
        """What was logged over time, read when it is first asked for."""
        curves, problems = read_curves(self.directory)
        self.problems.extend(problems)
        return curves

    @property
    def name(self) -> str:
        """Of the directory."""
        return self.directory.resolve().name

    @property
    def finished(self) -> bool:
        """Whether it came to its end."""
        return bool(self.result)

    @property
    def overrides(self) -> list[str]:
        """What was set on the command line."""
        found = self.result.get("overrides", self.settings.get("overrides", []))
        return [str(override) for override in found] if isinstance(found, list) else []

    @property
    def seed(self) -> Any:
        """Of the run; None if no file says it."""
        found = self.result.get("seed", self.settings.get("seed"))
        return found if isinstance(found, (int, str)) else None


def is_run(directory: Path) -> bool:
    """Whether a run has left its files in a directory."""
    return any((directory / name).is_file() for name in (SETTINGS, RESULT))


def read_record(directory: Path) -> RunRecord:
    """Read a run.

    Raises:
        ConfigError: no run is there.
    """
    if not directory.is_dir():
        raise ConfigError(f"{directory}: no such directory; a run's is accepted")
    if not is_run(directory):
        raise ConfigError(f"{directory}: not a run's directory, it has neither {SETTINGS} nor {RESULT}")
    problems: list[str] = []
    settings, result = (_loaded(directory / name, problems) for name in (SETTINGS, RESULT))
    metrics = _metrics(result.get("metrics", {}), directory, problems)
    certificates = _loaded(directory / CERTIFICATES, problems)
    return RunRecord(directory, settings, result, metrics, certificates, problems)


def read_records(paths: Iterable[Path]) -> list[RunRecord]:
    """The runs of paths, each a run's directory or one with runs in it, such as a sweep's; each run once.

    Raises:
        ConfigError: no run is there.
    """
    found: dict[Path, RunRecord] = {}
    for path in paths:
        places = [path] if not path.is_dir() or is_run(path) else runs_in(path)
        if not places:
            raise ConfigError(f"{path}: neither a run's directory nor one with runs in it")
        for place in places:
            found.setdefault(place.resolve(), read_record(place))
    return list(found.values())


def runs_in(directory: Path) -> list[Path]:
    """The runs in a sweep's directory, by number, then by name."""
    runs = [entry for entry in directory.iterdir() if entry.is_dir() and is_run(entry)]
    return sorted(runs, key=lambda run: (int(run.name) if run.name.isdecimal() else float("inf"), run.name))


def _loaded(path: Path, problems: list[str]) -> dict[str, Any]:
    """A mapping out of a JSON or YAML file; empty, with a line on it, if it is damaged."""
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else _yaml(text)
    except FileNotFoundError:
        return {}
    except (OSError, RecursionError, ValueError, yaml.YAMLError):
        content = None
    if not isinstance(content, dict):
        problems.append(f"{path}: damaged, or not a file of tautnet; left out")
        return {}
    return content


def _yaml(text: str) -> Any:
    """Without aliases, which no run writes, and by which few lines would become more than the memory holds."""
    if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, _Loader)):
        raise ValueError("aliases")
    return yaml.load(text, _Loader)


def _metrics(found: Any, directory: Path, problems: list[str]) -> dict[str, float]:
    try:
        return {str(name): float(value) for name, value in found.items()}
    except (AttributeError, TypeError, ValueError):
        problems.append(f"{directory / RESULT}: its metrics are not numbers; left out")
        return {}
