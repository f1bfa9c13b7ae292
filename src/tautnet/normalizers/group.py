"""Normalisation of each sample over groups of its channels: group, layer and instance normalisation."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf, sqrt
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tautnet.factories import AbstractLayer, Role
from tautnet.functional.elementwise import scaled_box
from tautnet.functional.groupwise import largest_slope, normalised_box
from tautnet.normalizers.batch import check_input


def check_sample_norm(num_channels: int, eps: float) -> None:
    """Raise ValueError unless there is a channel and ``eps`` is positive and finite."""
    if num_channels < 1:
        raise ValueError(f"num_channels={num_channels}: at least 1")
    if not 0 < eps < inf:
        raise ValueError(f"eps={eps}: above 0, finite")


def _number_of_groups(num_channels: int, num_groups: int | None, group_size: int | None) -> int:
    """Exactly one of both is given, and it divides the channels."""
    if (num_groups is None) == (group_size is None):
        raise ValueError(f"num_groups={num_groups}: either num_groups or group_size={group_size}, the other null")
    name, value = ("num_groups", num_groups) if group_size is None else ("group_size", group_size)
    assert value is not None
    if value < 1 or num_channels % value:
        divisors = ", ".join(str(d) for d in range(1, num_channels + 1) if num_channels % d == 0)
        raise ValueError(f"{name}={value}: has to divide the layer's {num_channels} channels, so one of {divisors}")
    return value if group_size is None else num_channels // value


class GroupNorm(AbstractLayer):
    r"""weight_c z + bias_c, z = (x - mean) / sqrt(var + eps), statistics of one sample over a group of channels.

    A group holds neighbouring channels at all positions. ``num_groups=1`` is layer normalisation over channels and
    positions, ``group_size=1`` instance normalisation. Training and evaluation are the same map, there is no running
    state, a batch may hold one sample, and nothing needs to be synchronised between processes.

    Source: Wu, He (2018), through torch's ``group_norm``. Layer: Ba, Kiros, Hinton (2016), here with one weight and
    bias a channel, not a value. Instance: Ulyanov, Vedaldi, Lempitsky (2016).

    Args:
        num_channels: size of dimension 1 of the input.
        num_groups: divides the channels; None: by ``group_size``. Paper 32.
        group_size: channels of a group, divides the channels; None: by ``num_groups``. Paper's alternative 16.
        eps: added to the variance, above 0.

    Shape:
        (N, C, \*) to the same shape, with more than one value in a group.

    Parameters: ``weight`` (1) and ``bias`` (0), (C,), role ``norm``.
    Lipschitz: max_c |weight_c| / sqrt(eps) for p = 2, attained for one weight where the values of a group agree.

    Raises:
        ValueError: an argument out of range; from ``forward``, an input of other channels or groups of one value.
    """

    parameter_roles: ClassVar[Mapping[str, Role]] = {"weight": "norm", "bias": "norm"}

    def __init__(
        self, num_channels: int, num_groups: int | None = None, group_size: int | None = None, eps: float = 1e-5
    ) -> None:
        super().__init__()
        check_sample_norm(num_channels, eps)
        self.num_groups = _number_of_groups(num_channels, num_groups, group_size)
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))

    def extra_repr(self) -> str:
        """The settings in the module's printed form."""
        return f"{len(self.weight)}, num_groups={self.num_groups}, eps={self.eps}"

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *) to the same shape."""
        check_input(x, len(self.weight))
        if x.shape[1:].numel() == self.num_groups:  # the output would be the bias, whatever the input
            raise ValueError(
                f"num_groups={self.num_groups}: a group of an input of shape {tuple(x.shape)} is one value, which has "
                "no spread; norm=instance needs several pixels in every layer, norm=group several values a group"
            )
        return F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)

    def lipschitz_constant(self, p: float) -> Tensor:
        """Bound for inputs of any size; inf for p = 1 and inf, where it grows with the root of the number of positions.

        The Jacobian of z is r (P - z z^T / n), r = 1 / sqrt(var + eps), of norm at most r <= 1 / sqrt(eps).
        """
        scale = self.weight.to("cpu", torch.float64).abs().max()
        return scale / sqrt(self.eps) if p == 2 else torch.full_like(scale, inf)

    def local_lipschitz_constant(self, lo: Tensor, hi: Tensor, p: float) -> Tensor:
        """By the least variance of each group in the box, for every p; see ``slope_bound``."""
        slopes_NG = largest_slope(self._grouped(lo), self._grouped(hi), self.eps, centred=True, p=p)
        return (slopes_NG * self.weight.abs().view(self.num_groups, -1).amax(1).to(lo)).amax(1)

    def interval(self, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        """See ``normalised_box``."""
        ends = normalised_box(self._grouped(lo), self._grouped(hi), self.eps, centred=True)
        weight, bias = (value.to(lo).view(-1, *[1] * (lo.dim() - 2)) for value in (self.weight, self.bias))
        low, high = scaled_box(ends[0].view_as(lo), ends[1].view_as(lo), weight)
        return low + bias, high + bias

    def _grouped(self, x: Tensor) -> Tensor:
        """(N, C, *) to (N, groups, values of a group)."""
        return x.reshape(len(x), self.num_groups, -1)


def layer_norm(num_channels: int, eps: float = 1e-5) -> GroupNorm:
    """Layer normalisation: one group, all channels and positions of a sample; see ``GroupNorm``.

    Args:
        num_channels: size of dimension 1 of the input.
        eps: added to the variance, above 0.
    """
    return GroupNorm(num_channels, num_groups=1, eps=eps)


def instance_norm(num_channels: int, eps: float = 1e-5) -> GroupNorm:
    """Instance normalisation: each channel of a sample over its positions, of which there are two or more.

    See ``GroupNorm``.

    Args:
        num_channels: size of dimension 1 of the input.
        eps: added to the variance, above 0.
    """
    return GroupNorm(num_channels, group_size=1, eps=eps)
