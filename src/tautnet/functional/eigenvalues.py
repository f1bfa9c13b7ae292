"""The largest eigenvalue in a batch of Hermitian matrices, few of which are looked at closely."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_NUM_POWER_ITERATIONS = 3


def largest_in_batch(
    matrices_FCC: Tensor, close: Callable[[Tensor], Tensor], at_least: float = 0.0
) -> tuple[float, int | None]:
    """The largest of ``at_least`` and of ``close`` over a batch of positive semi-definite matrices, up to rounding.

    Where c I - G has a Cholesky factor, all eigenvalues of G are below c, at a fraction of the cost of ``close``. So
    ``close`` sees the most promising matrices first, twice as many each time, and none that the largest value so far
    rules out. Cholesky's rounding lets pass what exceeds c by at most about C^2 eps c.

    Args:
        matrices_FCC: real or complex.
        close: upper bounds (or values) of the largest eigenvalues of such a batch, (F,).
        at_least: a value known before.

    Returns:
        The value, and the index of the matrix that it belongs to; None for ``at_least``.
    """
    largest, best = at_least, None
    indices = _not_below(matrices_FCC, torch.arange(len(matrices_FCC), device=matrices_FCC.device), largest)
    order = _estimates(matrices_FCC[indices]).argsort(descending=True)
    indices, num_close = indices[order], 1
    while len(indices):
        values = close(matrices_FCC[indices[:num_close]])
        value, place = values.max(0)
        if float(value) > largest:
            largest, best = float(value), int(indices[place])
        indices = _not_below(matrices_FCC, indices[num_close:], largest)
        num_close *= 2
    return largest, best


def _not_below(matrices_FCC: Tensor, indices: Tensor, limit: float) -> Tensor:
    """Those of the indices whose matrices may have an eigenvalue above the limit."""
    if not limit > 0 or not len(indices):
        return indices
    identity = torch.eye(matrices_FCC.shape[1], dtype=matrices_FCC.dtype, device=matrices_FCC.device)
    return indices[torch.linalg.cholesky_ex(limit * identity - matrices_FCC[indices]).info > 0]


def _estimates(matrices_FCC: Tensor) -> Tensor:
    """By power iteration, which says in which order to look and nothing more."""
    generator = torch.Generator().manual_seed(0)
    v_C1 = torch.randn(matrices_FCC.shape[1], 1, dtype=torch.float64, generator=generator).to(matrices_FCC)
    v_FC1 = v_C1.expand(len(matrices_FCC), -1, -1)
    for _ in range(_NUM_POWER_ITERATIONS):
        length_F11 = torch.linalg.vector_norm(v_FC1, dim=1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
        v_FC1 = matrices_FCC @ (v_FC1 / length_F11)
    return torch.linalg.vector_norm(v_FC1, dim=(1, 2))
