"""Orthonormal weights by Björck's iteration."""

from __future__ import annotations

from math import prod, sqrt

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


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
    """

    def __init__(self, num_iterations: int, beta: float) -> None:
        super().__init__()
        self.num_iterations, self.beta = num_iterations, beta

    def extra_repr(self) -> str:
        """The settings in the module's printed form."""
        return f"num_iterations={self.num_iterations}, beta={self.beta}"

    def forward(self, weight: Tensor) -> Tensor:
        """(O, I) or (O, I, H, W) to the same shape."""
        with torch.autocast(weight.device.type, enabled=False):  # 16-bit products would leave the norm 1 % above 1
            matrix_OI = orthonormalised(weight.flatten(1), self.num_iterations, self.beta)
        return matrix_OI.view_as(weight) / sqrt(prod(weight.shape[2:]))


class Bjorck:
    r"""Keeps the spectral norm of a layer at or below 1, by weights that are orthonormal up to convergence.

    The weight in force is ``orthonormalised`` of the learned one, and gradients go through all iterations. Of a dense
    layer all singular values come near 1. Of a convolution it is the C_out x (C_in k_h k_w) matrix M of the kernel,
    divided by sqrt(k_h k_w). That is sound for every stride, dilation and zero padding: the layer is M after the map
    from an image to its windows, and each pixel lies in at most k_h k_w windows, so that this map has norm at most
    sqrt(k_h k_w). The groups' matrices are blocks of rows of M, of norm at most 1 too. A convolution is not orthogonal
    as a map of images.

    Source: Björck, Bowie (1971) for the iteration; Anil, Lucas, Grosse (2019) for its use in a network; 15 iterations
    with beta = 0.5 are the settings of Ducotterd et al. (2024) after the authors' code. Differences: they scale by
    1 / sqrt(d_in d_out) before the iteration, which bounds nothing once weights have grown and lets it diverge, here
    the scale is an upper bound of the spectral norm; their convolutions are orthogonal maps (BCOP).

    Args:
        num_iterations: of Björck's iteration, at least 1; authors 15, 25 for wide layers.
        beta: its step, above 0, at most 0.5, the step of fastest convergence.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(self, num_iterations: int = 15, beta: float = 0.5) -> None:
        if num_iterations < 1:
            raise ValueError(f"num_iterations={num_iterations}: an integer of at least 1")
        if not 0 < beta <= 0.5:
            raise ValueError(f"beta={beta}: above 0, at most 0.5")
        self.num_iterations, self.beta = num_iterations, beta

    def __call__(self, layer: nn.Module) -> nn.Module:
        """Parametrise the weight of an ``nn.Linear`` or ``nn.Conv2d``; the same layer comes back.

        Raises:
            ValueError: another layer, one with a parametrised weight, or padding with other values than zeros.
        """
        if type(layer) not in (nn.Linear, nn.Conv2d):  # a parametrised layer is of another type
            raise ValueError(f"layer={type(layer).__name__}: nn.Linear or nn.Conv2d, not parametrised yet")
        if isinstance(layer, nn.Conv2d) and layer.padding_mode != "zeros":
            raise ValueError(f"padding_mode={layer.padding_mode}: zeros; others repeat pixels, which may exceed norm 1")
        parametrize.register_parametrization(layer, "weight", OrthonormalWeight(self.num_iterations, self.beta))
        return layer
