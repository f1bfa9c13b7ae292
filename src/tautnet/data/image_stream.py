"""Labelled images of the public hub, or of local shards in its formats, read while training goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist

from tautnet.data import hub_access
from tautnet.data.augment import Augmentation
from tautnet.data.base import AbstractData, check_seed
from tautnet.data.image_parts import check_image_size
from tautnet.data.image_samples import Colours
from tautnet.data.preparation import Preparation
from tautnet.data.stream import StreamLoader, StreamPosition, StreamSettings
from tautnet.factories import DataError

FIRST = 1024  # training images whose colours stand for all


class ImageStream(AbstractData):
    """Labelled images of any number, in shards (parquet or tar), never all in memory.

    Shuffling is that of the package ``datasets``: shards in random order and a buffer of samples, by (seed, epoch).
    Colours are standardised by the mean and deviation of the first 1024 training images. Shards are shared among
    processes and workers, each sample is read once in an epoch; a run continued inside an epoch goes on with the next
    batch, passing over what was read without decoding it. Checkpoints hold the position of every process.

    Evaluation is shared too, and every sample counts once. The samples that make a training batch, and their
    augmentation, depend on the number of processes.

    Args:
        path: name on the hub (owner/set), or a local folder of shards.
        subset: which of several configurations of the set.
        label: name of the class column; None finds it.
        image_size: side in pixels that images are brought to.
        num_classes: None takes it from the set's description.
        num_train: training samples; None takes it from the set's description.
        val_part: name of the part to validate on; None takes validation, else test.
        test_part: name of the part to test on; None takes test, else validation.
        batch_size: samples a batch over all processes.
        seed: of order and augmentation.
        shuffle: False keeps the stored order.
        shuffle_buffer: samples that are shuffled among each other, at least 1.
        shuffle_shards: shards that the buffer is filled from at a time; each may take memory of its size.
        num_workers: processes that read and decode, 0 for none; no more than shards are used.
        augmentation: of the training images; None for none.

    Shape:
        inputs (N, C, image_size, image_size) float32; targets as of ``Images``.

    Raises:
        ValueError: an argument out of range, or a set that cannot be used.
    """

    def __init__(
        self,
        path: str,
        image_size: int,
        subset: str | None = None,
        label: str | None = None,
        num_classes: int | None = None,
        num_train: int | None = None,
        val_part: str | None = None,
        test_part: str | None = None,
        batch_size: int = 256,
        seed: int = 0,
        shuffle: bool = True,
        shuffle_buffer: int = 2048,
        shuffle_shards: int = 1,
        num_workers: int = 0,
        augmentation: Augmentation | None = None,
    ) -> None:
        super().__init__()
        check_seed("seed", seed)
        check_image_size(image_size)
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("shuffle_buffer", shuffle_buffer, 1),
            ("shuffle_shards", shuffle_shards, 1),
            ("num_workers", num_workers, 0),
        ):
            if value < least:
                raise ValueError(f"{name}={value}: an integer of at least {least}")
        self.path, self.batch_size, self.seed = path, batch_size, seed
        self.shuffle, self.shuffle_buffer, self.shuffle_shards = shuffle, shuffle_buffer, shuffle_shards
        self.augmentation = augmentation or Augmentation()
        self._position = StreamPosition()
        try:
            self._parts = hub_access.open_parts(path, subset, streaming=True)
        except hub_access.HubError as error:
            raise ValueError(f"path={path}: {error}") from error
        train = self._part("train", None)
        self._val = self._part("val_part", val_part)
        self._test = self._part("test_part", test_part)
        columns = hub_access.image_columns(train.features, path, label)
        self._train = hub_access.undecoded(train, columns)
        self._num_train = _known("num_train", num_train, _described_size(train))
        if self._num_train < batch_size:
            raise ValueError(f"batch_size={batch_size}: at most the {self._num_train} training samples")
        first = [row[columns.image]["bytes"] for row in islice(self._train, FIRST)]
        for part in (self._train, self._val, self._test):
            if next(iter(part), None) is None:
                raise ValueError(f"path={path}: its part {part.split} has no samples")
        self.settings = StreamSettings(
            columns=columns,
            source=path,
            image_size=image_size,
            num_classes=_known("num_classes", num_classes, columns.num_classes),
            colours=Colours.of(hub_access.decoded(first, path, image_size)),
            num_workers=num_workers,
        )

    def _part(self, argument: str, name: str | None) -> Any:
        """A part by name, or the usual one."""
        usual = {
            "train": ("train",),
            "val_part": ("validation", "valid", "val", "test"),
            "test_part": ("test", "validation", "valid", "val"),
        }[argument]
        found = next((key for key in ((name,) if name else usual) if key in self._parts), None)
        if found is None:
            raise ValueError(f"{argument}={name}: no such part in {self.path}; there are {', '.join(self._parts)}")
        return self._parts[found]

    @property
    def num_outputs(self) -> int:
        """Number of classes."""
        return self.settings.num_classes

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(C, image_size, image_size)."""
        return (len(self.settings.colours.mean), self.settings.image_size, self.settings.image_size)

    @property
    def preparation(self) -> Preparation:
        """Standardised by the colours of the first images."""
        return self.settings.colours.preparation(classes=None)

    def train_dataloader(self) -> StreamLoader:
        """Batches of this process's shards; all processes have the same number of batches."""
        rank, world_size = self.place()
        if self.batch_size % world_size:
            raise ValueError(f"batch_size={self.batch_size}: a multiple of the {world_size} processes that share it")
        rows = self._train
        if self.shuffle:
            rows = rows.shuffle(
                seed=self.seed,
                buffer_size=self.shuffle_buffer,
                max_buffer_input_shards=min(self.shuffle_shards, rows.num_shards),
            )
        return StreamLoader(
            _share(rows, rank, world_size),
            self.settings,
            self.batch_size // world_size,
            num_batches=self._num_train // self.batch_size,
            augmentation=self.augmentation,
            seed=(self.seed, rank),
            device=self._device(),
            position=self._position if self.trainer else None,
        )

    def val_dataloader(self) -> StreamLoader:
        """Validation batches."""
        return self._evaluation_loader(self._val)

    def test_dataloader(self) -> StreamLoader:
        """Test batches."""
        return self._evaluation_loader(self._test)

    def _evaluation_loader(self, part: Any) -> StreamLoader:
        rank, world_size = self.place()
        rows = _share(hub_access.undecoded(part, self.settings.columns), rank, world_size)
        return StreamLoader(rows, self.settings, max(1, self.batch_size // world_size), device=self._device())

    def _device(self) -> torch.device:
        return self.trainer.strategy.root_device if self.trainer else torch.device("cpu")

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands, for a run that is continued inside an epoch; all processes have to call it."""
        own = asdict(self._position)
        positions: list[Any] = [own] * self.place()[1]
        if len(positions) > 1:
            dist.all_gather_object(positions, own)
        return positions[0] | {"num_workers": self.settings.num_workers, "others": positions[1:]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on there.

        Raises:
            DataError: inside an epoch, another number of workers or of processes, who would read the shards in another
                order.
        """
        state, (rank, world_size) = dict(state_dict), self.place()
        num_workers, others = state.pop("num_workers"), state.pop("others", [])  # older checkpoints have no others
        if 0 < state["batches"] < self._num_train // self.batch_size:
            if num_workers != self.settings.num_workers:
                raise DataError(
                    f"num_workers={self.settings.num_workers}: {num_workers}, as in the run that is continued"
                )
            if len(others) + 1 != world_size:
                raise DataError(
                    f"the checkpoint was written inside an epoch by {len(others) + 1} processes, there are "
                    f"{world_size}; continue with as many, or from the end of an epoch"
                )
        vars(self._position).update([state, *others][rank] if rank <= len(others) else state)


def _share(rows: Any, rank: int, world_size: int) -> Any:
    """The shards of one process."""
    if world_size == 1:
        return rows
    from datasets.distributed import split_dataset_by_node

    return split_dataset_by_node(rows, rank=rank, world_size=world_size)


def _described_size(part: Any) -> int | None:
    described: Mapping[str, Any] = part.info.splits or {}
    split = described.get(str(part.split))
    return int(split.num_examples) if split is not None and split.num_examples else None


def _known(name: str, given: int | None, described: int | None) -> int:
    value = given if given is not None else described
    if value is None:
        raise ValueError(f"{name}=None: a number is needed, the set's description has none")
    if value < 1:
        raise ValueError(f"{name}={value}: an integer of at least 1")
    return value
