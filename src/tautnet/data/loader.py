"""Batches of in-memory samples in an order that is a function of (seed, epoch)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

Batch = tuple[Tensor, Tensor]  # inputs (N, *), targets (N, *)
Fetch = Callable[[slice], Batch]  # positions in the order of an epoch -> their batch


class AbstractSamples(ABC):
    """Samples that lie in memory and are handed out by whole batches."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of samples."""

    @abstractmethod
    def start_epoch(self, order: Tensor, rng: np.random.Generator) -> Fetch:
        """Draw everything random for an epoch, and return what makes the batch of a slice of ``order``.

        What a sample becomes depends on its position in ``order`` and on ``rng`` alone, not on the size of the slices:
        any number of processes, and a run continued in the middle of an epoch, see the same samples.

        Args:
            order: (M,) int64 indices of samples, on the CPU.
            rng: of this epoch.
        """

    @abstractmethod
    def to(self, device: torch.device) -> AbstractSamples:
        """The same samples, their tensors on ``device``."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of the tensors."""

    @property
    @abstractmethod
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one input as the network sees it."""


class TensorSamples(AbstractSamples):
    """Inputs and targets as they are.

    Args:
        inputs: (N, *).
        targets: (N, *).
    """

    def __init__(self, inputs: Tensor, targets: Tensor) -> None:
        self.inputs, self.targets = inputs, targets

    def __len__(self) -> int:
        return len(self.inputs)

    def start_epoch(self, order: Tensor, rng: np.random.Generator) -> Fetch:
        """One gather a batch."""
        order = order.to(self.inputs.device)
        return lambda positions: (self.inputs[order[positions]], self.targets[order[positions]])

    def to(self, device: torch.device) -> TensorSamples:
        """Copy to a device."""
        return TensorSamples(self.inputs.to(device), self.targets.to(device))

    @property
    def nbytes(self) -> int:
        """Bytes of both tensors."""
        return self.inputs.nbytes + self.targets.nbytes

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self.inputs.shape[1:])


class EpochOrder:
    """A permutation of the samples for each epoch; Lightning calls ``set_epoch`` on a loader's ``sampler``.

    Args:
        num_samples: how many samples.
        seed: of the permutations.
        shuffle: False keeps the given order.
    """

    def __init__(self, num_samples: int, seed: int, shuffle: bool) -> None:
        self.num_samples, self.seed, self.shuffle = num_samples, seed, shuffle
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch."""
        self.epoch = epoch

    def indices(self) -> Tensor:
        """The order of the samples in this epoch."""
        if not self.shuffle:
            return torch.arange(self.num_samples)
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) % 2**63)
        return torch.randperm(self.num_samples, generator=generator)

    def rng(self) -> np.random.Generator:
        """For everything random in this epoch but its order."""
        return np.random.default_rng((self.seed, self.epoch))


class TensorLoader:
    """Iterates over (inputs, targets) by whole batches: a few tensor operations a batch, no Python a sample.

    Neither order nor augmentation depends on the global random state: a resumed run sees the batches that it would have
    seen. Several processes share each batch, which is the same with any number of them: process ``rank`` gets the
    ``rank``-th of ``world_size`` contiguous pieces. With ``drop_last`` these are equal; else they differ by at most one
    sample, and of a last batch with fewer samples than processes some get a piece without samples.

    Args:
        samples: what to iterate over.
        batch_size: samples a batch over all processes, at least 1.
        seed: of the order and the augmentation.
        shuffle: a new order each epoch.
        drop_last: leave out a last, smaller batch.
        rank: number of this process.
        world_size: number of processes.
        finished_batches: how many batches of the epoch that starts now are done already, in a continued run.

    Raises:
        ValueError: with ``drop_last``, ``batch_size`` cannot be shared equally.
    """

    def __init__(
        self,
        samples: AbstractSamples,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool,
        drop_last: bool,
        rank: int = 0,
        world_size: int = 1,
        finished_batches: Callable[[], int] = lambda: 0,
    ) -> None:
        if drop_last and batch_size % world_size:
            raise ValueError(f"batch_size={batch_size}: a multiple of the {world_size} processes that share it")
        self.samples, self.batch_size, self.drop_last = samples, batch_size, drop_last
        self.rank, self.world_size, self.finished_batches = rank, world_size, finished_batches
        self.sampler = EpochOrder(len(samples), seed, shuffle)
        self.batch_sampler = None  # Lightning asks for it beside ``sampler``

    def state_dict(self) -> dict[str, int]:
        """Empty, the trainer's progress says where to go on; a loader without this is not resumable to Lightning."""
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Nothing to load."""

    def __len__(self) -> int:
        full, rest = divmod(len(self.samples), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[Batch]:
        fetch = self.samples.start_epoch(self.sampler.indices(), self.sampler.rng())
        for number in range(self.finished_batches(), len(self)):
            start = number * self.batch_size
            size = min(self.batch_size, len(self.samples) - start)
            # rounded up: the first process is never the one without samples
            low, high = (start - (-size * r // self.world_size) for r in (self.rank, self.rank + 1))
            yield fetch(slice(low, high)) if low < high else _without_samples(fetch(slice(start, start + 1)))


def _without_samples(batch: Batch) -> Batch:
    return batch[0][:0], batch[1][:0]
