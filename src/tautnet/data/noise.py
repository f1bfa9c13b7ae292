"""Normal random numbers as a function of their place, on any device."""

from __future__ import annotations

from math import pi

import torch
from torch import Tensor


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_ROUNDS = ((30, _signed(0xBF58476D1CE4E5B9)), (27, _signed(0x94D049BB133111EB)), (31, 1))


def normal_at(place_N: Tensor, seed: int, count: int) -> Tensor:
    """``count`` normal numbers for each place: a function of (seed, place) alone, whatever else is asked for with it.

    The 64-bit mix of SplitMix (Steele, Lea, Flood 2014) of a counter, then Box and Muller's transform.

    Args:
        place_N: (N,) int64, not negative.
        seed: from 0 to 2^62.
        count: numbers a place.

    Shape:
        (N, count) float32.
    """
    counter = place_N.view(-1, 1) * count + torch.arange(count, device=place_N.device)
    z = _mix(torch.full_like(counter[:1, :1], seed) * _GOLDEN)  # neighbouring seeds: far apart
    z = _mix((counter + 1) * _GOLDEN + z)  # integers wrap around
    low, high = ((part & 0xFFFFFF).float() for part in (z, z >> 32))
    return (-2 * ((low + 0.5) / 2**24).log()).sqrt() * (high * (2 * pi / 2**24)).cos()


def _mix(z: Tensor) -> Tensor:
    for shift, factor in _ROUNDS:
        z = (z ^ ((z >> shift) & (2 ** (64 - shift) - 1))) * factor  # the mask makes the shift a logical one
    return z
