r"""Polynomials of one curve a channel, with given coefficients or with each power standardized over the batch.

All functions take points (N, C, *) in any strides and one polynomial a channel, or a single one for all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tautnet.functional.handwritten import differentiated_again, watched
from tautnet.kernels import polynomial as native


def standardized_polynomial(
    z_NCS: Tensor, coefficients_CK: Tensor, bias_C: Tensor, eps: float = 1e-5
) -> tuple[Tensor, Tensor, Tensor]:
    r"""A polynomial whose powers are each standardized over the batch and the positions, and their statistics.

    y = bias_c + sum_j coefficients_{c,j} (z^j - mean_{c,j}) / sqrt(variance_{c,j} + eps), j = 1..K, where mean and
    variance are those of z^j over the elements of channel c; the variance is divided by their number.

    Source: Goyal, Goyal, Lall (2019), after the authors' code, which forms and normalizes K powers. Here nothing of
    their size is kept. On a CPU with a compiler none is made either: y is one polynomial in z, whose coefficients
    follow from the sums of z^j, j <= 2K, and the backward pass needs the sums of grad z^j and one polynomial more. Sums
    are taken in double precision (of short partial sums in that of z), around the mean where it is large beside the
    deviation, with the same bits in every run. Elsewhere, and to be differentiated twice, traced or transformed,
    ``standardized_formula`` is computed as it stands.

    Where z^j has the same value everywhere but z has not (z = -1 and 1), rounding is divided by sqrt(eps).

    Args:
        z_NCS: points, shape (N, C, *), any floating dtype; computed in float32 at least, never in autocast's.
        coefficients_CK: shape (C, K), or (1, K) for a single curve over all elements.
        bias_C: shape (C,).
        eps: added to the variances, above 0.

    Returns:
        y in the dtype of z; mean and variance of the powers, shape (C, K), without gradients, in the computing dtype.

    Raises:
        ValueError: shapes that do not fit, no elements, or an eps that is not positive.
    """
    _check(z_NCS, coefficients_CK)
    if bias_C.shape != coefficients_CK.shape[:1]:
        raise ValueError(f"bias_C={tuple(bias_C.shape)}: one for each of {len(coefficients_CK)} curves")
    if not eps > 0:
        raise ValueError(f"eps={eps}: above 0")
    if z_NCS.numel() == 0:
        raise ValueError(f"z_NCS={tuple(z_NCS.shape)}: no elements, and so no statistics")
    run = standardized_formula if _watched(z_NCS, coefficients_CK, bias_C) else _standardized
    y, mean_CK, variance_CK = run(z_NCS, coefficients_CK, bias_C, eps)
    return y, mean_CK.detach(), variance_CK.detach()


def polynomial(z_NCS: Tensor, coefficients_CK: Tensor) -> Tensor:
    """Value of polynomial c at ``z[:, c]``, sum_j coefficients_{c,j} z^j, j = 0..K, by Horner's rule.

    Saved for the backward pass are z and the coefficients alone.

    Args:
        z_NCS: points, shape (N, C, *), any floating dtype; computed in float32 at least, result in the dtype of z.
        coefficients_CK: from the constant on, shape (C, K + 1), or (1, K + 1) for a single curve.

    Raises:
        ValueError: shapes that do not fit.
    """
    _check(z_NCS, coefficients_CK)
    if coefficients_CK.shape[1] < 2:
        raise ValueError(f"coefficients_CK={tuple(coefficients_CK.shape)}: the constant and one for each power")
    run = polynomial_formula if _watched(z_NCS, coefficients_CK) else _polynomial
    return run(z_NCS, coefficients_CK)


def standardized_formula(
    z_NCS: Tensor, coefficients_CK: Tensor, bias_C: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """What ``standardized_polynomial`` computes, as it stands: the K powers, each standardized and added up."""
    wide = _computing_dtype(z_NCS, coefficients_CK)
    z = _one_channel_a_curve(z_NCS, coefficients_CK).to(wide)
    curves = (1, -1, *[1] * (z.dim() - 2))
    y, power = bias_C.to(wide).view(curves), z
    means, variances = [], []
    for j, coefficients_C in enumerate(coefficients_CK.to(wide).unbind(1)):
        power = power * z if j else z
        variance, mean = torch.var_mean(power, [0, *range(2, z.dim())], correction=0)
        y = y + (coefficients_C * (variance + eps).rsqrt()).view(curves) * (power - mean.view(curves))
        means.append(mean)
        variances.append(variance)
    return y.reshape(z_NCS.shape).to(z_NCS.dtype), torch.stack(means, dim=1), torch.stack(variances, dim=1)


def polynomial_formula(z_NCS: Tensor, coefficients_CK: Tensor) -> Tensor:
    """What ``polynomial`` computes, in operations of torch."""
    wide = _computing_dtype(z_NCS, coefficients_CK)
    z = _one_channel_a_curve(z_NCS, coefficients_CK).to(wide)
    *lower, highest = [c.view(1, -1, *[1] * (z.dim() - 2)) for c in coefficients_CK.to(wide).unbind(1)]
    y = highest * z + lower.pop()
    for coefficients in reversed(lower):
        y = y * z + coefficients
    return y.reshape(z_NCS.shape).to(z_NCS.dtype)


class _Standardized(torch.autograd.Function):
    """Compiled where it can be; else the formula, formed again in the backward pass instead of being kept."""

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, coefficients_CK: Tensor, bias_C: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        wide = _computing_dtype(z, coefficients_CK)
        state_CS = bias_C.new_empty(0)
        if z.device.type == "cpu" and native.available(coefficients_CK.shape[1]):
            y, mean_CK, variance_CK, state_CS = native.standardize(
                z.to(wide), coefficients_CK.to(wide), bias_C.to(wide), eps
            )
        else:
            y, mean_CK, variance_CK = standardized_formula(z, coefficients_CK, bias_C, eps)
        ctx.save_for_backward(z, coefficients_CK, bias_C, state_CS)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean_CK, variance_CK)
        return y.to(z.dtype), mean_CK, variance_CK

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        z, coefficients_CK, bias_C, state_CS = ctx.saved_tensors
        if state_CS.numel() == 0 or differentiated_again(grad):
            inputs = (z, coefficients_CK, bias_C)
            return *_gradients(_values_with(ctx.eps), inputs, grad, ctx.needs_input_grad), None
        wide = _computing_dtype(z, coefficients_CK)
        grad_z, grad_coefficients, grad_bias = native.standardize_backward(
            grad.resolve_neg().to(wide), z.to(wide), coefficients_CK.to(wide), state_CS
        )
        return grad_z.to(z.dtype), grad_coefficients.to(coefficients_CK.dtype), grad_bias.to(bias_C.dtype), None


class _Polynomial(torch.autograd.Function):
    """The same for given coefficients."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, coefficients_CK: Tensor) -> Tensor:
        ctx.save_for_backward(z, coefficients_CK)
        wide = _computing_dtype(z, coefficients_CK)
        ctx.native = z.device.type == "cpu" and native.available(coefficients_CK.shape[1] - 1)
        if ctx.native:
            return native.forward(z.to(wide), coefficients_CK.to(wide)).to(z.dtype)
        return polynomial_formula(z, coefficients_CK)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        z, coefficients_CK = ctx.saved_tensors
        if not ctx.native or differentiated_again(grad):
            return _gradients(polynomial_formula, (z, coefficients_CK), grad, ctx.needs_input_grad)
        wide, wanted = _computing_dtype(z, coefficients_CK), ctx.needs_input_grad[1]
        grad_z, grad_coefficients = native.backward(
            grad.resolve_neg().to(wide), z.to(wide), coefficients_CK.to(wide), wanted
        )
        return grad_z.to(z.dtype), grad_coefficients.to(coefficients_CK.dtype) if wanted else None


_standardized: Callable[..., tuple[Tensor, Tensor, Tensor]] = _Standardized.apply
_polynomial: Callable[..., Tensor] = _Polynomial.apply


def _values_with(eps: float) -> Callable[..., Tensor]:
    def values(z: Tensor, coefficients_CK: Tensor, bias_C: Tensor) -> Tensor:
        return standardized_formula(z, coefficients_CK, bias_C, eps)[0]

    return values


def _gradients(
    formula: Callable[..., Tensor], inputs: tuple[Tensor, ...], grad: Tensor, needed: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """What autograd makes of a formula, to be differentiated again where the present mode is to record."""
    again = torch.is_grad_enabled()
    needed = needed[: len(inputs)]
    with torch.enable_grad():
        if not again:
            inputs = tuple(t.detach().requires_grad_(need) for t, need in zip(inputs, needed, strict=True))
        wanted = [t for t, need in zip(inputs, needed, strict=True) if need]
        found = iter(torch.autograd.grad(formula(*inputs), wanted, grad, create_graph=again))
    return tuple(next(found) if need else None for need in needed)


def _watched(*tensors: Tensor) -> bool:
    """Whether anything but autograd looks at the operations, or memory is not what the values are."""
    if watched(tensors[0]):
        return True
    plain = all(type(t) in (Tensor, torch.nn.Parameter) and not t.is_neg() for t in tensors)
    return not plain or torch._C._len_torch_dispatch_stack() > 0


def _computing_dtype(z: Tensor, coefficients_CK: Tensor) -> torch.dtype:
    return torch.promote_types(torch.promote_types(z.dtype, coefficients_CK.dtype), torch.float32)


def _one_channel_a_curve(z_NCS: Tensor, coefficients_CK: Tensor) -> Tensor:
    """The points, as (elements, 1) where a single curve is for all."""
    return z_NCS.reshape(-1, 1) if len(coefficients_CK) == 1 else z_NCS


def _check(z_NCS: Tensor, coefficients_CK: Tensor) -> None:
    if not z_NCS.is_floating_point():
        raise ValueError(f"z_NCS={z_NCS.dtype}: a floating dtype")
    if coefficients_CK.dim() != 2 or coefficients_CK.numel() == 0:
        raise ValueError(f"coefficients_CK={tuple(coefficients_CK.shape)}: a row of coefficients for each curve")
    if len(coefficients_CK) != 1 and (z_NCS.dim() < 2 or z_NCS.shape[1] != len(coefficients_CK)):
        raise ValueError(f"z_NCS={tuple(z_NCS.shape)}: (N, {len(coefficients_CK)}, *), a curve for each channel")
