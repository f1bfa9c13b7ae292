"""Checkpoint files: written whole or not at all, sealed with a digest, read without executing what is in them.

A checkpoint is what ``torch.save`` writes, a zip archive, whose comment is the SHA-256 of all bytes before the digest.
It stays readable for ``torch.load`` and for any zip reader, and the seal goes where the file goes.
"""

from __future__ import annotations

import hashlib
import logging
import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO

import torch

_log = logging.getLogger(__name__)
_SEAL = b"sha256:"
_SEAL_SIZE = len(_SEAL) + 2 * hashlib.sha256().digest_size
_END = b"PK\x05\x06"  # of the last record of a zip archive, 22 bytes, which ends with the length of the comment
_END_SIZE = 22


class DamagedError(ValueError):
    """A file that is no checkpoint as tautnet has written it; the message names it and says what is wrong."""


def write(checkpoint: Mapping[str, Any], path: Path, keep: int = 1) -> None:
    """Write a checkpoint: whoever looks finds the new file or those before, whatever happens meanwhile.

    Args:
        checkpoint: tensors and plain values.
        path: of the file; its folder is made.
        keep: how many to keep, at least 1. The ones before become ``older(path, 1)``, ``older(path, 2)``, …

    Raises:
        OSError: it cannot be written, the disk is full for example; the files before are as they were.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("w+b") as file:
            _save(checkpoint, file)
            _seal(file)
            file.flush()
            os.fsync(file.fileno())
        for number in range(keep - 1, 0, -1):
            if older(path, number - 1).exists():
                older(path, number - 1).replace(older(path, number))
        part.replace(path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # of a full disk Python does not say where
        raise
    _sync_folder(path.parent)


def older(path: Path, number: int) -> Path:
    """Where the ``number``-th checkpoint before the one at ``path`` is."""
    return path.with_name(f"{path.stem}-{number}{path.suffix}") if number else path


def read(path: Path) -> dict[str, Any]:
    """Read a checkpoint on the CPU; nothing in it is executed.

    Raises:
        DamagedError: it is empty, cut off, changed, or was not written by ``write``.
        OSError: it cannot be opened.
    """
    with path.open("rb") as file:
        _check_seal(file, path)
        try:
            file.seek(0)
            with zipfile.ZipFile(file) as archive:
                entries = archive.infolist()
                if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                    raise DamagedError(f"{path}: compressed, which no checkpoint is")
                if any(entry.filename.endswith("constants.pkl") for entry in entries):
                    raise DamagedError(f"{path}: a program of TorchScript, which no checkpoint is")
            file.seek(0)
            checkpoint = torch.load(file, map_location="cpu", weights_only=True)
        except _UNREADABLE as error:
            raise DamagedError(f"{path}: not a checkpoint of tautnet") from error
    if not isinstance(checkpoint, dict):
        raise DamagedError(f"{path}: not a checkpoint of tautnet")
    return checkpoint


_UNREADABLE = (UnpicklingError, RuntimeError, EOFError, zipfile.BadZipFile, AttributeError, LookupError, TypeError)


def newest_(folder: Path) -> Path | None:
    """The newest checkpoint in a run's folder that continues it.

    Damaged ones are named in the log and renamed, so that they never take the place of a whole one before them. What
    was being written when the run was cut off is removed.
    """
    for part in folder.glob("*.part"):
        part.unlink()
    for path in _from_newest(folder):
        try:
            if "optimizer_states" in read(path):  # else weights alone
                return path
        except DamagedError as error:
            aside = path.with_name(f"{path.name}.damaged")
            path.replace(aside)
            _log.warning("%s; it is %s now, and the one before is taken", error, aside.name)
    return None


def _from_newest(folder: Path) -> Iterator[Path]:
    last = folder / "last.ckpt"
    rotated = (path for path in folder.glob("last-*.ckpt") if path.stem[5:].isdecimal())
    candidates = [last, *sorted(rotated, key=lambda path: int(path.stem[5:])), folder / "best.ckpt"]
    return (path for path in candidates if path.exists())


def _save(checkpoint: Mapping[str, Any], file: BinaryIO) -> None:
    try:
        torch.save(checkpoint, file)
    except RuntimeError as error:  # torch's writer stumbles over what it could not write, and hides why
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def _seal(file: BinaryIO) -> None:
    """Make the digest of everything before it the comment of the archive."""
    end = file.seek(-_END_SIZE, os.SEEK_END)
    assert file.read(4) == _END
    file.seek(end + _END_SIZE - 2)
    file.write(_SEAL_SIZE.to_bytes(2, "little"))
    file.write(_SEAL + _digest(file, end + _END_SIZE))


def _check_seal(file: BinaryIO, path: Path) -> None:
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        raise DamagedError(f"{path}: empty")
    file.seek(max(0, size - _SEAL_SIZE))
    seal = file.read()
    if not seal.startswith(_SEAL):
        raise DamagedError(f"{path}: not a checkpoint of tautnet, or cut off")
    if seal != _SEAL + _digest(file, size - _SEAL_SIZE):
        raise DamagedError(f"{path}: damaged, its bytes are not those that were written")


def _digest(file: BinaryIO, size: int) -> bytes:
    """Of the first ``size`` bytes, in hexadecimal; leaves the file behind them."""
    digest = hashlib.sha256()
    file.seek(0)
    while size > 0:
        piece = file.read(min(size, 2**20))
        digest.update(piece)
        size -= len(piece)
    return digest.hexdigest().encode()


def _sync_folder(folder: Path) -> None:
    """A new name is on the disk when its folder is."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
