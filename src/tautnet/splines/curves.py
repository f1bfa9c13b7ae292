"""The curves of any activation, a row each: one for every channel, layer or neuron."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from tautnet.activations import AbstractActivation, LinearSpline, ReluSum, Slaf
from tautnet.functional.linear_spline import evaluate


def num_curves(activation: AbstractActivation) -> int:
    """Functions of its own that an activation has."""
    if isinstance(activation, LinearSpline | Slaf | ReluSum):
        return activation.num_curves
    return activation.num_channels


@torch.no_grad()
def curve_values(activation: AbstractActivation, x_CS: Tensor) -> Tensor:
    """Values of the eval-mode curves at points of their own, shape (curves, S), float64 on the CPU.

    The activation is left as it is; the values are those of its stored numbers, in the arithmetic of float64.

    Args:
        activation: any.
        x_CS: points, shape (curves, S) or (1, S) for the same ones of all curves.
    """
    x_CS = x_CS.detach().to("cpu", torch.float64).expand(num_curves(activation), -1)
    if isinstance(activation, LinearSpline):
        positions_CK, values_CK = activation.points()
        # In units of the curve's half-width, which a learned scale makes its own.
        return evaluate((x_CS / positions_CK[:, -1:]).unsqueeze(0), values_CK, 1.0, "reference")[0]
    exact = copy.deepcopy(activation).to("cpu", torch.float64).eval()  # a call in training mode could change statistics
    if isinstance(exact, Slaf):
        return exact.function().values(x_CS.unsqueeze(0))[0]
    if isinstance(exact, ReluSum) and exact.sharing == "layer":
        return exact(x_CS.t().expand(-1, exact.num_channels))[:, :1].t()
    spatial_shape = exact.spatial_shape if isinstance(exact, ReluSum) else ()
    return exact(x_CS.t().reshape(-1, exact.num_channels, *spatial_shape)).flatten(1).t()
