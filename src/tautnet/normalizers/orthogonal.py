"""Exactly orthonormal weights, by torch's parametrization."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrizations, parametrize

from tautnet.normalizers.weight import check_kind, groups_of, parametrised, without_autocast

OrthogonalMap = Literal["matrix_exp", "cayley", "householder"]


class Orthogonal:
    r"""Makes the rows of a layer's weight exactly orthonormal, of a tall one the columns.

    ``torch.nn.utils.parametrizations.orthogonal`` for matrices; kernels are C_out x (C_in k_h k_w) matrices here, one
    for each group, while torch alone would orthogonalise every k_h x k_w window. The layer starts with the orthonormal
    factor of its own weight. There is no state beside the weight, and none that training moves. Of the diagonal of
    ``householder``'s coordinates the signs alone count here: torch cuts its entries to integers, so that weight decay
    takes 1 to 0 and the layer with it.

    Lipschitz: 1 of a dense layer up to rounding; of a convolution, whose matrix is no map of images, up to
    sqrt(k_h k_w): see ``Bjorck`` for a bound of 1.

    Cost: with ``use_trivialization`` a square base of the longer side is stored and multiplied: 4608 x 4608 for a
    3 x 3 kernel with 512 inputs. Weight decay acts on the coordinates of the map and pulls towards the base.

    Source: torch; trivializations by Lezcano-Casado (2019), as torch's documentation says.

    Args:
        orthogonal_map: ``matrix_exp``, ``cayley`` or ``householder``; None leaves it to torch: ``matrix_exp`` for
            square matrices, else ``householder``.
        use_trivialization: coordinates around the weight of the start.

    Raises:
        ValueError: another map, or one that cannot start from a given weight without ``use_trivialization``.
    """

    def __init__(self, orthogonal_map: OrthogonalMap | None = None, use_trivialization: bool = True) -> None:
        if orthogonal_map not in (None, *get_args(OrthogonalMap)):
            raise ValueError(f"orthogonal_map={orthogonal_map}: None, {', '.join(get_args(OrthogonalMap))}")
        if not use_trivialization and orthogonal_map != "householder":
            raise ValueError("use_trivialization=False: True except where orthogonal_map is householder")
        self.orthogonal_map, self.use_trivialization = orthogonal_map, use_trivialization

    def __call__(self, layer: nn.Module) -> nn.Module:
        """Parametrise the weight of an ``nn.Linear`` or ``nn.Conv1d/2d/3d``; the same layer comes back.

        Raises:
            ValueError: another layer, or one with a parametrised weight.
        """
        check_kind(layer)
        return parametrised(layer, OrthogonalWeight(layer, self.orthogonal_map, self.use_trivialization))


class OrthogonalWeight(nn.Module):
    """The parametrization that ``Orthogonal`` puts on a weight: torch's, of the groups' matrices.

    Args:
        layer: the layer, read for its weight and groups and not kept.
        orthogonal_map: as of ``Orthogonal``.
        use_trivialization: as of ``Orthogonal``.
    """

    def __init__(self, layer: nn.Module, orthogonal_map: OrthogonalMap | None, use_trivialization: bool) -> None:
        super().__init__()
        self.groups = groups_of(layer)
        assert isinstance(layer.weight, Tensor)
        holder = nn.Module()  # torch makes its map for a parameter of a module, which is thrown away
        holder.matrix = nn.Parameter(self._matrix(layer.weight.detach()))
        parametrizations.orthogonal(holder, "matrix", orthogonal_map, use_trivialization=use_trivialization)
        lists = holder.parametrizations
        assert isinstance(lists, nn.ModuleDict)
        matrices = lists["matrix"]
        assert isinstance(matrices, parametrize.ParametrizationList)
        self.map = matrices[0]

    def forward(self, weight: Tensor) -> Tensor:
        """Coordinates (O, I) or (O, I / groups, *k) to a weight of the same shape."""
        with without_autocast(weight):
            matrix_GOI = self._mapped(_with_signs(self._matrix(weight)))
        return matrix_GOI.reshape(weight.shape)

    def _mapped(self, matrix_GOI: Tensor) -> Tensor:
        if matrix_GOI.element_size() > 2:
            return self.map(matrix_GOI)
        base = {name: buffer.float() for name, buffer in self.map.named_buffers()}  # there is none in 16 bits
        mapped: Tensor = functional_call(self.map, base, (matrix_GOI.float(),))
        return mapped.to(matrix_GOI.dtype)

    @torch.no_grad()
    def right_inverse(self, weight: Tensor) -> Tensor:
        """Coordinates of the orthonormal factor of a weight."""
        right_inverse = self.map.right_inverse
        assert callable(right_inverse)
        coordinates_GOI: Tensor = right_inverse(self._matrix(weight))
        return coordinates_GOI.reshape(weight.shape)

    def _matrix(self, weight: Tensor) -> Tensor:
        return weight.reshape(self.groups, len(weight) // self.groups, -1)


def _with_signs(matrix_GOI: Tensor) -> Tensor:
    """The diagonal replaced by its signs, 1 or -1; the other maps do not read it."""
    diagonal_GM = matrix_GOI.diagonal(dim1=-2, dim2=-1)
    return matrix_GOI.diagonal_scatter(torch.where(diagonal_GM < 0, -1.0, 1.0).to(matrix_GOI), dim1=-2, dim2=-1)
