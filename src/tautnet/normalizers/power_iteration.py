"""Power iteration whose vectors are carried along while a weight is trained."""

from __future__ import annotations

from math import inf, nan

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tautnet.functional.handwritten import watched
from tautnet.kernels import spectral

_NUM_AT_START = 15


class TopSingularVectors(nn.Module):
    r"""Estimates u, v of the top singular vectors of the matrices of a batch.

    An iteration is u <- A v / ||A v||, v <- A^T u / ||A^T u||; a vector that A takes to 0 stays. The vectors start from
    a generator of their own, so the global random state is left alone and processes with equal weights agree, and
    make 15 iterations at once. They are buffers in float32 or float64, and brought to unit length whenever they are
    used: averaging or a cast to a shorter type does not lengthen sigma.

    In training they advance once for each change of the matrices, however often these are read, so that a forward pass
    that is recomputed for the gradient finds the vectors as they were. Whether a matrix has changed is seen from its
    product with a fixed random vector, one more reading of it: tensors' version counters, which would cost nothing,
    miss the steps of fused optimizers and writes through ``.data``. Nothing waits for the device. Elsewhere, where
    weights may have been loaded, averaged or set, the buffers rest, and each reading makes 15 iterations of its own.

    Source: Miyato, Kataoka, Koyama, Yoshida (2018), one iteration a training step with vectors kept.

    Args:
        matrix_GOI: the first matrices, (G, O, I), in the type of the buffers.
    """

    u_GO: Tensor
    v_GI: Tensor
    probe_GI: Tensor
    seen_GO: Tensor

    def __init__(self, matrix_GOI: Tensor) -> None:
        super().__init__()
        groups, outputs, inputs = matrix_GOI.shape
        generator = torch.Generator().manual_seed(0)
        for name, size, persistent in (("u_GO", outputs, True), ("v_GI", inputs, True), ("probe_GI", inputs, False)):
            start = torch.randn(groups, size, generator=generator, dtype=torch.float64, device="cpu")
            self.register_buffer(name, F.normalize(start, dim=1).to(matrix_GOI), persistent)
        self.register_buffer("seen_GO", matrix_GOI.new_full((groups, outputs), nan))
        with torch.no_grad():
            self._follow_(matrix_GOI.detach(), _NUM_AT_START)

    def forward(self, matrix_GOI: Tensor, num_iterations: int) -> tuple[Tensor, Tensor]:
        """Vectors u (G, O) and v (G, I) for matrices (G, O, I), of length 1, in their type and without gradient.

        In training with gradients the buffers advance by ``num_iterations`` where the matrices have changed.
        """
        transformed = not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()
        follows = self.training and torch.is_grad_enabled() and not transformed  # transforms cannot write buffers
        with torch.no_grad():
            if follows:
                return self._follow_(matrix_GOI, num_iterations)
            return _iterated(matrix_GOI, *self._units(matrix_GOI), _NUM_AT_START)

    def _follow_(self, matrix_GOI: Tensor, num_iterations: int) -> tuple[Tensor, Tensor]:
        """Advance where the matrices are others than those seen last; the vectors."""
        if self._alone(matrix_GOI):
            vectors = self.probe_GI[0], self.seen_GO[0], self.u_GO[0], self.v_GI[0]
            u_O, v_I = spectral.follow_(matrix_GOI[0], *vectors, num_iterations)
            return u_O[None], v_I[None]
        seen_GO = _times(matrix_GOI, self.probe_GI.to(matrix_GOI)).to(self.seen_GO)
        self.advance_(matrix_GOI, num_iterations, (seen_GO != self.seen_GO).any(1, keepdim=True))
        self.seen_GO.copy_(seen_GO)
        return self._units(matrix_GOI)

    def _units(self, matrix_GOI: Tensor) -> tuple[Tensor, Tensor]:
        """The vectors at length 1, new tensors: what a graph keeps, a later iteration does not overwrite."""
        u_GO, v_GI = (F.normalize(buffer.to(matrix_GOI), dim=1) for buffer in (self.u_GO, self.v_GI))
        return u_GO, v_GI

    def _alone(self, matrix_GOI: Tensor) -> bool:
        """Whether it is one matrix that the native kernel takes."""
        buffers = (self.probe_GI, self.seen_GO, self.u_GO, self.v_GI)
        return len(matrix_GOI) == 1 and not watched(matrix_GOI) and spectral.serves(matrix_GOI, *buffers)

    @torch.no_grad()
    def advance_(self, matrix_GOI: Tensor, num_iterations: int, where_G1: Tensor | None = None) -> None:
        """Make iterations with the matrices (G, O, I), or some of them."""
        vectors = self.u_GO.to(matrix_GOI), self.v_GI.to(matrix_GOI)
        u_GO, v_GI = _iterated(matrix_GOI, *vectors, num_iterations, where_G1)
        self.u_GO.copy_(u_GO)
        self.v_GI.copy_(v_GI)


def singular_value(matrix_GOI: Tensor, vectors: tuple[Tensor, Tensor]) -> Tensor:
    """|u^T A v|, (G, 1, 1), at most the largest singular value; its gradient takes u (G, O), v (G, I) for constants."""
    u_GO, v_GI = vectors  # matmul's views cost more than small products
    return torch.bmm(u_GO.unsqueeze(1), torch.bmm(matrix_GOI, v_GI.unsqueeze(2))).abs()


def _iterated(
    matrix_GOI: Tensor, u_GO: Tensor, v_GI: Tensor, num_iterations: int, where_G1: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    for _ in range(num_iterations):
        u_GO = _unit(_times(matrix_GOI, v_GI), u_GO, where_G1)
        v_GI = _unit(_times(matrix_GOI.mT, u_GO), v_GI, where_G1)
    return u_GO, v_GI


def _times(matrix_GOI: Tensor, vector_GI: Tensor) -> Tensor:
    return torch.bmm(matrix_GOI, vector_GI.unsqueeze(2)).squeeze(2)


def _unit(vector_GN: Tensor, otherwise_GN: Tensor, where_G1: Tensor | None) -> Tensor:
    """At length 1; where it is 0 or not finite, or where that is not asked for, the other."""
    length_G1 = torch.linalg.vector_norm(vector_GN, dim=1, keepdim=True)
    usable_G1 = (length_G1 > 0) & (length_G1 < inf)
    if where_G1 is not None:
        usable_G1 &= where_G1
    return torch.where(usable_G1, vector_GN / length_G1, otherwise_GN)
