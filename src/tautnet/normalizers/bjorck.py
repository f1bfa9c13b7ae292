"""Orthonormal weights by Björck's iteration."""

from __future__ import annotations

from math import prod, sqrt

import torch
from torch import Tensor, nn

from tautnet.normalizers.weight import check_constant, check_iterations, check_layer, parametrised, without_autocast


def orthonormalised(matrix_OI: Tensor, num_iterations: int = 15, beta: float = 0.5) -> Tensor:
    r"""Nearly the orthonormal matrix nearest to a multiple of ``matrix_OI``, its spectral norm never above 1.

    V_0 = W / sqrt(||W||_1 ||W||_inf), V_{k+1} = (1 + beta) V_k - beta V_k V_k^T V_k. A singular value s of V_k becomes
    s (1 + beta (1 - s^2)): it rises towards 1 and, for beta <= 1/2 and s <= 1, never passes it. The first scale, an
    upper bound of the spectral norm, sees to s <= 1, so that the statement holds after any number of iterations, up to
    rounding. Singular values that start small have not arrived after a few iterations; zeros stay zero.

    Source: Björck, Bowie (1971), the iteration of order 1.

    Args:
        matrix_OI: any matrix of floating numbers.
        num_iterations: at least 0.
        beta: above 0, at most 0.5.
    """
    least = torch.finfo(matrix_OI.dtype).tiny ** 0.5  # for a matrix of zeros: gradients stay finite
    scales = [matrix_OI.abs().sum(dim).max().clamp(min=least).sqrt() for dim in (0, 1)]
    tall = matrix_OI.shape[0] > matrix_OI.shape[1]
    v = (matrix_OI.T if tall else matrix_OI) / scales[0] / scales[1]
    for _ in range(num_iterations):
        v = torch.addmm(v, v @ v.T, v, beta=1 + beta, alpha=-beta)
    return v.T if tall else v


class OrthonormalWeight(nn.Module):
    """The parametrization that ``Bjorck`` puts on a weight.

    Args:
        num_iterations: of Björck's iteration.
        beta: its step.
        constant: what the layer's spectral norm does not exceed.
    """

    def __init__(self, num_iterations: int, beta: float, constant: float) -> None:
        super().__init__()
        self.num_iterations, self.beta, self.constant = num_iterations, beta, constant

    def extra_repr(self) -> str:
        """The settings in the module's printed form."""
        return f"num_iterations={self.num_iterations}, beta={self.beta}, constant={self.constant}"

    def forward(self, weight: Tensor) -> Tensor:
        """(O, I) or (O, I / groups, *k) to the same shape."""
        with without_autocast(weight):  # 16-bit products would leave the norm 1 % above 1
            matrix_OI = orthonormalised(weight.flatten(1), self.num_iterations, self.beta)
        return matrix_OI.view_as(weight) * (self.constant / sqrt(prod(weight.shape[2:])))


class Bjorck:
    r"""Keeps the spectral norm of a layer at or below ``constant``, by weights orthonormal up to convergence.

    The weight in force is ``constant`` times ``orthonormalised`` of the learned one, and gradients go through all
    iterations. Of a dense layer with constant 1 all singular values come near 1. Of a convolution it is the
    C_out x (C_in k_h k_w) matrix M of the kernel, divided by sqrt(k_h k_w). That is sound for every stride, dilation
    and zero padding: the layer is M after the map from an image to its windows, and each pixel lies in at most k_h k_w
    windows, so that this map has norm at most sqrt(k_h k_w). The groups' matrices are blocks of rows of M, of norm at
    most 1 too. A convolution is not orthogonal as a map of images. 1-d and 3-d convolutions likewise.

    All is computed in the weight's type and may exceed ``constant`` by its rounding: by less than 1e-6 in float32, more
    where an accelerator is set to carry out float32 products in a shorter type (precision below "highest").

    Source: Björck, Bowie (1971) for the iteration; Anil, Lucas, Grosse (2019) for its use in a network; 15 iterations
    with beta = 0.5 are the settings of Ducotterd et al. (2024) after the authors' code. Differences: they scale by
    1 / sqrt(d_in d_out) before the iteration, which bounds nothing once weights have grown and lets it diverge, here
    the scale is an upper bound of the spectral norm; their convolutions are orthogonal maps (BCOP).

    Args:
        num_iterations: of Björck's iteration, 1 to 1000; authors 15, 25 for wide layers.
        beta: its step, above 0, at most 0.5, the step of fastest convergence.
        constant: the largest spectral norm, above 0.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(self, num_iterations: int = 15, beta: float = 0.5, constant: float = 1.0) -> None:
        check_iterations("num_iterations", num_iterations)
        if not 0 < beta <= 0.5:
            raise ValueError(f"beta={beta}: above 0, at most 0.5")
        check_constant(constant)
        self.num_iterations, self.beta, self.constant = num_iterations, beta, constant

    def __call__(self, layer: nn.Module) -> nn.Module:
        """Parametrise the weight of an ``nn.Linear`` or a zero-padded ``nn.Conv1d/2d/3d``; the same layer comes back.

        Raises:
            ValueError: another layer, one with a parametrised weight, or padding with other values than zeros.
        """
        check_layer(layer)
        return parametrised(layer, OrthonormalWeight(self.num_iterations, self.beta, self.constant))
