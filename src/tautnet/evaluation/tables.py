"""Tables that a trained model is given: rows of CSV or parquet, by the names of the columns it was trained on."""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Iterator, Sequence
from math import isfinite
from pathlib import Path
from typing import Any, TextIO

from tautnet.data.formats.files import data_module, one_line
from tautnet.data.formats.parquet import open_parquet, parquet_columns
from tautnet.errors import ConfigError

SUFFIXES = (".csv", ".csv.gz", ".parquet")
_AT_ONCE = 1024  # rows of parquet
_MOST_NAMED = 20
_TRUTH = {"true": 1.0, "false": 0.0}
_ABSENT = {"", "na", "n/a", "nan", "null", "none", "?"}


def is_table(path: Path) -> bool:
    """By its name."""
    return path.name.lower().endswith(SUFFIXES)


class TableFile:
    """The rows of a file as values of the columns that a network was trained on, in their order.

    Columns are found by name, wherever they stand; others are ignored. A training column ``name=value`` is 1 where the
    text column ``name`` has that value. Missing are empty fields, NA, NaN, None, null and ``?``.

    Args:
        path: CSV with a header line in UTF-8, also gzipped (``.csv.gz``), or parquet.
        columns: of the training; None if they had no names: then all columns in their order.
        num_columns: of the training.
        target: a further column, which comes with every row; None for none.

    Raises:
        ConfigError: a file that cannot be read, or that lacks a column.
    """

    def __init__(self, path: Path, columns: Sequence[str] | None, num_columns: int, target: str | None = None) -> None:
        self.path, self.target = path, target
        names = _names(path)
        if target is not None and target not in names:
            raise ConfigError(f"{path}: no column {target!r}; there are {listed(names)}")
        if columns is None:
            columns = [name for name in names if name != target]
            if len(columns) != num_columns:
                raise ConfigError(f"{path}: {len(columns)} columns, the network takes {num_columns} numbers")
        self._plan = _plan(path, columns, names)
        self._known: dict[str, list[str]] = {}  # values of each text column
        for source, text in self._plan:
            if text is not None:
                self._known.setdefault(source, []).append(text)
        self._sources = [*dict.fromkeys(source for source, _ in self._plan)]
        self.ignored = [name for name in names if name not in self._sources and name != target]

    def rows(self) -> Iterator[tuple[list[float], Any]]:
        """Values of each row, and its target as it stands there, or None.

        Raises:
            ConfigError: a value that is missing, no number, or infinite, or a text that the training never saw. Rows
                count from 1 after the header.
        """
        wanted = self._sources if self.target is None else [*self._sources, self.target]
        records = _parquet_records if self.path.suffix.lower() == ".parquet" else _csv_records
        for number, cells in enumerate(records(self.path, wanted), 1):
            by_name = dict(zip(wanted, cells, strict=True))
            row = {name: self._cell(number, name, by_name[name]) for name in self._sources}
            values = [float(row[name]) if text is None else float(row[name] == text) for name, text in self._plan]
            yield values, None if self.target is None else by_name[self.target]

    def _cell(self, number: int, name: str, value: Any) -> float | str:
        """A number, or one of the known texts."""
        where = f"{self.path}: row {number}: column {name!r}"
        known = self._known.get(name)
        if known is None:
            return as_number(value, where)
        if isinstance(value, str) and value in known:
            return value
        raise ConfigError(f"{where}: {_shown(value)}; the training saw {listed(known)}")


def as_number(value: Any, where: str) -> float:
    """A finite number from a cell; truth values are 0 and 1.

    Raises:
        ConfigError: something else.
    """
    if value is None or (isinstance(value, str) and value.strip().lower() in _ABSENT) or value != value:
        raise ConfigError(f"{where}: the value is missing")
    try:
        number = _TRUTH[value.lower()] if isinstance(value, str) and value.lower() in _TRUTH else float(value)
        plain = not (isinstance(value, str) and "_" in value)  # which Python takes for a number
    except (TypeError, ValueError, OverflowError):
        plain = False
    if not plain:
        raise ConfigError(f"{where}: {_shown(value)} is no number")
    if not isfinite(number):
        raise ConfigError(f"{where}: {_shown(value)}; a finite number is needed")
    return number


def _plan(path: Path, columns: Sequence[str], names: Sequence[str]) -> list[tuple[str, str | None]]:
    """For each column of the training the column to look at, and the text to look for there."""
    found, absent = [], []
    for column in columns:
        splits = [(column[:i], column[i + 1 :]) for i, character in enumerate(column) if character == "="]
        sources: list[tuple[str, str | None]] = [(column, None), *splits]
        source = next((pair for pair in sources if pair[0] in names), None)
        if source is None:
            absent.append(splits[0][0] if splits else column)
        else:
            found.append(source)
    if absent:
        missing = list(dict.fromkeys(absent))
        words = f"no column{'s' if len(missing) > 1 else ''} {listed(missing)}"
        raise ConfigError(f"{path}: {words}, which the network was trained with; there are {listed(names)}")
    return found


def _names(path: Path) -> list[str]:
    """Of the columns, each once."""
    if not path.is_file():
        raise ConfigError(f"{path}: no such file")
    if path.suffix.lower() == ".parquet":
        try:
            names = list(parquet_columns(path))
        except ValueError as error:
            raise ConfigError(str(error)) from error
    else:
        names = next(_csv_lines(path), [])
    if not names:
        raise ConfigError(f"{path}: empty; a line with the names of the columns is needed")
    repeated = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
    if repeated is not None:
        raise ConfigError(f"{path}: several columns are named {repeated!r}")
    return names


def _csv_records(path: Path, wanted: Sequence[str]) -> Iterator[Sequence[Any]]:
    lines = _csv_lines(path)
    names = next(lines)
    places = [names.index(name) for name in wanted]
    for number, cells in enumerate(lines, 1):
        if len(cells) != len(names):
            raise ConfigError(f"{path}: row {number}: {len(cells)} fields, the first line names {len(names)} columns")
        yield [cells[place] for place in places]


def _csv_lines(path: Path) -> Iterator[list[str]]:
    """The fields of each line that has any."""
    try:
        with _opened(path) as file:
            yield from filter(None, csv.reader(file, skipinitialspace=True, strict=True))
    except (csv.Error, UnicodeDecodeError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ConfigError(f"{path}: not a readable CSV file with a header line ({one_line(error)})") from error


def _opened(path: Path) -> TextIO:
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _parquet_records(path: Path, wanted: Sequence[str]) -> Iterator[Sequence[Any]]:
    try:
        file = open_parquet(path)
        pyarrow = data_module("pyarrow", path)
        try:
            for batch in file.iter_batches(batch_size=_AT_ONCE, columns=list(wanted)):
                yield from zip(*(batch.column(name).to_pylist() for name in wanted), strict=True)
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: damaged parquet file ({one_line(error)})") from error
    except ValueError as error:
        raise ConfigError(str(error)) from error


def listed(names: Sequence[str]) -> str:
    """The first of names, and how many there are if that is not all."""
    more = f", ... ({len(names)})" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
