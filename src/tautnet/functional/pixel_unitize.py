r"""Unitization with a norm over the channels of each position, of which a dense layer's output has one.

With xh = (x - mean_c) / sqrt(var_c + eps), r = (kappa sum_c xh^2 + eps)^(-1/2) at each position and the factor
f = gamma_c (alpha_c r + 1 - alpha_c), y = f xh + beta_c. Backwards, from g = dL/dy and t = g xh,

    dL/dbeta = sum g,    dL/dalpha = gamma sum (r - 1) t,    dL/dgamma = sum t + alpha sum (r - 1) t,
    h = dL/dxh = f g - kappa r^3 (sum_c gamma_c alpha_c t) xh,

sums over samples and positions unless over c, and batch normalisation takes h to dL/dx: with the running statistics
dL/dx = h / sqrt(var_c + eps), with those of the batch, of m values a channel,

    dL/dx = (h - [sum h + xh sum (h xh)] / m) / sqrt(var_c + eps).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from tautnet.functional.batch_statistics import update_running_
from tautnet.functional.handwritten import differentiated_again, plain_gradients, watched
from tautnet.functional.unitize import inverse_norm, mixed
from tautnet.kernels import native, unitize

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
    x: Tensor, formula: Formula, batch_norm: nn.BatchNorm1d, vectors: tuple[Tensor, ...], kappa: float
) -> Tensor:
    """The value; in training by the batch's statistics, which the running ones follow, else by the running ones.

    Of large tensors only ``x`` is saved for the backward pass. Computed in float32 at least; on a CPU with a compiler
    float32 and float64 by one operator, with the same bits for any number of threads.

    Args:
        x: shape (N, C, *).
        formula: the same in operations that autograd knows, for what has to be traced, transformed or differentiated
            twice, and for fewer values a channel than statistics need. In training it gives the batch's mean and
            variance too, (C,), the latter times m / (m - 1).
        batch_norm: with C channels, whose mode, eps and running statistics count.
        vectors: alpha, gamma and beta, each (C,) or (1,).
        kappa: factor of the squared norm, to which eps is added.
    """
    training, eps = batch_norm.training, batch_norm.eps
    momentum = batch_norm.momentum if training else 0.0
    running_mean, running_var = batch_norm.running_mean, batch_norm.running_var
    assert running_mean is not None
    assert running_var is not None
    running = (running_mean, running_var)
    if watched(x) or x.numel() < x.shape[1] * (2 if training else 1):
        y, *statistics = formula(x, *vectors)
    elif (training and not momentum) or momentum is None or not _is_for_kernel(x, *vectors, *running):
        y, *statistics = _unitized(x, formula, None if training else running, kappa, eps, *vectors)
    else:
        y, state = unitize.forward(x, vectors, running, momentum, kappa, eps)
        if training:
            assert batch_norm.num_batches_tracked is not None
            batch_norm.num_batches_tracked.add_(1)
        return _with_gradient(x, (y, state), formula, training, kappa, *vectors) if torch.is_grad_enabled() else y
    if training:
        update_running_(batch_norm, *statistics)
    return y


def _is_for_kernel(x: Tensor, *others: Tensor) -> bool:
    """Whether the compiled operator can have these."""
    if x.dtype not in unitize.DTYPES or not native.readable(x, *others):
        return False
    return all(t.dtype == x.dtype and t.is_contiguous() for t in others) and unitize.available()


class _WithGradient(torch.autograd.Function):
    """The derivative of what the compiled operator has done."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        done: tuple[Tensor, Tensor],
        formula: Formula,
        in_batch: bool,
        kappa: float,
        *vectors: Tensor,
    ) -> Tensor:
        y, state = done
        ctx.save_for_backward(x, *vectors, state)
        ctx.formula, ctx.in_batch, ctx.kappa = formula, in_batch, kappa
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, alpha, weight, bias, state = ctx.saved_tensors
        if differentiated_again(grad):
            return _plain_gradients(ctx, grad, x, alpha, weight, bias)
        grad_x, *grads = unitize.backward(grad.resolve_neg(), x, state, (alpha, weight), ctx.kappa, ctx.in_batch)
        return grad_x, None, None, None, None, *_shaped_like((alpha, weight, bias), grads)


class _Unitized(torch.autograd.Function):
    """The same in operations of torch, for other devices and dtypes."""

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
        if differentiated_again(grad):
            return _plain_gradients(ctx, grad, x, *vectors)
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
        factor = torch.addcmul(weight - mix, r, mix)
        h = torch.mul(factor, grad, out=product).addcmul_(normalised, pulled)
        grad_x = _through_statistics(h, wide, mean_C, inverse_C, ctx).to(x.dtype)
        others = [g.to(v.dtype) for g, v in zip(_shaped_like(vectors, grads), vectors, strict=True)]
        return grad_x, None, None, None, None, *others


_with_gradient: Callable[..., Tensor] = _WithGradient.apply
_unitized: Callable[..., tuple[Tensor, ...]] = _Unitized.apply


def _plain_gradients(ctx: Any, grad: Tensor, *inputs: Tensor) -> tuple[Tensor | None, ...]:
    """What the formula's operations give."""
    needed = (ctx.needs_input_grad[0], *ctx.needs_input_grad[5:])
    grad_x, *others = plain_gradients(lambda *given: ctx.formula(*given)[0], inputs, grad, needed)
    return grad_x, None, None, None, None, *others


def _shaped_like(vectors: Iterable[Tensor], grads: Iterable[Tensor]) -> list[Tensor]:
    """Gradients (C,) of vectors of (C,) or (1,)."""
    return [g if g.numel() == v.numel() else g.sum(0, keepdim=True) for g, v in zip(grads, vectors, strict=True)]


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
