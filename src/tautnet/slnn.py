"""Networks of SLAF as what they are in eval mode: polynomials in their inputs."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from tautnet.activations import Slaf
from tautnet.backbones.blocks import Scale
from tautnet.functional.bases import is_polynomial
from tautnet.functional.monomials import exponents, num_monomials, substituted
from tautnet.lipschitz.structure import Branches, Chain, Leaf, read
from tautnet.normalizers import BatchNorm

# Affine maps in eval mode, by exact type; torch's normalizers by running statistics come on top.
_AFFINE = (
    *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d),
    *(nn.Flatten, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, Scale, BatchNorm),
)
_STOCK_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@dataclass(frozen=True)
class Polynomial:
    """A sum of monomials in x1, x2, ...

    Attributes:
        terms: coefficient of each monomial, which is named by its exponents.
    """

    terms: Mapping[tuple[int, ...], float]

    @property
    def degree(self) -> int:
        """Largest sum of exponents; 0 without terms."""
        return max((sum(powers) for powers in self.terms), default=0)

    def __call__(self, x: Tensor) -> Tensor:
        """Values at points (N, *) of as many entries as there are variables, (N,) in float64."""
        x_ND = x.double().flatten(1)
        values_N = x_ND.new_zeros(len(x_ND))
        for powers, coefficient in self.terms.items():
            factors = [x_ND[:, index] ** power for index, power in enumerate(powers) if power]
            values_N = values_N + coefficient * prod(factors, start=torch.ones_like(values_N))
        return values_N

    def __str__(self) -> str:
        """As in ``0.5 + 2 x1 - 0.3 x1^2 x3``, in the order of ``terms``."""
        signed = [("-" if c < 0 else "+", term(powers, abs(c))) for powers, c in self.terms.items()]
        text = " ".join(f"{sign} {size}" for sign, size in signed) or "0"
        return f"-{text[2:]}" if text.startswith("-") else text.removeprefix("+ ")


def term(powers: Sequence[int], coefficient: float) -> str:
    """One term as text."""
    names = [f"x{i}" if power == 1 else f"x{i}^{power}" for i, power in enumerate(powers, start=1) if power]
    return " ".join([f"{coefficient:.6g}", *names])


def polynomial_of(
    net: nn.Module, input_shape: Sequence[int], tolerance: float = 1e-6, max_terms: int = 100_000
) -> list[Polynomial]:
    """The polynomials that a network of affine layers and SLAF computes in eval mode, one for each output.

    Composed in float64 from the running statistics and the weights in force. Without the terms left out and in exact
    arithmetic they are the network's function. Of a high degree, coefficients are large and cancel each other: outside
    of the unit box, or after many layers, look at the values before believing the digits.

    Source: that such networks are polynomials of degree k^L: Goyal, Goyal, Lall (2019).

    Args:
        net: layers in a row, residual blocks and concatenations; it is not changed.
        input_shape: shape of one sample; its entries in this order are x1, x2, ...
        tolerance: terms of a coefficient up to this size are left out, at least 0; NaN stays.
        max_terms: refuse polynomials that could have more terms, see ``degree_of``.

    Returns:
        Terms in falling order of the coefficients' sizes.

    Raises:
        ValueError: an argument out of range, or as ``degree_of``.
    """
    if not tolerance >= 0:
        raise ValueError(f"tolerance={tolerance}: at least 0")
    num_inputs = prod(input_shape)
    with torch.inference_mode(False), torch.no_grad():  # derivatives of the layers are needed, which it would not have
        exact = copy.deepcopy(net).to("cpu", torch.float64).eval()
        degree_of(exact, input_shape, max_terms)
        rows_MI = exponents(num_inputs, 1).double()  # of the inputs themselves: entry i is the monomial x_i
        rows, degree = _through(read(exact, input_shape), rows_MI.view(-1, *input_shape), 1, num_inputs)
    exponents_MD = exponents(num_inputs, degree)
    return [_largest_first(exponents_MD, row_M, tolerance) for row_M in rows.flatten(1).unbind(1)]


def degree_of(net: nn.Module, input_shape: Sequence[int], max_terms: int = 100_000) -> int:
    """Largest degree that the network's polynomials can have, the product of the layers' degrees along a path.

    Args:
        net: as in ``polynomial_of``.
        input_shape: shape of one sample.
        max_terms: C(d + degree, d) has to stay below or at it, d the number of inputs.

    Raises:
        ValueError: a layer that is no polynomial, by its path, or too many terms.
    """
    degree, num_inputs = _degree_behind(read(net, input_shape), 1), prod(input_shape)
    terms = num_monomials(num_inputs, degree)
    if terms > max_terms:
        raise ValueError(f"max_terms={max_terms}: polynomials of degree {degree} in {num_inputs} inputs have {terms}")
    return degree


def _degree_behind(chain: Chain, degree: int) -> int:
    for part in chain:
        if isinstance(part, Branches):
            degree = max(_degree_behind(branch, degree) for branch in part.chains)
        else:
            degree *= _degree(part)
    return degree


def _degree(leaf: Leaf) -> int:
    """Of the leaf's map in eval mode."""
    layer, kind = leaf.module, type_before_parametrizations(leaf.module)
    if leaf.unknown:
        raise ValueError(f"net={leaf.name}: a layer that can be read, this is one {leaf.unknown}")
    if kind is Slaf:
        assert isinstance(layer, Slaf)
        if is_polynomial(layer.basis) and layer.hybrid == "none":
            return layer.degree
        raise ValueError(f"net={leaf.name}, basis={layer.basis}, hybrid={layer.hybrid}: a basis of polynomials alone")
    if kind in _AFFINE or (isinstance(layer, _STOCK_NORMS) and kind in _STOCK_NORMS and layer.running_var is not None):
        return 1
    raise ValueError(f"net={leaf.name}: affine layers and SLAF, the rest is no polynomial")


def _through(chain: Chain, rows: Tensor, degree: int, num_inputs: int) -> tuple[Tensor, int]:
    """Coefficients (M, *) of what leaves the chain, and their degree, from those of what enters."""
    for part in chain:
        if isinstance(part, Branches):
            found = [_through(branch, rows, degree, num_inputs) for branch in part.chains]
            degree = max(branch_degree for _, branch_degree in found)
            padded = [_with_rows(branch, num_monomials(num_inputs, degree)) for branch, _ in found]
            rows = torch.cat(padded, dim=1) if part.kind == "concatenation" else torch.stack(padded).sum(0)
        elif isinstance(part.module, Slaf):
            outer_CP = part.module.function().polynomial()
            units = prod(part.input_shape)
            outer_UP = outer_CP.repeat_interleave(units // len(outer_CP), dim=0)
            rows = substituted(outer_UP, rows.flatten(1), num_inputs, degree).view(-1, *part.output_shape)
            degree *= part.module.degree
        else:
            rows = _through_affine(part, rows)
    return rows, degree


def _through_affine(leaf: Leaf, rows: Tensor) -> Tensor:
    """f(sum_m c_m x^m) = f(0) + sum_m A c_m x^m, A the derivative of f: the layer acts on the rows as on a batch."""
    constants, result = torch.autograd.functional.jvp(leaf.module, torch.zeros_like(rows), rows, strict=True)  # type: ignore[no-untyped-call]
    if result.shape != (len(rows), *leaf.output_shape):
        raise ValueError(f"net={leaf.name}: a layer that keeps samples apart")
    result[0] += constants[0]
    return result


def _with_rows(rows: Tensor, count: int) -> Tensor:
    """With zeros for the monomials of higher degree."""
    return torch.cat([rows, rows.new_zeros(count - len(rows), *rows.shape[1:])])


def _largest_first(exponents_MD: Tensor, row_M: Tensor, tolerance: float) -> Polynomial:
    kept = (~(row_M.abs() <= tolerance)).nonzero().flatten()  # NaN is kept
    kept = kept[row_M[kept].abs().argsort(descending=True, stable=True)]
    powers = (tuple(powers) for powers in exponents_MD[kept].tolist())
    return Polynomial(dict(zip(powers, row_M[kept].tolist(), strict=True)))
