"""Finding files, and the modules that only some of them need."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any


def missing(root: Path, expected: str) -> ValueError:
    """The error for files that are not in ``root``."""
    state = "not found in this folder" if root.is_dir() else "no such folder"
    return ValueError(f"{root}: {state}; expected {expected}")


def find_file(folders: Iterable[Path], names: Iterable[str]) -> Path | None:
    """The first of ``names`` in the first folder that holds one of them."""
    names = tuple(names)
    candidates = (folder / name for folder in folders for name in names)
    return next((path for path in candidates if path.is_file()), None)


def data_module(name: str, path: Path | str) -> Any:
    """Import a module of the optional extra ``data``.

    Raises:
        ValueError: it is not installed.
    """
    package = name.partition(".")[0]
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise ValueError(f"{path}: reading it needs {package}; pip install 'tautnet[data]'") from error


def one_line(error: BaseException) -> str:
    """The text of an error without line breaks, or its name."""
    return " ".join(str(error).split()) or type(error).__name__
