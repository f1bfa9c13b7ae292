"""What a spline starts from: its arguments, checked, and the initial functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite
from typing import Literal, get_args

import torch
from torch import Tensor

from tautnet.kernels import BACKENDS, Backend

Init = Literal["identity", "relu", "leaky_relu", "absolute", "soft_threshold", "even_odd", "maxmin", "zero"]
Sharing = Literal["channel", "layer", "neuron"]
DEFAULT_RANGE = 4.0  # of grid_range="auto" until there is data


def _soft_threshold(x: Tensor) -> Tensor:
    return x.sign() * (x.abs() - 0.5).clamp(min=0)


def _leaky_relu(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0.01 * x)


_SHAPES: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": torch.clone,
    "relu": torch.relu,
    "leaky_relu": _leaky_relu,
    "absolute": torch.abs,
    "soft_threshold": _soft_threshold,
    "zero": torch.zeros_like,
}


def initial_values(init: Init, num_curves: int, knots_K: Tensor) -> Tensor:
    """Values of the initial functions at the knots, shape (num_curves, K)."""
    if init == "even_odd":  # first half of the curves even, second half odd
        num_even = (num_curves + 1) // 2
        names = ["absolute"] * num_even + ["soft_threshold"] * (num_curves - num_even)
    elif init == "maxmin":  # max and min of two neighbours are combinations of |x| and x
        names = (["absolute", "identity"] * num_curves)[:num_curves]
    else:
        names = [init] * num_curves
    values = {name: _SHAPES[name](knots_K) for name in set(names)}
    return torch.stack([values[name] for name in names])


def check_arguments(
    num_knots: int,
    grid_range: float | Literal["auto"],
    init: Init,
    sharing: Sharing,
    spatial_shape: Sequence[int],
    slope_min: float | None,
    slope_max: float | None,
    backend: Backend,
) -> None:
    """Refuse what no spline can be made of.

    Raises:
        ValueError: an argument out of range, or slope limits that ``init`` breaks.
    """
    if not isinstance(num_knots, int) or num_knots < 3:
        raise ValueError(f"num_knots={num_knots}: an integer of at least 3")
    if grid_range != "auto" and not (isinstance(grid_range, (int, float)) and is_range(grid_range)):
        raise ValueError(f"grid_range={grid_range}: a number above 0, from 1e-30 to 1e30, or auto")
    if init not in get_args(Init):
        raise ValueError(f"init={init}: one of {', '.join(get_args(Init))}")
    if sharing not in get_args(Sharing):
        raise ValueError(f"sharing={sharing}: one of {', '.join(get_args(Sharing))}")
    if spatial_shape and sharing != "neuron":
        raise ValueError(f"spatial_shape={tuple(spatial_shape)}: has an effect with sharing=neuron only")
    if any(size < 1 for size in spatial_shape):
        raise ValueError(f"spatial_shape={tuple(spatial_shape)}: integers of at least 1")
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend}: one of {', '.join(BACKENDS)}")
    _check_slope_limits(slope_min, slope_max, init)


def _check_slope_limits(slope_min: float | None, slope_max: float | None, init: Init) -> None:
    # With an init that breaks the limits, training would start at another function than asked for.
    for name, limit in (("slope_min", slope_min), ("slope_max", slope_max)):
        if limit is not None and not isfinite(limit):
            raise ValueError(f"{name}={limit}: a finite number, or null for no limit")
    if slope_min is not None and slope_max is not None and slope_min > slope_max:
        raise ValueError(f"slope_min={slope_min}: at most slope_max, which is {slope_max}")
    far_and_near = torch.tensor([-3.0, -2.0, -0.1, 0.1, 2.0, 3.0], dtype=torch.float64, device="cpu")
    slopes = initial_values(init, 2, far_and_near).diff(dim=1) / far_and_near.diff()  # two curves: all of any mixture
    least, most = float(slopes.min()), float(slopes.max())
    if slope_min is not None and slope_min > least + 1e-9:
        raise ValueError(f"slope_min={slope_min}: init={init} starts with slopes down to {least:.3g}")
    if slope_max is not None and slope_max < most - 1e-9:
        raise ValueError(f"slope_max={slope_max}: init={init} starts with slopes up to {most:.3g}")


def is_range(value: float) -> bool:
    """Whether float32 can count the cells of a grid of this half-width."""
    return 1e-30 <= value <= 1e30


@torch.no_grad()
def range_of(x: Tensor) -> float | None:
    """The largest |x|; None of an input without values.

    Raises:
        ValueError: it is 0 or not finite, or it is asked for under a compiler.
    """
    if torch.compiler.is_compiling():
        raise ValueError("grid_range=auto: run calibrate_grids_ before the network is compiled")
    if x.numel() == 0 or x.is_meta:
        return None
    largest = float(x.abs().max())
    if not is_range(largest):
        raise ValueError(f"grid_range=auto: the largest |x| of the first batch is {largest}; give a number")
    return largest
