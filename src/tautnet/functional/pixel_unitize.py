r"""Unitization with a norm over the channels of each position, of which a dense layer's output has one.

With xh = (x - mean_c) / sqrt(var_c + eps), r = (kappa sum_c xh^2 + eps)^(-1/2) at each position and the factor
f = gamma_c (alpha_c r + 1 - alpha_c), y = f xh + beta_c. Backwards, from g = dL/dy and t = g xh,

    dL/dbeta = sum g,    dL/dalpha = gamma sum (r - 1) t,    dL/dgamma = sum t + alpha sum (r - 1) t,
    h = dL/dxh = f g - kappa r^3 (sum_c gamma_c alpha_c t) xh,

sums over samples and positions unless over c, and batch normalisation takes h to dL/dx.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tautnet.functional.handwritten import differentiated_again, plain_gradients, watched
from tautnet.functional.unitize import inverse_norm, mixed

Formula = Callable[..., tuple[Tensor, ...]]  # (x, alpha, gamma, beta) -> (y, *statistics)


def unitized_formula(
    x: Tensor, vectors: tuple[Tensor, ...], mean_C: Tensor, inverse_C: Tensor, kappa: float, eps: float
) -> Tensor:
    """The value in operations that autograd knows.

    Args:
        x: shape (N, C, *).
        vectors: alpha, gamma and beta, each (C,) or (1,).
        mean_C: what is subtracted.
        inverse_C: 1 / sqrt(var + eps).
        kappa: factor of the squared norm.
        eps: added to it.
    """
    alpha, weight, bias, mean, inverse = (_column(vector, x) for vector in (*vectors, mean_C, inverse_C))
    normalised = (x.to(mean.dtype) - mean) * inverse
    r = inverse_norm(normalised, "pixel", kappa, eps)
    return torch.addcmul(bias, weight * mixed(r, alpha), normalised).to(x.dtype)


def unitized_by_position(
    x: Tensor,
    formula: Formula,
    running: tuple[Tensor, Tensor] | None,
    vectors: tuple[Tensor, ...],
    kappa: float,
    eps: float,
) -> tuple[Tensor, ...]:
    """The value and, without running statistics, the batch's mean and variance, (C,), the latter times m / (m - 1).

    Of large tensors only ``x`` is saved for the backward pass. Computed in float32 at least.

    Args:
        x: shape (N, C, *).
        formula: the same in operations that autograd knows, for what has to be traced, transformed or differentiated
            twice, and for fewer than two values a channel.
        running: mean and variance to normalise with; None for the batch's.
        vectors: alpha, gamma and beta, each (C,) or (1,).
        kappa: factor of the squared norm.
        eps: added to it and to the variance.
    """
    if watched(x) or x[:, 0].numel() < 2:
        return formula(x, *vectors)
    return _unitized(x, formula, running, kappa, eps, *vectors)


class _Unitized(torch.autograd.Function):
    """The formulas at the head of this file."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        formula: Formula,
        running: tuple[Tensor, Tensor] | None,
        kappa: float,
        eps: float,
        *vectors: Tensor,
    ) -> tuple[Tensor, ...]:
        wide = _wide(x)
        normalised, mean_C, inverse_C, *kept = _normalised(wide, running, eps)
        r = inverse_norm(normalised, "pixel", kappa, eps)
        alpha, weight, bias = (_column(vector.to(wide.dtype), x) for vector in vectors)
        factor = torch.addcmul(weight * (1 - alpha), r, weight * alpha)
        y = torch.addcmul(bias, factor, normalised, out=normalised)
        ctx.save_for_backward(x, *vectors, r, mean_C, inverse_C)
        ctx.formula, ctx.in_batch, ctx.kappa, ctx.eps = formula, running is None, kappa, eps
        ctx.mark_non_differentiable(*kept)
        return y.to(x.dtype), *kept

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        x, *vectors, r, mean_C, inverse_C = ctx.saved_tensors
        needed = (ctx.needs_input_grad[0], *ctx.needs_input_grad[5:])
        if differentiated_again(grad):
            inputs = (x, *vectors)
            grad_x, *others = plain_gradients(lambda *given: ctx.formula(*given)[0], inputs, grad, needed)
            return grad_x, None, None, None, None, *others
        wide, grad, dims = _wide(x), _wide(grad), [0, *range(2, x.dim())]
        alpha, weight = (_column(vector.to(wide.dtype), x) for vector in vectors[:2])
        normalised = torch.sub(wide, _column(mean_C, x)).mul_(_column(inverse_C, x))
        product, mix = grad * normalised, weight * alpha
        grad_bias, sum_C = grad.sum(dims), product.sum(dims)
        if x.dim() == 2:  # a product with a vector reads once
            along, shifted_C = product @ mix.expand(x.shape[1]), (r[:, 0] - 1) @ product
        else:
            along, shifted_C = (product * mix).sum(1), product.mul_(r - 1).sum(dims)
        pulled = r * r * r * (-ctx.kappa * along.unsqueeze(1))
        grads = (weight.flatten() * shifted_C, torch.addcmul(sum_C, alpha.flatten(), shifted_C), grad_bias)
        others = [g.sum_to_size(v.shape).to(v.dtype) for g, v in zip(grads, vectors, strict=True)]
        factor = torch.addcmul(weight - mix, r, mix)
        h = torch.mul(factor, grad, out=product).addcmul_(normalised, pulled)
        return _through_statistics(h, wide, mean_C, inverse_C, ctx).to(x.dtype), None, None, None, None, *others


_unitized: Callable[..., tuple[Tensor, ...]] = _Unitized.apply


def _normalised(x: Tensor, running: tuple[Tensor, Tensor] | None, eps: float) -> tuple[Tensor, ...]:
    """xh, the mean and the inverse deviation it has been made with, and a batch's statistics."""
    if running is not None:
        mean_C, inverse_C = running[0].to(x.dtype), (running[1].to(x.dtype) + eps).rsqrt()
        return torch.sub(x, _column(mean_C, x)).mul_(_column(inverse_C, x)), mean_C, inverse_C
    kept = x.new_zeros(x.shape[1]), x.new_zeros(x.shape[1])  # running statistics without memory are the batch's
    return *torch.native_batch_norm(x, None, None, *kept, True, 1.0, eps), *kept


def _through_statistics(h: Tensor, x: Tensor, mean_C: Tensor, inverse_C: Tensor, ctx: Any) -> Tensor:
    """dL/dx from dL/dxh."""
    if not ctx.in_batch:
        return h.mul_(_column(inverse_C, x))
    given = (None, None, None, mean_C, inverse_C, True, ctx.eps, [True, False, False])
    return torch.ops.aten.native_batch_norm_backward(h, x, *given)[0]


def _wide(x: Tensor) -> Tensor:
    """In float32 at least: squares of 16-bit numbers overflow or lose all digits."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _column(vector_C: Tensor, x: Tensor) -> Tensor:
    """Shaped to broadcast against x of (N, C, *)."""
    return vector_C if x.dim() == 2 else vector_C.view(-1, *[1] * (x.dim() - 2))
