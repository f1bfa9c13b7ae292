"""Unitization of layer outputs, embedded in batch normalisation."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf, prod, sqrt
from typing import ClassVar

import torch
from torch import Tensor, nn

from tautnet.factories import AbstractLayer, Projected, Role, Synchronised
from tautnet.functional.batch_statistics import update_running_
from tautnet.functional.moments import Rule, moments, normalised_by_moments, num_positions
from tautnet.functional.pixel_unitize import unitized_by_position, unitized_formula
from tautnet.functional.unitize import (
    AlphaConstraint,
    AlphaShape,
    NormAxes,
    NormScale,
    check_alpha,
    check_choices,
    factor_and_value,
    inverse_norm,
    mixed,
    norm_factor,
)
from tautnet.normalizers.batch import (
    batch_norm_flat,
    check_input,
    inverse_deviation,
    statistics_in_force,
)


class Unitize(AbstractLayer, Projected, Synchronised):
    r"""y = gamma_c [alpha_c r(xh) + (1 - alpha_c)] xh + beta_c, xh the batch-normalised input.

    r(xh) = (kappa sum xh^2 + eps)^(-1/2) is one number a sample (``norm_axes="sample"``) or a position (``"pixel"``).
    alpha starts at 0, pure batch normalisation, and is learned. In eval mode xh comes from the running statistics while
    r is still computed from the sample itself.

    Moments and norms are in float32 at least. After ``synchronise_`` or conversion to SyncBatchNorm the batch
    statistics are those of all ranks. Of large tensors the input alone is kept for the backward pass; dense layers and
    ``pixel`` keep about five times as much with ``unbiased_train_var``, statistics of all ranks or torch.func.

    Source: Huang, Yu (2020), after the Keras code that is inferred to be the authors' (the paper's text could not be
    read). Differences: ``momentum`` defaults to 0.1 instead of 0.01, which short runs need; the current batch is
    normalised with the biased variance as in torch unless ``unbiased_train_var``; ``norm_axes="pixel"``, the scales
    other than ``official``, and all choices for alpha but a free one a channel are ours.

    Args:
        num_channels: size of dimension 1 of the input.
        eps: added to the variance and to the squared norm, above 0. Official 1e-3.
        momentum: weight of the newest batch in the running statistics, in (0, 1].
        norm_axes: what the norm sums over: channels and positions (``sample``) or channels (``pixel``).
        norm_scale: kappa, with P the number of positions summed over: ``official`` 1/P^2, ``l2`` 1, ``per_pixel`` 1/P,
            ``rms`` 1/(C P). Only ``rms`` keeps the scale of batch normalisation at alpha = 1. For images of other sizes
            than those trained with, ``per_pixel`` and ``rms`` keep the scale of the output's values, ``official`` and
            ``l2`` multiply the unitized part by about sqrt(P) and 1 / sqrt(P); with ``pixel`` P = 1, no size matters.
        norm_divisor: divides kappa, above 0; the official code's ``scale_coe``, 1.
        alpha_init: where alpha starts, official 0; without ``learn_alpha`` it stays there, a buffer.
        learn_alpha: whether alpha is trained.
        alpha_shape: an alpha each ``channel``, official, or one for the ``layer``.
        alpha_constraint: ``project`` clamps alpha to [0, 1] after every optimizer step; ``sigmoid`` learns
            ``raw_alpha``, alpha = sigmoid(raw_alpha); official ``none``.
        unbiased_train_var: multiply a training batch's variance by m / (m - 1 - eps), m values a channel, for the batch
            and the running statistics, as the official code does. Otherwise as torch.
        affine: whether gamma and beta are there; else 1 and 0.

    Shape:
        (N, C, *) to the same shape; in training at least 2 values a channel, as in torch: one has no variance.

    Parameters: ``alpha`` or ``raw_alpha``, (C,) or (1,), ``weight`` (gamma, 1) and ``bias`` (beta, 0), (C,), role
    ``norm``: no weight decay.
    Lipschitz (eval mode): at most about alpha / sqrt(eps) + 1 - alpha times batch normalisation's constant.

    Raises:
        ValueError: an argument out of range or without effect; in ``forward`` an input of another shape.
    """

    parameter_roles: ClassVar[Mapping[str, Role]] = dict.fromkeys(("alpha", "raw_alpha", "weight", "bias"), "norm")
    alpha: Tensor
    raw_alpha: Tensor
    batch_norm: nn.BatchNorm1d

    def __init__(
        self,
        num_channels: int,
        eps: float = 1e-3,
        momentum: float = 0.1,
        norm_axes: NormAxes = "sample",
        norm_scale: NormScale = "official",
        norm_divisor: float = 1.0,
        alpha_init: float = 0.0,
        learn_alpha: bool = True,
        alpha_shape: AlphaShape = "channel",
        alpha_constraint: AlphaConstraint = "none",
        unbiased_train_var: bool = False,
        affine: bool = True,
    ) -> None:
        super().__init__()
        check_choices(norm_axes, norm_scale, norm_divisor, alpha_shape, alpha_constraint)
        check_alpha(alpha_init, learn_alpha, alpha_constraint)
        # A child, not a base class: conversion to SyncBatchNorm replaces subclasses and would drop alpha.
        self.batch_norm, self.synchronised = batch_norm_flat(num_channels, eps, momentum, affine=False), False
        self.norm_axes, self.norm_scale, self.norm_divisor = norm_axes, norm_scale, norm_divisor
        self.alpha_constraint, self.unbiased_train_var, self.eps = alpha_constraint, unbiased_train_var, eps
        start = torch.full((num_channels if alpha_shape == "channel" else 1,), float(alpha_init))
        if not learn_alpha:  # a parameter would learn after net.requires_grad_(True)
            self.register_buffer("alpha", start)
        elif alpha_constraint == "sigmoid":
            self.raw_alpha = nn.Parameter(start.logit())
        else:
            self.alpha = nn.Parameter(start)
        self.weight = nn.Parameter(torch.ones(num_channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_channels)) if affine else None

    def extra_repr(self) -> str:
        """The settings in the module's printed form."""
        return f"norm_axes={self.norm_axes}, norm_scale={self.norm_scale}, alpha_constraint={self.alpha_constraint}"

    def mixing(self) -> Tensor:
        """The alpha in force, whatever the constraint, (C,) or (1,)."""
        return self.raw_alpha.sigmoid() if self.alpha_constraint == "sigmoid" else self.alpha

    def _vectors(self) -> tuple[Tensor, Tensor, Tensor]:
        """alpha, gamma and beta in force."""
        alpha, weight, bias = self.mixing(), self.weight, self.bias
        if weight is None or bias is None:
            return alpha, alpha.new_ones(1), alpha.new_zeros(1)
        return alpha, weight, bias

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *) to the same shape and dtype."""
        batch_norm = self.batch_norm
        check_input(x, batch_norm.num_features)
        if self.norm_axes == "pixel" or x.dim() == 2:
            return self._by_pixel(x)
        y, *statistics = normalised_by_moments(x, self._by_sample(tuple(x.shape)), self._vectors())
        if batch_norm.training:
            update_running_(batch_norm, *statistics)
        return y

    def _kappa(self, shape: tuple[int, ...]) -> float:
        return norm_factor(shape, self.norm_axes, self.norm_scale) / self.norm_divisor

    def _by_sample(self, shape: tuple[int, ...]) -> Rule:
        """Factor and value of each sample and channel from its moments, a rule of ``normalised_by_moments``."""
        positions, training = prod(shape[2:]), self.batch_norm.training

        def rule(mean_NC: Tensor, var_NC: Tensor, *vectors: Tensor) -> tuple[Tensor, ...]:
            given = (mean_NC, var_NC, positions, self.ranks(), self.unbiased_train_var)
            mean_C, var_C, *kept = statistics_in_force(self.batch_norm, training, *given)
            inverse_C = (var_C + self.eps).rsqrt()
            kappa_positions = self._kappa(shape) * positions
            return *factor_and_value(mean_NC - mean_C, var_NC, inverse_C, vectors, kappa_positions, self.eps), *kept

        return rule

    def _by_pixel(self, x: Tensor) -> Tensor:
        """The output for a norm over the channels of each position, and of dense layers, which have one."""
        batch_norm, training, kappa = self.batch_norm, self.batch_norm.training, self._kappa(tuple(x.shape))

        def formula(x: Tensor, *vectors: Tensor) -> tuple[Tensor, ...]:
            given = (*moments(x), num_positions(x), self.ranks(), self.unbiased_train_var)
            mean_C, var_C, *kept = statistics_in_force(batch_norm, training, *given)
            return unitized_formula(x, vectors, mean_C, (var_C + self.eps).rsqrt(), kappa, self.eps), *kept

        if not training or (self.ranks() is None and not self.unbiased_train_var):
            return unitized_by_position(x, formula, batch_norm, self._vectors(), kappa)
        y, *statistics = formula(x, *self._vectors())
        update_running_(batch_norm, *statistics)
        return y

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
        num_summed = self.batch_norm.num_features if self.norm_axes == "pixel" else inf
        return self._constant(p, torch.tensor([1 / sqrt(self.eps)], dtype=torch.float64), num_summed)[0]

    def local_lipschitz_constant(self, lo: Tensor, hi: Tensor, p: float) -> Tensor:
        """As ``lipschitz_constant``, with R the largest r of each sample's box, shape (N,)."""
        _, largest = self._inverse_norm_range(*self._normalised_box(lo, hi))
        radius_N = largest.flatten(1).amax(1).to("cpu", torch.float64)
        num_summed = self.batch_norm.num_features if self.norm_axes == "pixel" else lo[0].numel()
        return self._constant(p, radius_N, num_summed).to(lo)

    def _constant(self, p: float, radius_N: Tensor, num_summed: float) -> Tensor:
        """The bound for each R."""
        if p != 2 and num_summed == inf:  # also while alpha is 0, which it does not stay
            return torch.full_like(radius_N, inf)
        alpha_C, weight_C, _ = (vector.to("cpu", torch.float64) for vector in self._vectors())
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
        alpha, weight, bias = (vector.view(column) for vector in self._vectors())
        factors = [weight * mixed(r, alpha) for r in self._inverse_norm_range(*box)]
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
        kappa = self._kappa(tuple(lo.shape))
        smallest, largest = (inverse_norm(end, self.norm_axes, kappa, self.eps) for end in (farthest, nearest))
        return smallest, largest
