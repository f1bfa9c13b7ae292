"""The plot of what a sweep traded for what: its objective against each of the others, the non-dominated runs marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tautnet.sweeps.folder import Run


def non_dominated(points: Sequence[Sequence[float]], directions: Sequence[str]) -> list[bool]:
    """For each point whether no other is at least as good in everything and better in something.

    Args:
        points: a value for each direction.
        directions: ``maximize`` or ``minimize``.
    """
    signs = [-1.0 if direction == "maximize" else 1.0 for direction in directions]
    costs = [[sign * value for sign, value in zip(signs, point, strict=True)] for point in points]
    return [not any(_dominates(other, cost) for other in costs) for cost in costs]


def _dominates(a: Sequence[float], b: Sequence[float]) -> bool:
    return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))


def plot(runs: Sequence[Run], objectives: Mapping[str, str], path: Path) -> bool:
    """Draw the first objective against each of the others that runs have; False if there is nothing to draw."""
    first, *others = objectives
    measured = [name for name in others if any(name in run.metrics for run in runs if first in run.metrics)]
    if not measured:
        return False
    figure = Figure(figsize=(5.5 * len(measured), 4.5), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(measured), squeeze=False)[0], measured, strict=True):
        _panel(axes, [run for run in runs if {first, name} <= run.metrics.keys()], first, name, objectives)
    figure.savefig(path, dpi=120)
    return True


def _panel(axes: Axes, runs: Sequence[Run], first: str, name: str, objectives: Mapping[str, str]) -> None:
    shown = [run for run in runs if isfinite(run.metrics[first]) and isfinite(run.metrics[name])]
    points = [(run.metrics[name], run.metrics[first]) for run in shown]
    front = non_dominated(points, [objectives[name], objectives[first]])
    best = sorted(point for point, is_best in zip(points, front, strict=True) if is_best)
    axes.scatter([x for x, _ in points], [y for _, y in points], color="0.6")
    axes.plot(
        [x for x, _ in best], [y for _, y in best], "o-", drawstyle="steps-post", color="C0", label="not dominated"
    )
    for run, (x, y), is_best in zip(shown, points, front, strict=True):
        if is_best:
            axes.annotate(run.directory.name, (x, y), textcoords="offset points", xytext=(4, 4), fontsize=8)
    if points and 0 < 10 * min(points)[0] < max(points)[0]:
        axes.set_xscale("log")
    left_out = len(runs) - len(shown)
    axes.set_xlabel(f"{name} ({objectives[name]})" + f"; {left_out} not finite, left out" * bool(left_out))
    axes.set_ylabel(f"{first} ({objectives[first]})")
    axes.legend()
