"""Wide residual networks."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from tautnet.backbones.blocks import Residual
from tautnet.backbones.layers import LayerFactory, check_depth, check_image_shape, check_least, check_probability
from tautnet.backbones.preact_resnet import norm_act_conv

STEM_WIDTH = 16


def _block(layers: LayerFactory, in_channels: int, out_channels: int, stride: int, dropout: float) -> list[nn.Module]:
    first = norm_act_conv(layers, in_channels, out_channels, stride=stride)
    norm, activation, conv = norm_act_conv(layers, out_channels, out_channels)
    second = [norm, activation, *([nn.Dropout(dropout)] if dropout > 0 else []), conv]
    if in_channels == out_channels and stride == 1:
        return [Residual(nn.Sequential(*first, *second), nn.Identity())]
    bias = layers.bias_before_norm(out_channels)
    projection = layers.conv(in_channels, out_channels, 1, stride=stride, bias=bias)
    return [*first[:2], Residual(nn.Sequential(first[2], *second), projection)]


def wide_resnet(
    layers: LayerFactory,
    input_shape: Sequence[int],
    num_outputs: int,
    depth: int = 28,
    widen_factor: int = 10,
    dropout: float = 0.0,
) -> nn.Sequential:
    """Pre-activation ResNet of three stages of basic blocks with 16 k, 32 k and 64 k channels, k the widen factor.

    Source: Zagoruyko, Komodakis (2016). As in their code (recalled) a projection reads the input of its block after
    the first normalizer and activation, and a convolution has a bias only where the normalizer is none.

    Args:
        layers: makes the layers.
        input_shape: (channels, height, width) of one image.
        num_outputs: width of the head.
        depth: convolutions, the projections on the shortcuts counted too: 6 n + 4, up to 10000.
        widen_factor: at least 1.
        dropout: probability between the two convolutions of a block, from 0 to below 1; 0 builds no such layer.

    Raises:
        ValueError: ``input_shape`` is no image, ``depth`` is not 6 n + 4 with n >= 1, or a value out of range.
    """
    check_image_shape("wide_resnet", input_shape)
    check_least("widen_factor", widen_factor, 1)
    check_probability("dropout", dropout)
    check_depth("depth", depth, 1)
    if depth < 10 or depth % 6 != 4:
        raise ValueError(f"depth={depth}: 6 n + 4, that is 10, 16, 22, …")
    modules = [layers.conv(input_shape[0], STEM_WIDTH, bias=layers.bias_before_norm(STEM_WIDTH))]
    channels = STEM_WIDTH
    for stage in range(3):
        for index in range((depth - 4) // 6):
            stride = 2 if stage > 0 and index == 0 else 1
            width = STEM_WIDTH * widen_factor * 2**stage
            modules += _block(layers, channels, width, stride, dropout)
            channels = width
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), layers.linear(channels, num_outputs)]
    return nn.Sequential(*modules, *layers.norm_act(channels), *head)
