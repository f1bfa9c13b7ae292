"""Learned piecewise linear activations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isnan, nan, prod
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from tautnet.activations import spline_init
from tautnet.activations.base import AbstractActivation
from tautnet.activations.spline_cache import DerivedTensor
from tautnet.activations.spline_init import DEFAULT_RANGE, Init, Sharing, check_arguments, initial_values, range_of
from tautnet.factories import Role
from tautnet.functional import linear_spline as spline
from tautnet.functional.slope_limits import limit_slopes
from tautnet.kernels import Backend


class LinearSpline(AbstractActivation):
    r"""One learned linear spline for each channel, layer or neuron.

    f_c(x) = sum_k c_{c,k} hat((x - t_k) / step) on the uniform knots t_k in [-grid_range, grid_range], continued by the
    border lines outside. NaN gives NaN, and so does an infinite input on a flat border line. The arithmetic stays in
    float32 under autocast and the result takes the input's dtype.

    Source: Bohra et al. (2020) for the B-spline form, the grid (51 coefficients on [-4, 4]) and ``leaky_relu``;
    Aziznejad et al. (2020) for ``tv2``, ``bv2``, ``even_odd`` (soft threshold of 0.5); Ducotterd et al. (2024) for the
    slope limits and the scale. Differences: of an odd number of curves ``even_odd`` makes the larger half |x| (the
    authors' code makes a single curve a soft threshold); knot spacing is not rounded; alpha stays > 0.

    Args:
        num_channels: size of dimension 1 of the input.
        num_knots: coefficients of a curve, at least 3; odd puts a knot at 0. The authors' ``size``.
        grid_range: half-width of the knot interval, unit of the input, 1e-30 to 1e30. ``auto``: see ``grid_range.py``.
        init: the function to start from. A kink between two knots is spread over both.
        sharing: one curve per ``channel`` (C curves), one for the ``layer`` (1), or one per ``neuron``
            (C times the positions of ``spatial_shape``).
        linear_term: learn an explicit slope b beside the coefficients, f(x) + b x (Bohra et al., ResNet and NiN
            experiments). It starts at the mean slope of ``init`` on the grid and the coefficients at the rest, so the
            initial function is the same.
        spatial_shape: shape of an input after (N, C), needed by ``sharing="neuron"`` beyond dense layers.
        slope_min: smallest slope of the curves, linear term included; None for no limit. Every forward pass takes the
            parameters through ``functional.slope_limits.limit_slopes``.
        slope_max: largest slope. -1 and 1: 1-Lipschitz; 0 and None: monotone; 0 and 1: firmly non-expansive.
        learn_scale: learn alpha > 0 of each curve in f(x) = s(alpha x) / alpha, s the spline above: slopes and TV(2)
            stay, the knots move to t_k / alpha. alpha = exp(``log_scale``) starts at 1 (and stays in e^±60).
        backend: what computes: auto, reference, cpu or triton, see ``tautnet.kernels.linear_spline``.

    Shape:
        (N, C, *) to the same shape, any rank of at least 2, N = 0 included.

    Parameters: ``coefficients`` (curves, K), ``linear`` and ``log_scale`` (curves,), role ``activation``.
    Lipschitz: the largest |slope|, exact, any p.

    Raises:
        ValueError: an argument out of range, an ``init`` beyond the slope limits, an input of another number of
            channels or another ``spatial_shape``, or a first batch that gives no range.
    """

    parameter_roles: ClassVar[Mapping[str, Role]] = dict.fromkeys(("coefficients", "linear", "log_scale"), "activation")

    def __init__(
        self,
        num_channels: int,
        num_knots: int = 51,
        grid_range: float | Literal["auto"] = 4.0,
        init: Init = "leaky_relu",
        sharing: Sharing = "channel",
        linear_term: bool = False,
        spatial_shape: Sequence[int] = (),
        slope_min: float | None = None,
        slope_max: float | None = None,
        learn_scale: bool = False,
        backend: Backend = "auto",
    ) -> None:
        super().__init__(num_channels)
        check_arguments(num_knots, grid_range, init, sharing, spatial_shape, slope_min, slope_max, backend)
        self.awaits_range = grid_range == "auto"
        self.grid_range = DEFAULT_RANGE if grid_range == "auto" else float(grid_range)
        self.num_knots, self.init, self.sharing = num_knots, init, sharing
        self.spatial_shape = tuple(spatial_shape)
        self.num_curves = 1 if sharing == "layer" else num_channels * prod(self.spatial_shape)
        self.slope_min, self.slope_max = slope_min, slope_max
        self.backend = backend
        self._limited = slope_min is not None or slope_max is not None
        self.linear = nn.Parameter(torch.empty(self.num_curves)) if linear_term else None
        self.log_scale = nn.Parameter(torch.zeros(self.num_curves)) if learn_scale else None
        self.coefficients = nn.Parameter(torch.empty(self.num_curves, num_knots))
        self._values = DerivedTensor()
        self._start()

    @torch.no_grad()
    def _start(self) -> None:
        """Set the parameters to ``init`` on the present grid."""
        knots_K = self.knots().to(self.coefficients)
        values_CK = initial_values(self.init, self.num_curves, knots_K)
        if self.linear is not None:
            self.linear.copy_((values_CK[:, -1] - values_CK[:, 0]) / (2 * self.grid_range))
            values_CK = values_CK - self.linear.unsqueeze(1) * knots_K
        self.coefficients.copy_(values_CK)

    def extra_repr(self) -> str:
        """The settings in the module's printed form."""
        return (
            f"{self.num_channels}, num_knots={self.num_knots}, grid_range={self.grid_range}, sharing={self.sharing}, "
            f"linear_term={self.linear is not None}, slope_min={self.slope_min}, slope_max={self.slope_max}, "
            f"learn_scale={self.log_scale is not None}"
        )

    def get_extra_state(self) -> Tensor:
        """``grid_range``, without which the coefficients mean another function; NaN while it waits for data."""
        return torch.tensor(nan if self.awaits_range else self.grid_range, dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Take over a grid where there is none yet; refuse coefficients of another one."""
        loaded = state.item()
        if self.awaits_range and spline_init.is_range(loaded):
            self.grid_range, self.awaits_range = loaded, False
        elif loaded != self.grid_range and not (self.awaits_range and isnan(loaded)):
            raise ValueError(f"grid_range={self.grid_range}: the loaded spline has {loaded}")

    def train(self, mode: bool = True) -> LinearSpline:
        """Training or evaluation mode; the values kept for evaluation begin anew."""
        self._values.clear()
        return super().train(mode)

    def knots(self) -> Tensor:
        """Positions of the knots while alpha is 1, shape (K,), float64, CPU."""
        return spline.knot_positions(self.num_knots, self.grid_range)

    def values_at_knots(self) -> Tensor:
        """The function's values at its knots, shape (curves, K), linear term, scale and slope limits included."""
        if self.linear is None and self.log_scale is None and not self._limited:
            return self.coefficients
        if self.training:
            return self._effective_values()
        parameters = [parameter for parameter in self._parameters.values() if parameter is not None]
        return self._values.get(parameters, self.grid_range, self._effective_values)

    def _effective_values(self) -> Tensor:
        values_CK: Tensor = self.coefficients
        if self.linear is not None:
            values_CK = values_CK + self.linear.unsqueeze(1) * self.knots().to(values_CK)
        if self.log_scale is not None:
            values_CK = values_CK / self._scale_C1()
        return limit_slopes(values_CK, self._step_C1(), self.slope_min, self.slope_max) if self._limited else values_CK

    def _scale_C1(self) -> Tensor:
        """Alpha of each curve, shape (curves, 1) or (1, 1)."""
        log_scale = self.coefficients.new_zeros(1) if self.log_scale is None else self.log_scale
        return log_scale.clamp(-60, 60).exp().unsqueeze(1)

    def _step_C1(self) -> Tensor:
        """Distance of the knots of each curve in float64, shape (curves, 1) or (1, 1)."""
        return spline.knot_step(self.num_knots, self.grid_range) / self._scale_C1().double()

    @torch.no_grad()
    def points(self) -> tuple[Tensor, Tensor]:
        """Knot positions and values of every curve, each (curves, K), float64 on the CPU: the function itself."""
        values_CK = self.values_at_knots().detach().to("cpu", torch.float64, copy=True)
        return (self.knots() / self._scale_C1().to("cpu", torch.float64)).expand_as(values_CK), values_CK

    @torch.no_grad()
    def set_values_(self, values_CK: Tensor) -> None:
        """Change the coefficients so that the curves take these values at the positions of ``points()``.

        Args:
            values_CK: shape (curves, K); float64 keeps what the coefficients can hold. Slope limits go on to act.
        """
        values_CK = values_CK * self._scale_C1().to(values_CK)
        if self.linear is not None:
            values_CK = values_CK - self.linear.to(values_CK).unsqueeze(1) * self.knots().to(values_CK)
        self.coefficients.copy_(values_CK)
        self.awaits_range = False  # a range from data would start ``init`` anew

    def slopes(self) -> Tensor:
        """Slopes between knots, shape (curves, K-1), in float64 on the CPU, where bounds are computed."""
        if self._limited:  # of the stored values
            return self.values_at_knots().to("cpu", torch.float64).diff(dim=1) / self._step_C1().cpu()
        slopes = spline.slopes(self.coefficients.to("cpu", torch.float64), self.grid_range)  # alpha leaves them
        return slopes if self.linear is None else slopes + self.linear.to("cpu", torch.float64).unsqueeze(1)

    def slope_changes(self) -> Tensor:
        """Changes of slope at the inner knots, shape (curves, K-2)."""
        values_CK = self.values_at_knots() * self._scale_C1() if self._limited else self.coefficients
        return spline.slope_changes(values_CK, self.grid_range)

    def num_active_knots(self, threshold: float = 1e-3) -> int:
        """How many slope changes exceed ``threshold`` in size, over all curves.

        With Adam the penalty leaves dead slope changes near 1e-4 and live ones above 0.1; the default lies between.
        """
        return int((self.slope_changes().abs() > threshold).sum())

    def tv2(self) -> Tensor:
        """Second-order total variation of each curve, shape (curves,)."""
        return self.slope_changes().abs().sum(dim=1)

    def bv2(self) -> Tensor:
        """TV(2)(f) + |f(0)| + |f(1)| of each curve, shape (curves,). Source: Aziznejad et al. (2020)."""
        one_C1 = self._scale_C1().expand(self.num_curves, 1)  # where 1 lies on the grid
        points_1C2 = torch.cat([0 * one_C1, one_C1], dim=1).unsqueeze(0)
        values_1C2 = spline.evaluate(points_1C2, self.values_at_knots(), self.grid_range, self.backend)
        return self.tv2() + values_1C2[0].abs().sum(dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *) to the same shape and dtype."""
        found = range_of(x) if self.awaits_range and self.training else None
        if found is not None:
            self.grid_range, self.awaits_range = found, False
            self._start()
        y = spline.evaluate(self._as_curves(x), self.values_at_knots(), self.grid_range, self.backend).to(x.dtype)
        return y if y.shape == x.shape else y.reshape(x.shape)

    def share_outside(self, x: Tensor) -> float:
        """Share of the elements of an input (N, C, *) that lie outside their curve's grid, 0 to 1."""
        return float((self._as_curves(x).abs() > self.grid_range).double().mean())

    def slope_range(self) -> tuple[Tensor, Tensor]:
        """Smallest and largest slope of each channel, exact."""
        slopes_C = self.slopes().expand(max(self.num_curves, self.num_channels), -1).reshape(self.num_channels, -1)
        return slopes_C.min(dim=1).values, slopes_C.max(dim=1).values

    def interval(self, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        """Exact image of the box."""
        low, high = spline.interval(self._as_curves(lo), self._as_curves(hi), self.values_at_knots(), self.grid_range)
        return low.reshape(lo.shape), high.reshape(hi.shape)

    def local_slope_range(self, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        """Exact range of slopes over the box, both slopes at a knot included."""
        scaled_CK = self.values_at_knots() * self._scale_C1()
        low, high = spline.local_slope_range(self._as_curves(lo), self._as_curves(hi), scaled_CK, self.grid_range)
        return low.reshape(lo.shape), high.reshape(hi.shape)

    def _as_curves(self, x: Tensor) -> Tensor:
        """(N, C, *), or (N, curves) for neurons, times alpha: ``[:, c]`` holds the positions on the grid of curve c."""
        if x.dim() < 2 or x.shape[1] != self.num_channels:
            raise ValueError(f"input of shape {tuple(x.shape)}: this spline takes (N, {self.num_channels}, *)")
        if self.sharing == "neuron" and x.shape[2:] != self.spatial_shape:
            raise ValueError(
                f"sharing=neuron: a curve for every neuron of shape {(self.num_channels, *self.spatial_shape)}, the "
                f"layer has {tuple(x.shape[1:])}; in convolutional networks use sharing=channel or layer"
            )
        curves = x.flatten(1) if self.sharing == "neuron" else x  # else whatever its strides: a copy costs more
        return curves if self.log_scale is None else curves * spline.beside(curves, self._scale_C1().flatten())
