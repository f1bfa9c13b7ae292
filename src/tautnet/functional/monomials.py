r"""Polynomials in several variables, as their coefficients of all monomials up to a degree.

The monomial x_1^e_1 ... x_d^e_d has the place sum_i C(e_1 + ... + e_i + i - 1, i), i = 1, ..., d. Those of a degree up
to D take the first C(d + D, d) places, whatever D is, so that a polynomial of smaller degree is one with fewer rows.

Source: the combinatorial number system, textbooks.
"""

from __future__ import annotations

from itertools import combinations
from math import comb

import torch
from torch import Tensor


def num_monomials(num_variables: int, degree: int) -> int:
    """How many monomials have at most that degree, C(d + D, d)."""
    return comb(num_variables + degree, degree)


def exponents(num_variables: int, degree: int) -> Tensor:
    """Exponents of the monomials up to a degree, in the order of their places, (M, num_variables), int64."""
    # The partial sums s_i of the exponents, each increased by i - 1, are the subsets of d + D numbers.
    subsets_MD = torch.tensor(list(combinations(range(num_variables + degree), num_variables)), device="cpu")
    sums_MD = subsets_MD - torch.arange(num_variables, device="cpu")
    return sums_MD[_places(sums_MD).argsort()].diff(dim=1, prepend=torch.zeros_like(sums_MD[:, :1]))


def product(left_MC: Tensor, right_MC: Tensor, num_variables: int, degrees: tuple[int, int]) -> Tensor:
    """Coefficients of the products, one for each column, of as many rows as the sum of the degrees has monomials."""
    if degrees[0] < degrees[1]:  # the loop runs over the right factor's monomials
        return product(right_MC, left_MC, num_variables, (degrees[1], degrees[0]))
    result_MC = left_MC.new_zeros(num_monomials(num_variables, sum(degrees)), left_MC.shape[1])
    left_sums_MD, right_sums_MD = (exponents(num_variables, degree).cumsum(1) for degree in degrees)
    for sums_D, factor_C in zip(right_sums_MD, right_MC, strict=True):
        result_MC[_places(left_sums_MD + sums_D)] += left_MC * factor_C
    return result_MC


def substituted(outer_CP: Tensor, inner_MC: Tensor, num_variables: int, degree: int) -> Tensor:
    """Coefficients of P_c(q_c(x)), by Horner's scheme.

    Args:
        outer_CP: of the polynomials P_c in one variable, constant first.
        inner_MC: of the polynomials q_c in ``num_variables`` variables, of degree ``degree``.
        num_variables: at least 1.
        degree: of the q_c.
    """
    *lower, leading_C = outer_CP.unbind(1)
    result_MC = leading_C.unsqueeze(0)
    for step, constant_C in enumerate(reversed(lower)):
        result_MC = product(result_MC, inner_MC, num_variables, (step * degree, degree))
        result_MC[0] += constant_C
    return result_MC


def _places(sums_MD: Tensor) -> Tensor:
    """Places of the monomials whose exponents have these partial sums, (M,)."""
    num_variables = sums_MD.shape[1]
    table = [[comb(s + i, i + 1) for i in range(num_variables)] for s in range(int(sums_MD.max()) + 1)]
    return torch.tensor(table, device="cpu").gather(0, sums_MD).sum(1)
