"""How Lightning writes and reads checkpoints: through ``tautnet.checkpoints``, large ones beside the training."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins import CheckpointIO
from torch.utils import _pytree as pytree

from tautnet import checkpoints

# From this size on a checkpoint is copied and written by a second thread while training goes on: hashing it and waiting
# for the disk takes several times as long as copying it.
_BESIDE_TRAINING = 2**25


class AtomicCheckpointIO(CheckpointIO):
    """Writes whole, sealed files, and keeps as many of a name as it is told to.

    One file at a time: who saves the next one waits for the one before, and meets its errors.
    """

    def __init__(self) -> None:
        self._kept: dict[Path, int] = {}
        self._folders: set[Path] = set()  # written to
        self._writer: ThreadPoolExecutor | None = None
        self._pending: Future[None] | None = None

    def keep(self, path: Path, number: int) -> None:
        """Keep so many files of this name, see ``checkpoints.write``."""
        self._kept[path] = number

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint, now or, if it is large, from a copy of it while this returns.

        Raises:
            OSError: this one or the one before cannot be written; files before are as they were.
        """
        self.wait()
        path = Path(path)
        self._folders.add(path.parent.resolve())
        number = self._kept.get(path, 1)
        if sum(tensor.nbytes for tensor in _tensors(checkpoint)) < _BESIDE_TRAINING:
            checkpoints.write(checkpoint, path, number)
            return
        copy = pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.detach().to("cpu", copy=True), checkpoint)
        self._writer = self._writer or ThreadPoolExecutor(1)
        self._pending = self._writer.submit(checkpoints.write, copy, path, number)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint, on the CPU; nothing in it is executed, whatever ``weights_only`` says."""
        return checkpoints.read(Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a file of a folder that this has written to; a loaded checkpoint may name any other to Lightning."""
        self.wait()
        path = Path(path)
        if path.parent.resolve() in self._folders and path.suffix == ".ckpt":
            path.unlink(missing_ok=True)

    def teardown(self) -> None:
        """Wait for the last file."""
        self.wait()

    def wait(self) -> None:
        """Return when what was saved is on the disk.

        Raises:
            OSError: it could not be written.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()


def _tensors(checkpoint: dict[str, Any]) -> Iterator[torch.Tensor]:
    return (leaf for leaf in pytree.tree_leaves(checkpoint) if isinstance(leaf, torch.Tensor))
