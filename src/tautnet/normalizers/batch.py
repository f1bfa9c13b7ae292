"""Batch normalisation of inputs of any rank."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tautnet.factories import AbstractLayer
from tautnet.functional.elementwise import scaled_box


def batch_norm_flat(num_channels: int, eps: float, momentum: float, affine: bool) -> nn.BatchNorm1d:
    """A torch BatchNorm for inputs flattened to (N, C, S); it converts to SyncBatchNorm.

    Raises:
        ValueError: an argument out of range.
    """
    if num_channels < 1:
        raise ValueError(f"num_channels={num_channels}: at least 1")
    if not eps > 0:
        raise ValueError(f"eps={eps}: above 0")
    if not 0 < momentum <= 1:
        raise ValueError(f"momentum={momentum}: above 0, at most 1")
    return nn.BatchNorm1d(num_channels, eps=eps, momentum=momentum, affine=affine)


def apply_flat(batch_norm: nn.Module, x: Tensor) -> Tensor:
    """Apply a batch normalisation to (N, C, *)."""
    return batch_norm(x) if x.dim() == 2 else batch_norm(x.flatten(2)).view_as(x)


def inverse_deviation(batch_norm: nn.BatchNorm1d) -> Tensor:
    """1 / sqrt(var + eps) of the running variance, shape (C,), in float64 on the CPU."""
    assert batch_norm.running_var is not None  # track_running_stats is on
    return (batch_norm.running_var.to("cpu", torch.float64) + batch_norm.eps).rsqrt()


class BatchNorm(AbstractLayer):
    """gamma_c (x - mean_c) / sqrt(var_c + eps) + beta_c, statistics over the batch and all positions.

    Source: Ioffe, Szegedy (2015), through torch's BatchNorm1d, which serves every rank here.

    Args:
        num_channels: size of dimension 1 of the input.
        eps: added to the variance, above 0.
        momentum: weight of the newest batch in the running statistics, in (0, 1].

    Shape:
        (N, C, *) to the same shape.

    Parameters: ``batch_norm.weight`` (gamma) and ``batch_norm.bias`` (beta), (C,), role ``norm``.
    Lipschitz (eval mode): max_c |gamma_c| / sqrt(var_c + eps), exact for every p.
    """

    def __init__(self, num_channels: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.batch_norm = batch_norm_flat(num_channels, eps, momentum, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *) to the same shape."""
        return apply_flat(self.batch_norm, x)

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
