"""Batches of in-memory tensors in an order that is a function of (seed, epoch)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


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


class TensorLoader:
    """Iterates over (inputs, targets) by whole batches: one gather a batch instead of a Python call a sample.

    The order does not depend on the global random state, so a resumed run sees the batches that it would have seen.

    Args:
        inputs: shape (N, *).
        targets: shape (N, *).
        batch_size: samples a batch, at least 1.
        seed: of the order.
        shuffle: a new order each epoch.
        drop_last: leave out a last, smaller batch.
    """

    def __init__(
        self, inputs: Tensor, targets: Tensor, batch_size: int, *, seed: int = 0, shuffle: bool, drop_last: bool
    ) -> None:
        self.inputs, self.targets, self.batch_size, self.drop_last = inputs, targets, batch_size, drop_last
        self.sampler = EpochOrder(len(inputs), seed, shuffle)
        self.batch_sampler = None  # Lightning asks for it beside ``sampler``

    def __len__(self) -> int:
        full, rest = divmod(len(self.inputs), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for index in torch.split(self.sampler.indices(), self.batch_size)[: len(self)]:
            yield self.inputs[index], self.targets[index]
