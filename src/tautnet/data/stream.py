"""Batches of images that are read while training goes on: for sets that do not fit in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from tautnet.data.augment import Augmentation
from tautnet.data.hub_access import ImageColumns, class_numbers, decoded
from tautnet.data.image_samples import Colours, ImageSamples
from tautnet.data.loader import Batch
from tautnet.factories import DataError

CHUNK = 32  # samples that a worker decodes at a time

Chunk = tuple[int, Tensor, Tensor]  # worker, images (n, C, H, W) uint8, classes (n,)


@dataclass
class StreamPosition:
    """Where in an epoch a stream stands, in numbers that a checkpoint can hold.

    Attributes:
        epoch: number of the epoch, -1 before the first.
        batches: that were handed out.
        chunks: that were used up, by worker.
        turn: worker of the next chunk.
        used: samples of that chunk that were used already.
    """

    epoch: int = -1
    batches: int = 0
    chunks: list[int] = field(default_factory=list)
    turn: int = 0
    used: int = 0


@dataclass(frozen=True)
class StreamSettings:
    """What the loaders of a stream share.

    Attributes:
        columns: which columns of the set to read.
        source: of the images, for messages.
        image_size: side in pixels that images are brought to.
        num_classes: K.
        colours: to standardise with.
        num_workers: processes that read and decode, 0 for none.
    """

    columns: ImageColumns
    source: str
    image_size: int
    num_classes: int
    colours: Colours
    num_workers: int


class DecodedChunks(IterableDataset[Chunk]):
    """Decoded pieces of a stream; each worker reads shards of its own.

    Args:
        rows: an iterable set of the ``datasets`` package with undecoded images; it shares its shards among workers.
        settings: of the stream.
        position: where to begin. Workers before its turn begin with an empty chunk, which keeps the order of turns.
    """

    def __init__(self, rows: Any, settings: StreamSettings, position: StreamPosition) -> None:
        self.rows, self.settings = rows, settings
        self.skip, self.turn = list(position.chunks), position.turn

    def __iter__(self) -> Iterator[Chunk]:
        settings, columns = self.settings, self.settings.columns
        info = get_worker_info()
        worker = info.id if info else 0
        if worker < self.turn:
            yield worker, torch.empty(0), torch.empty(0)
        rows = islice(self.rows, self.skip[worker] * CHUNK, None)  # what is passed over is read, not decoded
        while chunk := list(islice(rows, CHUNK)):
            encoded = [row[columns.image]["bytes"] for row in chunk]
            x = decoded(encoded, settings.source, settings.image_size, len(settings.colours.mean))
            labels = [row[columns.label] for row in chunk]
            yield worker, x, class_numbers(labels, settings.source, settings.num_classes)


class StreamLoader:
    """Batches from a stream of shards, augmented as a whole on the training device.

    Shards are shared among processes and workers, so that each sample is read once; a process whose shards end before
    ``num_batches`` begins with them again, since all processes need equally many batches. Without ``num_batches``, in a
    process group, a process that has come to its end gives batches without samples until all have. Which samples make
    a batch depends on the number of processes. A run continued inside an epoch passes over what was used, undecoded,
    and goes on with the same batches if the numbers of workers and of processes are the same.

    Args:
        rows: an iterable set of the ``datasets`` package with undecoded images, for this process alone.
        settings: what the loaders of a stream share.
        batch_size: samples a batch in this process.
        num_batches: of an epoch; None reads to the end, a last, smaller batch included.
        augmentation: what to change at random.
        seed: of the augmentation, a number a process.
        device: to put the batches on.
        position: where to go on, kept up to date; None always begins at the beginning.
    """

    def __init__(
        self,
        rows: Any,
        settings: StreamSettings,
        batch_size: int,
        *,
        num_batches: int | None = None,
        augmentation: Augmentation | None = None,
        seed: tuple[int, int] = (0, 0),
        device: torch.device | None = None,
        position: StreamPosition | None = None,
    ) -> None:
        self.rows, self.settings, self.batch_size, self.num_batches = rows, settings, batch_size, num_batches
        self.augmentation, self.seed = augmentation or Augmentation(), seed
        self.device, self.position = device or torch.device("cpu"), position
        self.colours = settings.colours.to(self.device)
        self.num_workers = min(settings.num_workers, rows.num_shards)  # a worker reads whole shards
        self.epoch = 0
        self.sampler, self.batch_sampler = self, None  # Lightning looks for sampler.set_epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, which decides the order."""
        self.epoch = epoch

    def state_dict(self) -> dict[str, int]:
        """Empty, the data module saves the position; a loader without this is not resumable to Lightning."""
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Nothing to load."""

    def __len__(self) -> int:
        """Batches of an epoch; TypeError where that is not known, which Lightning understands."""
        if self.num_batches is None:
            raise TypeError("a stream without num_batches has no length")
        return self.num_batches

    def __iter__(self) -> Iterator[Batch]:
        """What is left of the epoch."""
        alone = not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1
        return self._batches() if alone or self.num_batches is not None else self._until_all_end(self._batches())

    def _until_all_end(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """As many batches as the process with the most has; every process takes part."""
        ended: Batch | None = None  # what stands for a batch from then on
        while True:
            batch = next(batches, None)
            going_on = torch.tensor(float(batch is not None), device=self.device)
            dist.all_reduce(going_on)
            if going_on == 0:
                return
            if ended is None:
                if batch is None or going_on < dist.get_world_size():  # in all processes alike
                    count = f"{going_on:.0f} of {dist.get_world_size()} processes"
                    raise DataError(f"{self.settings.source}: has samples to evaluate for {count}; take fewer")
                ended = batch[0][:0].clone(), batch[1][:0].clone()
            yield batch or ended

    def _batches(self) -> Iterator[Batch]:
        self.rows.set_epoch(self.epoch)
        position = self.position or StreamPosition()
        if position.epoch != self.epoch:
            vars(position).update(vars(StreamPosition(self.epoch)))
        position.chunks = position.chunks or [0] * max(1, self.num_workers)
        while position.batches != self.num_batches:
            before = position.batches
            for x, y in self._raw_batches(position):
                rng = np.random.default_rng((*self.seed, self.epoch, position.batches))
                position.batches += 1
                yield self._augmented(x.to(self.device), y.to(self.device), rng)
                if position.batches == self.num_batches:
                    return
            if self.num_batches is None:
                return
            if position.batches == before:
                raise ValueError(f"{self.settings.source}: fewer samples for this process than one batch")
            position.chunks, position.turn, position.used = [0] * len(position.chunks), 0, 0

    def _raw_batches(self, position: StreamPosition) -> Iterator[Batch]:
        """Batches cut from the chunks; whenever one is handed out, ``position`` says what is used up."""
        pieces: list[Batch] = []
        missing, used = self.batch_size, position.used
        for worker, x, y in self._chunks(position):
            while used < len(x):
                stop = min(used + missing, len(x))
                pieces.append((x[used:stop], y[used:stop]))
                missing, used = missing - (stop - used), stop
                if used == len(x):
                    position.chunks[worker] += 1
                    position.turn = (worker + 1) % len(position.chunks)
                if missing == 0:
                    position.used = used % len(x)
                    yield _joined(pieces)
                    pieces, missing = [], self.batch_size
            used = 0 if len(x) else used  # an empty chunk only keeps the order of turns
        if pieces and self.num_batches is None:
            yield _joined(pieces)

    def _chunks(self, position: StreamPosition) -> Iterator[Chunk]:
        chunks = DecodedChunks(self.rows, self.settings, position)
        # A generator of its own: the loader would draw a seed for its workers from the global random state.
        loader = DataLoader(chunks, batch_size=None, num_workers=self.num_workers, generator=torch.Generator())
        return iter(loader)

    def _augmented(self, x: Tensor, y: Tensor, rng: np.random.Generator) -> Batch:
        samples = ImageSamples.padded(x, y, self.settings.num_classes, self.colours, self.augmentation)
        return samples.start_epoch(torch.arange(len(x)), rng)(slice(0, len(x)))


def _joined(pieces: list[Batch]) -> Batch:
    x, y = zip(*pieces, strict=True)
    return torch.cat(x), torch.cat(y)
