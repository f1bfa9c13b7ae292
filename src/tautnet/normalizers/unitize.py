"""Unitization of layer outputs, embedded in batch normalisation."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf, sqrt
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from tautnet.factories import AbstractLayer, Projected, Role
from tautnet.functional.unitize import NormAxes, NormScale, inverse_norm
from tautnet.normalizers.batch import apply_flat, batch_norm_flat, inverse_deviation

AlphaConstraint = Literal["none", "project"]


class Unitize(AbstractLayer, Projected):
    r"""y = gamma_c [alpha_c r(xh) + (1 - alpha_c)] xh + beta_c, xh the batch-normalised input.

    r(xh) = (kappa sum xh^2 + eps)^(-1/2) is one number a sample (``norm_axes="sample"``) or a position (``"pixel"``).
    alpha starts at 0, pure batch normalisation, and is learned. In eval mode xh comes from the running statistics while
    r is still computed from the sample itself.

    Source: Huang, Yu (2020), after the Keras code that is inferred to be the authors' (the paper's text could not be
    read). Differences: the current batch is normalised with the biased variance as in torch, not the unbiased one;
    ``momentum`` defaults to 0.1 instead of 0.01, which short runs need; ``norm_axes="pixel"``, the scales other than
    ``official`` and the constraint on alpha are ours.

    Args:
        num_channels: size of dimension 1 of the input.
        eps: added to the variance and to the squared norm, above 0. Official 1e-3.
        momentum: weight of the newest batch in the running statistics, in (0, 1].
        norm_axes: what the norm sums over: channels and positions (``sample``) or channels (``pixel``).
        norm_scale: kappa, with P the number of positions summed over: ``official`` 1/P^2, ``l2`` 1, ``per_pixel`` 1/P,
            ``rms`` 1/(C P). Only ``rms`` keeps the scale of batch normalisation at alpha = 1; ``official`` makes the
            scale depend on the image size.
        alpha_constraint: ``project`` clamps alpha to [0, 1] after every optimizer step; official ``none``.

    Shape:
        (N, C, *) to the same shape.

    Parameters: ``alpha`` (0), ``weight`` (gamma, 1), ``bias`` (beta, 0), each (C,), role ``norm``: no weight decay.
    Lipschitz (eval mode): see ``lipschitz_constant``; finite, at most about alpha / sqrt(eps) + 1 - alpha times
    batch normalisation's.

    Raises:
        ValueError: an argument out of range.
    """

    parameter_roles: ClassVar[Mapping[str, Role]] = {"alpha": "norm", "weight": "norm", "bias": "norm"}

    def __init__(
        self,
        num_channels: int,
        eps: float = 1e-3,
        momentum: float = 0.1,
        norm_axes: NormAxes = "sample",
        norm_scale: NormScale = "official",
        alpha_constraint: AlphaConstraint = "none",
    ) -> None:
        super().__init__()
        for name, value, accepted in (
            ("norm_axes", norm_axes, get_args(NormAxes)),
            ("norm_scale", norm_scale, get_args(NormScale)),
            ("alpha_constraint", alpha_constraint, get_args(AlphaConstraint)),
        ):
            if value not in accepted:
                raise ValueError(f"{name}={value}: one of {', '.join(accepted)}")
        # A child, not a base class: conversion to SyncBatchNorm replaces subclasses and would drop alpha.
        self.batch_norm = batch_norm_flat(num_channels, eps, momentum, affine=False)
        self.norm_axes, self.norm_scale, self.alpha_constraint = norm_axes, norm_scale, alpha_constraint
        self.eps = eps
        self.alpha = nn.Parameter(torch.zeros(num_channels))
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))

    def extra_repr(self) -> str:
        """The settings in the module's printed form."""
        return f"norm_axes={self.norm_axes}, norm_scale={self.norm_scale}, alpha_constraint={self.alpha_constraint}"

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *) to the same shape and dtype."""
        normalised = apply_flat(self.batch_norm, x)
        # float32 at least: a float16 sum of squares over an image overflows.
        wide = normalised.to(torch.promote_types(normalised.dtype, torch.float32))
        r = inverse_norm(wide, self.norm_axes, self.norm_scale, self.eps)
        alpha, weight, bias = (
            parameter.view(-1, *[1] * (x.dim() - 2)) for parameter in (self.alpha, self.weight, self.bias)
        )
        return (weight * (1 + alpha * (r - 1)) * wide + bias).to(x.dtype)

    def project_(self) -> None:
        """Clamp alpha to [0, 1] if the constraint is ``project``."""
        if self.alpha_constraint == "project":
            with torch.no_grad():
                self.alpha.clamp_(0, 1)

    def lipschitz_constant(self, p: float) -> Tensor:
        r"""Bound of the eval-mode map; for p = 1 and inf with ``sample`` inf.

        With D = diag(1 / sqrt(var + eps)), G = diag(gamma), A = diag(alpha) and u(z) = r(z) z the Jacobian is
        G [A J + I - A] D. The matrix J = r (I - kappa r^2 z z^T) is symmetric with eigenvalues r and r^3 eps, hence
        0 <= J <= R I with R = 1 / sqrt(eps) >= r, whatever kappa and z. Writing J = R/2 I + (J - R/2 I), the second
        part of norm at most R/2, gives

            max_c |gamma_c (alpha_c R / 2 + 1 - alpha_c)| / sigma_c + R / 2 max_c |gamma_c alpha_c| max_c 1 / sigma_c.

        For alpha = 0 this is batch normalisation's constant; for one alpha in [0, 1], gamma and sigma it is the
        supremum, attained at z = 0. With ``pixel`` J is block diagonal and the same holds for each block. For p = 1 and
        inf the second term is multiplied by sqrt(n), n the number of values that the norm sums over.
        """
        num_summed = len(self.alpha) if self.norm_axes == "pixel" else inf
        return self._constant(p, torch.tensor([1 / sqrt(self.eps)], dtype=torch.float64), num_summed)[0]

    def local_lipschitz_constant(self, lo: Tensor, hi: Tensor, p: float) -> Tensor:
        """As ``lipschitz_constant``, with R the largest r of each sample's box, shape (N,)."""
        _, largest = self._inverse_norm_range(*self._normalised_box(lo, hi))
        radius_N = largest.flatten(1).amax(1).to("cpu", torch.float64)
        num_summed = len(self.alpha) if self.norm_axes == "pixel" else lo[0].numel()
        return self._constant(p, radius_N, num_summed).to(lo)

    def _constant(self, p: float, radius_N: Tensor, num_summed: float) -> Tensor:
        """The bound for each R."""
        if p != 2 and num_summed == inf:  # also while alpha is 0, which it does not stay
            return torch.full_like(radius_N, inf)
        weight_C, alpha_C = (parameter.to("cpu", torch.float64) for parameter in (self.weight, self.alpha))
        inverse_deviation_C = inverse_deviation(self.batch_norm)
        half_radius_N1 = radius_N.unsqueeze(1) / 2
        centre_NC = weight_C * (alpha_C * half_radius_N1 + 1 - alpha_C) * inverse_deviation_C
        spread_N = half_radius_N1[:, 0] * (weight_C * alpha_C).abs().max() * inverse_deviation_C.max()
        # An n x n matrix has l1 and linf norms of at most sqrt(n) times its l2 norm.
        return centre_NC.abs().amax(1) + (spread_N if p == 2 else sqrt(num_summed) * spread_N)

    def interval(self, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        """The box of all products of a normalised value with a factor gamma (1 + alpha (r - 1)) met in the box."""
        box = self._normalised_box(lo, hi)
        column = (-1, *[1] * (lo.dim() - 2))
        alpha, weight, bias = (parameter.view(column) for parameter in (self.alpha, self.weight, self.bias))
        factors = [weight * (1 + alpha * (r - 1)) for r in self._inverse_norm_range(*box)]
        products = torch.stack([factor * end for factor in factors for end in box])
        return products.amin(0) + bias, products.amax(0) + bias

    def _normalised_box(self, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        """The box of the batch-normalised input in eval mode."""
        batch_norm = self.batch_norm
        assert batch_norm.running_mean is not None
        column = (-1, *[1] * (lo.dim() - 2))
        inverse, mean = inverse_deviation(batch_norm).to(lo).view(column), batch_norm.running_mean.view(column)
        return (lo - mean) * inverse, (hi - mean) * inverse

    def _inverse_norm_range(self, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        """Smallest and largest r over a box of normalised values."""
        farthest = torch.maximum(lo.abs(), hi.abs())
        nearest = torch.maximum(lo, -hi).clamp(min=0)  # 0 where the box holds 0
        smallest, largest = (
            inverse_norm(end, self.norm_axes, self.norm_scale, self.eps) for end in (farthest, nearest)
        )
        return smallest, largest
