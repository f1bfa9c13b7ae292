"""Almost-orthogonal Lipschitz layers: weights rescaled by the row sums of their Gram matrix."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tautnet.normalizers.weight import Convolution, check_constant, check_layer, parametrised, rounding_margin

# Of a weight with largest entry 1: columns of smaller squared sums are not blown up further, so that the gradients of
# zeros stay finite.
_LEAST_SUM = 1e-24


def almost_orthogonal(weight: Tensor, groups: int = 1) -> Tensor:
    r"""The weight with every input channel divided so that the layer's spectral norm is at most 1.

    W' = W diag(d)^(-1/2), d_i = sum_j |W^T W|_ij. Then x^T W'^T W' x <= sum_ij |W^T W|_ij |x_i| |x_j| / sqrt(d_i d_j)
    <= sum_ij |W^T W|_ij (x_i^2 / d_i + x_j^2 / d_j) / 2 = ||x||^2. Of a convolution, as a matrix on endless images,
    W^T W is the kernel's correlation with itself, and d one number an input channel, the sum over all shifts. On an
    image with zero padding of any width, with any stride, it is a block of that matrix with rows left out, and so no
    larger; dilation moves the correlation's entries apart and leaves their sums.

    Scaled to a largest entry of 1 first, which changes nothing, in float64; to d_i is added what rounding may take away
    from it, eps times the length of the sums times ||w_i|| sum_j ||w_j||.

    Source: Prach, Lampert (2022), recalled; the proof is above. Differences: the correlation through its Fourier
    transform, and the allowance for rounding.

    Args:
        weight: (O, I) or (O, I / groups, \*k).
        groups: channel groups of a convolution.

    Returns:
        The same shape, float64.
    """
    wide = weight.to(torch.float64)
    wide = wide / wide.detach().abs().amax().clamp(min=torch.finfo(weight.dtype).tiny ** 0.5)
    kernel_GOIT = wide.reshape(groups, -1, *wide.shape[1:], *[1] * (wide.dim() == 2))
    correlation_GIIS = _correlation(kernel_GOIT)
    norms_GI = kernel_GOIT.detach().square().flatten(3).sum((1, 3)).sqrt()
    terms = wide.shape[0] * wide[0, 0].numel() + 2 * correlation_GIIS[0, 0, 0].numel() + 16
    slack = 2 * torch.finfo(torch.float64).eps * terms * correlation_GIIS[0, 0, 0].numel()
    sums_GI = correlation_GIIS.abs().flatten(2).sum(2) + slack * norms_GI * norms_GI.sum(1, keepdim=True)
    scale_GI = sums_GI.clamp(min=_LEAST_SUM).rsqrt()
    return (kernel_GOIT * scale_GI.view(groups, 1, -1, *[1] * (kernel_GOIT.dim() - 3))).reshape(wide.shape)


def _correlation(kernel_GOIT: Tensor) -> Tensor:
    r"""Correlations (groups, I, I, \*shifts) of the input channels' kernels, summed over the outputs."""
    directions = tuple(range(3, kernel_GOIT.dim()))
    shifts = [2 * size - 1 for size in kernel_GOIT.shape[3:]]
    if max(shifts) == 1:
        matrix_GOI = kernel_GOIT.flatten(2)
        return (matrix_GOI.mT @ matrix_GOI).view(*matrix_GOI.shape[::2], -1, *shifts)
    # Long enough that nothing wraps around.
    spectrum = torch.fft.rfftn(kernel_GOIT, s=shifts, dim=directions)
    matrices_GFOI = spectrum.flatten(3).movedim(3, 1)
    gram_GIIF = (matrices_GFOI.mH @ matrices_GFOI).movedim(1, 3)
    return torch.fft.irfftn(gram_GIIF.unflatten(3, spectrum.shape[3:]), s=shifts, dim=directions)


@torch.no_grad()
def _start_orthogonal_(weight: Tensor, groups: int) -> None:
    """An orthogonal matrix for every group, at a kernel's centre, zeros around it."""
    centre: tuple[slice | int, ...] = (slice(None), slice(None), *(size // 2 for size in weight.shape[2:]))
    weight.zero_()
    for rows in weight[centre].chunk(groups):
        nn.init.orthogonal_(rows)


class AlmostOrthogonalWeight(nn.Module):
    """The parametrization that ``Aol`` puts on a weight.

    Args:
        constant: what the layer's spectral norm does not exceed.
        groups: channel groups of a convolution.
    """

    def __init__(self, constant: float, groups: int) -> None:
        super().__init__()
        self.constant, self.groups = constant, groups

    def extra_repr(self) -> str:
        """The settings in the module's printed form."""
        return f"constant={self.constant}"

    def forward(self, weight: Tensor) -> Tensor:
        """(O, I) or (O, I / groups, *k) to the same shape."""
        factor = self.constant / rounding_margin(weight, self.groups)
        return (almost_orthogonal(weight, self.groups) * factor).to(weight.dtype)


class Aol:
    r"""Keeps the spectral norm of a layer at or below ``constant`` by rescaling its input channels.

    The weight in force is ``almost_orthogonal`` of the learned one times ``constant``: one Gram matrix, no iteration,
    no state, sound for every weight, for convolutions as maps of images of any size with zero padding of any width,
    with any stride, dilation and groups. A matrix with orthogonal columns stays as it is up to their lengths; others
    end below ``constant``, random ones well below, which is why layers start orthogonal (with fewer outputs than
    inputs only rows can be, and the norm starts below). Rounding of the weights to
    their type is allowed for; the rescaling is computed in float64, also under autocast.

    Source: Prach, Lampert (2022), recalled, with starts of our own. With stride all shifts of the correlation count,
    which is sound and more than necessary.

    Args:
        constant: the largest spectral norm, above 0.
        start_orthogonal: replace the layer's weight by an orthogonal matrix, of a convolution one at the centre of the
            kernel with zeros around it. Otherwise the layer's own weight is rescaled.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(self, constant: float = 1.0, start_orthogonal: bool = True) -> None:
        check_constant(constant)
        self.constant, self.start_orthogonal = constant, start_orthogonal

    def __call__(self, layer: nn.Module) -> nn.Module:
        """Parametrise the weight of an ``nn.Linear`` or a zero-padded ``nn.Conv1d/2d/3d``; the same layer comes back.

        Raises:
            ValueError: another layer, one with a parametrised weight, or padding with other values than zeros.
        """
        check_layer(layer)
        groups = layer.groups if isinstance(layer, Convolution) else 1
        if self.start_orthogonal:
            assert isinstance(layer.weight, Tensor)
            _start_orthogonal_(layer.weight, groups)
        return parametrised(layer, AlmostOrthogonalWeight(self.constant, groups))
