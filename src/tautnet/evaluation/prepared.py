"""Batches of any data in the units of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from tautnet.data.preparation import Preparation
from tautnet.errors import ConfigError
from tautnet.factories import DataError


class PreparedBatches:
    """Batches of loaders, one after the other, put through the preparation of a run instead of their own.

    Args:
        loaders: of one data set; each gives inputs (N, *) and targets (N, *).
        own: preparation of that set.
        trained: preparation of the run; where it is the same, batches stay what they are.
        scaled_targets: whether targets are a regression's, which have units too.
        description: what they are, in words.

    Raises:
        ConfigError: a table without a column of the run.
    """

    def __init__(
        self, loaders: Sequence[Any], own: Preparation, trained: Preparation, scaled_targets: bool, description: str
    ) -> None:
        self.loaders, self.own, self.trained, self.scaled_targets = loaders, own, trained, scaled_targets
        self.description = description
        self._order = _order(own, trained)

    def __len__(self) -> int:
        return sum(map(len, self.loaders))  # a stream may not know

    def __iter__(self) -> Iterator[Sequence[Tensor]]:
        try:
            for x, targets in chain.from_iterable(self.loaders):
                yield (x, targets) if self.own == self.trained else self._again(x, targets)
        except DataError as error:
            raise ConfigError(f"data: {error}") from error

    def _again(self, x: Tensor, targets: Tensor) -> Sequence[Tensor]:
        scale, offset = (_by_channel(values, x) for values in (self.own.scale, self.own.offset))
        raw = x.double() * scale + offset
        if self._order is not None:
            raw = raw[:, self._order]
        if self.scaled_targets:
            values = targets.double() * self.own.target_scale + self.own.target_offset
            standardised = (values - self.trained.target_offset) / (self.trained.target_scale or 1)
            targets = standardised.to(torch.get_default_dtype())
        return self.trained.prepared(raw), targets


def _by_channel(values: Sequence[float], x: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device=x.device).view(-1, *[1] * (x.dim() - 2))


def _order(own: Preparation, trained: Preparation) -> Tensor | None:
    """Where a table has each column of the run's.

    Raises:
        ConfigError: it lacks one.
    """
    if own.columns is None or trained.columns is None or own.columns == trained.columns:
        return None
    absent = [name for name in trained.columns if name not in own.columns]
    if absent:
        raise ConfigError(f"data: no columns {', '.join(absent[:20])}; there are {', '.join(list(own.columns)[:20])}")
    return torch.tensor([list(own.columns).index(name) for name in trained.columns])
