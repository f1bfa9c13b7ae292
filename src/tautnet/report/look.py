"""How all figures look, and how they become files or part of a page.

Colours are near those of Okabe and Ito, which colour-blind readers tell apart. A page gives them, and ink, by variables
of its own, so that a figure follows its light or dark scheme.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

import matplotlib as mpl
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

INK, MUTED, RULE, SHADE = "#1c2329", "#5b6670", "#d4dae0", "#edf1f4"
BLUE, ORANGE, GREEN, RED = "#0072b2", "#d98200", "#00835c", "#c84e00"
COLORS = (BLUE, ORANGE, GREEN, "#b0558a", RED, "#2f9bd0", "#7a6a00", "#4d4d4d")
_VARIABLES = {INK: "ink", MUTED: "muted", RULE: "rule", SHADE: "shade"} | {
    color: f"c{number}" for number, color in enumerate(COLORS)
}
_STYLE: Any = {
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 9,
    "axes.prop_cycle": cycler(color=COLORS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 9,
    "axes.titleweight": "normal",
    "axes.unicode_minus": True,
    "figure.facecolor": "none",
    "font.size": 9,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
    "path.simplify_threshold": 0.2,
    "svg.fonttype": "none",
    "svg.hashsalt": "tautnet",
    "text.color": INK,
    "text.parse_math": False,  # names of runs and layers may hold dollar signs
    "xtick.color": MUTED,
    "xtick.labelsize": 8,
    "ytick.color": MUTED,
    "ytick.labelsize": 8,
}
Item = TypeVar("Item")


@contextmanager
def style() -> Iterator[None]:
    """Draw and save in here."""
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*")  # a name in a script that the font lacks
        warnings.filterwarnings("ignore", message=".*constrained_layout not applied.*")
        yield


def panels(
    rows: int = 1, columns: int = 1, width: float = 4.0, height: float = 2.6, shared: bool = False
) -> tuple[Figure, list[Axes]]:
    """A figure and its axes, row by row.

    Args:
        rows: of panels.
        columns: of panels.
        width: of the figure in inches.
        height: likewise.
        shared: whether all panels have the same scales.
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False, sharex=shared, sharey=shared).flat)


def title(figure: Figure, text: str) -> None:
    """What a figure shows, above it; in a page its caption says so instead."""
    figure.suptitle(text, x=0.01, ha="left", fontsize=10, fontweight="bold")


def logarithmic(axes: Axes, name: Literal["x", "y"], lo: float, hi: float) -> None:
    """A logarithmic scale with plain numbers, for values from lo to hi, both positive."""
    axes.set(**{f"{name}scale": "log"})
    axis = axes.xaxis if name == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if hi < 100 * lo else (1.0,), numticks=8))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def legend_below(axes: Axes) -> None:
    """A legend under the axes, which covers nothing, in as many columns as have room."""
    handles, labels = axes.get_legend_handles_labels()
    if len(handles) > 1:  # a single line is named by the title
        columns = max(1, min(4, 52 // (max(map(len, labels)) + 5)))
        figure = axes.get_figure(root=True)
        assert figure is not None
        figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def sampled(items: Sequence[Item], most: int) -> list[Item]:
    """At most so many, evenly spread, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(n * (len(items) - 1) / (most - 1))] for n in range(most)]


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write ``<name>.png`` and ``<name>.svg`` into a folder, over those that are there.

    Args:
        figure: drawn in ``style``.
        folder: made when needed.
        name: of the files; what no file name can hold becomes ``_``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stem = re.sub(r"[^\w.=+-]", "_", name)[:100] or "_"
    files = [folder / f"{stem}.{kind}" for kind in ("png", "svg")]
    for file in files:
        part = file.with_name(f"{file.name}.part")
        metadata = {"Date": None} if file.suffix == ".svg" else None
        try:
            figure.savefig(part, format=file.suffix[1:], dpi=160, facecolor="white", metadata=metadata)
            part.replace(file)
            figure.set_layout_engine("none")  # what was laid out for the first file stays for the second
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    return files


def inline_svg(figure: Figure, key: str) -> str:
    """The figure without its title, as an ``<svg>`` element of a page that has the colours as variables.

    Args:
        figure: drawn in ``style``.
        key: sets its identifiers apart from those of the page's other figures; letters and digits.
    """
    buffer = io.StringIO()
    figure.suptitle("")
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'\b(id="|href="#|url\(#)', rf"\g<1>{key}-", text)
    text = re.sub(r'style="[^"]*"', lambda found: _with_variables(found.group()), text)
    text = re.sub(r'\b(d|x|y)="[^"]*"', lambda found: re.sub(r"(\.\d\d)\d+", r"\1", found.group()), text)
    return re.sub(r"\s*\n\s*", "\n", text).strip()


def _with_variables(attribute: str) -> str:
    for color, name in _VARIABLES.items():
        attribute = attribute.replace(color, f"var(--{name})")
    return re.sub(r"'DejaVu Sans'[^;\"]*", "var(--font)", attribute)
