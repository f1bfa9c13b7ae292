"""Approximated orthonormal normalisation: weights times a Taylor polynomial of their inverse root Gram matrix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from tautnet.factories import Role, RoleOwner
from tautnet.functional.inverse_root import gram, inverse_root_taylor, scaled_inverse_root
from tautnet.normalizers.power_iteration import TopSingularVectors, singular_value
from tautnet.normalizers.spectral import SpectralWeight
from tautnet.normalizers.weight import (
    check_iterations,
    check_kind,
    check_padding,
    groups_of,
    parametrised,
    rounding_margin,
    without_autocast,
)

Prescale = Literal["spectral", "frobenius", "none", "row_bound"]
Gain = Literal["none", "scalar", "per_row"]
ConvNorm = Literal["matrix", "operator"]
Vectors = tuple[Tensor, Tensor]  # u (G, O), v (G, I)

_NUM_GRAM_ITERATIONS = 8


@dataclass(frozen=True)
class Aon:
    r"""Makes the rows of a layer's weight approximately orthonormal, in every forward pass, without a penalty.

    The weight in force is h(W) = T(A A^T) A / sigma with A = W / a: a is the pre-scale, T the Taylor polynomial of
    x^(-1/2) around 1 of ``taylor_order`` (see ``inverse_root_taylor``) and sigma the largest singular value of what it
    multiplies. The singular vectors of W stay; a singular value s of A becomes p(s) / p(1), which raises the small ones
    towards the largest and keeps their order. Of a tall matrix the columns become orthonormal, not the rows. Zeros stay
    zeros: directions that W has lost are not restored. Kernels are C_out x (C_in k_h k_w) matrices, one for each group.

    Everything depends on the pre-scale. The polynomial needs singular values in (0, 1]; above sqrt(3) order 1 turns
    them negative, and He-normal weights (without pre-scale) train badly. ``spectral`` divides by the largest one,
    estimated by power iteration; estimated too low by a small factor 1 + d, the result's largest is off by about d^2
    for order 1, d^(order + 1) in general. ``row_bound`` divides by sqrt(max_i sum_j |G_ij|), G the
    smaller Gram matrix: never too low, without state, one more product. ``frobenius`` makes all singular values so
    small that p is nearly linear: the result is nearly that of spectral normalisation alone.

    The power iteration's vectors are buffers, advance by ``num_power_iterations`` once per change of the weight while
    training with gradients (see ``TopSingularVectors``), and after ``spectral`` serve sigma too, whose top direction
    is the same; else they are those of T(A A^T) A. In training the largest singular value is 1 up to their lag. In eval
    mode and without gradients 15 more iterations are made and forgotten: weights may have been loaded, averaged or set.
    Reentrant checkpointing runs its first pass without gradients, and so with slightly other vectors than its second.

    h(c W) = h(W) for c > 0 (not with ``prescale="none"``): the gradient is orthogonal to W, and weight decay does not
    restrain the function, it only keeps W short and so the relative size of the steps large. Computed in float32 or
    float64, also under autocast and for 16-bit weights.

    Lipschitz: with ``conv="operator"`` (convolutions and dense layers) sigma is a guaranteed upper bound of the norm
    as a map of images of any size, and the layer's constant is at most max |gain|, up to the rounding of the gain's
    product. With ``"matrix"`` nothing is guaranteed: a kernel's matrix of norm 1 is a map of norm up to
    sqrt(k_h k_w), and power iteration estimates from below.

    Source: Zhang, Niwa, Kleijn (2019), of which only the abstract could be read. From it are the Taylor expansion, the
    product with W and the final spectral normalisation. The rest is a reconstruction: order, pre-scale, power
    iteration, gradient through sigma, kernels as matrices, gain; ``conv="operator"`` and ``row_bound`` are ours.

    Args:
        taylor_order: 1 to 8.
        prescale: a, as above; ``none`` is 1.
        final_normalization: divide by sigma.
        num_power_iterations: for each update of the weight, 1 to 1000.
        detach_sigma: take a and sigma for constants in the gradient.
        gain: a learnable factor, 1 at the start, role ``norm``: ``none``, one (``scalar``) or one a row (``per_row``).
            ``scalar`` where no normalizer follows the layer: signals shrink if no weight may exceed norm 1.
        conv: what sigma is: the ``matrix``'s largest singular value, or a bound of the layer's norm as an ``operator``.
        eps: pre-scales and sigmas up to this are taken for 0, and not divided by; above 0, at most 1.

    Raises:
        ValueError: an argument out of range, or without effect beside the others.
    """

    taylor_order: int = 1
    prescale: Prescale = "spectral"
    final_normalization: bool = True
    num_power_iterations: int = 1
    detach_sigma: bool = False
    gain: Gain = "none"
    conv: ConvNorm = "matrix"
    eps: float = 1e-12

    def __post_init__(self) -> None:
        for name, accepted in (("prescale", Prescale), ("gain", Gain), ("conv", ConvNorm)):
            if getattr(self, name) not in get_args(accepted):
                raise ValueError(f"{name}={getattr(self, name)}: one of {', '.join(get_args(accepted))}")
        if not 1 <= self.taylor_order <= 8:
            raise ValueError(f"taylor_order={self.taylor_order}: an integer from 1 to 8")
        check_iterations("num_power_iterations", self.num_power_iterations)
        if not 0 < self.eps <= 1:
            raise ValueError(f"eps={self.eps}: above 0, at most 1")
        if self.conv == "operator" and not self.final_normalization:
            raise ValueError("conv=operator: matrix where final_normalization is false; there is nothing to divide by")
        if self.num_power_iterations != 1 and not self.iterates:
            raise ValueError(f"num_power_iterations={self.num_power_iterations}: 1 where no power iteration is made")
        if self.detach_sigma and self.prescale == "none" and not self.final_normalization:
            raise ValueError("detach_sigma=True: False where nothing is divided by")

    @property
    def iterates(self) -> bool:
        """Whether a power iteration is made at all."""
        return self.prescale == "spectral" or (self.final_normalization and self.conv == "matrix")

    def __call__(self, layer: nn.Module) -> nn.Module:
        """Parametrise the weight of an ``nn.Linear`` or ``nn.Conv1d/2d/3d``; the same layer comes back.

        Raises:
            ValueError: another layer, one with a parametrised weight, or, with ``conv="operator"``, padding with other
                values than zeros.
        """
        check_kind(layer)
        if self.conv == "operator":
            check_padding(layer)
        return parametrised(layer, AonWeight(layer, self))


class AonWeight(nn.Module, RoleOwner):
    """The parametrization that ``Aon`` puts on a weight.

    Args:
        layer: the layer, read for its weight and settings and not kept.
        settings: of the normalisation.
    """

    parameter_roles: ClassVar[Mapping[str, Role]] = {"gain": "norm"}

    def __init__(self, layer: nn.Module, settings: Aon) -> None:
        super().__init__()
        self.settings, self.groups = settings, groups_of(layer)
        assert isinstance(layer.weight, Tensor)
        weight = layer.weight.detach()
        matrix_GOI = self._matrix(weight)
        shape = {"none": None, "scalar": (), "per_row": (len(weight),)}[settings.gain]
        self.gain = None if shape is None else nn.Parameter(matrix_GOI.new_ones(shape))
        # of an operator's bound alone: what divides is computed here
        self.operator = None
        if settings.conv == "operator":
            self.operator = SpectralWeight(layer, 1.0, _NUM_GRAM_ITERATIONS, only_above=False)
        self.vectors = None
        if settings.iterates:
            shared = settings.prescale == "spectral"
            self.vectors = TopSingularVectors(matrix_GOI if shared else self._near_orthonormal(matrix_GOI))

    def extra_repr(self) -> str:
        """The settings in the module's printed form."""
        return ", ".join(f"{name}={value}" for name, value in vars(self.settings).items())

    def forward(self, weight: Tensor) -> Tensor:
        """(O, I) or (O, I / groups, *k) to the same shape and type."""
        with without_autocast(weight):
            matrix_GOI = self._matrix(weight)
            shared = self._top(matrix_GOI) if self.settings.prescale == "spectral" else None
            formula = partial(self._normalised, shared=shared, weight=weight)
            if shared is not None and self._brief:
                eps, detached = self.settings.eps, self.settings.detach_sigma
                result_GOI = scaled_inverse_root(matrix_GOI, shared, formula, eps, detached)
            else:
                result_GOI = formula(matrix_GOI)
            result = result_GOI.reshape(weight.shape)
            if self.gain is not None:
                result = result * self.gain.to(result).view(-1, *[1] * (weight.dim() - 1))
            return result.to(weight.dtype)

    def _matrix(self, weight: Tensor) -> Tensor:
        """The groups' matrices, in float32 at least."""
        wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
        return wide.reshape(self.groups, len(weight) // self.groups, -1)

    def _top(self, matrix_GOI: Tensor) -> Vectors:
        """Top singular vectors; in training they follow the weight."""
        assert self.vectors is not None
        vectors: Vectors = self.vectors(matrix_GOI.detach(), self.settings.num_power_iterations)
        return vectors

    @property
    def _brief(self) -> bool:
        """Whether ``scaled_inverse_root`` does the whole."""
        settings = self.settings
        return settings.taylor_order == 1 and settings.final_normalization and settings.conv == "matrix"

    def _normalised(self, matrix_GOI: Tensor, shared: Vectors | None, weight: Tensor) -> Tensor:
        """T(A A^T) A / sigma."""
        result_GOI = self._near_orthonormal(matrix_GOI, shared)
        if not self.settings.final_normalization:
            return result_GOI
        return result_GOI / self._divisor(self._sigma(result_GOI, shared, weight))

    def _near_orthonormal(self, matrix_GOI: Tensor, top: Vectors | None = None) -> Tensor:
        """T(A A^T) A."""
        if self.settings.prescale != "none":
            matrix_GOI = matrix_GOI / self._divisor(self._scale(matrix_GOI, top))
        return inverse_root_taylor(matrix_GOI, self.settings.taylor_order)

    def _scale(self, matrix_GOI: Tensor, top: Vectors | None) -> Tensor:
        """The pre-scale of each group, (G, 1, 1)."""
        if top is not None:
            return singular_value(matrix_GOI, top)
        if self.settings.prescale == "frobenius":
            return torch.linalg.vector_norm(matrix_GOI, dim=(1, 2), keepdim=True)
        square_G11 = gram(matrix_GOI).abs().sum(2, keepdim=True).amax(1, keepdim=True)
        return square_G11.clamp(min=torch.finfo(square_G11.dtype).tiny).sqrt()  # the root's slope at 0 is infinite

    def _sigma(self, result_GOI: Tensor, shared: Vectors | None, weight: Tensor) -> Tensor:
        """Of each group (G, 1, 1), or the bound of the layer's norm ()."""
        if self.operator is not None:
            bound = self.operator.bound(result_GOI.view(weight.shape))
            return bound * rounding_margin(weight, self.groups)
        return singular_value(result_GOI, self._top(result_GOI) if shared is None else shared)

    def _divisor(self, scale: Tensor) -> Tensor:
        """1 in place of zeros, whose gradients stay small then."""
        scale = scale.detach() if self.settings.detach_sigma else scale
        return torch.where(scale > self.settings.eps, scale, 1)
