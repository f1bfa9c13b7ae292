"""The linear spline in plain torch operations: any device, the oracle of the other backends."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class _Located(NamedTuple):
    cell: Tensor  # counted through the cells of all curves, int64, shape of x
    fraction: Tensor  # position in the cell; outside the grid it leaves [0, 1]


def _locate(x: Tensor, num_curves: int, num_cells: int, grid_range: float) -> _Located:
    position = (x + grid_range) * (num_cells / (2 * grid_range))
    # The cast of a NaN to an integer is undefined: the cell is taken from a copy without NaN.
    cell = torch.nan_to_num(position.detach(), nan=0.0).clamp(0.0, float(num_cells - 1)).floor()
    first_of_curve = torch.arange(num_curves, device=x.device) * num_cells
    return _Located(cell.long() + first_of_curve.view(-1, *[1] * (x.dim() - 2)), position - cell)


def _take(table: Tensor, index: Tensor) -> Tensor:
    return table.flatten().index_select(0, index.flatten()).view(index.shape)


def forward(x: Tensor, coefficients_CK: Tensor, grid_range: float) -> Tensor:
    """Values, in the dtype of ``x``; computed in that of the coefficients. Differentiable any number of times."""
    num_curves, num_knots = coefficients_CK.shape
    at = _locate(x.to(coefficients_CK.dtype), num_curves, num_knots - 1, grid_range)
    rise = _take(coefficients_CK.diff(dim=1), at.cell)
    return (_take(coefficients_CK[:, :-1], at.cell) + rise * at.fraction).to(x.dtype)


def backward(
    grad: Tensor, x: Tensor, coefficients_CK: Tensor, grid_range: float, with_coefficients: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of the input and, if asked for, of the coefficients (else an empty tensor)."""
    num_curves, num_knots = coefficients_CK.shape
    num_cells = num_knots - 1
    at = _locate(x.to(coefficients_CK.dtype), num_curves, num_cells, grid_range)
    slopes = coefficients_CK.diff(dim=1) * (num_cells / (2 * grid_range))
    wide = grad.to(coefficients_CK.dtype)
    grad_x = (wide * _take(slopes, at.cell)).to(x.dtype)
    if not with_coefficients:
        return grad_x, coefficients_CK.new_zeros(0)
    return grad_x, _knot_sums(wide - wide * at.fraction, wide * at.fraction, at.cell, coefficients_CK)


def double_backward(
    grad_of_grad_x: Tensor,
    grad_of_grad_coefficients: Tensor,
    grad: Tensor,
    x: Tensor,
    coefficients_CK: Tensor,
    grid_range: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients that ``backward`` hands on to ``grad``, ``x`` and the coefficients.

    The second derivative is zero between knots, so all of it comes from the products: of ``grad`` with the slope in one
    result, with the fraction in the other. An empty ``grad_of_grad_coefficients`` counts as zero.
    """
    num_curves, num_knots = coefficients_CK.shape
    num_cells = num_knots - 1
    scale = num_cells / (2 * grid_range)
    at = _locate(x.to(coefficients_CK.dtype), num_curves, num_cells, grid_range)
    first, wide = grad_of_grad_x.to(coefficients_CK.dtype), grad.to(coefficients_CK.dtype)
    to_grad = first * scale * _take(coefficients_CK.diff(dim=1), at.cell)
    to_x = torch.zeros_like(x)
    if grad_of_grad_coefficients.numel() > 0:
        rise = _take(grad_of_grad_coefficients.diff(dim=1), at.cell)
        to_grad = to_grad + _take(grad_of_grad_coefficients[:, :-1], at.cell) + rise * at.fraction
        to_x = (wide * scale * rise).to(x.dtype)
    change = first * wide * scale
    return to_grad.to(grad.dtype), to_x, _knot_sums(-change, change, at.cell, coefficients_CK)


def _knot_sums(to_left: Tensor, to_right: Tensor, index: Tensor, coefficients_CK: Tensor) -> Tensor:
    """Sum what every element gives to the knots on the left and right of its cell, shape (C, K).

    In double precision and on the CPU in a fixed order.
    """
    num_curves, num_knots = coefficients_CK.shape
    wide = torch.float32 if index.device.type == "mps" else torch.float64  # MPS has no doubles
    knots = index + index // (num_knots - 1)  # a curve has one knot more than cells
    sums = torch.zeros(num_curves * num_knots, dtype=wide, device=index.device)
    for offset, values in ((0, to_left), (1, to_right)):
        sums = sums.index_add(0, (knots + offset).flatten(), values.flatten().to(wide))
    return sums.view(num_curves, num_knots).to(coefficients_CK.dtype)
