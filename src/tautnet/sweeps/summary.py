"""What a sweep ends with: ``sweep.csv``, a table of means over the seeds on the terminal, ``pareto.png``."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from math import isfinite, isnan
from pathlib import Path
from statistics import mean, stdev

from rich.console import Console
from rich.table import Table

from tautnet.logkeys import SUMMARY
from tautnet.sweeps.folder import Run, SweepFolder

_ROWS = 50  # of the printed table; sweep.csv has all


def summarise(folder: SweepFolder, objectives: Mapping[str, str]) -> None:
    """Write and print what is known of all finished runs of a sweep's directory.

    Args:
        folder: with the runs.
        objectives: final metrics with ``maximize`` or ``minimize``; the first orders the table.
    """
    runs = folder.runs()
    if not runs:
        return
    write_csv(runs, folder.path / "sweep.csv")
    console = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)  # callbacks=[ema] is no mark-up
    if not console.is_terminal:  # a file has no width
        console.width = 1000
    console.print(printed(runs, objectives))
    drawn = False
    if len(runs) > 1:
        from tautnet.sweeps.pareto import plot  # imports matplotlib

        drawn = plot(runs, objectives, folder.path / "pareto.png")
    console.print(f"{len(runs)} runs in {folder.path / 'sweep.csv'}{', plot in pareto.png' * drawn}")


def changed(runs: Sequence[Run]) -> list[dict[str, str]]:
    """The overrides of each run, those that all runs share left out; an override that a run lacks is empty."""
    named = [{key.lstrip("+"): value for key, _, value in map(_split, run.overrides)} for run in runs]
    keys = list(dict.fromkeys(key for overrides in named for key in overrides))
    keys = [key for key in keys if len({overrides.get(key) for overrides in named}) > 1]
    return [{key: overrides.get(key, "") for key in keys} for overrides in named]


def _split(override: str) -> tuple[str, str, str]:
    return override.partition("=")


def write_csv(runs: Sequence[Run], path: Path) -> None:
    """A row a run: its directory, the overrides in which the runs differ, all final metrics."""
    settings = changed(runs)
    metrics = sorted({name for run in runs for name in run.metrics})
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["directory", *settings[0], *metrics])
        for run, row in zip(runs, settings, strict=True):
            writer.writerow([run.directory.name, *row.values(), *(run.metrics.get(name, "") for name in metrics)])


def printed(runs: Sequence[Run], objectives: Mapping[str, str]) -> Table:
    """A row for each set of runs that differ in the seed alone, the best first."""
    groups: dict[tuple[tuple[str, str], ...], list[Run]] = {}
    for run, row in zip(runs, changed(runs), strict=True):
        groups.setdefault(tuple((key, value) for key, value in row.items() if key != "seed"), []).append(run)
    objective, direction = next(iter(objectives.items()))
    columns = [(name, name, "{:.4g}") for name in objectives if name not in {key for _, key, _ in SUMMARY}]
    columns = [column for column in [*columns, *SUMMARY] if any(column[1] in run.metrics for run in runs)]
    table = Table(title=f"mean ± standard deviation over seeds; by {objective}, the best first")
    for heading in [*(key for key, _ in next(iter(groups))), "runs", *(label for label, _, _ in columns)]:
        table.add_column(heading, overflow="fold")
    ordered = sorted(groups.items(), key=lambda group: _rank(group[1], objective, direction))
    for key, group in ordered[:_ROWS]:
        cells = [spread([run.metrics[name] for run in group if name in run.metrics], form) for _, name, form in columns]
        table.add_row(*(value for _, value in key), str(len(group)), *cells)
    if len(ordered) > _ROWS:
        table.caption = f"{len(ordered) - _ROWS} more in sweep.csv"
    return table


def _rank(group: Sequence[Run], objective: str, direction: str) -> float:
    values = [run.metrics[objective] for run in group if objective in run.metrics]
    if not values or any(map(isnan, values)):
        return float("inf")
    return -mean(values) if direction == "maximize" else mean(values)


def spread(values: Sequence[float], form: str) -> str:
    """Mean ± standard deviation (with n - 1), as far as there is one."""
    if not values:
        return "–"
    if len(values) == 1 or not all(map(isfinite, values)):
        return form.format(sum(values) / len(values))
    return f"{form.format(mean(values))} ± {form.format(stdev(values))}"
