"""Whether what was written computes what the network computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tautnet.data.preparation import Preparation

LARGEST_ERROR = 1e-5


class DiffersError(ValueError):
    """An exported network that does not compute what the one that it was made of computes."""


def raw_probes(input_shape: Sequence[int], preparation: Preparation) -> list[Tensor]:
    """Batches of inputs in raw units: ordinary and large standardised ones, values from 0 to 1, a single zero.

    Args:
        input_shape: of one sample.
        preparation: what standardises them.
    """
    generator = torch.Generator().manual_seed(0)
    shape = tuple(input_shape)
    standard = [size * torch.randn(5, *shape, generator=generator) for size in (1.0, 4.0)]
    column = (-1, *[1] * (len(shape) - 1))
    offset, scale = (torch.tensor(values).view(column) for values in (preparation.offset, preparation.scale))
    spread = [x * scale + offset for x in standard]
    return [*spread, torch.rand(3, *shape, generator=generator), torch.zeros(1, *shape)]


@torch.no_grad()
def largest_error(
    name: str, exported: Callable[[Tensor], Tensor], net: Callable[[Tensor], Tensor], inputs: Sequence[Tensor]
) -> float:
    """The largest difference of the outputs on a batch, as a share of the largest output on it.

    Samples for which the network itself gives no finite output are left out.

    Args:
        name: of the file, for messages.
        exported: what to compare.
        net: what to compare with.
        inputs: batches.

    Raises:
        DiffersError: outputs of another shape, not finite, or further apart than ``LARGEST_ERROR``.
    """
    errors = []
    for x in inputs:
        expected, found = net(x), exported(x)
        if found.shape != expected.shape:
            raise DiffersError(f"{name}: outputs of shape {tuple(found.shape)}; {tuple(expected.shape)} are right")
        finite = expected.flatten(1).isfinite().all(1)
        if finite.any():
            difference, size = (found - expected)[finite].abs().max(), expected[finite].abs().max()
            errors.append(float(difference / size) if difference != 0 else 0.0)
    if not errors:
        raise DiffersError(f"{name}: the network gives no finite outputs, there is nothing to compare with")
    if not all(error <= LARGEST_ERROR for error in errors):  # NaN too
        raise DiffersError(
            f"{name}: its outputs differ from the network's by {max(errors):.2g} of the largest one; at most "
            f"{LARGEST_ERROR:g} is accepted"
        )
    return max(errors)
