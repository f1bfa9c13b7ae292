"""The figures of a comparison, each by a name."""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite

from tautnet import logkeys
from tautnet.report import charts, look
from tautnet.report.charts import Named
from tautnet.report.comparison import Comparison, label_of

_MOST_VARIANTS = 8  # whose curves colours tell apart
_MOST_ROWS = 24


def comparison_figures(comparison: Comparison) -> Iterator[Named]:
    """Curves with bands, points by seed, and what was traded for what."""
    variants = look.sampled(comparison.variants, _MOST_VARIANTS)
    objective = str(comparison.baseline.runs[0].settings.get("objective"))
    names = dict.fromkeys((objective, logkeys.loss("train"), *comparison.metrics, logkeys.LIPSCHITZ_BOUND))
    for name in names:
        curves = {each.label: [run.curves[name] for run in each.runs if name in run.curves] for each in variants}
        if any(len(curve.steps) > 1 for found in curves.values() for curve in found):
            words = label_of(name)
            what = f"{words} over the updates: mean of the runs, band of one standard deviation"
            yield f"curve_{name}", what, charts.bands(curves, words, words, log=name != objective)
    rows = look.sampled(comparison.variants, _MOST_ROWS)
    left_out = f" ({len(rows)} of {len(comparison.variants)} variants)" * (len(rows) < len(comparison.variants))
    for metric in comparison.metrics:
        values = {each.label: comparison.values(each, metric) for each in rows}
        words = label_of(metric)
        yield f"seeds_{metric}", f"{words} by variant, a point a seed{left_out}", charts.by_variant(values, words)
    yield from _trade_off(comparison, objective)


def _trade_off(comparison: Comparison, objective: str) -> Iterator[Named]:
    tested = next((key for _, key, _ in logkeys.SUMMARY[:3] if key in comparison.baseline.runs[0].metrics), objective)
    points = {}
    for variant in comparison.variants:
        pairs = [(run.metrics.get(logkeys.LIPSCHITZ_BOUND), run.metrics.get(tested)) for run in variant.runs]
        found = [(x, y) for x, y in pairs if x is not None and y is not None and isfinite(x) and isfinite(y)]
        points[variant.label] = found
    if any(points.values()):
        figure = charts.trade_off(points, label_of(logkeys.LIPSCHITZ_BOUND), label_of(tested))
        yield "trade_off", f"{label_of(tested)} against the Lipschitz bound, a point a run", figure
