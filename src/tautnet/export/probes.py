"""Whether what was written computes what the network computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tautnet.data.preparation import Preparation

LARGEST_ERROR = 1e-5
_ROUNDINGS = 10.0  # how many times its own rounding a network may be missed by, where that is more


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
    name: str,
    exported: Callable[[Tensor], Tensor],
    net: Callable[[Tensor], Tensor],
    inputs: Sequence[Tensor],
    exact: Callable[[Tensor], Tensor] | None = None,
) -> float:
    """The largest difference of the outputs on a batch, as a share of the largest output on it.

    Samples for which the network itself gives no finite output are left out.

    Args:
        name: of the file, for messages.
        exported: what to compare.
        net: what to compare with.
        inputs: batches.
        exact: the network in float64. Far from its data a polynomial, for example, loses more digits than others;
            where the network does, the exported one may lose ten times as much as it.

    Raises:
        DiffersError: outputs of another shape, not finite, or further apart than ``LARGEST_ERROR``.
    """
    errors, excesses = [], []
    for x in inputs:
        expected, found = net(x), exported(x)
        if found.shape != expected.shape:
            raise DiffersError(f"{name}: outputs of shape {tuple(found.shape)}; {tuple(expected.shape)} are right")
        finite = expected.flatten(1).isfinite().all(1)
        if finite.any():
            errors.append(_difference(found[finite], expected[finite]))
            rounding = 0.0 if exact is None else _difference(expected[finite], exact(x)[finite])
            excesses.append(errors[-1] / max(LARGEST_ERROR, _ROUNDINGS * rounding))
    if not errors:
        raise DiffersError(f"{name}: the network gives no finite outputs, there is nothing to compare with")
    if not all(excess <= 1 for excess in excesses):  # NaN too
        raise DiffersError(
            f"{name}: its outputs differ from the network's by {max(errors):.2g} of the largest one; at most "
            f"{LARGEST_ERROR:g} is accepted"
        )
    return max(errors)


def _difference(found: Tensor, expected: Tensor) -> float:
    """The largest, as a share of the largest value."""
    difference = (found - expected).abs().max()
    return float(difference / expected.abs().max()) if difference != 0 else 0.0
