"""What the ranks of a distributed run tell each other, so that each of them knows what one process would know.

All of these are calls that every rank has to make, in the same order. A single process answers itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar, cast

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
Rows = tuple[Tensor, ...]  # inputs and what belongs to them, (N, *) each


def num_ranks() -> int:
    """How many processes train or evaluate together; 1 outside a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process among them; 0 outside a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def gathered(mine: T) -> list[T]:
    """What each rank has, in the order of the ranks; tensors have to lie on the CPU."""
    if num_ranks() == 1:
        return [mine]
    found: list[Any] = [None] * num_ranks()
    dist.all_gather_object(found, mine)
    return cast(list[T], found)


def summed(x: Tensor) -> Tensor:
    """The sum over the ranks of a tensor that has the same shape in all of them."""
    total = x.clone(memory_format=torch.contiguous_format)
    if num_ranks() > 1:
        dist.all_reduce(total)
    return total


def of_first_rank(x: Tensor) -> Tensor:
    """The first rank's tensor, which has the same shape in all of them."""
    found = x.clone(memory_format=torch.contiguous_format)
    if num_ranks() > 1:
        dist.broadcast(found, src=0)
    return found


def spread(batch: Rows, share: int) -> tuple[Rows, int]:
    """This rank's rows among ``share`` rows spread evenly over a batch of all ranks, and how many these are in all.

    Args:
        batch: this rank's piece of the batch; the pieces in the order of the ranks are the batch.
        share: rows to take, at least 1; a batch with fewer gives all it has.
    """
    sizes = gathered(len(batch[0]))
    before = sum(sizes[: dist.get_rank()]) if len(sizes) > 1 else 0
    step = max(1, sum(sizes) // share)
    taken = -(-before // step)  # by the ranks before
    rows = tuple(part[-before % step :: step][: max(0, share - taken)] for part in batch)
    return rows, min(share, -(-sum(sizes) // step))


def joined(pieces: Sequence[Rows]) -> list[Rows]:
    """What all ranks have kept of a series of batches: of each batch the ranks' pieces in their order."""
    if num_ranks() == 1:
        return list(pieces)
    of_ranks = gathered([tuple(part.cpu() for part in piece) for piece in pieces])
    device = pieces[0][0].device
    return [
        tuple(part.to(device) for part in piece)
        for batch in zip(*of_ranks, strict=True)
        for piece in batch
        if len(piece[0])
    ]


def log_alike(model: pl.LightningModule, name: str, value: float | Tensor) -> None:
    """Log at the end of an epoch what every rank has computed alike.

    The maximum keeps every bit of it, and what is monitored is the same everywhere even where computations differ.
    """
    if num_ranks() > 1:
        model.log(name, value, sync_dist=True, reduce_fx="max")
    else:
        model.log(name, value)
