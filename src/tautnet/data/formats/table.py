"""Tables with one sample a row."""

from __future__ import annotations

import lzma
import tarfile
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tautnet.data.formats.files import data_module, one_line
from tautnet.data.formats.parquet import parquet_columns, read_columns

Array = np.ndarray[Any, Any]
MAX_VALUES = 100
MAX_COLUMNS = 20_000  # a line of commas is a table too, and reading one takes seconds for every ten thousand
_UNREADABLE = (
    ValueError,
    OSError,
    EOFError,
    ImportError,
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
)
MAX_NAMES = 20


class Table(NamedTuple):
    """Features and target of every row.

    Args:
        features: (N, D) float64.
        names: of the D features; ``column=value`` where a text column was spread out.
        target: (N,) float64, or objects (str) where the column is text.
    """

    features: Array
    names: tuple[str, ...]
    target: Array


def read_table(path: Path, target: str) -> Table:
    """Read a CSV file with a header line, separated by commas, or a parquet file.

    Numbers stay, truth values become 0 and 1, and a text column becomes one feature of 0 and 1 for each of its values,
    in sorted order. Missing is what pandas takes for it (an empty field, NA, NaN, None, null ...) and, as in the UCI
    tables, ``?``.

    Args:
        path: of the file; with the suffix ``.parquet`` it is parquet, otherwise CSV in UTF-8, also compressed.
        target: name of the column to be predicted; all others are features.

    Raises:
        ValueError: the file is missing, damaged or empty; there is no column ``target``, no other one, two of one
            name, or more than 20000; a value is missing or infinite; a column is neither numbers nor text, has text
            among mostly numbers, or text with more than 100 values. Rows count from 1 after the header.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    frame = _parquet_frame(path) if path.suffix.lower() == ".parquet" else _csv_frame(path)
    return table_of(frame, path, target)


def table_of(frame: Any, path: Path | str, target: str) -> Table:
    """The same from a ``pandas.DataFrame``; ``path`` begins the messages.

    Raises:
        ValueError: as of ``read_table``.
    """
    names = [str(name) for name in frame.columns]
    _check_names(path, names, target)
    if not len(frame):
        raise ValueError(f"{path}: no rows")
    columns = {name: _checked(path, name, frame.iloc[:, i]) for i, name in enumerate(names)}
    values = columns.pop(target)
    spread = [_features(path, name, column) for name, column in columns.items()]
    features = np.concatenate([block for block, _ in spread], axis=1)
    return Table(features, tuple(name for _, block_names in spread for name in block_names), values)


def _csv_frame(path: Path) -> Any:
    pandas = data_module("pandas", path)
    settings = {"encoding": "utf-8-sig", "skipinitialspace": True, "index_col": False}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pandas.errors.ParserWarning)  # rows longer than the header
            header = pandas.read_csv(path, header=None, nrows=1, dtype=str, keep_default_na=False, **settings)
            few = header.shape[1] <= MAX_COLUMNS
            frame = pandas.read_csv(path, na_values=["?"], low_memory=False, **settings) if few else header
    except (*_UNREADABLE, pandas.errors.ParserWarning) as error:
        raise ValueError(f"{path}: not a readable CSV file with a header line ({one_line(error)})") from error
    _check_width(path, header.shape[1])
    frame.columns = header.iloc[0]  # pandas renames repeated ones
    return frame


def _parquet_frame(path: Path) -> Any:
    data_module("pandas", path)
    columns = parquet_columns(path)
    _check_width(path, len(columns))
    _check_unique(path, columns)
    return read_columns(path).to_pandas(
        ignore_metadata=True
    )  # an index that pandas has described in it is a column too


def _check_width(path: Path, num_columns: int) -> None:
    if num_columns > MAX_COLUMNS:
        raise ValueError(f"{path}: {num_columns} columns, at most {MAX_COLUMNS} are accepted")


def _check_unique(path: Path | str, names: Sequence[str]) -> None:
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise ValueError(f"{path}: several columns are named {repeated[0]!r}")


def _check_names(path: Path | str, names: Sequence[str], target: str) -> None:
    _check_unique(path, names)
    if target not in names:
        near = get_close_matches(target, names, n=1)
        hint = f" (nearest: {near[0]!r})" if near else ""
        listed = ", ".join(" ".join(name.split()) for name in names[:MAX_NAMES]) + (
            f" ... ({len(names)})" if len(names) > MAX_NAMES else ""
        )
        raise ValueError(f"{path}: no column {target!r}{hint}; there are {listed}")
    if len(names) == 1:
        raise ValueError(f"{path}: no columns beside the target {target!r}")


def _checked(path: Path | str, name: str, column: Any) -> Array:
    """(N,) finite float64, or objects that are all str."""
    absent = column.isna().to_numpy()
    if absent.any():
        raise ValueError(f"{path}: column {name!r}: missing value in row {int(absent.argmax()) + 1}")
    pandas = data_module("pandas", path)
    if pandas.api.types.is_numeric_dtype(column.dtype) and not pandas.api.types.is_complex_dtype(column.dtype):
        values = column.to_numpy(np.float64)
        if not np.isfinite(values).all():
            raise ValueError(f"{path}: column {name!r}: infinite value in row {int(np.isinf(values).argmax()) + 1}")
        return values
    texts = column.to_numpy(object)
    if not all(isinstance(value, str) for value in texts):
        raise ValueError(f"{path}: column {name!r} is {column.dtype}, expected numbers, truth values or text")
    return texts


def _features(path: Path | str, name: str, column: Array) -> tuple[Array, list[str]]:
    """(N, d) float64 and the d names."""
    if column.dtype != object:
        return column[:, None], [name]
    odd = [row for row, value in enumerate(column, 1) if not _is_number(value)]
    if 2 * len(odd) < len(column):
        first = odd[0] if odd else 1
        raise ValueError(f"{path}: column {name!r} has text among its numbers: {column[first - 1]!r} in row {first}")
    values = sorted(set(column))
    if len(values) > MAX_VALUES:
        raise ValueError(
            f"{path}: column {name!r} is text with {len(values)} different values (such as {values[0]!r}), at most "
            f"{MAX_VALUES} are accepted"
        )
    return (column[:, None] == np.array(values, object)).astype(np.float64), [f"{name}={value}" for value in values]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
