"""What commands write: whole files, rows of CSV and JSON, tables and progress on the terminal."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import inf
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from tautnet.errors import ConfigError

RowWriter = Callable[[Mapping[str, Any]], None]
_PIPE_CLOSED = 141  # what a shell reports of a program that a closed pipe has ended


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write that is under its name when it is complete, and leaves nothing if it never is."""
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            yield file
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def check_free(path: Path, overwrite: bool) -> None:
    """Whether something may be written under a name.

    Raises:
        ConfigError: it exists and nobody said that it may be lost, or its folder does not exist.
    """
    if not path.parent.is_dir():
        raise ConfigError(f"--output {path}: no such folder as {path.parent}")
    if path.is_dir():
        raise ConfigError(f"--output {path}: a folder; the name of a file is needed")
    if path.exists() and not overwrite:
        raise ConfigError(f"--output {path}: exists; --overwrite replaces it")


@contextmanager
def rows_into(path: Path | None, names: Sequence[str]) -> Iterator[RowWriter]:
    """Where rows go one by one: to the standard output as CSV, or into a file of CSV or JSON.

    Args:
        path: ``.json`` for JSON; None for the standard output.
        names: of the columns, the keys of every row.
    """
    if path is None:
        yield _csv_rows(sys.stdout, names)
        sys.stdout.flush()
        return
    with whole_file(path) as binary:
        text = _Text(binary)
        if path.suffix.lower() != ".json":
            yield _csv_rows(text, names)
            return
        text.write("[")
        rows = _JsonRows(text)
        yield rows.add
        text.write("\n]\n")


class _Text:
    """UTF-8 into a binary file, with line ends as they are."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file

    def write(self, text: str) -> int:
        return self.file.write(text.encode(errors="surrogateescape"))


class _JsonRows:
    def __init__(self, text: _Text) -> None:
        self.text, self.separator = text, "\n"

    def add(self, row: Mapping[str, Any]) -> None:
        limited = {name: None if value in (inf, -inf) else value for name, value in row.items()}
        self.text.write(f"{self.separator}{json.dumps(limited, allow_nan=False, default=str)}")
        self.separator = ",\n"


def _csv_rows(file: TextIO | _Text, names: Sequence[str]) -> RowWriter:
    writer = csv.DictWriter(file, names, lineterminator="\n")
    writer.writeheader()
    return writer.writerow


@contextmanager
def pipe_may_close() -> Iterator[None]:
    """A reader that has seen enough, such as ``head``, ends the program without a word.

    Raises:
        SystemExit: the standard output is closed.
    """
    try:
        yield
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
        raise SystemExit(_PIPE_CLOSED) from None


def note(text: str) -> None:
    """Tell on stderr, in a line, what was done with something that nobody asked about."""
    sys.stderr.write(f"note: {printable(text)}\n")


def printable(text: str) -> str:
    """A text out of somebody's file as one line without control characters."""
    return "".join(c if c.isprintable() or "\ud800" <= c <= "\udfff" else " " for c in text)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Text in columns, the first to the left, others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(_cells(row, widths)).rstrip() for row in rows)
    return "".join(f"{line}\n" for line in lines)


def _cells(row: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
    for number, (cell, width) in enumerate(zip(row, widths, strict=True)):
        yield cell.ljust(width) if number == 0 else cell.rjust(width)


@contextmanager
def progress(what: str, total: int | None) -> Iterator[Callable[[], None]]:
    """A bar on stderr while it is a terminal; what is yielded is called after each of ``total`` steps."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)
