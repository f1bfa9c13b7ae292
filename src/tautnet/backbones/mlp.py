"""Dense networks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod

from torch import nn

from tautnet.backbones.layers import LayerFactory, check_widths


def mlp(
    layers: LayerFactory, input_shape: Sequence[int], num_outputs: int, widths: Sequence[int] = (64, 64)
) -> nn.Sequential:
    """Flatten, one dense layer with normalizer and activation per width, a dense head.

    Args:
        layers: makes the layers.
        input_shape: shape of one sample.
        num_outputs: width of the head.
        widths: hidden widths, one or more.

    Raises:
        ValueError: ``widths`` empty or below 1.
    """
    check_widths("widths", widths, least=1)
    sizes = [prod(input_shape), *widths]
    hidden = [module for i, o in pairwise(sizes) for module in layers.linear_norm_act(i, o)]
    return nn.Sequential(nn.Flatten(), *hidden, layers.linear(sizes[-1], num_outputs))
