r"""Normalisation by the moments of each channel of each sample, in as few passes over memory as batch normalisation.

A normalizer whose statistics follow from the mean and the variance of every (n, c) is, per sample and channel, one
affine map y = factor_nc (x - mean_nc) + value_nc. A *rule* gives factor and value from the moments; it works on (N, C)
numbers and autograd differentiates it, so that the big tensor is read for the moments, read and written for y and,
backwards, read for sum g and sum g (x - mean) and once more for the gradient

    dL/dx = factor g + [dL/dmean - factor sum g] / S + (2 / S) dL/dvar (x - mean),    S positions.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tautnet.functional.handwritten import differentiated_again, plain_gradients, watched

# (mean_NC, var_NC, *parameters) -> (factor_NC, value_NC, *statistics); no side effects: it may be called twice
Rule = Callable[..., tuple[Tensor, ...]]
MUCH = 100.0  # squared mean over variance beyond which x times a number less mean times that number loses digits


def normalised_by_moments(x: Tensor, rule: Rule, parameters: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The affine map y = factor_nc (x - mean_nc) + value_nc of a rule, and the rule's further results.

    Moments are those over the positions, the variance divided by their number S, in float32 at least. Of large tensors
    only ``x`` is saved for the backward pass. Layouts are kept. Under torch.compile and torch.func, and for gradients
    that are differentiated again, the same formula in plain operations.

    Args:
        x: shape (N, C, *), at least one position.
        rule: as above; its further results get no gradient.
        parameters: given to the rule; gradients reach the inputs through them and ``x`` alone.
    """
    if watched(x) or num_positions(x) == 1 or len(x) == 0:
        return _plain(x, rule, parameters)
    if not torch.is_grad_enabled():
        wide = _wide(x)
        mean_NC, var_NC, buffer = _moments_and_buffer(wide)
        factor_NC, value_NC, *statistics = rule(mean_NC, var_NC, *parameters)
        return _affine_into(buffer, wide, mean_NC, factor_NC, value_NC).to(x.dtype), *statistics
    return _with_gradient(x, rule, *parameters)


def num_positions(x: Tensor) -> int:
    """S, the number of values of a channel of one sample."""
    return prod(x.shape[2:])


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (divided by S) over the positions of x of (N, C, *), shape (N, C), in float32 at least."""
    wide = _wide(x)
    if num_positions(x) == 1:
        return wide.flatten(1), torch.zeros_like(wide.flatten(1))
    var_NC, mean_NC = torch.var_mean(wide.flatten(2), dim=2, correction=0)
    return mean_NC, var_NC


def pooled(
    mean_NC: Tensor, var_NC: Tensor, positions: int, group: dist.ProcessGroup | None = None
) -> tuple[Tensor | int, Tensor, Tensor]:
    """Count, mean and variance (divided by the count) of each channel over all samples, from the samples' moments.

    mean = sum_n S mean_nc / m and var = sum_n S [var_nc + (mean_nc - mean)^2] / m, m = sum_n S: no difference of large
    numbers.

    Args:
        mean_NC: means of the samples.
        var_NC: variances of the samples, divided by S.
        positions: S.
        group: sums run over its ranks too, which may hold different numbers of samples and positions, even none. All
            of them have to call this, and to go backwards through it.
    """
    if group is None:
        mean_C = mean_NC.mean(0)
        return len(mean_NC) * positions, mean_C, (var_NC + (mean_NC - mean_C).square()).mean(0)
    sums = torch.cat([mean_NC.sum(0), mean_NC.new_full((1,), len(mean_NC))]) * positions
    count, mean_C = (total := _sum_over_ranks(sums, group))[-1], total[:-1] / total[-1]
    squares_C = positions * (var_NC + (mean_NC - mean_C).square()).sum(0)
    return count.detach(), mean_C, _sum_over_ranks(squares_C, group) / count


class _SumOverRanks(torch.autograd.Function):
    """Sum over the ranks; backwards likewise, as every rank's loss depends on every rank's summand."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        total = x.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _sum_over_ranks(grad.contiguous(), ctx.group), None


_sum_over_ranks: Callable[[Tensor, dist.ProcessGroup], Tensor] = _SumOverRanks.apply


class _WithGradient(torch.autograd.Function):
    """The affine map; the rule's own small graph is kept aside and differentiated in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rule: Rule, *parameters: Tensor) -> tuple[Tensor, ...]:
        wide = _wide(x)
        mean_NC, var_NC, buffer = _moments_and_buffer(wide)
        needed = (*[ctx.needs_input_grad[0]] * 2, *ctx.needs_input_grad[2:])
        small = zip((mean_NC, var_NC, *parameters), needed, strict=True)
        ctx.leaves = [t.detach().requires_grad_(needs) for t, needs in small]
        with torch.enable_grad():
            factor_NC, value_NC, *statistics = rule(*ctx.leaves)
        ctx.rule, ctx.outputs = rule, (factor_NC, value_NC)
        ctx.save_for_backward(x, *parameters)
        statistics = [t.detach() for t in statistics]
        ctx.mark_non_differentiable(*statistics)
        y = _affine_into(buffer, wide, mean_NC, factor_NC.detach(), value_NC.detach())
        return y.to(x.dtype), *statistics

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        x, *parameters = ctx.saved_tensors
        if differentiated_again(grad):
            needed = (ctx.needs_input_grad[0], *ctx.needs_input_grad[2:])
            grad_x, *others = plain_gradients(
                lambda x, *given: _plain(x, ctx.rule, given)[0], (x, *parameters), grad, needed
            )
            return grad_x, None, *others
        mean_NC, factor_NC = ctx.leaves[0].detach(), ctx.outputs[0].detach()
        sum_NC, product_NC = _gradient_sums(grad, x, mean_NC)
        small = _gradients_of(ctx.outputs, ctx.leaves, (product_NC, sum_NC))
        grad_mean_NC, grad_var_NC, *others = small
        if grad_mean_NC is None or grad_var_NC is None:
            return None, None, *others
        grads = (factor_NC, grad_mean_NC - factor_NC * sum_NC, grad_var_NC)
        return _input_gradient(grad, x, mean_NC, ctx.leaves[1].detach(), *grads), None, *others


_with_gradient: Callable[..., tuple[Tensor, ...]] = _WithGradient.apply


def _plain(x: Tensor, rule: Rule, parameters: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The formula in operations that autograd knows."""
    mean_NC, var_NC = moments(x)
    factor_NC, value_NC, *statistics = rule(mean_NC, var_NC, *parameters)
    if num_positions(x) == 1:  # x is its mean
        y = value_NC.view(x.shape)
    else:
        y = torch.addcmul(_column(value_NC - factor_NC * mean_NC, x), _wide(x), _column(factor_NC, x))
    return y.to(x.dtype), *(t.detach() for t in statistics)


def _gradients_of(outputs: tuple[Tensor, ...], leaves: list[Tensor], grads: tuple[Tensor, ...]) -> list[Tensor | None]:
    """Gradients of the leaves, None for those that need none. The graph is kept: backward may run twice."""
    needing = [leaf for leaf in leaves if leaf.requires_grad]
    depending = [(output, grad) for output, grad in zip(outputs, grads, strict=True) if output.requires_grad]
    results, their_grads = zip(*depending, strict=True)
    found = iter(torch.autograd.grad(results, needing, their_grads, retain_graph=True, materialize_grads=True))
    return [next(found) if leaf.requires_grad else None for leaf in leaves]


def _affine_into(buffer: Tensor, x: Tensor, mean_NC: Tensor, factor_NC: Tensor, value_NC: Tensor) -> Tensor:
    """The affine map, written into ``buffer``. Without gradients."""
    shift_NC = value_NC - factor_NC * mean_NC
    return torch.addcmul(_column(shift_NC, x), x, _column(factor_NC, x), out=buffer)


def _moments_and_buffer(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Moments as ``moments``, and a tensor like x to write into.

    New memory costs more than arithmetic, and torch.var_mean is slow on CPUs. Group normalisation with a group for
    each channel finds the moments fast and well (by merged partial sums), if it is contiguous; its output is the
    buffer.
    """
    if x.device.type != "cpu":
        return *moments(x), torch.empty_like(x)
    if x.is_contiguous():
        num_samples, num_channels = x.shape[:2]
        buffer, mean_NC, inverse_NC = torch.native_group_norm(
            x, None, None, num_samples, num_channels, num_positions(x), num_channels, 0.0
        )
        return mean_NC, inverse_NC.square().reciprocal(), buffer
    dims = tuple(range(2, x.dim()))
    mean_NC = x.mean(dims)
    buffer = torch.sub(x, _column(mean_NC, x))
    return mean_NC, buffer.square_().mean(dims), buffer


def _gradient_sums(grad: Tensor, x: Tensor, mean_NC: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over the positions of g and of g (x - mean), shape (N, C)."""
    wide, grad = _wide(x), _wide(grad)
    if x.device.type == "cpu" and x.is_contiguous():
        # The gradients of scale and shift of a group normalisation whose deviations are 1: one pass, nothing new.
        rows = (1, mean_NC.numel(), num_positions(x))
        mean = mean_NC.view(1, -1)
        _, product, total = torch.ops.aten.native_group_norm_backward(
            *(grad.contiguous().view(rows), wide.view(rows), mean, torch.ones_like(mean), torch.ones_like(mean[0])),
            *(*rows, rows[1], [False, True, True]),
        )
        return total.view_as(mean_NC), product.view_as(mean_NC)
    dims = tuple(range(2, x.dim()))
    sum_NC = grad.sum(dims)
    return sum_NC, (grad * wide).sum(dims) - mean_NC * sum_NC


def _input_gradient(
    grad: Tensor,
    x: Tensor,
    mean_NC: Tensor,
    var_NC: Tensor,
    factor_NC: Tensor,
    grad_mean_NC: Tensor,
    grad_var_NC: Tensor,
) -> Tensor:
    """The gradient at the head of this file; ``grad_mean_NC`` is its bracket."""
    slope_NC = grad_var_NC * (2 / num_positions(x))
    shift_NC = grad_mean_NC / num_positions(x)
    wide = _wide(x)
    if x.device.type == "cpu" and bool((mean_NC.square() <= MUCH * var_NC).all()):  # a pass less, digits to spare
        grad_x = torch.addcmul(_column(shift_NC - slope_NC * mean_NC, x), wide, _column(slope_NC, x))
    else:
        grad_x = torch.addcmul(_column(shift_NC, x), wide - _column(mean_NC, x), _column(slope_NC, x))
    return grad_x.addcmul_(_wide(grad), _column(factor_NC, x)).to(x.dtype)


def _wide(x: Tensor) -> Tensor:
    """In float32 at least: squares of 16-bit numbers overflow or lose all digits."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _column(values_NC: Tensor, x: Tensor) -> Tensor:
    """Shaped to broadcast against x of (N, C, *)."""
    return values_NC.view(*values_NC.shape, *[1] * (x.dim() - 2))
