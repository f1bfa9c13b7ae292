"""Data sets that fit in memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import partial
from math import prod

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor

from tautnet.data.loader import AbstractSamples, TensorLoader
from tautnet.data.preparation import Preparation
from tautnet.factories import Task


@dataclass(frozen=True)
class Splits:
    """The three parts of a data set.

    Attributes:
        train: to train on.
        val: to validate on.
        test: to test on.
        preparation: see ``AbstractData.preparation``; None where a network gets the data as they are.
    """

    train: AbstractSamples
    val: AbstractSamples
    test: AbstractSamples
    preparation: Preparation | None = field(default=None, kw_only=True)


class AbstractData(pl.LightningDataModule, ABC):
    """What the application asks of every data set.

    Attributes:
        batch_size: samples a training batch, over all processes.
    """

    batch_size: int

    @property
    def task(self) -> Task:
        """What a model has to do with the data."""
        return "classification"

    @property
    @abstractmethod
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""

    @property
    @abstractmethod
    def num_outputs(self) -> int:
        """Classes, target values or image channels: the width of a network's output."""

    @property
    def preparation(self) -> Preparation:
        """What was done to raw values; here nothing, data sets that standardise say by what."""
        return Preparation.none(self.input_shape[0])

    @property
    def input_scale(self) -> Tensor:
        """What a unit of the network's input is in raw units, float64 (C,), one for each of dimension 1 of a batch."""
        return self.preparation.units()

    def place(self) -> tuple[int, int]:
        """Number of this process, and of all processes that share the data; (0, 1) without a trainer."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)


def check_seed(name: str, value: int) -> None:
    """Raise ValueError unless every generator takes it."""
    if not 0 <= value < 2**32:
        raise ValueError(f"{name}={value}: an integer from 0 to {2**32 - 1}")


class AbstractTensorData(AbstractData):
    """Training, validation and test loaders over samples in memory.

    The samples of a training run lie on its device if they take at most half of what is free there. Several processes
    share every batch, in training and in evaluation; together they see what one process sees, in the same order.

    Args:
        batch_size: samples a batch over all processes, at least 1 and at most the training part; the last, smaller
            training batch is left out.
        seed: of the training order; together with the epoch it decides every batch.
        shuffle: False keeps one training order, for looking at overfitting.

    Raises:
        ValueError: ``batch_size`` out of range.
    """

    def __init__(self, batch_size: int, seed: int, shuffle: bool) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: an integer of at least 1")
        self.batch_size, self.seed, self.shuffle = batch_size, seed, shuffle
        for name in ("seed", "split_seed", "sample_seed"):
            check_seed(name, vars(self).get(name, 0))
        self.splits = self.load()
        if batch_size > len(self.splits.train):
            raise ValueError(f"batch_size={batch_size}: at most the {len(self.splits.train)} training samples")

    @abstractmethod
    def load(self) -> Splits:
        """Read or make the data; called once, from the constructor."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return self.splits.train.sample_shape

    @property
    def preparation(self) -> Preparation:
        """As the splits say."""
        return super().preparation if self.splits.preparation is None else self.splits.preparation

    def train_dataloader(self) -> TensorLoader:
        """Training batches, in an order of their own each epoch; a continued run goes on inside its epoch."""
        rank, world_size = self.place()
        return TensorLoader(
            self._on_device(self.splits.train),
            self.batch_size,
            seed=self.seed,
            shuffle=self.shuffle,
            drop_last=True,
            rank=rank,
            world_size=world_size,
            finished_batches=partial(finished_batches, self.trainer),
        )

    def val_dataloader(self) -> TensorLoader:
        """Validation batches."""
        return self._evaluation_loader(self.splits.val)

    def test_dataloader(self) -> TensorLoader:
        """Test batches."""
        return self._evaluation_loader(self.splits.test)

    def _evaluation_loader(self, samples: AbstractSamples) -> TensorLoader:
        values = prod(samples.sample_shape)
        return self._shared(samples, max(self.place()[1], min(1024, 2**22 // values)))  # 16 MiB of float32

    def _shared(self, samples: AbstractSamples, batch_size: int) -> TensorLoader:
        """This process's part of batches in order; in the first, which has to be large enough, all have samples."""
        rank, world_size = self.place()
        if len(samples) < world_size:
            raise MisconfigurationException(
                f"trainer.devices: {world_size} processes share the evaluation, which has {len(samples)} samples; fewer"
            )
        return TensorLoader(
            self._on_device(samples), batch_size, shuffle=False, drop_last=False, rank=rank, world_size=world_size
        )

    def _on_device(self, samples: AbstractSamples) -> AbstractSamples:
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        if device.type != "cuda" or samples.nbytes > torch.cuda.mem_get_info(device)[0] / 2:
            return samples
        return samples.to(device)


def finished_batches(trainer: pl.Trainer | None) -> int:
    """Batches that the epoch has behind it: not 0 where an interrupted one is continued."""
    if trainer is None or not trainer.training:
        return 0
    return int(trainer.fit_loop.epoch_loop.batch_progress.current.ready)
