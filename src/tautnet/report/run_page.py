"""The page of one run."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from math import isfinite

import yaml

from tautnet import logkeys
from tautnet.errors import ConfigError
from tautnet.report import curve_formulas, figures, look
from tautnet.report.charts import Named
from tautnet.report.html import Html, element, folded, joined, page, picture, section, table, unbroken
from tautnet.report.learned import Learned, activations_of, has_checkpoints, open_learned
from tautnet.report.look import sampled
from tautnet.report.records import RunRecord
from tautnet.splines import Formula

MOST_CURVES, MOST_LAYERS = 8, 8  # panels of an activation, and activations, on a page


def run_page(record: RunRecord, which: str = "last", allow: Sequence[str] = ()) -> str:
    """The page of a run, as far as its directory has what it takes.

    Args:
        record: of the run.
        which: the checkpoint whose weights are drawn.
        allow: packages or modules of the user that the settings may name.

    Raises:
        ConfigError: a checkpoint other than the last that cannot be used.
    """
    notes: list[str] = [] if record.finished else ["This run has not finished: there are no final numbers yet."]
    learned = _opened(record, which, allow, notes)
    with look.style():
        shown = _figures(record, learned)
    parts = [
        section("What it has learned", "learned", *_learned(learned, shown)) if learned is not None else None,
        _of("Over time", "time", [shown[name] for name in shown if name not in _PLACED]),
        _of("Lipschitz constant", "lipschitz", _lipschitz(record, learned, shown)),
        _certificates(record, shown),
        section("Numbers", "numbers", _numbers(record)) if record.metrics else None,
        section("How it was made", "made", *made(record)),
    ]
    notes += [*(learned.notes if learned is not None else ()), *record.problems]
    body = [part for part in parts if part is not None]
    return page(f"{record.name} – tautnet", *_top(record), *noted(notes), _contents(body), *body, *colophon())


_PLACED = {"spectra", "lipschitz_layers", "lipschitz_layers_over_time", "lipschitz_p2", "certificates"}
_IN_LIPSCHITZ = ("lipschitz_p2", "lipschitz_layers", "lipschitz_layers_over_time")


def _opened(record: RunRecord, which: str, allow: Sequence[str], notes: list[str]) -> Learned | None:
    if which == "last" and not has_checkpoints(record.directory):
        notes.append("The weights are not shown: there is no checkpoint.")
        return None
    try:
        return open_learned(record.directory, which, allow)
    except ConfigError as error:
        if which != "last":  # asked for by name
            raise
        notes.append(f"The weights are not shown: {error}")
        return None


def _figures(record: RunRecord, learned: Learned | None) -> dict[str, Html]:
    of_weights = () if learned is None else figures.of_weights(learned, MOST_CURVES, MOST_LAYERS)
    return drawn((*of_weights, *figures.of_curves(record), *figures.of_certificates(record)))


def drawn(named: Iterable[Named], key: str = "f") -> dict[str, Html]:
    """Figures as elements of a page, by name."""
    return {
        name: picture(look.inline_svg(figure, f"{key}{number}"), what)
        for number, (name, what, figure) in enumerate(named)
    }


def _of(title: str, anchor: str, shown: Sequence[Html]) -> Html | None:
    """A section of figures and what follows them; None without any."""
    if not shown:
        return None
    pictures = [each for each in shown if each.startswith("<figure")]
    others = [each for each in shown if not each.startswith("<figure")]
    return section(title, anchor, element("div", *pictures, _class="figures"), *others)


def _top(record: RunRecord) -> list[Html]:
    seed = f"seed {record.seed}; " * (record.seed is not None)
    sentence = f"A run of tautnet; {seed}{', '.join(record.overrides) or 'default settings'}."
    return [element("header", element("h1", record.name), element("p", sentence, _class="muted")), tiles(record)]


def tiles(record: RunRecord) -> Html:
    """The headline numbers."""
    found = [
        (words, form.format(record.metrics[name])) for words, name, form in logkeys.SUMMARY if name in record.metrics
    ]
    objective = str(record.settings.get("objective"))
    if objective in record.metrics:
        found.insert(1, (objective, f"{record.metrics[objective]:.4f}"))
    boxes = (element("div", element("dt", unbroken(words)), element("dd", value)) for words, value in found)
    return element("dl", *boxes, _class="tiles") if found else joined(())


def noted(notes: Sequence[str]) -> list[Html]:
    """What a reader has to know, in front of all else."""
    return [element("ul", *(element("li", note) for note in notes), _class="notes")] if notes else []


def _contents(parts: Sequence[Html]) -> Html:
    links = []
    for part in parts:
        anchor = part.partition('id="')[2].partition('"')[0]
        title = part.partition("<h2>")[2].partition("</h2>")[0]
        links.append(element("a", Html(title), href=f"#{anchor}"))
    return element("nav", *links, aria_label="contents")


def _learned(learned: Learned, shown: dict[str, Html]) -> list[Html]:
    activations = activations_of(learned.after.model.net)
    pictures = [shown.pop(name) for name in [*shown] if name.startswith("activation_")]
    pictures += [shown.pop(name) for name in ["spectra"] if name in shown]
    which = learned.after.checkpoint.name
    sentence = f"Weights of {which}, after {learned.after.epochs} epochs and {learned.after.step} updates."
    if not activations:
        sentence += " No activation is learned."
    elif len(activations) > MOST_LAYERS:
        sentence += f" {MOST_LAYERS} of {len(activations)} learned activations; tautnet plot draws more."
    formulas = curve_formulas.found(
        learned, curve_formulas.TOLERANCE, sampled([*activations], MOST_LAYERS), MOST_CURVES
    )
    return [element("p", sentence), element("div", *pictures, _class="figures"), *_formulas(formulas)]


def _formulas(found: Mapping[str, Mapping[int, Formula]]) -> list[Html]:
    fitting, count = curve_formulas.count(found)
    if not count:
        return []
    caption = f"The curves that are drawn, to a relative error of {curve_formulas.TOLERANCE:g}; tautnet plot writes all"
    rows = [cells[:-1] for cells in curve_formulas.rows(found)]
    return [folded(f"Formulas of {fitting} of {count} curves", table(rows, caption, 4))]


def _lipschitz(record: RunRecord, learned: Learned | None, shown: dict[str, Html]) -> list[Html]:
    parts = [shown[name] for name in _IN_LIPSCHITZ if name in shown]
    if learned is not None:
        report = figures.bound_of(learned)
        rows = [[layer.path, layer.kind, f"{layer.value:.6g}", layer.reason] for layer in report.layers]
        caption = f"Guaranteed for every input: {report.total:.6g}, p = {report.p:g}"
        parts.append(folded(f"All {len(rows)} layers", table([["layer", "kind", "constant", ""], *rows], caption, 2)))
    return parts


def _certificates(record: RunRecord, shown: dict[str, Html]) -> Html | None:
    rows = figures.certificate_rows(record)
    if not rows:
        return None
    shares = [
        [str(row["norm"]), *(f"{row[key]:.4g}" for key in ("eps", "clean", "attacked", "certified"))] for row in rows
    ]
    caption = "Share of the samples that are right: clean, under attack, and provably within the radius"
    heading = ["norm", "radius, raw units", "clean", "attacked", "certified"]
    return _of("Certificates", "certificates", [shown["certificates"], table([heading, *shares], caption)])


def _numbers(record: RunRecord) -> Html:
    rows = [[name, f"{value:.6g}" if isfinite(value) else str(value)] for name, value in sorted(record.metrics.items())]
    return folded(f"All {len(rows)} final numbers", table([["name", "value"], *rows]))


def made(record: RunRecord) -> list[Html]:
    """Command, settings, versions."""
    parts: list[Html] = []
    if record.overrides or record.settings:
        command = " ".join(["python train.py", *map(shlex.quote, record.overrides)])
        parts += [element("h3", "The command again"), element("pre", element("code", command), _class="command")]
    if record.overrides:
        rows = [[key, value] for key, _, value in (override.partition("=") for override in record.overrides)]
        parts.append(table([["setting", "value"], *rows], "What differs from the defaults", 2))
    if record.settings:
        text = yaml.safe_dump(dict(record.settings), sort_keys=False, allow_unicode=True)
        parts.append(folded("All settings", element("pre", element("code", text))))
    versions = record.result.get("versions")
    rows = [[str(name), str(version)] for name, version in versions.items()] if isinstance(versions, dict) else []
    if (commit := record.result.get("git")) is not None:
        rows.append(["commit (+: with changes)", str(commit)])
    if rows:
        parts.append(folded("Versions", table([["what", "version"], *rows], "", 2)))
    return parts


def colophon() -> list[Html]:
    """When the page was written, and by what."""
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return [element("footer", element("p", f"Written by tautnet report, {now}.", _class="muted"))]
