"""Learned piecewise linear activations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import inf, prod
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from tautnet.activations.base import AbstractActivation
from tautnet.factories import Role
from tautnet.functional import linear_spline as spline

Sharing = Literal["channel", "layer", "neuron"]
Init = Literal["identity", "relu", "leaky_relu", "absolute", "soft_threshold", "even_odd", "maxmin", "zero"]


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


def _initial_coefficients(init: Init, num_curves: int, knots_K: Tensor) -> Tensor:
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


class LinearSpline(AbstractActivation):
    r"""One learned linear spline for each channel, layer or neuron.

    f_c(x) = sum_k c_{c,k} hat((x - t_k) / step) on the uniform knots t_k in [-grid_range, grid_range], continued by the
    border lines outside. NaN gives NaN, and so does an infinite input on a flat border line.
    Under autocast the arithmetic stays in float32 and the result takes the input's
    dtype, because a bfloat16 position loses the knot.

    Source: Bohra et al. (2020) for the B-spline form, the grid (51 coefficients on [-4, 4]) and ``leaky_relu``;
    Aziznejad et al. (2020) for ``tv2``, ``bv2`` and ``even_odd`` (with a soft threshold of 0.5). Differences: of an odd
    number of curves ``even_odd`` makes the larger half |x| (the authors' code makes a single curve a soft threshold);
    the knot spacing is not rounded.

    Args:
        num_channels: size of dimension 1 of the input.
        num_knots: coefficients of a curve, at least 3; odd puts a knot at 0. The authors' ``size``.
        grid_range: half-width of the knot interval, in the unit of the input, above 0.
        init: the function to start from. A kink between two knots is spread over both.
        sharing: one curve per ``channel`` (C curves), one for the ``layer`` (1), or one per ``neuron``
            (C times the positions of ``spatial_shape``).
        linear_term: learn an explicit slope b beside the coefficients, f(x) + b x (Bohra et al., ResNet and NiN
            experiments). It starts at the mean slope of ``init`` on the grid and the coefficients at the rest, so the
            initial function is the same.
        spatial_shape: shape of an input after (N, C), needed by ``sharing="neuron"`` beyond dense layers.

    Shape:
        (N, C, *) to the same shape, any rank of at least 2, N = 0 included.

    Parameters: ``coefficients`` (curves, K) and, with ``linear_term``, ``linear`` (curves,), role ``activation``.
    Lipschitz: the largest |slope|, exact, any p.

    Raises:
        ValueError: an argument out of range, or an input of another number of channels or another ``spatial_shape``.
    """

    parameter_roles: ClassVar[Mapping[str, Role]] = {"coefficients": "activation", "linear": "activation"}

    def __init__(
        self,
        num_channels: int,
        num_knots: int = 51,
        grid_range: float = 4.0,
        init: Init = "leaky_relu",
        sharing: Sharing = "channel",
        linear_term: bool = False,
        spatial_shape: Sequence[int] = (),
    ) -> None:
        super().__init__(num_channels)
        if not isinstance(num_knots, int) or num_knots < 3:
            raise ValueError(f"num_knots={num_knots}: an integer of at least 3")
        if not 0 < grid_range < inf:
            raise ValueError(f"grid_range={grid_range}: a finite number above 0")
        if init not in get_args(Init):
            raise ValueError(f"init={init}: one of {', '.join(get_args(Init))}")
        if sharing not in get_args(Sharing):
            raise ValueError(f"sharing={sharing}: one of {', '.join(get_args(Sharing))}")
        if spatial_shape and sharing != "neuron":
            raise ValueError(f"spatial_shape={tuple(spatial_shape)}: has an effect with sharing=neuron only")
        if any(size < 1 for size in spatial_shape):
            raise ValueError(f"spatial_shape={tuple(spatial_shape)}: integers of at least 1")
        self.num_knots, self.grid_range, self.sharing = num_knots, float(grid_range), sharing
        self.spatial_shape = tuple(spatial_shape)
        self.num_curves = {"channel": num_channels, "layer": 1, "neuron": num_channels * prod(self.spatial_shape)}[
            sharing
        ]
        knots_K = self.knots().to(torch.get_default_dtype())
        coefficients_CK = _initial_coefficients(init, self.num_curves, knots_K)
        self.linear: nn.Parameter | None = None
        if linear_term:
            mean_slope_C = (coefficients_CK[:, -1] - coefficients_CK[:, 0]) / (2 * self.grid_range)
            coefficients_CK = coefficients_CK - mean_slope_C.unsqueeze(1) * knots_K
            self.linear = nn.Parameter(mean_slope_C)
        self.coefficients = nn.Parameter(coefficients_CK)

    def extra_repr(self) -> str:
        """The settings in the module's printed form."""
        return (
            f"{self.num_channels}, num_knots={self.num_knots}, grid_range={self.grid_range}, sharing={self.sharing}, "
            f"linear_term={self.linear is not None}"
        )

    def get_extra_state(self) -> Tensor:
        """``grid_range``, without which the coefficients mean another function."""
        return torch.tensor(self.grid_range, dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Refuse coefficients of another grid."""
        if state.item() != self.grid_range:
            raise ValueError(f"grid_range={self.grid_range}: the loaded spline has {state.item()}")

    def knots(self) -> Tensor:
        """Knot positions, shape (K,), float64, on the CPU."""
        return spline.knot_positions(self.num_knots, self.grid_range)

    def values_at_knots(self) -> Tensor:
        """f(t_k), shape (curves, K): the coefficients, plus the linear term where there is one."""
        if self.linear is None:
            return self.coefficients
        return self.coefficients + self.linear.unsqueeze(1) * self.knots().to(self.coefficients)

    def points(self) -> tuple[Tensor, Tensor]:
        """Knot positions and values of every curve, each (curves, K), float64 on the CPU: the function itself.

        Between two points it is straight, outside the border lines go on; however the parameters say so.
        """
        values_CK = self.values_at_knots().detach().to("cpu", torch.float64)
        return self.knots().expand_as(values_CK), values_CK

    @torch.no_grad()
    def set_values_(self, values_CK: Tensor) -> None:
        """Change the coefficients so that the curves take these values at the positions of ``points()``.

        Args:
            values_CK: shape (curves, K); float64 keeps what the coefficients can hold.
        """
        if self.linear is not None:
            values_CK = values_CK - self.linear.to(values_CK).unsqueeze(1) * self.knots().to(values_CK)
        self.coefficients.copy_(values_CK)

    def slopes(self) -> Tensor:
        """Slopes between knots, shape (curves, K-1), in float64 on the CPU: for bounds, not for training."""
        slopes = spline.slopes(self.coefficients.to("cpu", torch.float64), self.grid_range)
        return slopes if self.linear is None else slopes + self.linear.to("cpu", torch.float64).unsqueeze(1)

    def slope_changes(self) -> Tensor:
        """Changes of slope at the inner knots, shape (curves, K-2)."""
        return spline.slope_changes(self.coefficients, self.grid_range)

    def num_active_knots(self, threshold: float = 1e-3) -> int:
        """How many slope changes exceed ``threshold`` in size, over all curves.

        With Adam the penalty leaves dead slope changes near 1e-4 and live ones above 0.1; the default lies between.
        """
        return int((self.slope_changes().abs() > threshold).sum())

    def tv2(self) -> Tensor:
        """Second-order total variation of each curve, shape (curves,)."""
        return spline.tv2(self.coefficients, self.grid_range)

    def bv2(self) -> Tensor:
        """TV(2)(f) + |f(0)| + |f(1)| of each curve, shape (curves,). Source: Aziznejad et al. (2020)."""
        at_0, at_1 = (spline.value_at(point, self.values_at_knots(), self.grid_range) for point in (0.0, 1.0))
        return self.tv2() + at_0.abs() + at_1.abs()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *) to the same shape and dtype."""
        dtype = torch.promote_types(torch.promote_types(x.dtype, self.coefficients.dtype), torch.float32)
        values_CK = self.values_at_knots().to(dtype)
        y = spline.evaluate(self._as_curves(x.to(dtype)), values_CK, self.grid_range)
        return y.reshape(x.shape).to(x.dtype)

    def slope_range(self) -> tuple[Tensor, Tensor]:
        """Smallest and largest slope of each channel, exact."""
        slopes = self.slopes()
        if self.sharing == "layer":
            slopes = slopes.expand(self.num_channels, -1)
        slopes_C = slopes.reshape(self.num_channels, -1)
        return slopes_C.min(dim=1).values, slopes_C.max(dim=1).values

    def interval(self, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        """Exact image of the box."""
        low, high = spline.interval(self._as_curves(lo), self._as_curves(hi), self.values_at_knots(), self.grid_range)
        return low.reshape(lo.shape), high.reshape(hi.shape)

    def local_slope_range(self, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        """Exact range of slopes over the box, both slopes at a knot included."""
        low, high = spline.local_slope_range(
            self._as_curves(lo), self._as_curves(hi), self.values_at_knots(), self.grid_range
        )
        return low.reshape(lo.shape), high.reshape(hi.shape)

    def _as_curves(self, x: Tensor) -> Tensor:
        """View (N, C, *) as (N, curves, S): column c holds the inputs of curve c."""
        if x.dim() < 2 or x.shape[1] != self.num_channels:
            raise ValueError(f"input of shape {tuple(x.shape)}: this spline takes (N, {self.num_channels}, *)")
        if self.sharing == "layer":
            return x.reshape(1, 1, x.numel())
        if self.sharing == "channel":
            return x.reshape(x.shape[0], self.num_curves, prod(x.shape[2:]))
        if x.shape[2:] != self.spatial_shape:
            raise ValueError(
                f"sharing=neuron: a curve for every neuron of shape {(self.num_channels, *self.spatial_shape)}, the "
                f"layer has {tuple(x.shape[1:])}; in convolutional networks use sharing=channel or layer"
            )
        return x.reshape(x.shape[0], self.num_curves, 1)
