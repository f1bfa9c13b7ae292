"""Statistics of a batch: standardising by them, the running ones that follow, the processes that share them."""

from __future__ import annotations

from collections.abc import Callable
from math import inf, nan
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tautnet.functional.moments import normalised_by_moments, num_positions, pooled
from tautnet.functional.polynomial import beside
from tautnet.functional.standardized_polynomial import standardized_polynomial


def standardised(
    values: Tensor, weights_C: Tensor, batch_norm: nn.BatchNorm1d, group: dist.ProcessGroup | None
) -> Tensor:
    """weights_c (values - mean_c) / sqrt(var_c + eps) with the batch's statistics, which the running ones follow.

    Args:
        values: shape (N, C, *), at least one value.
        weights_C: (C,), of the dtype of ``values``.
        batch_norm: with C channels, whose eps and running statistics count; its own forward pass is not used.
        group: the processes that share the statistics.

    Raises:
        ValueError: a batch of one value a channel, which has no variance.
    """
    positions = num_positions(values)
    if group is None:
        _check_count(values)

    def rule(mean_NC: Tensor, var_NC: Tensor, weights_C: Tensor) -> tuple[Tensor, ...]:
        count, mean_C, var_C = pooled(mean_NC, var_NC, positions, group)
        factor_C = weights_C * (var_C + batch_norm.eps).rsqrt()
        return factor_C.expand_as(mean_NC), factor_C * (mean_NC - mean_C), mean_C, var_C * (count / (count - 1))

    y, *statistics = normalised_by_moments(values, rule, (weights_C,))
    update_running_(batch_norm, *statistics)
    return y


def standardised_powers(z: Tensor, weights_CK: Tensor, bias_C: Tensor, batch_norm: nn.BatchNorm1d) -> Tensor:
    """bias_c + sum_j weights_{c,j} (z^j - mean_{c,j}) / sqrt(var_{c,j} + eps), without tensors of the powers' size.

    As the sum over j of ``standardised``, with the statistics of this process alone.

    Args:
        z: shape (N, C, *), at least one value.
        weights_CK: (C, K).
        bias_C: (C,).
        batch_norm: with C K channels, as in ``standardised``.

    Raises:
        ValueError: as ``standardised``.
    """
    _check_count(z)
    y, mean_CK, var_CK = standardized_polynomial(z, weights_CK, bias_C, batch_norm.eps)
    count = len(z) * num_positions(z)
    update_running_(batch_norm, mean_CK.flatten(), var_CK.flatten() * (count / (count - 1)))
    return y


def _check_count(values: Tensor) -> None:
    if len(values) * num_positions(values) < 2:
        raise ValueError(f"batch_size={len(values)}: in training at least 2 values a curve, positions counted")


def largest(values: Tensor, running_max_C: Tensor, momentum: float, group: dist.ProcessGroup | None = None) -> Tensor:
    """The largest |values| of each channel of (N, C, *), (C,), which ``running_max_C`` follows.

    With a group of all its ranks' values; the gradient goes to the values that attain the maximum, in equal shares,
    wherever they are. All ranks have to call this, and to go backwards through it.
    """
    sizes, dims = values.abs(), (0, *range(2, values.dim()))
    largest_C = sizes.amax(dims)
    if group is not None:
        attained_C = (sizes.detach() == beside(sizes, largest_C.detach())).sum(dims)
        largest_C = _max_over_ranks(largest_C, attained_C, group)
    with torch.no_grad():
        running_max_C.lerp_(largest_C.to(running_max_C.dtype), momentum)
    return largest_C


def all_ranks() -> dist.ProcessGroup | None:
    """The group of all processes; None if there is none, or one process."""
    several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    return dist.group.WORLD if several else None


class _MaxOverRanks(torch.autograd.Function):
    """Maximum over the ranks; backwards the sum of all ranks' gradients, shared among the values that attain it."""

    @staticmethod
    def forward(ctx: Any, own_C: Tensor, attained_C: Tensor, group: dist.ProcessGroup) -> Tensor:
        most_C = own_C.nan_to_num(nan=-inf, posinf=inf)
        dist.all_reduce(most_C, dist.ReduceOp.MAX, group=group)
        share_C = torch.where(own_C == most_C, attained_C, 0).to(own_C.dtype).masked_fill(own_C.isnan(), nan)
        total_C = share_C.clone()
        dist.all_reduce(total_C, group=group)
        ctx.group = group
        ctx.save_for_backward(share_C / total_C)
        return most_C.masked_fill(total_C.isnan(), nan)

    @staticmethod
    def backward(ctx: Any, grad_C: Tensor) -> tuple[Tensor, None, None]:
        (share_C,) = ctx.saved_tensors
        total_C = grad_C.contiguous().clone()
        dist.all_reduce(total_C, group=ctx.group)
        return total_C * share_C, None, None


_max_over_ranks: Callable[[Tensor, Tensor, dist.ProcessGroup], Tensor] = _MaxOverRanks.apply


@torch.no_grad()
def update_running_(batch_norm: nn.BatchNorm1d, mean_C: Tensor, var_C: Tensor) -> None:
    """Move the running statistics towards a batch's; without momentum, which averaging weights sets, their mean."""
    assert batch_norm.running_mean is not None
    assert batch_norm.running_var is not None
    assert batch_norm.num_batches_tracked is not None
    batch_norm.num_batches_tracked.add_(1)
    for running_C, newest_C in ((batch_norm.running_mean, mean_C), (batch_norm.running_var, var_C)):
        newest_C = newest_C.to(running_C.dtype)
        if batch_norm.momentum is None:
            running_C.add_((newest_C - running_C) / batch_norm.num_batches_tracked)
        else:
            running_C.lerp_(newest_C, batch_norm.momentum)
