"""Constants of stock torch normalizers and of the softmax family in eval mode."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, prod, sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from tautnet.functional.groupwise import slope_bound
from tautnet.lipschitz.rule import ROUNDING, Rule, Unbounded, exact
from tautnet.lipschitz.structure import Leaf

BATCH_NORMS: tuple[type[nn.Module], ...] = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
INSTANCE_NORMS: dict[type[nn.Module], int] = {nn.InstanceNorm1d: 1, nn.InstanceNorm2d: 2, nn.InstanceNorm3d: 3}


def running_factor(leaf: Leaf) -> Tensor | None:
    """gamma_c / sqrt(var_c + eps) of a normalizer by running statistics, (C,) in float64; None for any other layer."""
    layer: Any = leaf.module
    kind = type_before_parametrizations(layer)
    # Without running statistics, those of the input serve in eval mode too.
    by_running_statistics = (
        layer.running_var is not None
        if kind in BATCH_NORMS
        else kind in INSTANCE_NORMS and layer.track_running_stats and layer.running_var is not None
    )
    if not by_running_statistics:
        return None
    factor_C = (exact(layer.running_var) + layer.eps).rsqrt()
    return factor_C if layer.weight is None else factor_C * exact(layer.weight)


def _by_running_statistics(layer: nn.Module, leaf: Leaf, p: float) -> float:
    factor_C = running_factor(leaf)
    if factor_C is None:
        raise Unbounded("normalises with the statistics of the batch")
    return float(factor_C.abs().max()) * ROUNDING


def normalizer_constant(group_size: int, centred: bool, eps: float, weight: Tensor | None, p: float) -> float:
    """Upper bound for x -> gamma z, z = r c, r = (mean(c^2) + eps)^(-1/2), c = x - mean(x) if ``centred``, else x.

    See ``slope_bound``. For p = 2 that is max|gamma| / sqrt(eps), attained at c = 0 for one gamma.

    Args:
        group_size: number of values that the mean runs over.
        centred: whether the mean is subtracted.
        eps: added to the mean square.
        weight: gamma, any shape; None for 1.
        p: 1, 2 or inf.

    Raises:
        Unbounded: ``eps`` is not above 0.
    """
    if not eps > 0:
        raise Unbounded(f"eps={eps}: the slope has no limit where the values of a group agree")
    scale = 1.0 if weight is None else float(exact(weight).abs().max())
    r = torch.tensor([0.0, eps**-0.5], dtype=torch.float64)
    return scale * float(slope_bound(r[0], r[1], group_size, eps, centred, p)) * ROUNDING


def _layer_norm(layer: nn.LayerNorm, leaf: Leaf, p: float) -> float:
    return normalizer_constant(prod(layer.normalized_shape), True, layer.eps, layer.weight, p)


def _rms_norm(layer: nn.RMSNorm, leaf: Leaf, p: float) -> float:
    """Without ``eps`` torch takes the resolution of the input's type; float64's is the smallest."""
    eps = torch.finfo(torch.float64).eps if layer.eps is None else layer.eps
    return normalizer_constant(prod(layer.normalized_shape), False, eps, layer.weight, p)


def _group_norm(layer: nn.GroupNorm, leaf: Leaf, p: float) -> float:
    return normalizer_constant(prod(leaf.input_shape) // layer.num_groups, True, layer.eps, layer.weight, p)


def _instance_norm(layer: Any, leaf: Leaf, p: float) -> float:
    if running_factor(leaf) is not None:
        return _by_running_statistics(layer, leaf, p)
    positions = prod(leaf.input_shape[-INSTANCE_NORMS[type_before_parametrizations(layer)] :])
    return normalizer_constant(positions, True, layer.eps, layer.weight, p)


def _softmax(layer: Any, leaf: Leaf, p: float) -> float:
    """The Jacobian diag(s) - s s^T is symmetric with row sums 2 s_i (1 - s_i) <= 1/2 of |.|, which bound p = 2 too."""
    _entries(layer.dim, leaf.input_shape)
    return 0.5


def _softmax_2d(layer: nn.Softmax2d, leaf: Leaf, p: float) -> float:
    """Softmax over the channels."""
    return 0.5


def _log_softmax(layer: nn.LogSoftmax, leaf: Leaf, p: float) -> float:
    """The Jacobian is J = I - 1 s^T, over n entries; each constant is approached where s is a unit vector.

    Row i of |J| sums to 2 (1 - s_i) <= 2, column j to 1 + (n - 2) s_j <= n - 1. J is a projection, and one that is
    neither 0 nor I is as large as its complement 1 s^T: sqrt(n) |s| <= sqrt(n).
    """
    n = _entries(layer.dim, leaf.input_shape)
    return {1: float(n - 1), 2: sqrt(n) * ROUNDING, inf: 2.0}[p]


def _entries(dim: int | None, shape: Sequence[int]) -> int:
    """Number of values along a layer's dimension, counted with the batch."""
    if dim is None:
        raise Unbounded("dim=None: torch chooses the dimension by the input's rank")
    position = dim % (len(shape) + 1)
    if position == 0:
        raise Unbounded(f"dim={dim} mixes the samples of a batch")
    return shape[position - 1]


RULES: dict[type[nn.Module], Rule] = {
    **dict.fromkeys(BATCH_NORMS, _by_running_statistics),
    **dict.fromkeys(INSTANCE_NORMS, _instance_norm),
    nn.LayerNorm: _layer_norm,
    nn.RMSNorm: _rms_norm,
    nn.GroupNorm: _group_norm,
    nn.Softmax: _softmax,
    nn.Softmin: _softmax,
    nn.Softmax2d: _softmax_2d,
    nn.LogSoftmax: _log_softmax,
}
