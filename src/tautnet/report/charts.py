"""Figures of numbers: over time, by layer, by variant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from statistics import mean, stdev
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tautnet.report.look import BLUE, COLORS, INK, MUTED, RED, legend_below, logarithmic, panels, sampled, title
from tautnet.report.scalars import Curve
from tautnet.sweeps.pareto import non_dominated

if TYPE_CHECKING:
    from tautnet.lipschitz import LayerBound  # torch

Named = tuple[str, str, Figure]  # file name, what it shows in a sentence, figure
_MANY = 8  # lines that colours tell apart
_MOST_BARS = 60
_MOST_NAMED = 12  # variants in a legend
_MOST_POINTS = 400


def over_time(curves: Mapping[str, Curve], what: str, unit: str, log: bool = False) -> Figure:
    """Lines over the updates.

    Args:
        curves: by their labels; of more than 8 some that are evenly spread.
        what: they are.
        unit: of the values, with the name of the axis.
        log: draw the values on a logarithmic scale, if all are positive and they differ much.
    """
    figure, (axes,) = panels()
    labels = sampled(list(curves), _MANY)
    for label in labels:
        steps, values = _thinned(curves[label])
        marker = "o" if len(steps) < 40 else None
        axes.plot(steps, values, marker=marker, markersize=3, label=label)
    left_out = len(curves) - len(labels)
    title(figure, what + f" ({len(labels)} of {len(curves)} layers)" * bool(left_out))
    _scale(axes, [value for curve in curves.values() for value in curve.values], log)
    _updates(axes, unit)
    legend_below(axes)
    return figure


def _thinned(curve: Curve) -> tuple[list[int], list[float]]:
    """Points enough for a figure; what is not finite is a gap."""
    points = sampled(list(zip(curve.steps, curve.values, strict=True)), _MOST_POINTS)
    return [step for step, _ in points], [value if isfinite(value) else float("nan") for _, value in points]


def _scale(axes: Axes, values: Sequence[float], log: bool) -> None:
    finite = [value for value in values if isfinite(value)]
    if log and finite and 0 < 4 * min(finite) < max(finite):
        logarithmic(axes, "y", min(finite), max(finite))
    elif finite and max(finite) - min(finite) < 1e-3 * abs(max(finite)):  # rounding is not worth a scale
        axes.set_ylim(*sorted((0.95 * max(finite), 1.05 * max(finite))))
    if not finite:
        axes.text(0.5, 0.5, "no finite value", transform=axes.transAxes, ha="center", color=MUTED)


def _updates(axes: Axes, unit: str) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlabel("update")
    axes.set_ylabel(unit)


def by_layer(layers: Sequence[LayerBound], total: float, p: float) -> Figure:
    """A bar for each layer that is not of constant 1, from 1 to the left or right; unbounded ones in red to the end."""
    shown = sampled([layer for layer in layers if layer.value != 1.0], _MOST_BARS)
    figure, (axes,) = panels(height=1.3 + 0.2 * max(3, len(shown)))
    finite = [layer.value for layer in shown if isfinite(layer.value) and layer.value > 0] + [1.0]
    lo, hi = min(finite) / 1.6, max(finite) * 1.6
    ends = [min(max(layer.value, lo), hi) for layer in shown]
    colors = [BLUE if isfinite(layer.value) else RED for layer in shown]
    axes.barh(range(len(shown)), [end - 1 for end in ends], left=1.0, color=colors, height=0.7)
    logarithmic(axes, "x", lo, hi)
    axes.set_xlim(lo, hi)
    for row, (layer, end) in enumerate(zip(shown, ends, strict=True)):
        text = f"{layer.value:.3g}" if isfinite(layer.value) else "no bound"
        axes.text(max(end, 1.0) * 1.02, row, text, va="center", fontsize=7, color=INK)
    axes.axvline(1.0, color=MUTED, linewidth=0.8)
    axes.set_yticks(range(len(shown)), [f"{layer.path}  {layer.kind}" for layer in shown], fontsize=7)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(f"Lipschitz constant, p = {p:g}")
    title(figure, f"By layer; bound of the whole: {total:.4g}")
    return figure


def certificates(rows: Sequence[Mapping[str, float | str]]) -> Figure:
    """Certified and attacked accuracy over the radius, a panel for each norm.

    Args:
        rows: with ``norm``, ``eps``, ``clean``, ``attacked``, ``certified``, as in ``certificates.json``.
    """
    norms = list(dict.fromkeys(str(row["norm"]) for row in rows))
    figure, found = panels(1, len(norms))
    for axes, norm in zip(found, norms, strict=True):
        points = [row for row in rows if row["norm"] == norm]
        clean = float(points[0]["clean"])
        epsilons = [0.0, *(float(row["eps"]) for row in points)]
        axes.axhline(clean, color=MUTED, linestyle=":", linewidth=1, label="clean")
        for name, line, color in (("attacked", "s--", COLORS[1]), ("certified", "o-", BLUE)):
            axes.plot(epsilons, [clean, *(float(row[name]) for row in points)], line, color=color, label=name)
        axes.set(xlabel="radius, raw units", ylim=(-0.03, 1.03), title={"l2": "ℓ2", "linf": "ℓ∞"}.get(norm, norm))
    title(figure, "Certified and attacked accuracy")
    found[0].set_ylabel("share of samples")
    legend_below(found[0])
    return figure


def bands(groups: Mapping[str, Sequence[Curve]], what: str, unit: str, log: bool = False) -> Figure:
    """For each variant the mean over its runs with a band of one standard deviation, at the steps that all runs have.

    Args:
        groups: curves of each variant; one without any keeps its colour for the other figures.
        what: they are.
        unit: of the values, with the name of the axis.
        log: as for ``over_time``.
    """
    figure, (axes,) = panels(height=2.5 + 0.17 * len(groups))
    seen: list[float] = []
    for number, (label, curves) in enumerate(groups.items()):
        rows = _common(curves)
        if not rows:
            continue
        steps, centers, color = [step for step, _ in rows], [mean(values) for _, values in rows], COLORS[number % _MANY]
        axes.plot(steps, centers, color=color, label=f"{label} (n = {len(curves)})")
        seen += centers
        if len(curves) > 1:
            widths = [stdev(values) for _, values in rows]
            lo, hi = ([c + sign * w for c, w in zip(centers, widths, strict=True)] for sign in (-1, 1))
            axes.fill_between(steps, lo, hi, color=color, alpha=0.2, linewidth=0)
            seen += lo
    title(figure, what)
    _scale(axes, seen, log)
    _updates(axes, unit)
    legend_below(axes)
    return figure


def _common(curves: Sequence[Curve]) -> list[tuple[int, list[float]]]:
    """The steps that all curves have, with the values of all, where those are finite."""
    found = [dict(zip(curve.steps, curve.values, strict=True)) for curve in curves]
    steps = sorted(set.intersection(*map(set, found))) if found else []
    rows = [(step, [values[step] for values in found]) for step in steps]
    return sampled([(step, values) for step, values in rows if all(map(isfinite, values))], _MOST_POINTS)


def by_variant(values: Mapping[str, Sequence[float]], what: str) -> Figure:
    """A point a seed for each variant that has any, and a bar at their mean; what is not finite is named at the edge.

    Args:
        values: of each variant; one without any keeps its colour for the other figures.
        what: they are.
    """
    rows = [(number, label, found) for number, (label, found) in enumerate(values.items()) if found]
    figure, (axes,) = panels(height=1.1 + 0.42 * max(2, len(rows)))
    for row, (number, label, found) in enumerate(rows):
        drawn = [value for value in found if isfinite(value)]
        axes.plot(drawn, [row] * len(drawn), "o", color=COLORS[number % _MANY], alpha=0.75, markersize=5)
        if drawn:
            axes.plot([mean(drawn)] * 2, [row - 0.2, row + 0.3], color=INK, linewidth=1.6)
        left_out = f"; {len(found) - len(drawn)} not finite" * (len(drawn) < len(found))
        axes.text(0.0, row - 0.28, label + left_out, transform=axes.get_yaxis_transform(), fontsize=8, color=MUTED)
    axes.set_yticks([])
    axes.set_ylim(len(rows) - 0.5, -0.65)
    finite = [value for found in values.values() for value in found if isfinite(value)]
    if finite and 0 < 30 * min(finite) < max(finite):
        logarithmic(axes, "x", min(finite), max(finite))
    axes.set_xlabel(f"{what}; the bar is the mean")
    title(figure, what)
    return figure


def trade_off(points: Mapping[str, Sequence[tuple[float, float]]], x: str, y: str) -> Figure:
    """A point a run, coloured by variant; the runs that no other beats in both are ringed.

    Args:
        points: for each variant (value to be small, value to be large), finite.
        x: what is to be small.
        y: what is to be large.
    """
    named = len(points) <= _MOST_NAMED
    figure, (axes,) = panels(height=2.6 + 0.17 * len(points) * named)
    every = [point for found in points.values() for point in found]
    front = non_dominated(every, ["minimize", "maximize"])
    best = sorted(point for point, is_best in zip(every, front, strict=True) if is_best)
    axes.plot([a for a, _ in best], [b for _, b in best], drawstyle="steps-post", color=MUTED, linewidth=1, zorder=1)
    axes.plot([a for a, _ in best], [b for _, b in best], "o", markersize=10, markerfacecolor="none", color=MUTED)
    for number, (label, found) in enumerate(points.items()):
        color, shape = COLORS[number % _MANY], "osD^vP"[number // _MANY % 6]
        if found:
            axes.plot(
                [a for a, _ in found],
                [b for _, b in found],
                shape,
                color=color,
                label=label if named else None,
                markersize=5,
            )
    values = [a for a, _ in every]
    if 0 < 10 * min(values) < max(values):
        logarithmic(axes, "x", min(values), max(values))
    axes.set(xlabel=f"{x} (smaller is better)", ylabel=f"{y} (larger is better)")
    title(figure, "Trade-off; ringed: no run is better in both")
    legend_below(axes)
    return figure
