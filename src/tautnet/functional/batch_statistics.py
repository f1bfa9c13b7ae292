"""Statistics of a batch: standardising by them, the running ones that follow, the processes that share them."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tautnet.functional.moments import normalised_by_moments, num_positions, pooled
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


def largest(values: Tensor, running_max_C: Tensor, momentum: float) -> Tensor:
    """The largest |values| of each channel of (N, C, *), (C,), which ``running_max_C`` follows."""
    largest_C = values.abs().amax((0, *range(2, values.dim())))
    with torch.no_grad():
        running_max_C.lerp_(largest_C.to(running_max_C.dtype), momentum)
    return largest_C


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
