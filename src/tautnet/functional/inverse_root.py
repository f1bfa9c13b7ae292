"""The Taylor polynomial of the inverse square root of a Gram matrix, applied to the matrix itself."""

from __future__ import annotations

from collections.abc import Callable
from math import comb
from typing import Any

import torch
from torch import Tensor

from tautnet.functional.handwritten import differentiated_again, plain_gradients, watched
from tautnet.kernels import spectral


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


def scaled_inverse_root(
    matrix_GOI: Tensor, vectors: tuple[Tensor, Tensor], formula: Callable[[Tensor], Tensor], eps: float, detached: bool
) -> Tensor:
    r"""H / |u^T H v| with H = T(A A^T) A of order 1 and A = W / |u^T W v|; one matrix on a CPU in few operations.

    With D the gradient of the result H', H = (3 A - K A) / 2 and K = A A^T, E = (D - <D, H'> s u v^T) / |u^T H v|,

        dL/dA = (3 E - K E - (E A^T + A E^T) A) / 2,    dL/dW = (dL/dA - <dL/dA, A> s' u v^T) / |u^T W v|,

    s and s' the signs of u^T H v and u^T W v; of tall matrices the products on the transposed ones.

    Args:
        matrix_GOI: W, shape (G, O, I).
        vectors: u (G, O) and v (G, I), constants.
        formula: the same in operations that autograd knows, for several matrices, other devices, and what has to be
            traced, transformed or differentiated twice.
        eps: divisors up to this are 1, and constant.
        detached: take all divisors for constants.
    """
    matrix_GOI, u_GO, v_GI = (tensor.contiguous() for tensor in (matrix_GOI, *vectors))
    if len(matrix_GOI) != 1 or watched(matrix_GOI) or not spectral.serves(matrix_GOI, u_GO, v_GI):
        return formula(matrix_GOI)
    return _scaled(matrix_GOI, u_GO[0], v_GI[0], formula, eps, detached)


class _ScaledInverseRoot(torch.autograd.Function):
    """Of one matrix (1, O, I), by the formulas above; vectors are (O,) and (I,)."""

    @staticmethod
    def forward(
        ctx: Any, matrix: Tensor, u: Tensor, v: Tensor, formula: Callable[[Tensor], Tensor], eps: float, detached: bool
    ) -> Tensor:
        scaled, first = spectral.divide(matrix[0], u, v, eps)
        rows_MN = _wide(scaled)
        gram_MM = rows_MN @ rows_MN.T
        root_MN = torch.addmm(rows_MN, gram_MM, rows_MN, beta=1.5, alpha=-0.5)
        result, second = spectral.divide(_shaped(root_MN, scaled), u, v, eps)
        ctx.save_for_backward(matrix, scaled, gram_MM, result, u, v)
        ctx.first, ctx.second, ctx.formula, ctx.eps, ctx.detached = first, second, formula, eps, detached
        return result[None]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        matrix, scaled, gram_MM, result, u, v = ctx.saved_tensors
        if differentiated_again(grad):
            return *plain_gradients(ctx.formula, (matrix,), grad, (True,)), *[None] * 5
        of_root = spectral.divide_backward(grad[0].contiguous(), result, u, v, ctx.second, ctx.eps, ctx.detached)
        rows_MN, of_rows_MN = _wide(scaled), _wide(of_root)
        of_gram = of_rows_MN @ rows_MN.T
        of_scaled = torch.addmm(of_rows_MN, gram_MM, of_rows_MN, beta=1.5, alpha=-0.5)
        of_scaled.addmm_(of_gram + of_gram.T, rows_MN, alpha=-0.5)
        of_scaled = _shaped(of_scaled, scaled)
        of_matrix = spectral.divide_backward(of_scaled, scaled, u, v, ctx.first, ctx.eps, ctx.detached)
        return of_matrix[None], *[None] * 5


_scaled: Callable[..., Tensor] = _ScaledInverseRoot.apply


def _wide(matrix_OI: Tensor) -> Tensor:
    """The matrix or, of a tall one, its transpose."""
    return matrix_OI if matrix_OI.shape[0] <= matrix_OI.shape[1] else matrix_OI.T


def _shaped(wide_MN: Tensor, matrix_OI: Tensor) -> Tensor:
    """Undo ``_wide``."""
    return wide_MN if wide_MN.shape == matrix_OI.shape else wide_MN.T.contiguous()
