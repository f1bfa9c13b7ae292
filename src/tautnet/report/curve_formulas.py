"""Formulas of a run's learned activations, as a table."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from tautnet.report.learned import Learned, activations_of
from tautnet.report.look import sampled
from tautnet.report.writing import write
from tautnet.splines import Formula, formulas
from tautnet.splines.curves import num_curves

FILE = "formulas.csv"
TOLERANCE = 0.01
_FITS = {"exact": "exact", "within": "within tolerance", "nearest": "none; nearest"}


def found(
    learned: Learned, tolerance: float, paths: Sequence[str] | None = None, most: int | None = None
) -> dict[str, dict[int, Formula]]:
    """Formulas by layer and by number of the curve; a layer that is not finite is left out, with a note.

    Args:
        learned: of the run.
        tolerance: as in ``formulas``.
        paths: of the activations; None for all learned ones.
        most: curves of a layer; of more some that are evenly spread. None for all.
    """
    activations, result = activations_of(learned.tested), {}
    for path in activations if paths is None else paths:
        count = num_curves(activations[path])
        chosen = sampled(range(count), count if most is None else most)
        lo, hi = learned.visited.get(path, (0.0, 0.0))
        ends = (lo, hi) if lo < hi else (None, None)
        try:
            formulas_ = formulas(activations[path], ends[0], ends[1], tolerance, curves=chosen)
        except ValueError as error:
            learned.notes.append(f"No formulas of {path or 'the network'}: {error}.")
            continue
        result[path] = dict(zip(chosen, formulas_, strict=True))
    return result


def rows(formulas_: Mapping[str, Mapping[int, Formula]]) -> list[list[str]]:
    """A table, its heading first: which curve, the formula, how well it fits, and on which inputs."""
    table = [["layer", "curve", "formula", "fit", "relative error", "from", "to", "function"]]
    for path, of_layer in formulas_.items():
        for curve, f in of_layer.items():
            numbers = (f"{f.error:.3g}", f"{f.lo:.4g}", f"{f.hi:.4g}")
            table.append([path, str(curve), f.expression, _FITS[f.kind], *numbers, f.name])
    return table


def count(formulas_: Mapping[str, Mapping[int, Formula]]) -> tuple[int, int]:
    """How many curves have a formula that fits, and how many there are."""
    kinds = [formula.kind for of_layer in formulas_.values() for formula in of_layer.values()]
    return len(kinds) - kinds.count("nearest"), len(kinds)


def write_formulas(learned: Learned, folder: Path, tolerance: float = TOLERANCE) -> str:
    """Write the formulas of all curves as CSV, and say in a line what came out; empty without any.

    Args:
        learned: of the run.
        folder: of the file, made when needed; a file of the same name is replaced.
        tolerance: as in ``formulas``.
    """
    formulas_ = found(learned, tolerance)
    if not formulas_:
        return ""
    folder.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows(formulas_))
    write(text.getvalue(), folder / FILE)
    fitting, all_ = count(formulas_)
    return f"{FILE}: formulas of {fitting} of {all_} learned curves, to a relative error of {tolerance:g}"
