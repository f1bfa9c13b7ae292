"""Where a run writes: whether it may, and whether there is room."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tautnet.cli.examine.finding import NOTE, OK, PROBLEM, Finding

_LITTLE = 1 << 30  # bytes; the files of a few runs
_SCARCE = 64 << 20  # one checkpoint and its events may not fit


def places() -> Iterator[Finding]:
    """The folder of the runs, the cache, and the one for temporary files."""
    yield place("outputs", Path("outputs").absolute(), "name another folder by hydra.run.dir=… (train.py)")
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if not Path(base).is_absolute():
        text = f"XDG_CACHE_HOME={base} is relative" if os.environ.get("XDG_CACHE_HOME") else "this user has no home"
        yield Finding(PROBLEM, "cache", text, "set XDG_CACHE_HOME to a folder of your own")
    else:
        cure = "set XDG_CACHE_HOME to a folder of your own; without it kernels and images are prepared in every run"
        yield place("cache", Path(base), cure)
    try:
        yield place("temporary files", Path(tempfile.gettempdir()), "set TMPDIR to a folder with room")
    except FileNotFoundError as error:  # none of the usual ones can be written
        yield Finding(PROBLEM, "temporary files", str(error), "set TMPDIR to a folder of your own")


def place(subject: str, folder: Path, cure: str) -> Finding:
    """Write a file there, or where the folder would be made, and look how much is free."""
    there = folder
    while not there.exists():
        there = there.parent
    if not there.is_dir():
        return Finding(PROBLEM, subject, f"{there} is no folder", cure)
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"tautnet")
            file.flush()
        free = shutil.disk_usage(there).free
    except OSError as error:
        return Finding(PROBLEM, subject, f"{there} cannot be written ({error.strerror or error})", cure)
    text = f"{folder}, {free / 2**30:.1f} GiB free"
    if free < _SCARCE:
        return Finding(PROBLEM, subject, text, f"free some, or {cure}")
    return Finding(NOTE if free < _LITTLE else OK, subject, text)
