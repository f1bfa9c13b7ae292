"""Runs that differ in the seed alone, as variants, and the settings in which the variants differ."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tautnet.report.records import RunRecord

DEFAULT = "(default)"
ABSENT = "–"
# They change no result: where a run lies, what it logs, and what the terminal shows.
_WITHOUT_EFFECT = (
    *("seed", "run_dir", "overrides", "resume", "allow", "logger", "hydra", "objective", "debug"),
    *("trainer.enable_progress_bar", "trainer.enable_model_summary", "trainer.progress", "trainer.log_every_n_steps"),
)


@dataclass(frozen=True)
class Variant:
    """Runs that differ in the seed alone.

    Attributes:
        settings: those in which the variants differ, by column.
        runs: in the order they were given in.
    """

    settings: Mapping[str, str]
    runs: tuple[RunRecord, ...]

    @property
    def label(self) -> str:
        """The settings in a line, without those that nobody has set."""
        named = [f"{key}={value}" for key, value in self.settings.items() if value not in (DEFAULT, ABSENT)]
        return ", ".join(named) or ("default settings" if self.settings else self.runs[0].name)

    def by_seed(self, metric: str) -> dict[Any, float]:
        """Final values of a metric; the mean of runs that share a seed."""
        values: dict[Any, list[float]] = {}
        for run in self.runs:
            if metric in run.metrics:
                values.setdefault(run.seed, []).append(run.metrics[metric])
        return {seed: sum(found) / len(found) for seed, found in values.items()}


def variants_of(runs: Sequence[RunRecord]) -> list[Variant]:
    """Group runs by their settings without the seed, in the order of their first runs.

    Columns are the overrides in which the runs differ, if those tell the groups apart; else the settings themselves.
    """
    flat = _settings_of(runs)
    groups: dict[str, list[int]] = {}
    for index, settings in enumerate(flat):
        groups.setdefault(json.dumps(settings, sort_keys=True, default=str), []).append(index)
    firsts = [indices[0] for indices in groups.values()]
    overrides = [_overrides_of(run) for run in runs]
    by_overrides = {tuple(sorted(overrides[index].items())) for index in firsts}
    alike = all(overrides[index] == overrides[indices[0]] for indices in groups.values() for index in indices)
    if alike and len(by_overrides) == len(groups):
        rows = _differing([overrides[first] for first in firsts], DEFAULT)
    else:
        rows = _by_settings([flat[first] for first in firsts])
    return [
        Variant(row, tuple(runs[index] for index in indices))
        for row, indices in zip(rows, groups.values(), strict=True)
    ]


def flat_settings(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted keys; an empty mapping or list is a value."""
    if not isinstance(settings, dict) or not settings:
        return {prefix: settings}
    parts = (flat_settings(value, f"{prefix}.{key}" if prefix else str(key)) for key, value in settings.items())
    return {key: value for part in parts for key, value in part.items()}


def _settings_of(runs: Iterable[RunRecord]) -> list[dict[str, str]]:
    """Flat settings as text, without what has no effect and without the seeds that follow the run's."""
    runs = list(runs)
    flat = [flat_settings(dict(run.settings)) for run in runs]
    ends = [key for key in {key for settings in flat for key in settings} if key.endswith(".seed")]
    pairs = list(zip(flat, runs, strict=True))
    following = {key for key in ends if all(settings.get(key, run.seed) == run.seed for settings, run in pairs)}
    return [
        {
            key: str(value).replace(str(run.settings.get("run_dir")), "<run>")
            for key, value in settings.items()
            if _has_effect(key) and key not in following
        }
        for settings, run in pairs
    ]


def _has_effect(key: str) -> bool:
    return not any(key == name or key.startswith((f"{name}.", f"{name}/")) for name in _WITHOUT_EFFECT)


def _overrides_of(run: RunRecord) -> dict[str, str]:
    named = (override.partition("=") for override in run.overrides)
    found = {key.lstrip("+"): value for key, _, value in named}
    return {key: value for key, value in found.items() if _has_effect(key)}


def _by_settings(flat: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """The settings that tell variants apart, in few words where those do."""
    rows = _without_implied(_differing(_collapsed(flat), ABSENT))
    if len({tuple(row.values()) for row in rows}) < len(rows):
        rows = _without_implied(_differing(flat, ABSENT))
    return rows


def _differing(rows: Sequence[Mapping[str, str]], absent: str) -> list[dict[str, str]]:
    keys = list(dict.fromkeys(key for row in rows for key in row))
    shown = [key for key in keys if len({row.get(key) for row in rows}) > 1]
    return [{key: row.get(key, absent) for key in shown} for row in rows]


def _collapsed(rows: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """Settings with one entry for a part that some rows lack altogether; targets by their last names."""
    common = set.intersection(*(set(row) for row in rows))
    nodes = {head for key in common for head in _heads(key)}
    collapsed = []
    for row in rows:
        columns = {key: next((head for head in _heads(key) if head not in nodes), key) for key in row}
        kept = (column for key, column in columns.items() if key in common or not _is_argument(column, common))
        collapsed.append({column.removesuffix("._target_"): _value(row, column) for column in kept})
    return collapsed


def _heads(key: str) -> list[str]:
    """``a``, ``a.b`` and ``a.b.c`` of ``a.b.c``."""
    parts = key.split(".")
    return [".".join(parts[: n + 1]) for n in range(len(parts))]


def _is_argument(column: str, common: set[str]) -> bool:
    """Whether a target that all rows name brings it with it."""
    return f"{column.rpartition('.')[0]}._target_" in common


def _value(row: Mapping[str, str], column: str) -> str:
    if column in row:
        return row[column].rpartition(".")[2] if column.endswith("._target_") else row[column]
    if (target := row.get(f"{column}._target_")) is not None:
        return target.rpartition(".")[2]
    below = (key.removeprefix(f"{column}.") for key in row if key.startswith(f"{column}."))
    return ", ".join(dict.fromkeys(key.partition(".")[0] for key in below))


def _without_implied(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Without columns that say nothing beyond one before them."""
    kept: list[str] = []
    for key in rows[0]:
        if not any(len({(row[old], row[key]) for row in rows}) == len({row[old] for row in rows}) for old in kept):
            kept.append(key)
    return [{key: row[key] for key in kept} for row in rows]
