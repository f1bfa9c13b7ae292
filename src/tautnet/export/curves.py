"""Learned functions of one value in few and plain torch operations, one for each channel, layer or neuron."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from tautnet.export.layers import PlainLayer


class Clips(PlainLayer):
    """A piecewise linear function of few knots: constant_c + sum_j s_cj clip(x; t_cj, t_c,j+1).

    For J knots 4 J + 2 operations: maximum, minimum, product and sum. See ``tautnet.activations.relu_sum``, of which it
    is the shorter form; what it adds up stays of the size of slopes times knots.

    Args:
        knots_CJ: t, shape (curves, J), J at least 1, rising.
        slopes_CP: s, shape (curves, J + 1).
        value_at_0_C: f(0), shape (curves,).
        neurons: see ``keep``.
    """

    knots: Tensor
    slopes: Tensor
    constant: Tensor

    def __init__(self, knots_CJ: Tensor, slopes_CP: Tensor, value_at_0_C: Tensor, neurons: Sequence[int] = ()) -> None:
        super().__init__()
        wide_CJ = knots_CJ.double()
        infinite_C1 = torch.full_like(wide_CJ[:, :1], torch.inf)
        starts_CP, ends_CP = torch.cat([-infinite_C1, wide_CJ], 1), torch.cat([wide_CJ, infinite_C1], 1)
        at_0_C = (slopes_CP.double() * torch.zeros_like(starts_CP).clamp(starts_CP, ends_CP)).sum(1)
        constant_C = (value_at_0_C.double() - at_0_C).float()
        self.keep(neurons, knots=knots_CJ.float(), slopes=slopes_CP.float(), constant=constant_C)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *) to the same shape."""
        knots, (first, *slopes) = self.columns(self.knots, x), self.columns(self.slopes, x)
        y = torch.minimum(x, knots[0]) * first + self.beside(self.constant, x)
        for start, end, slope in zip(knots, [*knots[1:], None], slopes, strict=True):
            clipped = torch.maximum(x, start)
            y = y + slope * (clipped if end is None else torch.minimum(clipped, end))
        return y


class Lookup(PlainLayer):
    """A piecewise linear function on many even knots: its value at the cell's left end and its rise are looked up.

    Args:
        positions_CK: of the knots, shape (curves, K), evenly rising.
        values_CK: at the knots.
        neurons: see ``keep``.
    """

    first: Tensor
    density: Tensor
    start: Tensor
    value: Tensor
    rise: Tensor

    def __init__(self, positions_CK: Tensor, values_CK: Tensor, neurons: Sequence[int] = ()) -> None:
        super().__init__()
        self.num_cells = positions_CK.shape[1] - 1
        density_C = self.num_cells / (positions_CK[:, -1] - positions_CK[:, 0])
        start_C = torch.arange(len(values_CK)) * self.num_cells
        self.keep(neurons, first=positions_CK[:, 0].float(), density=density_C.float(), start=start_C)
        for name, table_CK in {"value": values_CK[:, :-1], "rise": values_CK.diff(dim=1)}.items():
            self.register_buffer(name, table_CK.flatten().float())

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *) to the same shape; NaN gives NaN."""
        position = (x - self.beside(self.first, x)) * self.beside(self.density, x)
        cell = position.clamp(0.0, float(self.num_cells - 1)).floor()
        # A NaN becomes any integer, so that integers are clamped too; the fraction is NaN then.
        index = cell.long().clamp(0, self.num_cells - 1) + self.beside(self.start, x)
        value, rise = (table.index_select(0, index.flatten()).view(x.shape) for table in (self.value, self.rise))
        return value + rise * (position - cell)


class Powers(PlainLayer):
    """A polynomial in factor_c x + shift_c by Horner's scheme, with or without ReLU(x) added.

    Args:
        coefficients_CP: constant first, shape (curves, degree + 1); float64 stays, and is computed in.
        factor_C: shape (curves,).
        shift_C: shape (curves,).
        with_relu: whether ReLU(x) is added.
        neurons: see ``keep``.
    """

    coefficients: Tensor
    factor: Tensor
    shift: Tensor

    def __init__(
        self,
        coefficients_CP: Tensor,
        factor_C: Tensor,
        shift_C: Tensor,
        with_relu: bool,
        neurons: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.with_relu = with_relu
        self.keep(neurons, coefficients=coefficients_CP, factor=factor_C.float(), shift=shift_C.float())

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *) to the same shape."""
        u = (x * self.beside(self.factor, x) + self.beside(self.shift, x)).to(self.coefficients.dtype)
        *lower, y = self.columns(self.coefficients, x)
        for coefficient in reversed(lower):
            y = y * u + coefficient
        y = y.to(x.dtype)
        return y + F.relu(x) if self.with_relu else y


class Sines(PlainLayer):
    """constant_c + sum_j of weights times sin(omega_j u), then cos(omega_j u), u = factor_c x + shift_c.

    Args:
        weights_CK: of the sines, then of the cosines, shape (curves, K).
        constant_C: shape (curves,).
        factor_C: shape (curves,).
        shift_C: shape (curves,).
        frequencies: of the sines and of the cosines.
        with_relu: whether ReLU(x) is added.
        neurons: see ``keep``.
    """

    weights: Tensor
    constant: Tensor
    factor: Tensor
    shift: Tensor

    def __init__(
        self,
        weights_CK: Tensor,
        constant_C: Tensor,
        factor_C: Tensor,
        shift_C: Tensor,
        frequencies: tuple[Sequence[float], Sequence[float]],
        with_relu: bool,
        neurons: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.frequencies, self.with_relu = frequencies, with_relu
        vectors = {"constant": constant_C, "factor": factor_C, "shift": shift_C}
        self.keep(neurons, weights=weights_CK.float(), **{name: value.float() for name, value in vectors.items()})

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *) to the same shape."""
        u = x * self.beside(self.factor, x) + self.beside(self.shift, x)
        sines, cosines = self.frequencies
        elements = [*(torch.sin(omega * u) for omega in sines), *(torch.cos(omega * u) for omega in cosines)]
        y = self.beside(self.constant, x)
        for weight, element in zip(self.columns(self.weights, x), elements, strict=True):
            y = y + weight * element
        return y + F.relu(x) if self.with_relu else y
