"""Files of reports: whole or not at all, and never over what is somebody else's."""

from __future__ import annotations

from pathlib import Path

from tautnet.errors import ConfigError
from tautnet.report.html import MARKER


def page_file(file: Path) -> Path:
    """A file that a page may be written to.

    Raises:
        ConfigError: a folder, or a file that is no report; its folder is not there.
    """
    if file.is_dir():
        raise ConfigError(f"--output {file}: a folder; the name of a file is accepted, such as {file / 'report.html'}")
    if not file.parent.is_dir():
        raise ConfigError(f"{file}: there is no folder {file.parent}")
    if file.exists():
        with file.open("rb") as start:
            if MARKER.encode() not in start.read(200):
                raise ConfigError(f"{file}: there already and no report; another name is accepted")
    return file


def write(text: str, file: Path) -> None:
    """Write a file, over the one that is there."""
    part = file.with_name(f"{file.name}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(file)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
