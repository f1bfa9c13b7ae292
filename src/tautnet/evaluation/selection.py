"""Samples that stand for a test, where all of them would take too long."""

from __future__ import annotations

from math import ceil, inf, isinf

import torch
from torch import Tensor

from tautnet.errors import ConfigError
from tautnet.evaluation.prepared import PreparedBatches
from tautnet.models.ranks import joined, spread


class Selection:
    """Some samples of a test, evenly spread over it, at least one a batch: data may be sorted.

    Args:
        num_samples: how many, at least 1; of a stream, whose length nobody knows, from its beginning.
    """

    def __init__(self, num_samples: int) -> None:
        self.num_samples = num_samples
        self._kept: list[tuple[Tensor, ...]] = []
        self._num_kept = 0  # by all ranks

    def add(self, x: Tensor, targets: Tensor, num_batches: float) -> None:
        """Keep a batch's share; every rank has to call it.

        Args:
            x: inputs (N, *), this rank's piece of the batch.
            targets: classes (N,) or probabilities (N, K).
            num_batches: of the test; inf if nobody knows.
        """
        if self.is_full(num_batches):
            return
        share = max(1, ceil(self.num_samples / num_batches))
        (x, targets), count = spread((x, targets), share)
        self._num_kept += count
        self._kept.append((x, targets if targets.dim() == 1 else targets.argmax(1)))

    def is_full(self, num_batches: float) -> bool:
        """Whether no batch can change it any more."""
        return isinf(num_batches) and self._num_kept >= self.num_samples

    @property
    def is_empty(self) -> bool:
        """Whether this rank has kept nothing."""
        return not self._kept

    def samples(self) -> tuple[Tensor, Tensor]:
        """Inputs (N, *) and classes (N,), of all ranks."""
        pairs = joined(self._kept)
        x, labels = (torch.cat([pair[i] for pair in pairs]).clone() for i in (0, 1))
        return x, labels


def selected(batches: PreparedBatches, num_samples: int) -> tuple[Tensor, Tensor]:
    """What a test would select of these batches, on the GPU if there is one.

    Raises:
        ConfigError: no samples.
    """
    selection = Selection(num_samples)
    try:
        num_batches: float = len(batches)
    except TypeError:  # a stream or a file
        num_batches = inf
    for x, targets in batches:
        selection.add(x, targets, num_batches)
        if selection.is_full(num_batches):
            break
    if selection.is_empty:
        raise ConfigError(f"{batches.description}: no samples")
    x, labels = selection.samples()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return x.to(device), labels.to(device)
