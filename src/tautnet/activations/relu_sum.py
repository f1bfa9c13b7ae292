"""Finished linear splines with free knots, in plain torch operations."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from tautnet.activations.base import AbstractActivation
from tautnet.activations.spline_init import Sharing


def _clip(x: Tensor, start: Tensor | None, end: Tensor | None) -> Tensor:
    """``x`` moved into [start, end], None for no end.

    Not ``torch.clamp``, whose derivative at an end is 1: at a knot the slopes of both sides would add up. Maximum and
    minimum give 1/2 there, hence the mean of both slopes.
    """
    if start is not None:
        x = torch.maximum(x, start)
    return x if end is None else torch.minimum(x, end)


def _evaluate(x: Tensor, knots: Sequence[Tensor], slopes: Sequence[Tensor], value_at_0: Tensor) -> Tensor:
    """The sum of ``ReluSum``; J knots and J + 1 slopes, each broadcasts against x as ``value_at_0`` does."""
    if not knots:
        return value_at_0 + slopes[0] * x
    y: Tensor | None = None
    for start, end, slope in zip([None, *knots], [*knots, None], slopes, strict=True):
        rise = _clip(x, start, end).sub_(_clip(torch.zeros_like(slope), start, end)).mul_(slope)
        y = rise.add_(value_at_0) if y is None else y.add_(rise)
    assert y is not None
    return y


class ReluSum(AbstractActivation):
    r"""One piecewise linear function with knots anywhere for each channel, layer or neuron; nothing in it is trained.

    f_c(x) = f_c(0) + sum_j s_{c,j} (clip(x; t_{c,j}, t_{c,j+1}) - clip(0; t_{c,j}, t_{c,j+1})), j = 0, ..., J, with
    t_{c,0} = -inf, t_{c,J+1} = inf and the slopes s_{c,j} between them. It is the sum of ReLUs
    b_0 + b_1 x + sum_j a_{c,j} ReLU(x - t_{c,j}), a_{c,j} = s_{c,j} - s_{c,j-1}, taken in pairs:
    ReLU(x - t_j) - ReLU(x - t_{j+1}) = clip(x; t_j, t_{j+1}) - t_j. Single ReLUs grow without bound and cancel; here
    the partial sums are values of f, so that nothing cancels, an infinite input gives NaN on a flat border line
    only, and NaN gives NaN.

    Only maximum, minimum, sums and products are used, J + 1 times each, whatever the values are: it can be exported.
    The derivative at a knot is the mean of both slopes. Arithmetic is in float32 at least, the result takes the
    input's dtype. The cost grows with J; that of ``LinearSpline`` does not.

    Source: the ReLU form of Bohra et al. (2020); the grouping and the anchor at 0 are ours.

    Args:
        num_channels: size of dimension 1 of the input.
        knots_CJ: t, shape (curves, J), J >= 0, finite and strictly rising in each row. A curve with fewer knots than
            others has further ones to the right without a change of slope.
        slopes_CP: s, shape (curves, J + 1), finite.
        value_at_0_C: f(0), shape (curves,), finite.
        sharing: whose curve is which, as in ``LinearSpline``: C curves for ``channel``, 1 for ``layer``, C times the
            positions of ``spatial_shape`` for ``neuron``.
        spatial_shape: shape of an input after (N, C), for ``sharing="neuron"``.

    Shape:
        (N, C, *) to the same shape, any rank of at least 2, N = 0 included.

    Buffers: ``knots``, ``slopes``, ``value_at_0``. Lipschitz: the largest |slope|, exact, any p.

    Raises:
        ValueError: arguments that do not fit together, or an input of another number of channels or another
            ``spatial_shape``.
    """

    knots: Tensor
    slopes: Tensor
    value_at_0: Tensor

    def __init__(
        self,
        num_channels: int,
        knots_CJ: Tensor,
        slopes_CP: Tensor,
        value_at_0_C: Tensor,
        sharing: Sharing = "channel",
        spatial_shape: Sequence[int] = (),
    ) -> None:
        super().__init__(num_channels)
        counts = {"channel": num_channels, "layer": 1, "neuron": num_channels * prod(spatial_shape)}
        if sharing not in counts:
            raise ValueError(f"sharing={sharing}: one of {', '.join(counts)}")
        if spatial_shape and sharing != "neuron":
            raise ValueError(f"spatial_shape={tuple(spatial_shape)}: has an effect with sharing=neuron only")
        self.sharing, self.spatial_shape, self.num_curves = sharing, tuple(spatial_shape), counts[sharing]
        curves = self.num_curves
        if knots_CJ.dim() != 2 or len(knots_CJ) != curves:
            raise ValueError(f"knots_CJ={tuple(knots_CJ.shape)}: ({curves}, J), a row for every curve")
        if not (knots_CJ.isfinite().all() and (knots_CJ.diff(dim=1) > 0).all()):
            raise ValueError("knots_CJ=…: finite and strictly rising in each row")
        for name, tensor, shape in (
            ("slopes_CP", slopes_CP, (curves, knots_CJ.shape[1] + 1)),
            ("value_at_0_C", value_at_0_C, (curves,)),
        ):
            if tensor.shape != shape or not tensor.isfinite().all():
                raise ValueError(f"{name}={tuple(tensor.shape)}: finite values of shape {shape}")
        for name, tensor in (("knots", knots_CJ), ("slopes", slopes_CP), ("value_at_0", value_at_0_C)):
            self.register_buffer(name, tensor.detach().clone())

    def extra_repr(self) -> str:
        """The settings in the module's printed form."""
        return f"{self.num_channels}, num_knots={self.knots.shape[1]}, sharing={self.sharing}"

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *) to the same shape and dtype."""
        # torch.promote_types would be an operator of the exported graph.
        dtype = torch.float64 if torch.float64 in (x.dtype, self.knots.dtype) else torch.float32
        knots, slopes, (value_at_0,) = self._beside(x, dtype)
        return _evaluate(x.to(dtype), knots, slopes, value_at_0).to(x.dtype)

    def slope_range(self) -> tuple[Tensor, Tensor]:
        """Smallest and largest slope of each channel, exact."""
        slopes = self.slopes.to("cpu", torch.float64)
        if self.sharing == "layer":
            slopes = slopes.expand(self.num_channels, -1)
        slopes_C = slopes.reshape(self.num_channels, -1)
        return slopes_C.min(dim=1).values, slopes_C.max(dim=1).values

    def tv2(self) -> Tensor:
        """Sum of the sizes of the changes of slope of each curve."""
        return self.slopes.to("cpu", torch.float64).diff(dim=1).abs().sum(dim=1)

    def interval(self, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        """Exact image of the box: taken at an end or at a knot inside."""
        knots, slopes, (value_at_0,) = self._beside(lo, lo.dtype)
        ends = (_evaluate(lo, knots, slopes, value_at_0), _evaluate(hi, knots, slopes, value_at_0))
        low, high = torch.minimum(*ends), torch.maximum(*ends)
        for knot in knots:
            value, inside = _evaluate(knot, knots, slopes, value_at_0), (lo <= knot) & (knot <= hi)
            low = torch.where(inside, torch.minimum(low, value), low)
            high = torch.where(inside, torch.maximum(high, value), high)
        return low, high

    def local_slope_range(self, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        """Exact range of slopes over the box, both slopes at a knot included."""
        knots, slopes, _ = self._beside(lo, lo.dtype)
        smallest, largest = torch.full_like(lo, float("inf")), torch.full_like(lo, -float("inf"))
        infinite = torch.full_like(slopes[0], float("inf"))
        for start, end, slope in zip([-infinite, *knots], [*knots, infinite], slopes, strict=True):
            touched = (lo <= end) & (start <= hi)
            smallest = torch.where(touched, torch.minimum(smallest, slope), smallest)
            largest = torch.where(touched, torch.maximum(largest, slope), largest)
        return smallest, largest

    def _beside(self, x: Tensor, dtype: torch.dtype) -> tuple[tuple[Tensor, ...], ...]:
        """Knots, slopes and (value at 0,), each tensor of a shape that broadcasts against x of (N, C, *)."""
        if x.dim() < 2 or x.shape[1] != self.num_channels:
            raise ValueError(f"input of shape {tuple(x.shape)}: this function takes (N, {self.num_channels}, *)")
        shape: tuple[int, ...] = (-1, *[1] * (x.dim() - 2))
        if self.sharing == "neuron":
            shape = (self.num_channels, *self.spatial_shape)
            if x.shape[1:] != shape:
                raise ValueError(f"input of shape {tuple(x.shape)}: sharing=neuron, this function takes (N, *{shape})")
        of_curves = (self.knots, self.slopes, self.value_at_0.unsqueeze(1))
        return tuple(tuple(t.to(dtype).reshape(shape) for t in tensor_CX.unbind(1)) for tensor_CX in of_curves)
