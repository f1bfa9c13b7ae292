"""Finished layers in few and plain torch operations, numbers in float32; they need no checks and no training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tautnet.functional.unitize import NormAxes, NormScale, inverse_norm, norm_factor


class PlainLayer(nn.Module, ABC):
    """Numbers of curves or channels, which broadcast against an input (N, C, *)."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *) to the same shape."""

    def keep(self, neurons: Sequence[int] = (), **values: Tensor) -> None:
        """Register what ``beside`` gives out, the curves first.

        Args:
            neurons: shape of the neurons, (C, *), where each has a curve of its own.
            **values: shape (curves,), (1,) or, for several numbers a curve, (curves, K).
        """
        for name, value in values.items():
            shaped = value.reshape(*neurons, *value.shape[1:]) if neurons else value
            self.register_buffer(name, shaped.detach().clone())
        self.neurons = tuple(neurons)

    def beside(self, value: Tensor, x: Tensor) -> Tensor:
        """Of (curves,), shaped for x."""
        return value if self.neurons else value.view(-1, *[1] * (x.dim() - 2))

    def columns(self, value: Tensor, x: Tensor) -> list[Tensor]:
        """Of (curves, K): K tensors, shaped for x."""
        return [self.beside(column, x) for column in value.unbind(-1)]


class Affine(PlainLayer):
    """factor_c x + shift_c.

    Args:
        factor_C: shape (curves,) or (1,).
        shift_C: likewise.
        neurons: see ``keep``.
    """

    factor: Tensor
    shift: Tensor

    def __init__(self, factor_C: Tensor, shift_C: Tensor, neurons: Sequence[int] = ()) -> None:
        super().__init__()
        self.keep(neurons, factor=factor_C.float(), shift=shift_C.float())

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *) to the same shape."""
        return x * self.beside(self.factor, x) + self.beside(self.shift, x)


class Standardize(PlainLayer):
    """(x - offset_c) / scale_c, and 0 where the scale is 0.

    First the difference, which is exact near a large offset, so this is not ``Affine``.

    Args:
        offset_C: shape (C,).
        scale_C: shape (C,), at least 0.
    """

    offset: Tensor
    factor: Tensor

    def __init__(self, offset_C: Tensor, scale_C: Tensor) -> None:
        super().__init__()
        factor_C = torch.where(scale_C > 0, 1 / scale_C, 0.0)
        self.keep(offset=offset_C.float(), factor=factor_C.float())

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *) to the same shape."""
        return (x - self.beside(self.offset, x)) * self.beside(self.factor, x)


class InverseNorm(PlainLayer):
    """(constant_c + factor_c r) x + shift_c, with r the inverse norm of ``tautnet.functional.unitize``.

    Args:
        constant_C: shape (C,) or (1,), as the two that follow.
        factor_C: of r.
        shift_C: added.
        axes: see ``inverse_norm``.
        scale: see ``norm_factor``.
        divisor: of that factor, above 0.
        eps: added to the squared norm, above 0.
    """

    constant: Tensor
    factor: Tensor
    shift: Tensor

    def __init__(
        self,
        constant_C: Tensor,
        factor_C: Tensor,
        shift_C: Tensor,
        axes: NormAxes,
        scale: NormScale,
        divisor: float,
        eps: float,
    ) -> None:
        super().__init__()
        self.keep(constant=constant_C.float(), factor=factor_C.float(), shift=shift_C.float())
        self.axes: NormAxes = axes
        self.scale: NormScale = scale
        self.divisor, self.eps = divisor, eps

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *) to the same shape."""
        kappa = norm_factor(tuple(x.shape), self.axes, self.scale) / self.divisor
        r = inverse_norm(x, self.axes, kappa, self.eps)
        factor = self.beside(self.constant, x) + self.beside(self.factor, x) * r
        return x * factor + self.beside(self.shift, x)
