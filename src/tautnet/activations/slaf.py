"""Self-learnable activation functions: weighted sums of fixed basis functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from math import inf, prod
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tautnet.activations import slaf_init
from tautnet.activations.base import AbstractActivation
from tautnet.activations.slaf_init import FitTo, Hybrid, Init, Normalize
from tautnet.activations.spline_init import Sharing
from tautnet.factories import Role, Synchronised
from tautnet.functional.bases import Basis, elements, num_elements
from tautnet.functional.basis_sum import BasisSum
from tautnet.functional.batch_statistics import all_ranks, largest, standardised, standardised_powers
from tautnet.functional.polynomial import beside


class Slaf(AbstractActivation, Synchronised):
    r"""One learned sum of basis functions for each channel, layer or neuron.

    f_c(z) = b_c + sum_j sigmoid(s_j) w_{c,j} (e_j(z) - mu_{c,j}) / sqrt(v_{c,j} + eps), j = 1, ..., K, with the basis
    elements e_j (``functional/bases.py``) and their means and biased variances over batch and positions: of the batch
    in training, running ones in eval mode, where f_c of the polynomial bases is one polynomial. Without ``gate`` the
    sigmoid is 1. Other normalisations leave mu and v out and have e_j act on a normalised z.

    The arithmetic is in float32 at least, whatever autocast says; the result takes the input's dtype. NaN gives NaN, in
    training in the whole channel. After ``synchronise_`` statistics are those of all ranks, and so they are after
    conversion to SyncBatchNorm, but for the maximum of ``maxabs``. In eval mode Horner's scheme runs in float64 for
    degrees above 7. The layer itself is not for float16: its running variances overflow.

    Source: Goyal, Goyal, Lall (2019), definition and settings after the authors' code. Differences: ``momentum`` 0.1
    (code 0.01, which short runs do not survive) and ``eps`` 1e-5 (1e-8, at which a dead unit multiplies noise by 1e4);
    the running variance is the unbiased one, as torch has it. ``chebyshev``, ``legendre`` and ``hermite``, ``identity``
    and ``fit`` are not in the code. Reconstructed: ``hybrid``; one m a layer, the batch's maximum in training.

    Args:
        num_channels: size of dimension 1 of the input.
        degree: largest degree, 1 to 16; of Fourier the number of sines and of cosines. Official 2 to 7, 4 for Fourier.
        basis: power, taylor, fourier (period 4), chebyshev, legendre or hermite (probabilists').
        normalize: ``basis`` standardises each element, official; ``input`` standardises z; ``maxabs`` takes
            z / (m max|z| + eps), the maximum a running one in eval mode, m learned from 2; ``none``.
        sharing: one curve per ``channel`` (C curves), one for the ``layer`` (1), or one per ``neuron``
            (C times the positions of ``spatial_shape``). Official: channel for images, layer for dense layers.
        spatial_shape: shape of an input after (N, C), needed by ``sharing="neuron"`` beyond dense layers.
        init: ``official`` draws w from N(0, 1), adds 1 to the first, b = 0.1, s from N(0, 1); ``identity``; ``fit``,
            least squares to ``fit_to`` under z ~ N(0, 1). The last two in eval mode at the start, s = 0, with running
            statistics for N(0, 1).
        fit_to: an activation of ``torch.nn.functional`` by name, or absolute; None for relu.
        gate: whether s is there, (K,), one for all curves.
        bias: whether b is there; else 0.
        momentum: weight of the newest batch in the running statistics, in (0, 1]; official 0.01.
        eps: added to variances, and to m max|z|; above 0.
        hybrid: ``relu`` adds ReLU(z); a fit is then that of the whole.

    Shape:
        (N, C, *) to the same shape, any rank of at least 2, N = 0 included. In training the statistics need at least 2
        values a curve, 64 or more to be of use.

    Parameters: ``coefficients`` w (curves, K), ``bias`` (curves,), ``gate_logits`` (K,), ``scale`` m (1,), role
    ``activation``.
    Lipschitz: a polynomial of degree 2 or more has no global constant: inf; on boxes finite, see ``local_slope_range``.
    Fourier's is at most sum_j |w_j| omega_j.

    Raises:
        ValueError: an argument out of range or without effect, an input of another number of channels or another
            ``spatial_shape``, or a training batch of a single value a curve.
    """

    parameter_roles: ClassVar[Mapping[str, Role]] = dict.fromkeys(
        ("coefficients", "bias", "gate_logits", "scale"), "activation"
    )
    running_max: Tensor | None

    def __init__(
        self,
        num_channels: int,
        degree: int = 4,
        basis: Basis = "power",
        normalize: Normalize = "basis",
        sharing: Sharing = "channel",
        spatial_shape: Sequence[int] = (),
        init: Init = "official",
        fit_to: FitTo | None = None,
        gate: bool = False,
        bias: bool = True,
        momentum: float = slaf_init.MOMENTUM,
        eps: float = slaf_init.EPS,
        hybrid: Hybrid = "none",
    ) -> None:
        super().__init__(num_channels)
        slaf_init.check_arguments(
            degree, basis, normalize, sharing, spatial_shape, init, fit_to, hybrid, momentum=momentum, eps=eps
        )
        self.degree, self.basis, self.normalize, self.sharing = degree, basis, normalize, sharing
        self.spatial_shape, self.hybrid = tuple(spatial_shape), hybrid
        self.momentum, self.eps = momentum, eps
        self.num_curves = 1 if sharing == "layer" else num_channels * prod(self.spatial_shape)
        num_functions = num_elements(basis, degree)
        self.coefficients = nn.Parameter(torch.empty(self.num_curves, num_functions))
        self.bias = nn.Parameter(torch.empty(self.num_curves)) if bias else None
        self.gate_logits = nn.Parameter(torch.empty(num_functions)) if gate else None
        self.scale = nn.Parameter(torch.full((1,), 2.0)) if normalize == "maxabs" else None
        largest_C = torch.full((self.num_curves,), slaf_init.LARGEST_INPUT)
        self.register_buffer("running_max", largest_C if normalize == "maxabs" else None)
        # A child, not a base class: conversion to SyncBatchNorm replaces subclasses and would drop the coefficients.
        num_normalised = {"basis": self.num_curves * num_functions, "input": self.num_curves}.get(normalize, 0)
        self.batch_norm = nn.BatchNorm1d(num_normalised, eps, momentum, affine=False) if num_normalised else None
        self._start(init, fit_to)

    @torch.no_grad()
    def _start(self, init: Init, fit_to: FitTo | None) -> None:
        """Set the parameters, and the running statistics that belong to them."""
        gate, constant = self.gate_logits, 0.1
        if init == "official":
            self.coefficients.normal_()[:, 0].add_(1)
        else:
            settings = (self.basis, self.degree, self.normalize, self.eps, self.hybrid, self.bias is not None)
            weights_K, constant = slaf_init.weights_for(init, fit_to, *settings)
            self.coefficients.copy_(weights_K if gate is None else 2 * weights_K)  # sigmoid(0) = 1/2
            if self.batch_norm is not None and self.normalize == "basis":
                moments = slaf_init.gaussian_moments(self.basis, self.degree)
                for running, value_K in zip(self.batch_norm.buffers(), moments, strict=False):
                    running.copy_(value_K.repeat(self.num_curves))
        if gate is not None:
            gate.normal_(std=1.0 if init == "official" else 0.0)
        if self.bias is not None:
            self.bias.fill_(constant)

    def extra_repr(self) -> str:
        """The settings in the module's printed form."""
        return (
            f"{self.num_channels}, degree={self.degree}, basis={self.basis}, normalize={self.normalize}, "
            f"sharing={self.sharing}, gate={self.gate_logits is not None}, hybrid={self.hybrid}"
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *) to the same shape and dtype."""
        curves = self._as_curves(x)
        synchronised = self.ranks() is not None
        if x.numel() == 0 and not synchronised:  # no statistics
            return x.clone()
        z = curves.to(torch.promote_types(torch.promote_types(x.dtype, self.coefficients.dtype), torch.float32))
        if not self._uses_batch():
            y = self.function().values(z)
        else:
            y = self._by_batch(z) + F.relu(z) if self.hybrid == "relu" else self._by_batch(z)
        return y.to(x.dtype).reshape(x.shape)

    def _uses_batch(self) -> bool:
        """Whether the statistics are the batch's; the normaliser alone may have been put in eval mode."""
        if self.batch_norm is not None:
            return self.batch_norm.training
        return self.training and self.normalize == "maxabs"

    def _by_batch(self, z: Tensor) -> Tensor:
        """The sum with the statistics of the batch, which the running ones follow."""
        if self.running_max is not None and self.scale is not None:
            largest_C = largest(z, self.running_max, self.momentum, all_ranks() if self.synchronised else None)
            return self._sum().values(z / beside(z, self.scale * largest_C + self.eps).to(z.dtype))
        assert self.batch_norm is not None
        if self.normalize == "input":
            return self._sum().values(standardised(z, z.new_ones(self.num_curves), self.batch_norm, self.ranks()))
        if self.basis == "power" and self.ranks() is None:
            return standardised_powers(z, self._weights(), self._constants(), self.batch_norm)
        elements_NCK = torch.stack(elements(z, self.basis, self.degree), dim=2)
        weights = self._weights().flatten().to(z.dtype)
        terms = standardised(elements_NCK.flatten(1, 2), weights, self.batch_norm, self.ranks())
        return terms.reshape(elements_NCK.shape).sum(2) + beside(z, self._constants().to(z.dtype))

    def _weights(self) -> Tensor:
        """sigmoid(s) w, (curves, K)."""
        return self.coefficients if self.gate_logits is None else self.coefficients * self.gate_logits.sigmoid()

    def _constants(self) -> Tensor:
        """b, (curves,)."""
        return self.coefficients.new_zeros(self.num_curves) if self.bias is None else self.bias

    def _sum(self) -> BasisSum:
        """sum_j sigmoid(s_j) w_j e_j + b, without a normalisation."""
        one_C = torch.ones(self.num_curves, dtype=torch.float64, device=self.coefficients.device)
        weights_CK, constant_C = self._weights().double(), self._constants().double()
        return BasisSum(self.basis, self.degree, weights_CK, constant_C, factor_C=one_C, shift_C=0 * one_C)

    def function(self) -> BasisSum:
        """The eval-mode functions in closed form, differentiable in the parameters."""
        plain = replace(self._sum(), with_relu=self.hybrid == "relu")
        if self.running_max is not None and self.scale is not None:
            return replace(plain, factor_C=1 / (self.scale.double() * self.running_max + self.eps))
        if self.batch_norm is None:
            return plain
        mean_F, var_F = (statistic_F.double() for statistic_F in islice(self.batch_norm.buffers(), 2))
        inverse_F = (var_F + self.eps).rsqrt()
        if self.normalize == "input":
            return replace(plain, factor_C=inverse_F, shift_C=-mean_F * inverse_F)
        weights_CK = plain.weights_CK * inverse_F.view_as(self.coefficients)
        offset_C = (weights_CK * mean_F.view_as(self.coefficients)).sum(1)
        return replace(plain, weights_CK=weights_CK, constant_C=plain.constant_C - offset_C)

    def curves(self, x_S: Tensor) -> Tensor:
        """The eval-mode functions at points (S,), shape (curves, S)."""
        return self.function().values(x_S.expand(1, self.num_curves, -1))[0]

    def slope_range(self) -> tuple[Tensor, Tensor]:
        """-inf and inf unless all coefficients beyond the linear one are 0; of Fourier sums bounds."""
        lo_C, hi_C = (
            end_C.cpu().expand(max(self.num_curves, self.num_channels)) for end_C in self.function().slope_range()
        )
        return lo_C.view(self.num_channels, -1).amin(1), hi_C.view(self.num_channels, -1).amax(1)

    def tv2(self) -> Tensor:
        """Of each curve, (curves,): inf unless it is a straight line; the ReLU of a hybrid adds 1."""
        return torch.where(self.function().is_affine().cpu(), float(self.hybrid == "relu"), inf).double()

    def bv2(self) -> Tensor:
        """TV(2)(f) + |f(0)| + |f(1)| of each curve in eval mode, (curves,)."""
        points_S = torch.tensor([0.0, 1.0], dtype=torch.float64, device=self.coefficients.device)
        return self.tv2() + self.curves(points_S).abs().sum(1).cpu()

    def interval(self, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        """A box that contains the image of the box, larger by an excess of second order in its width."""
        low, high = self.function().interval(self._as_curves(lo), self._as_curves(hi))
        return low.reshape(lo.shape), high.reshape(hi.shape)

    def local_slope_range(self, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        """Bounds of the slopes on the box, larger by an excess of second order in its width."""
        low, high = self.function().local_slope_range(self._as_curves(lo), self._as_curves(hi))
        return low.reshape(lo.shape), high.reshape(hi.shape)

    def _as_curves(self, x: Tensor) -> Tensor:
        """A view (N, curves, *): ``[:, c]`` are the inputs of curve c."""
        if x.dim() < 2 or x.shape[1] != self.num_channels:
            raise ValueError(f"input of shape {tuple(x.shape)}: this activation takes (N, {self.num_channels}, *)")
        if self.sharing == "layer":
            return x.flatten(1).unsqueeze(1)
        if self.sharing == "channel":
            return x
        if x.shape[2:] != self.spatial_shape:
            raise ValueError(
                f"sharing=neuron: a curve for every neuron of shape {(self.num_channels, *self.spatial_shape)}, the "
                f"layer has {tuple(x.shape[1:])}; in convolutional networks use sharing=channel or layer"
            )
        return x.flatten(1)
