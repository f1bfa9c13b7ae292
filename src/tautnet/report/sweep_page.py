"""The page of several runs: compared, then each by itself."""

from __future__ import annotations

from collections.abc import Sequence

from tautnet.report import figures, look
from tautnet.report.comparison import CAPTION, Comparison, difference_rows, mean_rows
from tautnet.report.comparison_figures import comparison_figures
from tautnet.report.html import Html, element, folded, page, section, table
from tautnet.report.records import RunRecord
from tautnet.report.run_page import colophon, drawn, made, noted, tiles

_MOST_DRAWN = 24  # runs with figures of their own
_MOST_ROWS = 25  # of differences that are not folded


def sweep_page(title: str, runs: Sequence[RunRecord], comparison: Comparison) -> str:
    """The page of a sweep.

    Args:
        title: its name.
        runs: all of them, unfinished ones too.
        comparison: of the finished ones.
    """
    with look.style():
        shown = drawn(comparison_figures(comparison))
        shared = set.intersection(*(set(run.overrides) for run in runs))
        each = [_run(number, run, shared) for number, run in enumerate(runs)]
    links = (element("a", run.name, href=f"#run-{number}") for number, run in enumerate(runs))
    how_many = f"{len(runs)} runs, {len(comparison.variants)} variants"
    return page(
        f"{title} – tautnet",
        element(
            "header", element("h1", title), element("p", f"Runs of tautnet side by side: {how_many}.", _class="muted")
        ),
        *noted(comparison.notes),
        section("Side by side", "means", _means(comparison), *_differences(comparison)),
        section("Pictures", "pictures", element("div", *shown.values(), _class="figures")),
        section("The runs", "runs", element("nav", *links, aria_label="runs"), *each),
        *colophon(),
    )


def _means(comparison: Comparison) -> Html:
    return table(mean_rows(comparison), f"{CAPTION[0].upper()}{CAPTION[1:]}", max(1, len(comparison.columns)))


def _differences(comparison: Comparison) -> list[Html]:
    rows = difference_rows(comparison)
    if not rows:
        return []
    caption = f"Minus {comparison.baseline.label}, by seed; p of the sign-flip permutation test"
    shown = table(rows, caption, 2)
    return [shown if len(rows) <= _MOST_ROWS else folded(f"{len(rows) - 1} differences and how sure they are", shown)]


def _run(number: int, run: RunRecord, shared: set[str]) -> Html:
    own = [override for override in run.overrides if override not in shared]
    summary = f"{run.name}: {', '.join(own) or 'settings as all'}"
    summary += "" if run.finished else " (not finished)"
    pictures: list[Html] = []
    if number < _MOST_DRAWN:
        named = [each for each in figures.of_curves(run) if each[0] in ("loss", *figures.MEASURES)]
        pictures = [element("div", *drawn(named, f"r{number}x").values(), _class="figures")]
    return element("div", folded(summary, tiles(run), *pictures, *made(run)), id=f"run-{number}")
