"""Decoded images on disk: read once from files that need decoding, then memory-mapped."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

_log = logging.getLogger(__name__)
_VERSION = "2"  # of what is stored
_ROOT = 0  # who can write everything anyway


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/tautnet``, by default ``~/.cache/tautnet``."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if base.startswith("~"):  # a user without a home; below this nothing can be made
        base = os.devnull
    return Path(base) / "tautnet"


def fingerprint(kind: str, root: Path, files: Sequence[Path]) -> str:
    """Hash of what is read: its kind, and of every file its name, where a link leads, size and time of change."""
    digest = sha256(f"{_VERSION} {kind}\0".encode() + os.fsencode(root.resolve()))
    for file in sorted(files):
        status = file.stat()
        for part in (os.fsencode(file), os.fsencode(file.resolve()), f"{status.st_size} {status.st_mtime_ns}".encode()):
            digest.update(b"\0" + part)
    return digest.hexdigest()[:32]


def cached(
    key: str,
    read: Callable[[], Mapping[str, Tensor]],
    fits: Callable[[Mapping[str, Tensor]], bool] = lambda tensors: True,
) -> Mapping[str, Tensor]:
    """The tensors under ``key``, memory-mapped; read and stored on the first call.

    The stored file carries a hash of its content, against accidents. A damaged one is read anew with a warning, and
    where the folder cannot be written the tensors are used from memory. A folder or a file that another user owns or
    everyone can write is not used at all: what it holds would be trained on.

    Args:
        key: fit for a file name.
        read: makes the tensors, all of them contiguous.
        fits: whether stored tensors can be what ``read`` makes.
    """
    path = cache_folder() / f"{key}.safetensors"
    foreign = next((place for place in (path.parent, path) if _may_be_forged(place)), None)
    if foreign is not None:
        _log.warning(
            "%s: another user may have written it, so it is not used; XDG_CACHE_HOME names another folder", foreign
        )
        return dict(read())
    if path.is_file():
        tensors = _load(path)
        if tensors is not None and fits(tensors):
            return tensors
        _log.warning("%s: damaged, read anew", path)
    _log.info("decoding images, this once; they are kept in %s", path.parent)
    tensors = dict(read())
    try:
        _save(path, tensors)
    except OSError as error:
        _log.warning("%s: not stored (%s); the data will be decoded again next time", path, error.strerror or error)
        return tensors
    return _load(path) or tensors


def _may_be_forged(path: Path) -> bool:
    """Whether something exists that another user owns, or that everyone may write; Windows does not say."""
    if os.name != "posix" or not os.path.lexists(path):
        return False
    found = (path.lstat(), path.stat()) if path.exists() else (path.lstat(),)
    return any(status.st_uid not in (os.getuid(), _ROOT) for status in found) or bool(found[-1].st_mode & 0o002)


def _content_hash(tensors: Mapping[str, Tensor]) -> str:
    digest = sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tuple(tensors[name].shape)} {tensors[name].dtype}".encode())
        digest.update(tensors[name].view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _save(path: Path, tensors: dict[str, Tensor]) -> None:
    """Beside its place first, then moved there: nobody sees half a file."""
    path.parent.mkdir(mode=0o775, parents=True, exist_ok=True)
    half = path.with_suffix(f".{os.getpid()}")
    try:
        save_file(tensors, half, {"sha256": _content_hash(tensors)})
        os.replace(half, path)
    except SafetensorError as error:  # a full disk, for one
        raise OSError(str(error)) from error
    finally:
        half.unlink(missing_ok=True)


def _load(path: Path) -> Mapping[str, Tensor] | None:
    """Tensors that lie in the mapped file; None if it is damaged."""
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
            expected = (file.metadata() or {}).get("sha256")
    except (SafetensorError, OSError):
        return None
    return tensors if _content_hash(tensors) == expected else None
