"""Upper bounds of the constants of single layers in eval mode, p = 1, 2, inf.

Own layers answer for themselves. Stock torch layers have a rule by exact type, because a subclass may compute something
else; a weight parametrization is looked through. What has no rule is unbounded.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils.parametrize import type_before_parametrizations

from tautnet.factories import AbstractLayer
from tautnet.lipschitz import elementwise, linear_maps, normalization, pooling
from tautnet.lipschitz.rule import Rule, Unbounded
from tautnet.lipschitz.structure import Leaf

__all__ = ["REASONS", "RULES", "Unbounded", "leaf_constant"]

RULES: dict[type[nn.Module], Rule] = {
    **elementwise.RULES,
    **linear_maps.RULES,
    **normalization.RULES,
    **pooling.RULES,
}

_PRODUCT = "multiplies functions of its input, so its slope grows with the input"
_RECURRENT = "has a state and several outputs, for which there is no rule"
_INDICES = "needs indices besides its input"
REASONS: dict[type[nn.Module], str] = {
    nn.Bilinear: _PRODUCT,
    nn.GLU: _PRODUCT,
    nn.MultiheadAttention: _PRODUCT,
    nn.Transformer: _PRODUCT,
    nn.TransformerDecoder: _PRODUCT,
    nn.TransformerDecoderLayer: _PRODUCT,
    nn.TransformerEncoder: _PRODUCT,
    nn.TransformerEncoderLayer: _PRODUCT,
    nn.RNN: _RECURRENT,
    nn.RNNCell: _RECURRENT,
    nn.LSTM: _RECURRENT,
    nn.LSTMCell: _RECURRENT,
    nn.GRU: _RECURRENT,
    nn.GRUCell: _RECURRENT,
    nn.Embedding: "reads integers, between which there is no distance",
    nn.EmbeddingBag: "reads integers, between which there is no distance",
    nn.FractionalMaxPool2d: "draws its windows at random in eval mode too",
    nn.FractionalMaxPool3d: "draws its windows at random in eval mode too",
    nn.MaxUnpool1d: _INDICES,
    nn.MaxUnpool2d: _INDICES,
    nn.MaxUnpool3d: _INDICES,
    nn.LocalResponseNorm: "has no known constant",
    nn.CrossMapLRN2d: "has no known constant",
}


@torch.no_grad()
def leaf_constant(leaf: Leaf, p: float) -> float:
    """Upper bound of the eval-mode layer's Lipschitz constant for the vector p-norm on both sides; may be inf.

    Args:
        leaf: the layer in its place.
        p: 1, 2 or inf.

    Raises:
        Unbounded: there is none, or none that is known; the message is the reason.
    """
    if leaf.unknown:
        raise Unbounded(leaf.unknown)
    if isinstance(leaf.module, AbstractLayer):
        return float(leaf.module.lipschitz_constant(p))
    kind = type_before_parametrizations(leaf.module)
    if kind in REASONS:
        raise Unbounded(REASONS[kind])
    if kind not in RULES:
        raise Unbounded("no rule for this type")
    return RULES[kind](leaf.module, leaf, p)
