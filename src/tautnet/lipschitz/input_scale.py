"""The unit of the data in front of a network."""

from __future__ import annotations

import torch
from torch import Tensor

from tautnet.factories import AbstractLayer
from tautnet.functional.elementwise import scaled_box


class InputScale(AbstractLayer):
    """x_c / scale_c: in front of a network that was trained on standardised data, it makes distances those of raw data.

    The shift by the mean changes no distance and is left out: the input is the raw one minus the mean.

    Args:
        scale_C: what one unit of the network's input is in raw units, above 0, shape (C,).

    Lipschitz: 1 / min_c scale_c, exact for every p.

    Raises:
        ValueError: a scale that is not finite and above 0.
    """

    scale: Tensor

    def __init__(self, scale_C: Tensor) -> None:
        super().__init__()
        if scale_C.dim() != 1 or not bool((scale_C.isfinite() & (scale_C > 0)).all()):
            raise ValueError(f"scale_C={scale_C.tolist()}: finite numbers above 0, one a channel")
        self.register_buffer("scale", scale_C.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *) to the same shape."""
        return x / self._beside(x)

    def slope_range(self) -> tuple[Tensor, Tensor]:
        """1 / scale."""
        factor_C = 1 / self.scale.to("cpu", torch.float64)
        return factor_C, factor_C

    def lipschitz_constant(self, p: float) -> Tensor:
        """Largest 1 / scale."""
        return self.slope_range()[0].max()

    def interval(self, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        """Exact image of the box."""
        return scaled_box(lo, hi, 1 / self._beside(lo))

    def _beside(self, x: Tensor) -> Tensor:
        return self.scale.to(x).view(-1, *[1] * (x.dim() - 2))
