"""Unitization of normalised layer outputs."""

from __future__ import annotations

from math import prod
from typing import Literal

from torch import Tensor

NormAxes = Literal["sample", "pixel"]
NormScale = Literal["official", "l2", "per_pixel", "rms"]


def norm_factor(shape: tuple[int, ...], axes: NormAxes, scale: NormScale) -> float:
    """The factor kappa of the squared norm for an input of shape (N, C, *).

    With P the number of positions that the norm runs over (1 for ``pixel``): ``official`` 1/P^2, ``l2`` 1,
    ``per_pixel`` 1/P, ``rms`` 1/(C P).
    """
    positions = prod(shape[2:]) if axes == "sample" else 1
    return {
        "official": 1.0 / positions**2,
        "l2": 1.0,
        "per_pixel": 1.0 / positions,
        "rms": 1.0 / (shape[1] * positions),
    }[scale]


def inverse_norm(x: Tensor, axes: NormAxes, scale: NormScale, eps: float) -> Tensor:
    """Inverse norm r = (q + eps)^(-1/2), q = kappa * (sum of x^2), broadcastable against ``x`` of shape (N, C, *).

    ``sample`` sums over everything but N, ``pixel`` over the channels at each position.
    """
    summed = tuple(range(1, x.dim())) if axes == "sample" else (1,)
    q = x.square().sum(dim=summed, keepdim=True) * norm_factor(tuple(x.shape), axes, scale)
    return (q + eps).rsqrt()
