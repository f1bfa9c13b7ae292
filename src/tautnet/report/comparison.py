"""Variants side by side: means over their seeds, and how each differs from the first."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from statistics import stdev
from typing import Any

from tautnet.errors import ConfigError
from tautnet.logkeys import SUMMARY
from tautnet.report.records import RunRecord
from tautnet.report.significance import LEVEL, PairedDifference, paired_difference
from tautnet.report.variants import Variant, variants_of
from tautnet.spelling import suggest
from tautnet.sweeps.summary import spread

CAPTION = "mean ± standard deviation over seeds (n - 1 in its denominator)"


@dataclass(frozen=True)
class Comparison:
    """Variants, the metrics they are compared by, and the one that the others are held against.

    Attributes:
        variants: at least one, in order.
        metrics: names of final metrics that at least one run has.
        baseline: one of the variants.
        notes: what a reader has to know, a line each.
    """

    variants: tuple[Variant, ...]
    metrics: tuple[str, ...]
    baseline: Variant
    notes: tuple[str, ...]

    @property
    def columns(self) -> list[str]:
        """The settings in which the variants differ."""
        return list(self.baseline.settings)

    def values(self, variant: Variant, metric: str) -> list[float]:
        """One a seed."""
        return list(variant.by_seed(metric).values())

    def spread(self, variant: Variant, metric: str) -> str:
        """Mean ± standard deviation, with n where it is not the number of the variant's seeds."""
        return spread(self.values(variant, metric), form_of(metric))

    def difference(self, variant: Variant, metric: str) -> PairedDifference | None:
        """Variant minus baseline over the seeds of both; None without common seeds, or where a value is not finite."""
        own, base = variant.by_seed(metric), self.baseline.by_seed(metric)
        differences = [own[seed] - base[seed] for seed in own if seed in base]
        if variant is self.baseline or not differences or not all(map(isfinite, differences)):
            return None
        return paired_difference(differences)


def compare(runs: Sequence[RunRecord], metrics: Sequence[str] = (), baseline: str | None = None) -> Comparison:
    """Set finished runs against each other.

    Args:
        runs: in the order in which their variants are shown.
        metrics: names of final metrics; none: those of a run's summary, and the objective.
        baseline: ``key=value`` of the table, several with commas between, which one variant alone has; None: the first.

    Raises:
        ConfigError: no finished run, a metric that no run has, or no such variant.
    """
    finished = [run for run in runs if run.finished and run.metrics]
    notes = [f"{run.directory}: left out, not finished" for run in runs if not run.finished and not run.problems]
    notes += [problem for run in runs for problem in run.problems]
    if not finished:
        raise ConfigError(f"{', '.join(str(run.directory) for run in runs)}: no finished run among them")
    variants = variants_of(finished)
    chosen = _metrics(finished, metrics)
    first = variants[0] if baseline is None else _named(variants, baseline)
    comparison = Comparison(tuple(variants), tuple(chosen), first, ())
    notes += [*_about_the_data(variants), *_repeated(variants), *_about_the_seeds(comparison)]
    return Comparison(comparison.variants, comparison.metrics, first, tuple(notes))


def _metrics(runs: Sequence[RunRecord], asked: Sequence[str]) -> list[str]:
    there = {name for run in runs for name in run.metrics}
    for name in asked:
        if name not in there:
            raise ConfigError(f"--metric {name}: no run has it{suggest(name, there)}")
    objectives = [str(run.settings.get("objective")) for run in runs]
    return list(
        asked or dict.fromkeys(name for name in (*objectives, *(key for _, key, _ in SUMMARY)) if name in there)
    )


def _named(variants: Sequence[Variant], baseline: str) -> Variant:
    wanted = {key.strip(): value.strip() for key, _, value in (part.partition("=") for part in baseline.split(","))}
    found = [each for each in variants if wanted.items() <= each.settings.items()]
    if len(found) != 1:
        how_many = f"{len(found)} variants have it" if found else "no variant has it"
        labels = "; ".join(each.label for each in variants)
        raise ConfigError(f"--baseline {baseline}: {how_many}; accepted is what one alone has of {labels}")
    return found[0]


def _about_the_data(variants: Sequence[Variant]) -> list[str]:
    data = [each.runs[0].settings.get("data") for each in variants]
    targets = {each.get("_target_") for each in data if isinstance(each, dict)}
    return ["The runs are on different data: their numbers are not of the same kind."] if len(targets) > 1 else []


def _repeated(variants: Sequence[Variant]) -> list[str]:
    again = [each.label for each in variants if len({run.seed for run in each.runs}) < len(each.runs)]
    return [f"{label}: several runs with the same seed; the mean of those counts as one value" for label in again]


def _about_the_seeds(comparison: Comparison) -> list[str]:
    """Plainly whether the seeds can tell anything."""
    others = [each for each in comparison.variants if each is not comparison.baseline]
    pairs = [comparison.difference(each, metric) for each in others for metric in comparison.metrics]
    found = [pair for pair in pairs if pair is not None]
    if not others:
        return []
    if not found:
        return ["No seed is common to the variants: differences are not tested. Run all with the same seeds."]
    fewest = min(pair.n for pair in found)
    notes = []
    if any(pair.too_few for pair in found):
        least = max(pair.least_p for pair in found)
        notes.append(
            f"Too few seeds to tell: with {fewest} in common the test's p cannot be below {least:g}, however large the "
            "difference is. From 6 seeds on it can be below 0.05."
        )
    num_tested = sum(pair.n > 1 for pair in found)
    if num_tested > 1:
        notes.append(f"{num_tested} differences are tested; the p are not corrected for their number.")
    return notes


def form_of(metric: str) -> str:
    """How values of a metric are written."""
    forms = {name: form for _, name, form in SUMMARY}
    measure = metric.rpartition("/")[2]
    return forms.get(metric, forms.get(f"test/{measure}", "{:.4g}"))


def label_of(metric: str) -> str:
    """A metric in words, where there are words for it."""
    return next((words for words, name, _ in SUMMARY if name == metric), metric)


def interval(difference: PairedDifference) -> str:
    """The difference of several pairs with its 95 % interval."""
    assert difference.half_width is not None
    lo, hi = difference.mean - difference.half_width, difference.mean + difference.half_width
    return f"{difference.mean:+.4g} [{lo:+.4g}, {hi:+.4g}]"


def verdict(difference: PairedDifference) -> str:
    """The test's outcome in a word."""
    if difference.too_few:
        return "too few seeds"
    return f"clear, p ≤ {LEVEL:g}" if difference.clear else "not clear"


def mean_rows(comparison: Comparison) -> list[list[str]]:
    """The table of means: a heading, and a row a variant."""
    heading = [*comparison.columns, "seeds", *map(label_of, comparison.metrics)]
    if not comparison.columns:
        heading.insert(0, "run")
    rows = []
    for variant in comparison.variants:
        named = list(variant.settings.values()) or [variant.label]
        seeds = str(len({run.seed for run in variant.runs}))
        rows.append([*named, seeds, *(comparison.spread(variant, metric) for metric in comparison.metrics)])
    return [heading, *rows]


def difference_rows(comparison: Comparison) -> list[list[str]]:
    """The table of differences: a heading, and a row for each variant and metric that share several seeds; or none."""
    rows = []
    for variant in comparison.variants:
        for metric in comparison.metrics:
            found = comparison.difference(variant, metric)
            if found is not None and found.n > 1:
                numbers = [interval(found), f"{found.p:.3g}", str(found.n), verdict(found)]
                rows.append([variant.label, label_of(metric), *numbers])
    return [["variant", "metric", "difference [95 % interval]", "p", "n", ""], *rows] if rows else []


def as_markdown(comparison: Comparison) -> str:
    """Both tables and the notes."""
    parts = [f"{CAPTION[0].upper()}{CAPTION[1:]}.", _markdown_table(mean_rows(comparison))]
    if rows := difference_rows(comparison):
        parts += [f"Against {_cell(comparison.baseline.label)}, by seed; p: permutation test.", _markdown_table(rows)]
    parts += ["\n".join(f"* {_cell(note)}" for note in comparison.notes)] if comparison.notes else []
    return "\n\n".join(parts) + "\n"


def _markdown_table(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(map(_cell, row)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])


def _cell(text: str) -> str:
    """Text that stays text in Markdown."""
    for mark in ("\\", "|", "<", ">", "*", "_", "`", "[", "]"):
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())


def as_csv(comparison: Comparison) -> str:
    """A row for each variant and metric, the numbers in full."""
    numbers = ["n", "mean", "standard_deviation", "difference", "half_width_95", "p", "pairs"]
    rows: list[list[Any]] = [[*comparison.columns, "runs", "metric", *numbers]]
    for variant in comparison.variants:
        for metric in comparison.metrics:
            values, found = comparison.values(variant, metric), comparison.difference(variant, metric)
            deviation = stdev(values) if len(values) > 1 and all(map(isfinite, values)) else None
            center = [len(values), sum(values) / len(values) if values else None, deviation]
            tested = [found.mean, found.half_width, found.p, found.n] if found else [None] * 4
            names = " ".join(run.name for run in variant.runs)
            rows.append([*variant.settings.values(), names, metric, *center, *tested])
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
