"""Learned splines as files and as plain torch operations."""

from __future__ import annotations

import copy
import json
import os
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any

import numpy as np
import torch
from torch import nn

from tautnet.activations.linear_spline import LinearSpline
from tautnet.activations.relu_sum import ReluSum
from tautnet.factories import may_be_changed_by_hooks
from tautnet.splines.tables import Curve, SplineTable, curve_table, curve_tables

FORMAT, VERSION = "tautnet splines", 1
_ONE_A_CURVE = ("value_at_0", "error")
_UNREADABLE = (
    *(OSError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error, TokenError),  # not what was written
    *(ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError),  # something else in it
)
_TEXTS = ("name", "formula", "formula_error")  # and what may be missing
_SEVERAL_A_CURVE = ("knots", "values", "slopes")


def to_relu_sum(spline: LinearSpline, tolerance: float | None = None) -> ReluSum:
    """The same function in plain torch operations, knots without a slope change left out.

    What is dropped, and by how much the function changes, says ``curve_table``. The slopes are none steeper than the
    spline's, so neither is the Lipschitz bound.

    Args:
        spline: of any sharing mode; the result has its device, training flag and dtype, but float32 at least.
        tolerance: slope change that is dropped, at least 0; None drops what rounding can cause.

    Raises:
        ValueError: a spline with hooks, which the result would not have, or as ``curve_table``.
    """
    if may_be_changed_by_hooks(spline) or spline._backward_hooks or spline._backward_pre_hooks:
        raise ValueError("spline=LinearSpline with hooks: one without, the result would not have them")
    dtype = torch.promote_types(spline.coefficients.dtype, torch.float32)
    result = curve_table(spline, tolerance).relu_sum(dtype).to(spline.coefficients.device)
    return result.train(spline.training)


def to_plain(net: nn.Module, tolerance: float | None = None) -> nn.Module:
    """A deep copy of a network with every ``LinearSpline`` replaced by its ``to_relu_sum``.

    A spline that is used at several places stays one module. Everything else, hooks included, is copied as it is.

    Args:
        net: a network, or a spline; it is not changed.
        tolerance: slope change that is dropped, at least 0; None drops what rounding can cause.

    Raises:
        ValueError: no ``LinearSpline`` in ``net``, or as ``to_relu_sum``.
    """
    if isinstance(net, LinearSpline):
        return to_relu_sum(net, tolerance)
    plain = copy.deepcopy(net)
    places = [(path, m) for path, m in plain.named_modules(remove_duplicate=False) if isinstance(m, LinearSpline)]
    if not places:
        raise ValueError(f"net={type(net).__name__}: a network with a LinearSpline")
    replacements = {spline: to_relu_sum(spline, tolerance) for spline in dict.fromkeys(m for _, m in places)}
    for path, spline in places:
        plain.set_submodule(path, replacements[spline])
    return plain


def save_json(
    net: nn.Module,
    path: str | Path,
    tolerance: float | None = None,
    name_tolerance: float = 1e-3,
    formula_tolerance: float | None = 0.01,
) -> None:
    """Write the curves of every ``LinearSpline`` as JSON.

    ``{"format", "version", "layers": {path: {"num_channels", "sharing", "spatial_shape", "grid_range", "curves":
    [{"name", "knots", "values", "slopes", "value_at_0", "error", "formula", "formula_error"}]}}}``, explained at
    ``SplineTable`` and ``Curve``; the numbers are exact. The file is there as a whole or not at all.

    Args:
        net: a network, or a spline, whose path is empty.
        path: of the file; its folder is made when needed.
        tolerance: as in ``curve_table``.
        name_tolerance: as in ``curve_table``.
        formula_tolerance: as in ``curve_table``.

    Raises:
        ValueError: as ``curve_tables``.
    """
    text = (
        json.dumps(
            _document(curve_tables(net, tolerance, name_tolerance, formula_tolerance)), indent=1, allow_nan=False
        )
        + "\n"
    )
    _write(Path(path), lambda file: file.write(text.encode()))


def save_npz(
    net: nn.Module,
    path: str | Path,
    tolerance: float | None = None,
    name_tolerance: float = 1e-3,
    formula_tolerance: float | None = 0.01,
) -> None:
    """Write the curves of every ``LinearSpline`` as a NumPy archive without pickled objects.

    ``header`` is the text of ``save_json`` with names and formulas alone of the curves. The numbers are arrays over all
    curves of all layers in the header's order: ``offsets`` (curves + 1,), with the knots of curve i at
    ``knots[offsets[i] : offsets[i + 1]]``, ``values`` likewise, its slopes at
    ``slopes[offsets[i] + i : offsets[i + 1] + i + 1]``; ``value_at_0`` and ``error`` (curves,).

    Args:
        net: a network, or a spline, whose path is empty.
        path: of the file, used as it is; its folder is made when needed.
        tolerance: as in ``curve_table``.
        name_tolerance: as in ``curve_table``.
        formula_tolerance: as in ``curve_table``.

    Raises:
        ValueError: as ``curve_tables``.
    """
    tables = curve_tables(net, tolerance, name_tolerance, formula_tolerance)
    curves = [curve for table in tables.values() for curve in table.curves]
    header = _document(tables)
    for layer in header["layers"].values():
        layer["curves"] = [{key: curve[key] for key in _TEXTS} for curve in layer["curves"]]
    arrays = {
        name: np.array([number for curve in curves for number in getattr(curve, name)], dtype=np.float64)
        for name in _SEVERAL_A_CURVE
    } | {name: np.array([getattr(curve, name) for curve in curves]) for name in _ONE_A_CURVE}
    offsets = np.cumsum([0, *(len(curve.knots) for curve in curves)])
    text = np.array(json.dumps(header, allow_nan=False))
    _write(Path(path), lambda file: np.savez_compressed(file, header=text, offsets=offsets, **arrays))


def load_tables(path: str | Path) -> dict[str, SplineTable]:
    """What ``save_json`` or ``save_npz`` wrote, by path of the layer; ``SplineTable.relu_sum`` makes it a layer.

    Args:
        path: of the file; its content says which of the two it is.

    Raises:
        ValueError: no such file, a damaged one, or one of another format or version.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"path={path}: no such file")
    try:
        document = _read_npz(path) if zipfile.is_zipfile(path) else json.loads(path.read_text("utf-8"))
        found = document["format"], document["version"]
        if found != (FORMAT, VERSION):
            raise ValueError(f"{found[0]} version {found[1]}")
        return {name: _table(layer) for name, layer in document["layers"].items()}
    except _UNREADABLE as error:
        raise ValueError(f"path={path}: a file of {FORMAT} version {VERSION}, this one is not ({error})") from error


def _document(tables: dict[str, SplineTable]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "layers": {path: asdict(table) for path, table in tables.items()},
    }


def _table(layer: dict[str, Any]) -> SplineTable:
    curves = tuple(
        Curve(**curve | {name: tuple(curve[name]) for name in _SEVERAL_A_CURVE}) for curve in layer["curves"]
    )
    return SplineTable(**layer | {"spatial_shape": tuple(layer["spatial_shape"]), "curves": curves})


def _read_npz(path: Path) -> dict[str, Any]:
    """The document that JSON would hold."""
    with np.load(path, allow_pickle=False) as archive:
        document = json.loads(str(archive["header"]))
        arrays = {name: archive[name].tolist() for name in ("offsets", *_SEVERAL_A_CURVE, *_ONE_A_CURVE)}
    curves = [curve for layer in document["layers"].values() for curve in layer["curves"]]
    for i, (curve, (start, end)) in enumerate(zip(curves, pairwise(arrays["offsets"]), strict=True)):
        curve |= {name: arrays[name][start:end] for name in ("knots", "values")}
        curve |= {"slopes": arrays["slopes"][start + i : end + i + 1]}
        curve |= {name: arrays[name][i] for name in _ONE_A_CURVE}
    return document


def _write(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Beside its place first, then moved there: nobody sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with half.open("wb") as file:
            write(file)
        os.replace(half, path)
    finally:
        half.unlink(missing_ok=True)
