"""What a training step began with, so that it can be undone and run once more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

RandomStates = tuple[Tensor, Tensor | None]  # of the CPU's generator and of the device's, if it has one


@dataclass(frozen=True)
class StartedBatch:
    """A batch that training has begun with.

    Attributes:
        number: of the batch in its epoch, from 0.
        data: inputs and targets.
        states: of the generators before the forward pass.
    """

    number: int
    data: Any
    states: RandomStates


def random_states(device: torch.device) -> RandomStates:
    """The states from which dropout, for example, draws on this device."""
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


@contextmanager
def drawing_from(states: RandomStates, device: torch.device) -> Iterator[None]:
    """Random numbers as they were drawn from these states; afterwards the generators are as before."""
    cpu, cuda = states
    with torch.random.fork_rng(devices=[] if cuda is None else [device]):
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda, device)
        yield


class KeptBuffers:
    """A copy of all buffers of a model: running statistics, vectors of power iterations.

    A forward pass changes them, before anybody can know that its values are not finite. One call copies all buffers of
    a type.

    Args:
        model: on its device.
    """

    def __init__(self, model: nn.Module) -> None:
        # By module and name: a module may put another tensor in the place of a buffer.
        self._places: dict[torch.dtype, list[tuple[dict[str, Tensor | None], str]]] = {}
        for module in model.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    self._places.setdefault(buffer.dtype, []).append((module._buffers, name))
        self._kept = {dtype: [buffer.clone() for buffer in self._buffers(dtype)] for dtype in self._places}

    def _buffers(self, dtype: torch.dtype) -> list[Tensor]:
        return [buffers[name] for buffers, name in self._places[dtype]]  # type: ignore[misc]  # None was left out

    def keep(self) -> None:
        """Take a new copy."""
        for dtype, kept in self._kept.items():
            torch._foreach_copy_(kept, self._buffers(dtype))

    @torch.no_grad()
    def put_back(self) -> None:
        """Have the buffers hold the copy again."""
        for dtype, kept in self._kept.items():
            torch._foreach_copy_(self._buffers(dtype), kept)
