"""The Taylor polynomial of the inverse square root of a Gram matrix, applied to the matrix itself."""

from __future__ import annotations

from math import comb
from typing import Any

import torch
from torch import Tensor


def _product(a: Tensor, b: Tensor) -> Tensor:
    """A product of matrices; for one batch dimension without the views of matmul, which outweigh small products."""
    return torch.bmm(a, b) if a.dim() == 3 else a @ b


class _RowGram(torch.autograd.Function):
    """A A^T. Its gradient (D + D^T) A is one product of matrices, where autograd's D A + D^T A takes two."""

    generate_vmap_rule = True

    @staticmethod
    def forward(rows_MN: Tensor) -> Tensor:
        return _product(rows_MN, rows_MN.mT)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad_MM: Tensor) -> Tensor:
        (rows_MN,) = ctx.saved_tensors
        return _product(grad_MM + grad_MM.mT, rows_MN)


def gram(matrix_OI: Tensor) -> Tensor:
    r"""The smaller of A A^T and A^T A, differentiable any number of times.

    Args:
        matrix_OI: shape (\*, O, I).

    Returns:
        Shape (\*, M, M), M = min(O, I).
    """
    rows_MN = matrix_OI if matrix_OI.shape[-2] <= matrix_OI.shape[-1] else matrix_OI.mT
    return _RowGram.apply(rows_MN)  # type: ignore[no-untyped-call]


def inverse_root_taylor(matrix_OI: Tensor, order: int) -> Tensor:
    r"""T(A A^T) A, T the Taylor polynomial of x^(-1/2) around 1; with singular values p(s) in place of A's s.

    T(G) = sum_{k <= order} c_k (I - G)^k, c_k = C(2k, k) / 4^k = 1, 1/2, 3/8, 5/16, ..., so p(s) = s sum_k c_k
    (1 - s^2)^k with the singular vectors of A. p rises on [0, 1], stays above s there and has p(1) = 1; p(s) -> 1 for
    order -> infinity where 0 < s < sqrt(2): T(A A^T) A goes to A's orthonormal polar factor. Near 1, 1 - p(s) is about
    c_{order+1} (1 - s^2)^(order+1): a little above 1 odd orders fall below 1 and even orders rise above. Further
    above 1 an odd order folds singular values back: order 1 takes s > sqrt(3) to below 0.

    Computed from the smaller Gram matrix, since A T(A^T A) is the same, by Horner's rule: order - 1 products of its
    size, two of the matrix's, and for the gradient three of the matrix's.

    Source: binomial series.

    Args:
        matrix_OI: shape (\*, O, I), a batch of matrices of floating numbers.
        order: at least 0, which leaves the matrix as it is.

    Returns:
        The same shape.

    Raises:
        ValueError: ``order`` below 0.
    """
    if order < 0:
        raise ValueError(f"order={order}: an integer of at least 0")
    if order == 0:
        return matrix_OI
    polynomial_MM = _taylor(gram(matrix_OI), order)
    wide = matrix_OI.shape[-2] <= matrix_OI.shape[-1]
    return _product(polynomial_MM, matrix_OI) if wide else _product(matrix_OI, polynomial_MM)


def _taylor(gram_MM: Tensor, order: int) -> Tensor:
    """sum_k c_k (I - G)^k, order at least 1."""
    coefficients = [comb(2 * k, k) / 4**k for k in range(order + 1)]
    identity_MM = torch.eye(gram_MM.shape[-1], dtype=gram_MM.dtype, device=gram_MM.device)
    result_MM = torch.sub((coefficients[-2] + coefficients[-1]) * identity_MM, gram_MM, alpha=coefficients[-1])
    for coefficient in reversed(coefficients[:-2]):
        result_MM = coefficient * identity_MM + _product(result_MM, identity_MM - gram_MM)
    return result_MM
