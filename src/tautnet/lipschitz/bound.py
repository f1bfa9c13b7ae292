"""Upper bound of a network's Lipschitz constant from its structure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import exp, inf, log

import torch
from torch import Tensor, nn

from tautnet.backbones.blocks import Residual
from tautnet.factories import AbstractLayer
from tautnet.lipschitz.rules import stock_layer_bound


@dataclass(frozen=True)
class LayerBound:
    """Bound of one leaf layer.

    Attributes:
        path: dotted path in the network, empty for the network itself.
        kind: class name.
        value: upper bound of the layer's constant.
    """

    path: str
    kind: str
    value: float


@dataclass(frozen=True)
class LipschitzReport:
    """Bound of a network.

    Attributes:
        total: upper bound of the network's constant; inf if a layer has none or beyond float range.
        log_total: its natural logarithm, which does not overflow.
        layers: every leaf in order of evaluation.
        unbounded: paths and kinds of the leaves without a finite bound, the reason why ``total`` is inf.
    """

    total: float
    log_total: float
    layers: tuple[LayerBound, ...]
    unbounded: tuple[str, ...]


@contextmanager
def eval_mode(net: nn.Module) -> Iterator[None]:
    """Put every submodule in eval mode and restore each one's own flag afterwards."""
    flags = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag


def lipschitz_bound(net: nn.Module, input_shape: Sequence[int], p: float = 2) -> LipschitzReport:
    """Guaranteed upper bound of ||f(x) - f(y)||_p / ||x - y||_p over all x, y, for the net f in eval mode.

    Product over ``Sequential``, sum over ``Residual``; own layers answer for themselves, stock torch layers by exact
    type; anything else, a layer with forward hooks included, is unbounded and named. The statement is about real
    arithmetic with the stored weights: the rounding of a float32 forward pass is not covered. Training flags, buffers,
    gradients and random state stay as they are.

    Args:
        net: the network; convolutions are bounded for the image sizes that ``input_shape`` leads to.
        input_shape: shape of one sample, without the batch.
        p: exponent of the vector norm; 2 is what is implemented.

    Raises:
        ValueError: another ``p``.
    """
    if p != 2:
        raise ValueError(f"p={p}: 2")
    parameter = next(net.parameters(), torch.zeros(()))
    x = torch.zeros(1, *input_shape, dtype=parameter.dtype, device=parameter.device)
    layers: list[LayerBound] = []
    with torch.no_grad(), eval_mode(net), nn.utils.parametrize.cached():
        log_total, _ = _log_bound(net, "", x, p, layers)
    unbounded = tuple(f"{layer.path or '(net)'} ({layer.kind})" for layer in layers if layer.value == inf)
    total = exp(log_total) if log_total < 700 else inf
    return LipschitzReport(total, log_total, tuple(layers), unbounded)


def _log_bound(net: nn.Module, path: str, x: Tensor, p: float, layers: list[LayerBound]) -> tuple[float, Tensor]:
    """Logarithm of the bound, and the output for ``x``, whose shape the next layer needs."""
    if net._forward_hooks or net._forward_pre_hooks:  # they may change the function
        layers.append(LayerBound(path, f"{type(net).__name__} with hooks", inf))
        return inf, net(x)
    if type(net) is nn.Sequential:
        log_total = 0.0
        for name, child in net._modules.items():  # named_children would pass over a module used a second time
            assert child is not None
            log_child, x = _log_bound(child, _join(path, name), x, p, layers)
            log_total = _log_product(log_total, log_child)
        return log_total, x
    if type(net) is Residual:
        log_body, y = _log_bound(net.body, _join(path, "body"), x, p, layers)
        log_shortcut, z = _log_bound(net.shortcut, _join(path, "shortcut"), x, p, layers)
        if y.shape != z.shape:  # a sum that broadcasts repeats values, which no constant of a branch accounts for
            layers.append(LayerBound(path, "Residual of different shapes", inf))
            return inf, y + z
        return _log_sum(log_body, log_shortcut), y + z
    value = float(net.lipschitz_constant(p) if isinstance(net, AbstractLayer) else stock_layer_bound(net, x.shape[1:]))
    value = value if value >= 0 else inf  # NaN weights bound nothing
    layers.append(LayerBound(path, type(net).__name__, value))
    return (log(value) if value > 0 else -inf), net(x)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _log_product(a: float, b: float) -> float:
    """Log of a product in which unbounded wins over zero."""
    return inf if inf in (a, b) else a + b


def _log_sum(a: float, b: float) -> float:
    """Log of exp(a) + exp(b)."""
    high, low = max(a, b), min(a, b)
    if high in (inf, -inf):
        return high
    return high + log(1 + exp(low - high))
