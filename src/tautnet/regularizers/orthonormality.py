"""The penalty on how far weights are from orthonormal."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tautnet.functional.inverse_root import gram
from tautnet.normalizers.selection import select_layers
from tautnet.regularizers.base import AbstractRegularizer


class OrthonormalityPenalty(AbstractRegularizer):
    r"""weight * sum over layers of ||W W^T - I||_F^2, or of ||W^T W - I||_F^2 where W has more rows than columns.

    Kernels are C_out x (C_in k_h k_w) matrices, one for each group. With the singular values s of these matrices it is
    the sum of (s^2 - 1)^2. It acts on the weight in force, after parametrizations, in float32 or float64 also under
    autocast. A layer used at several places counts once.

    Source: the rival that the abstract of Zhang, Niwa, Kleijn (2019) names "orthonormal regularisation". Its form
    there was not readable: this is the usual one, and the choice of layers and of the smaller product are ours.

    Args:
        weight: lambda, at least 0.
        include: shell patterns of the dotted paths of the dense and convolutional layers that it acts on, or the word
            ``last`` for the last of them; see ``select_layers``.
        exclude: patterns of layers that are left out.

    Raises:
        ValueError: ``weight`` below 0; ``attach`` where a pattern matches no layer, or no layer is left.
    """

    def __init__(
        self, weight: float = 1e-3, include: Sequence[str | int] = ("*",), exclude: Sequence[str | int] = ()
    ) -> None:
        super().__init__(weight)
        self.include, self.exclude = tuple(include), tuple(exclude)
        self._layers: list[nn.Module] = []

    def attach(self, net: nn.Module, input_shape: Sequence[int]) -> None:
        """Find the layers. They stay the network's: nothing of it is registered here."""
        self._layers = list(select_layers(net, self.include, self.exclude).values())

    def forward(self) -> Tensor:
        """The weighted penalty, a scalar."""
        return self.weight * torch.stack([_distance(layer) for layer in self._layers]).sum()


def _distance(layer: nn.Module) -> Tensor:
    """Squared Frobenius distance of the layer's smaller Gram matrices from the identity."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    with torch.autocast(weight.device.type, enabled=False):
        wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
        groups = layer.groups if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d) else 1
        gram_GMM = gram(wide.reshape(groups, len(weight) // groups, -1))
        return (gram_GMM - torch.eye(gram_GMM.shape[1], dtype=wide.dtype, device=wide.device)).square().sum()
