"""Normalisation of each sample by its root mean square."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf, prod, sqrt
from typing import ClassVar

import torch
from torch import Tensor, nn

from tautnet.factories import AbstractLayer, Role
from tautnet.functional.elementwise import scaled_box
from tautnet.functional.groupwise import largest_slope, normalised_box
from tautnet.normalizers.batch import check_input
from tautnet.normalizers.group import check_sample_norm


class RmsNorm(AbstractLayer):
    r"""weight_c x / sqrt(mean(x^2) + eps) + bias_c, the mean over all channels and positions of a sample.

    Layer normalisation without centring. Training and evaluation are the same map, there is no running state, a batch
    may hold one sample, and nothing needs to be synchronised between processes.

    Source: Zhang, Sennrich (2019). Differences: the mean runs over positions too, with one weight a channel; eps; a
    bias, because layers in front of a normalizer have none here.

    Args:
        num_channels: size of dimension 1 of the input.
        eps: added to the mean square, above 0.

    Shape:
        (N, C, \*) to the same shape and dtype.

    Parameters: ``weight`` (1) and ``bias`` (0), (C,), role ``norm``.
    Lipschitz: max_c |weight_c| / sqrt(eps) for p = 2, attained at x = 0.

    Raises:
        ValueError: an argument out of range; from ``forward``, an input of other channels.
    """

    parameter_roles: ClassVar[Mapping[str, Role]] = {"weight": "norm", "bias": "norm"}

    def __init__(self, num_channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        check_sample_norm(num_channels, eps)
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))

    def extra_repr(self) -> str:
        """The settings in the module's printed form."""
        return f"{len(self.weight)}, eps={self.eps}"

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *) to the same shape."""
        check_input(x, len(self.weight))  # one channel would be broadcast
        weight, bias = self._columns(x)
        # float32 at least, also under autocast: a float16 sum of squares over an image overflows
        wide = torch.promote_types(x.dtype, torch.float32)
        length_N = torch.linalg.vector_norm(x.flatten(1), dim=1, dtype=wide)
        r_N = (length_N.square() / prod(x.shape[1:]) + self.eps).rsqrt()
        return torch.addcmul(bias, x, weight * r_N.view(-1, *[1] * (x.dim() - 1))).to(x.dtype)

    def lipschitz_constant(self, p: float) -> Tensor:
        """Bound for inputs of any size; inf for p = 1 and inf, where it grows with the root of the number of values.

        With z = r x the Jacobian of z is r (I - z z^T / n), of norm r <= 1 / sqrt(eps).
        """
        scale = self.weight.to("cpu", torch.float64).abs().max()
        return scale / sqrt(self.eps) if p == 2 else torch.full_like(scale, inf)

    def local_lipschitz_constant(self, lo: Tensor, hi: Tensor, p: float) -> Tensor:
        """By the least mean square in the box, for every p; see ``slope_bound``."""
        slopes_N = largest_slope(lo.flatten(1), hi.flatten(1), self.eps, centred=False, p=p)
        return slopes_N * self.weight.abs().max().to(lo)

    def interval(self, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        """Exact image of the box in each value; see ``normalised_box``."""
        ends = normalised_box(lo.flatten(1), hi.flatten(1), self.eps, centred=False)
        weight, bias = self._columns(lo)
        low, high = scaled_box(ends[0].view_as(lo), ends[1].view_as(lo), weight)
        return low + bias, high + bias

    def _columns(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Weight and bias, shaped to broadcast against x."""
        column = (-1, *[1] * (x.dim() - 2))
        return self.weight.view(column), self.bias.view(column)
