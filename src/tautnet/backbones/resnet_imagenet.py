"""Residual networks for large images."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from tautnet.backbones.blocks import Residual
from tautnet.backbones.layers import LayerFactory, check_image_shape, check_least
from tautnet.backbones.resnet import basic_block, shortcut

# depth: blocks in each of the four stages
STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
FIRST_BOTTLENECK_DEPTH = 50


def _bottleneck_block(layers: LayerFactory, in_channels: int, out_channels: int, stride: int) -> list[nn.Module]:
    inner = out_channels // 4
    body = nn.Sequential(
        *layers.conv_norm_act(in_channels, inner, 1),
        *layers.conv_norm_act(inner, inner, stride=stride),
        *layers.conv_norm(inner, out_channels, 1),
    )
    return [Residual(body, shortcut(layers, in_channels, out_channels, stride)), layers.activation(out_channels)]


def imagenet_resnet(
    layers: LayerFactory, input_shape: Sequence[int], num_outputs: int, depth: int = 18, width: int = 64
) -> nn.Sequential:
    """ResNet with a 7x7 stem of stride 2, a 3x3 max-pooling of stride 2 and four stages.

    Stage s has width 2**s channels in its basic blocks (depth 18, 34), four times as many behind its bottlenecks.

    Source: He, Zhang, Ren, Sun (2016), table 1, with 1x1 convolutions where the shape changes. Difference: a bottleneck
    halves the image in its 3x3 convolution, the usual variant called v1.5, where the paper does it in the first 1x1.

    Args:
        layers: makes the layers.
        input_shape: (channels, height, width) of one image; paper (3, 224, 224).
        num_outputs: width of the head.
        depth: 18, 34, 50, 101 or 152.
        width: channels of the stem, at least 1; paper 64.

    Raises:
        ValueError: ``input_shape`` is no image, ``depth`` is not listed, or ``width`` below 1.
    """
    check_image_shape("imagenet_resnet", input_shape)
    check_least("width", width, 1)
    if depth not in STAGES:
        raise ValueError(f"depth={depth}: one of {', '.join(map(str, STAGES))}")
    block, expansion = (basic_block, 1) if depth < FIRST_BOTTLENECK_DEPTH else (_bottleneck_block, 4)
    modules = [*layers.conv_norm_act(input_shape[0], width, 7, stride=2), nn.MaxPool2d(3, stride=2, padding=1)]
    channels = width
    for stage, num_blocks in enumerate(STAGES[depth]):
        for index in range(num_blocks):
            stride = 2 if stage > 0 and index == 0 else 1
            modules += block(layers, channels, expansion * width * 2**stage, stride)
            channels = expansion * width * 2**stage
    return nn.Sequential(*modules, nn.AdaptiveAvgPool2d(1), nn.Flatten(), layers.linear(channels, num_outputs))
