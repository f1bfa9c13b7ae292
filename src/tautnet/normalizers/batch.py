"""Batch normalisation of inputs of any rank, synchronised between processes if asked for."""

from __future__ import annotations

from math import inf

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tautnet.factories import AbstractLayer, Synchronised
from tautnet.functional.batch_statistics import update_running_
from tautnet.functional.elementwise import scaled_box
from tautnet.functional.moments import Rule, normalised_by_moments, num_positions, pooled


def batch_norm_flat(num_channels: int, eps: float, momentum: float, affine: bool) -> nn.BatchNorm1d:
    """A torch BatchNorm for inputs flattened to (N, C, S); it converts to SyncBatchNorm.

    Raises:
        ValueError: an argument out of range.
    """
    if num_channels < 1:
        raise ValueError(f"num_channels={num_channels}: at least 1")
    if not 0 < eps < inf:
        raise ValueError(f"eps={eps}: above 0, finite")
    if not 0 < momentum <= 1:
        raise ValueError(f"momentum={momentum}: above 0, at most 1")
    return nn.BatchNorm1d(num_channels, eps=eps, momentum=momentum, affine=affine)


def apply_flat(batch_norm: nn.Module, x: Tensor) -> Tensor:
    """Apply a batch normalisation to (N, C, *)."""
    return batch_norm(x) if x.dim() == 2 else batch_norm(x.flatten(2)).view_as(x)


def check_input(x: Tensor, num_channels: int) -> None:
    """Raise ValueError unless x is (N, C, *) with that many channels and at least one position."""
    if x.dim() < 2 or x.shape[1] != num_channels or num_positions(x) == 0:
        raise ValueError(f"x.shape={tuple(x.shape)}: (N, {num_channels}, *) with at least one position")


def inverse_deviation(batch_norm: nn.BatchNorm1d) -> Tensor:
    """1 / sqrt(var + eps) of the running variance, shape (C,), in float64 on the CPU."""
    assert batch_norm.running_var is not None  # track_running_stats is on
    return (batch_norm.running_var.to("cpu", torch.float64) + batch_norm.eps).rsqrt()


def statistics_in_force(
    batch_norm: nn.BatchNorm1d,
    training: bool,
    mean_NC: Tensor,
    var_NC: Tensor,
    positions: int,
    group: dist.ProcessGroup | None,
    official_variance: bool = False,
) -> tuple[Tensor, ...]:
    """Mean and variance that a batch normalisation normalises with, and in training those for ``update_running_``.

    Running ones in eval mode, else those of the batch, with a group of all its ranks' batches. The running variance
    takes m / (m - 1) times the batch's, m values a channel, as torch does.

    Args:
        batch_norm: whose running statistics count.
        training: its mode when it was called: a rule may run again later, for second derivatives.
        mean_NC: means of the samples' channels.
        var_NC: their variances, divided by the number of positions.
        positions: that number.
        group: see ``pooled``.
        official_variance: m / (m - 1 - eps) times the variance, of the current batch too.

    Raises:
        ValueError: a training batch of one value a channel, which has no variance.
    """
    if not training:
        assert batch_norm.running_mean is not None
        assert batch_norm.running_var is not None
        return batch_norm.running_mean.to(mean_NC.dtype), batch_norm.running_var.to(mean_NC.dtype)
    if group is None and len(mean_NC) * positions < 2:
        raise ValueError(f"batch_size={len(mean_NC)}: in training at least 2 values a channel, positions counted")
    count, mean_C, var_C = pooled(mean_NC, var_NC, positions, group)
    if official_variance:
        if not float(count) > 1 + batch_norm.eps:
            raise ValueError(f"unbiased_train_var=True: more than 1 + eps values a channel in a batch, not {count}")
        var_C = var_C * (count / (count - 1 - batch_norm.eps))
        return mean_C, var_C, mean_C, var_C
    return mean_C, var_C, mean_C, var_C * (count / (count - 1))


class BatchNorm(AbstractLayer, Synchronised):
    """gamma_c (x - mean_c) / sqrt(var_c + eps) + beta_c, statistics over the batch and all positions.

    After ``synchronise_`` or conversion to SyncBatchNorm the statistics are those of all ranks, on CPUs too, for which
    torch's own has no kernels; ranks may hold different numbers of samples.

    Source: Ioffe, Szegedy (2015), through torch's BatchNorm1d, which serves every rank here.

    Args:
        num_channels: size of dimension 1 of the input.
        eps: added to the variance, above 0.
        momentum: weight of the newest batch in the running statistics, in (0, 1].

    Shape:
        (N, C, *) to the same shape.

    Parameters: ``batch_norm.weight`` (gamma) and ``batch_norm.bias`` (beta), (C,), role ``norm``.
    Lipschitz (eval mode): max_c |gamma_c| / sqrt(var_c + eps), exact for every p.

    Raises:
        ValueError: an argument out of range; in ``forward``, another number of channels, or no positions.
    """

    batch_norm: nn.BatchNorm1d

    def __init__(self, num_channels: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.batch_norm, self.synchronised = batch_norm_flat(num_channels, eps, momentum, affine=True), False

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *) to the same shape."""
        batch_norm = self.batch_norm
        check_input(x, batch_norm.num_features)
        torch_can = x.is_cuda or not isinstance(batch_norm, nn.SyncBatchNorm)
        if not batch_norm.training or (torch_can and not self.synchronised):
            return apply_flat(batch_norm, x)
        parameters = (batch_norm.weight, batch_norm.bias)
        y, *statistics = normalised_by_moments(x, self._in_training(num_positions(x)), parameters)
        update_running_(batch_norm, *statistics)
        return y

    def _in_training(self, positions: int) -> Rule:
        """Normalisation by the batch's statistics as a rule of ``normalised_by_moments``."""

        def rule(mean_NC: Tensor, var_NC: Tensor, weight_C: Tensor, bias_C: Tensor) -> tuple[Tensor, ...]:
            given = (mean_NC, var_NC, positions, self.ranks())
            mean_C, var_C, *kept = statistics_in_force(self.batch_norm, True, *given)
            factor_C = weight_C * (var_C + self.batch_norm.eps).rsqrt()
            return factor_C.expand_as(mean_NC), factor_C * (mean_NC - mean_C) + bias_C, *kept

        return rule

    def slope_range(self) -> tuple[Tensor, Tensor]:
        """The factor gamma_c / sqrt(var_c + eps) of each channel."""
        factor_C = self.batch_norm.weight.to("cpu", torch.float64) * inverse_deviation(self.batch_norm)
        return factor_C, factor_C

    def lipschitz_constant(self, p: float) -> Tensor:
        """Of the eval-mode map."""
        return self.slope_range()[0].abs().max()

    def interval(self, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        """Exact image of the box under the eval-mode map."""
        batch_norm = self.batch_norm
        assert batch_norm.running_mean is not None
        factor_C = self.slope_range()[0].to(lo)
        shift_C = batch_norm.bias - factor_C * batch_norm.running_mean
        column = (-1, *[1] * (lo.dim() - 2))
        low, high = scaled_box(lo, hi, factor_C.view(column))
        return low + shift_C.view(column), high + shift_C.view(column)
