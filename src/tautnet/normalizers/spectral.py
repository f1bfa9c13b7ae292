"""Weights divided by their layer's spectral norm as a map of images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tautnet.functional.gram import gram_conv_spectral_norm, gram_spectral_norm
from tautnet.normalizers.weight import (
    Convolution,
    check_constant,
    check_iterations,
    check_layer,
    parametrised,
    rounding_margin,
)


class SpectralWeight(nn.Module):
    """The parametrization that ``Spectral`` puts on a weight.

    Args:
        layer: the layer, read for its settings and not kept.
        constant: what the spectral norm does not exceed.
        num_iterations: of Gram iteration.
        only_above: whether smaller norms are left as they are.
    """

    def __init__(self, layer: nn.Module, constant: float, num_iterations: int, only_above: bool) -> None:
        super().__init__()
        self.constant, self.num_iterations, self.only_above = constant, num_iterations, only_above
        self.stride: tuple[int, ...] = ()
        self.dilation: tuple[int, ...] = ()
        self.groups = 1
        if isinstance(layer, Convolution):
            self.stride, self.dilation, self.groups = layer.stride, layer.dilation, layer.groups

    def extra_repr(self) -> str:
        """The settings in the module's printed form."""
        return f"constant={self.constant}, num_iterations={self.num_iterations}, only_above={self.only_above}"

    def bound(self, weight: Tensor) -> Tensor:
        """Upper bound of the spectral norm of the layer with this weight, for images of any size."""
        if weight.dim() == 2:
            return gram_spectral_norm(weight, self.num_iterations)
        return gram_conv_spectral_norm(weight, self.stride, self.dilation, self.groups, self.num_iterations)

    def forward(self, weight: Tensor) -> Tensor:
        """(O, I) or (O, I / groups, *k) to the same shape."""
        least = torch.finfo(weight.dtype).tiny ** 0.5  # for a weight of zeros: gradients stay finite
        bound = self.bound(weight).clamp(min=least) * rounding_margin(weight, self.groups)
        factor = self.constant / bound
        return weight * (factor.clamp(max=1) if self.only_above else factor)


class Spectral:
    r"""Gives a layer's weight the spectral norm ``constant``, or one no larger.

    The weight in force is W constant / b(W), b an upper bound of the spectral norm by Gram iteration, through which
    gradients go: of the matrix of a dense layer, of a convolution as a map of images of any size, stride, dilation and
    groups included (see ``gram_conv_spectral_norm``). It is sound after any number of iterations, in training and in
    evaluation, for weights that have just been loaded or set, and has no state. The norm stays below ``constant`` by
    what b exceeds the truth: for a dense layer of rank r a factor of at most r^(2^-(num_iterations + 2)), 1.01 for 1000
    and the default; for a convolution 1.0196 more in each direction, and what zeros around a small image take away.
    Rounding of the weights to their type is allowed for, so that their exact norm is at most ``constant`` in float32
    too; b is computed in float64, also under autocast.

    ``torch.nn.utils.parametrizations.spectral_norm`` differs in three ways. It takes a kernel for a matrix C_out x
    (C_in k_h k_w), whose norm is up to sqrt(k_h k_w) times too small. Power iteration estimates that norm from below.
    And its estimate is that of the last training step.

    Cost: for a dense layer ``num_iterations`` products of n x n matrices in float64, n the smaller side, and twice that
    for the gradient; for a convolution about as much, and a Cholesky factorisation of such a matrix for each
    frequency, 144 for a 3 x 3 kernel: wide convolutions are dear on a CPU. It does not depend on batch or image.

    Source: Miyato, Kataoka, Koyama, Yoshida (2018) for the normalisation; Delattre, Barthélemy, Araujo, Allauzen (2023)
    for the bound.

    Args:
        constant: the spectral norm, above 0.
        num_iterations: of Gram iteration, 1 to 1000.
        only_above: leave weights of smaller norm as they are.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(self, constant: float = 1.0, num_iterations: int = 8, only_above: bool = False) -> None:
        check_constant(constant)
        check_iterations("num_iterations", num_iterations)
        self.constant, self.num_iterations, self.only_above = constant, num_iterations, only_above

    def __call__(self, layer: nn.Module) -> nn.Module:
        """Parametrise the weight of an ``nn.Linear`` or a zero-padded ``nn.Conv1d/2d/3d``; the same layer comes back.

        Raises:
            ValueError: another layer, one with a parametrised weight, or padding with other values than zeros.
        """
        check_layer(layer)
        return parametrised(layer, SpectralWeight(layer, self.constant, self.num_iterations, self.only_above))
