"""Upper bounds of a network's Lipschitz constant from its structure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import torch
from torch import nn
from torch.nn.utils import parametrize

from tautnet.lipschitz.folded import items_of, log_folded
from tautnet.lipschitz.lmi import log_lmi_folded
from tautnet.lipschitz.product import LeafConstants, log_product, to_float
from tautnet.lipschitz.structure import check_exponent, eval_mode, leaves, read


class UnboundedError(ValueError):
    """A strict bound was asked for and does not exist; the message lists the layers that are the reason."""


@dataclass(frozen=True)
class LayerBound:
    """Bound of one leaf layer.

    Attributes:
        path: dotted path in the network, empty for the network itself.
        kind: class name.
        value: upper bound of the layer's constant.
        reason: why ``value`` is inf; empty where it is finite.
    """

    path: str
    kind: str
    value: float
    reason: str = ""


@dataclass(frozen=True)
class LipschitzReport:
    """Bounds of a network, natural logarithms, which do not overflow; inf where there is none.

    Attributes:
        p: exponent of the vector norm.
        log_product: product of the layers' constants over chains, sum over ``Residual``.
        log_folded: the same after slopes and diagonal factors are multiplied into neighbouring weights.
        log_lmi: the same with the runs of dense layers bounded by layer-wise matrix inequalities; p = 2 only, else as
            ``log_folded``.
        layers: every leaf in order of evaluation.
    """

    p: float
    log_product: float
    log_folded: float
    log_lmi: float
    layers: tuple[LayerBound, ...]

    @property
    def log_total(self) -> float:
        """The smallest of the three, each of which is a guarantee."""
        return min(self.log_product, self.log_folded, self.log_lmi)

    @property
    def total(self) -> float:
        """The guarantee; inf if a layer has none or beyond float range."""
        return to_float(self.log_total)

    @property
    def unbounded(self) -> tuple[str, ...]:
        """Path, kind and reason of the leaves without a finite bound, the reason why ``total`` is inf."""
        return tuple(
            f"{layer.path or '(net)'} ({layer.kind}{': ' if layer.reason else ''}{layer.reason})"
            for layer in self.layers
            if layer.value == inf
        )


def lipschitz_bound(net: nn.Module, input_shape: Sequence[int], p: float = 2, strict: bool = False) -> LipschitzReport:
    """Guaranteed upper bounds of ||f(x) - f(y)||_p / ||x - y||_p over all x, y, for the net f in eval mode.

    Own layers answer for themselves, stock torch layers by exact type; anything else, a layer with hooks included, is
    unbounded and named. The statement is about real arithmetic with the weights that the layers have in the net's own
    dtype; the bound's float64 arithmetic is covered by a relative allowance of 1e-10 a layer. The net runs once, on
    zeros. Training flags, buffers, gradients and random state stay as they are.

    Args:
        net: the network; convolutions are bounded for the image sizes that ``input_shape`` leads to.
        input_shape: shape of one sample, without the batch.
        p: exponent of the vector norm on both sides, 1, 2 or inf.
        strict: raise where the bound would be inf.

    Raises:
        ValueError: another ``p``.
        ValueError: a layer that does not run on a sample of that shape.
        UnboundedError: with ``strict``, layers without a finite bound, listed by path, or a bound beyond float range.
    """
    check_exponent(p)
    with torch.no_grad(), eval_mode(net), parametrize.cached():
        chain = read(net, input_shape)
        constants = LeafConstants(p)
        product = log_product(chain, p, constants)
        items = items_of(chain, p, constants)
        folded = log_folded(items, p, constants)
        lmi = log_lmi_folded(items, constants) if p == 2 else folded
        layers = tuple(
            LayerBound(leaf.path, leaf.kind, constants(leaf), constants.reason(leaf)) for leaf in leaves(chain)
        )
    report = LipschitzReport(p, product, folded, lmi, layers)
    if strict and report.unbounded:
        raise UnboundedError(f"no finite bound for p={p}: {', '.join(report.unbounded)}")
    if strict and report.total == inf:
        raise UnboundedError(f"no bound for p={p} within float range: exp({report.log_total:.6g})")
    return report
