"""Sums of basis functions with constant coefficients: values, slopes, images of boxes."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from tautnet.functional.bases import Basis, elements, frequencies, is_polynomial, to_powers
from tautnet.functional.elementwise import scaled_box
from tautnet.functional.polynomial import (
    beside,
    composed,
    derivative,
    range_on_box,
    trigonometric_range_on_box,
)
from tautnet.functional.standardized_polynomial import polynomial

_WIDE_ABOVE = 7  # degree from which Horner's scheme runs in float64: powers of z up to 3 take float32's digits


@dataclass(frozen=True)
class BasisSum:
    r"""f_c(z) = constant_c + sum_j weights_{c,j} e_j(factor_c z + shift_c) [+ ReLU(z)], one for each of C curves.

    Attributes:
        basis: whose elements, see ``bases.py``.
        degree: largest degree, or Fourier's number of frequencies.
        weights_CK: one weight an element, (C, K), float64.
        constant_C: (C,), float64.
        factor_C: (C,), float64; the affine map in front.
        shift_C: (C,), float64.
        with_relu: whether ReLU(z) is added.
    """

    basis: Basis
    degree: int
    weights_CK: Tensor
    constant_C: Tensor
    factor_C: Tensor
    shift_C: Tensor
    with_relu: bool = False

    def values(self, z: Tensor) -> Tensor:
        """The values at points (N, C, *), in their dtype."""
        u = torch.addcmul(beside(z, self.shift_C.to(z.dtype)), beside(z, self.factor_C.to(z.dtype)), z)
        y = self._of_polynomial(u) if is_polynomial(self.basis) else self._of_sines(u)
        return y + torch.relu(z) if self.with_relu else y

    def _of_polynomial(self, u: Tensor) -> Tensor:
        wide = torch.float64 if self.degree > _WIDE_ABOVE else u.dtype
        return polynomial(u.to(wide), self._power_coefficients().to(wide)).to(u.dtype)

    def _of_sines(self, u: Tensor) -> Tensor:
        y = beside(u, self.constant_C.to(u.dtype))
        for weight_C, element in zip(self.weights_CK.unbind(1), elements(u, self.basis, self.degree), strict=True):
            y = torch.addcmul(y, beside(u, weight_C.to(u.dtype)), element)
        return y

    def _power_coefficients(self) -> Tensor:
        """Of the polynomial behind the affine map, constant first, (C, degree + 1)."""
        coefficients_CP = self.weights_CK @ to_powers(self.basis, self.degree).to(self.weights_CK.device)
        return coefficients_CP + torch.nn.functional.pad(self.constant_C.unsqueeze(1), (0, self.degree))

    def polynomial(self) -> Tensor:
        """Coefficients of f in powers of z, constant first, (C, degree + 1), float64.

        Raises:
            ValueError: f is no polynomial.
        """
        if self.with_relu:
            raise ValueError("with_relu=True: with ReLU it is no polynomial")
        return composed(self._power_coefficients(), self.factor_C, self.shift_C)

    def is_affine(self) -> Tensor:
        """Whether f_c without ReLU is a straight line, (C,): all weights but the first are 0, or all for Fourier."""
        curved = 1 if is_polynomial(self.basis) else 0
        return (self.weights_CK[:, curved:] == 0).all(1)

    def slope_range(self) -> tuple[Tensor, Tensor]:
        """Bounds of the derivative over the line, (C,): of straight lines exact, of other polynomials -inf and inf.

        Of Fourier sums |f'| <= |factor| sum_j |w_j| omega_j.
        """
        if is_polynomial(self.basis):
            slope_C = self.weights_CK[:, 0] * self.factor_C  # e_1(x) = x in all of them
            affine_C = self.is_affine()
            return torch.where(affine_C, slope_C, -inf), torch.where(affine_C, slope_C + self.with_relu, inf)
        sines, cosines = frequencies(self.degree)
        omega_K = self.weights_CK.new_tensor(sines + cosines)
        most_C = (self.weights_CK.abs() * omega_K).sum(1) * self.factor_C.abs()
        return -most_C, most_C + self.with_relu

    def interval(self, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        """An interval that contains f on [lo, hi] of (N, C, *), up to a last rounding; ReLU's is added to the sum's."""
        low, high = self._box_in_front(lo, hi)
        if is_polynomial(self.basis):
            low, high = range_on_box(low, high, self._power_coefficients())
        else:
            low, high = trigonometric_range_on_box(low, high, self.weights_CK, self.constant_C)
        if self.with_relu:
            low, high = low + torch.relu(lo), high + torch.relu(hi)
        return low.to(lo.dtype), high.to(lo.dtype)

    def local_slope_range(self, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        """An interval that contains f' on [lo, hi] of (N, C, *), ReLU's at 0 on both sides included."""
        low, high = self._box_in_front(lo, hi)
        if is_polynomial(self.basis):
            ends = range_on_box(low, high, derivative(self._power_coefficients()))
        else:
            ends = trigonometric_range_on_box(low, high, self.weights_CK, self.constant_C, order=1)
        low, high = scaled_box(*ends, beside(lo, self.factor_C.to(lo.device)))
        if self.with_relu:
            low, high = low + (lo > 0), high + (hi >= 0)
        least, most = (beside(lo, end_C.to(lo.device)) for end_C in self.slope_range())
        return torch.maximum(low, least).to(lo.dtype), torch.minimum(high, most).to(lo.dtype)

    def _box_in_front(self, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        factor, shift = (beside(lo, value_C.to(lo.device)) for value_C in (self.factor_C, self.shift_C))
        low, high = scaled_box(lo.double(), hi.double(), factor)
        # half a unit for the product, the shift and the sum: more than they round
        margin = 2 * torch.finfo(torch.float64).eps * (torch.maximum(low.abs(), high.abs()) + shift.abs()).detach()
        return low + shift - margin, high + shift + margin
