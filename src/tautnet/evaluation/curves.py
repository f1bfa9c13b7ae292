"""Certified and attacked accuracy as files and as a picture."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import isinf
from pathlib import Path

from matplotlib.figure import Figure

from tautnet.evaluation.certificates import Row
from tautnet.evaluation.writing import whole_file


def write_certificates(folder: Path, rows: Sequence[Row], radii: Mapping[str, Sequence[float]]) -> None:
    """Write ``certificates.csv``, ``.json`` (with the radius of every sample; null is without limit) and ``.png``.

    Args:
        folder: made when needed; files of these names in it are replaced.
        rows: at least one.
        radii: of each norm.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table, text, picture = [asdict(row) for row in rows], io.StringIO(newline=""), io.BytesIO()
    writer = csv.DictWriter(text, list(table[0]))
    writer.writeheader()
    writer.writerows(table)
    finite = {norm: [None if isinf(radius) else radius for radius in values] for norm, values in radii.items()}
    accuracy_figure(rows).savefig(picture, format="png", dpi=120)
    for suffix, content in (
        ("csv", text.getvalue().encode()),
        ("json", (json.dumps({"rows": table, "radii": finite}, indent=1) + "\n").encode()),
        ("png", picture.getvalue()),
    ):
        with whole_file(folder / f"certificates.{suffix}") as file:
            file.write(content)


def accuracy_figure(rows: Sequence[Row]) -> Figure:
    """Clean, attacked and certified share over eps, one panel for each norm."""
    norms = list(dict.fromkeys(row.norm for row in rows))
    figure = Figure(figsize=(4.2 * len(norms), 3.4), layout="constrained")
    for axes, norm in zip(figure.subplots(1, len(norms), squeeze=False)[0], norms, strict=True):
        points = [row for row in rows if row.norm == norm]
        epsilons = [0.0, *(row.eps for row in points)]
        axes.axhline(points[0].clean, color="0.6", linestyle=":", label="clean")
        for name, style in (("attacked", "s--"), ("certified", "o-")):
            axes.plot(epsilons, [points[0].clean, *(getattr(row, name) for row in points)], style, label=name)
        axes.set(title=norm, xlabel="eps, raw units", ylabel="accuracy", ylim=(-0.02, 1.02))
        axes.legend(fontsize=7)
        axes.grid(linewidth=0.3)
    return figure
