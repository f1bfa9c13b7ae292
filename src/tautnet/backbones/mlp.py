"""Dense networks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod

from torch import nn

from tautnet.backbones.layers import LayerFactory, check_widths


def mlp(
    layers: LayerFactory,
    input_shape: Sequence[int],
    num_outputs: int,
    widths: Sequence[int] = (64, 64),
    single_logit: bool = False,
) -> nn.Sequential:
    """Flatten, one dense layer with normalizer and activation per width, a dense head.

    Args:
        layers: makes the layers.
        input_shape: shape of one sample.
        num_outputs: width of the head.
        widths: hidden widths, one or more.
        single_logit: for two classes, a head of one output z, which a classifier reads as the logits (0, z).

    Raises:
        ValueError: ``widths`` empty or below 1, or ``single_logit`` without two outputs.
    """
    check_widths("widths", widths, least=1)
    if single_logit and num_outputs != 2:
        raise ValueError(f"single_logit={single_logit}: for two classes only, the data has {num_outputs}")
    sizes = [prod(input_shape), *widths]
    hidden = [module for i, o in pairwise(sizes) for module in layers.linear_norm_act(i, o)]
    return nn.Sequential(nn.Flatten(), *hidden, layers.linear(sizes[-1], 1 if single_logit else num_outputs))
