"""Slopes of stock torch layers that apply a scalar function to every element."""

from __future__ import annotations

from collections.abc import Callable
from math import exp, inf, log1p
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from tautnet.factories import AbstractLayer
from tautnet.lipschitz.normalization import running_factor
from tautnet.lipschitz.rule import Rule, Unbounded, exact
from tautnet.lipschitz.structure import Leaf

# Infimum and supremum of the derivative, exact but for those of GELU, SiLU and Mish, which are at zeros of the second
# derivative: found numerically, rounded outwards in the ninth decimal, and confirmed by interval arithmetic.
FIXED: dict[type[nn.Module], tuple[float, float]] = {
    nn.Identity: (1.0, 1.0),
    nn.Dropout: (1.0, 1.0),  # in eval mode
    nn.Dropout1d: (1.0, 1.0),
    nn.Dropout2d: (1.0, 1.0),
    nn.Dropout3d: (1.0, 1.0),
    nn.AlphaDropout: (1.0, 1.0),
    nn.FeatureAlphaDropout: (1.0, 1.0),
    nn.ReLU: (0.0, 1.0),
    nn.ReLU6: (0.0, 1.0),
    nn.Hardtanh: (0.0, 1.0),
    nn.Softshrink: (0.0, 1.0),
    nn.Tanh: (0.0, 1.0),  # 1 - tanh^2
    nn.Tanhshrink: (0.0, 1.0),  # tanh^2
    nn.Softsign: (0.0, 1.0),  # 1 / (1 + |x|)^2
    nn.Sigmoid: (0.0, 0.25),  # s (1 - s)
    nn.LogSigmoid: (0.0, 1.0),  # 1 - s
    nn.Hardsigmoid: (0.0, 0.166666672),  # 1/6, which torch's backward pass takes in float32, also in float64 nets
    nn.Hardswish: (-0.5, 1.5),  # (2 x + 3) / 6 at -3 and 3
    nn.SELU: (0.0, 1.7580993408473769),  # scale * alpha, approached at 0 from below
    nn.SiLU: (-0.099839321, 1.099839321),
    nn.Mish: (-0.112526123, 1.088498162),
}


def _sorted(*slopes: float) -> tuple[float, float]:
    values = torch.tensor(slopes, dtype=torch.float64)
    return float(values.min()), float(values.max())  # unlike Python's, these let NaN through


def _celu(layer: nn.CELU) -> tuple[float, float]:
    """exp(x / alpha) for x < 0: at most 1 for a positive alpha, without limit for a negative one."""
    return (0.0, 1.0) if layer.alpha > 0 else (1.0, inf)


def _gelu(layer: nn.GELU) -> tuple[float, float]:
    return (-0.128993069, 1.128993069) if layer.approximate == "tanh" else (-0.128904146, 1.128904146)


def _hardshrink(layer: nn.Hardshrink) -> tuple[float, float]:
    """The identity without a gap to shrink, else with jumps upwards."""
    return (0.0, inf) if layer.lambd > 0 else (1.0, 1.0)


def _softplus(layer: nn.Softplus) -> tuple[float, float]:
    """The logistic function of beta x, up to ``threshold``, where torch goes over to x with a jump down.

    The jump is log(1 + exp(-threshold)) / |beta|, 2e-9 for the default of 20, and no jump in float64 where adding it to
    the threshold changes nothing.
    """
    invisible = layer.threshold > 0 and log1p(exp(-layer.threshold)) <= 2**-53 * layer.threshold
    return (0.0, 1.0) if invisible and layer.beta != 0 else (-inf, inf)


def _threshold(layer: nn.Threshold) -> tuple[float, float]:
    """Gives x above the threshold, ``value`` up to it: continuous only if the two agree there."""
    if layer.value == layer.threshold:
        return 0.0, 1.0
    return (0.0, inf) if layer.value < layer.threshold else (-inf, 1.0)


BY_SETTING: dict[type[nn.Module], Callable[[Any], tuple[float, float]]] = {
    nn.LeakyReLU: lambda layer: _sorted(1.0, layer.negative_slope),
    nn.RReLU: lambda layer: _sorted(1.0, (layer.lower + layer.upper) / 2),  # in eval mode
    nn.ELU: lambda layer: _sorted(0.0, 1.0, layer.alpha),  # alpha exp(x) below 0
    nn.CELU: _celu,
    nn.GELU: _gelu,
    nn.Hardshrink: _hardshrink,
    nn.Softplus: _softplus,
    nn.Threshold: _threshold,
}
_WHY_INFINITE: dict[type[nn.Module], str] = {
    nn.CELU: "its slope has no limit for this alpha",
    nn.Hardshrink: "jumps",
    nn.Softplus: "jumps at its threshold; threshold=40 leaves no jump",
    nn.Threshold: "jumps at its threshold",
}


def slope_range(leaf: Leaf) -> tuple[Tensor, Tensor] | None:
    """Infimum and supremum of each channel's derivative in eval mode; None for what is not elementwise.

    Own layers answer for themselves; of torch's, activations, dropout and normalizers by running statistics.

    Returns:
        Shapes (C,), or (1,) for one function in all channels; float64 on the CPU; may be infinite or, for such
        parameters, NaN.
    """
    layer: Any = leaf.module
    if leaf.unknown:
        return None
    if isinstance(layer, AbstractLayer):
        return layer.slope_range()
    kind = type_before_parametrizations(layer)
    if kind is nn.PReLU:
        slope_C, one = exact(layer.weight), torch.ones(1, dtype=torch.float64)
        return torch.minimum(slope_C, one), torch.maximum(slope_C, one)
    factor_C = running_factor(leaf)
    if factor_C is not None:
        return factor_C, factor_C
    if kind not in FIXED and kind not in BY_SETTING:
        return None
    lo, hi = FIXED[kind] if kind in FIXED else BY_SETTING[kind](layer)
    return torch.tensor([lo], dtype=torch.float64), torch.tensor([hi], dtype=torch.float64)


def _constant(layer: nn.Module, leaf: Leaf, p: float) -> float:
    """Largest |slope|, for every p."""
    slopes = slope_range(leaf)
    assert slopes is not None
    value = float(torch.stack(slopes).abs().max())
    if value == inf and type_before_parametrizations(layer) in _WHY_INFINITE:
        raise Unbounded(_WHY_INFINITE[type_before_parametrizations(layer)])
    return value


RULES: dict[type[nn.Module], Rule] = dict.fromkeys([*FIXED, *BY_SETTING, nn.PReLU], _constant)
