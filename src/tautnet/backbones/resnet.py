"""Residual networks for small images."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from tautnet.backbones.blocks import Residual
from tautnet.backbones.layers import LayerFactory, check_depth, check_image_shape, check_least


def shortcut(layers: LayerFactory, in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """The identity, or a 1x1 convolution with normalizer where the shape changes."""
    if in_channels == out_channels and stride == 1:
        return nn.Identity()
    return nn.Sequential(*layers.conv_norm(in_channels, out_channels, 1, stride=stride))


def basic_block(layers: LayerFactory, in_channels: int, out_channels: int, stride: int) -> list[nn.Module]:
    """Two 3x3 convolutions beside a shortcut, an activation after the sum."""
    body = nn.Sequential(
        *layers.conv_norm_act(in_channels, out_channels, stride=stride), *layers.conv_norm(out_channels, out_channels)
    )
    return [Residual(body, shortcut(layers, in_channels, out_channels, stride)), layers.activation(out_channels)]


def cifar_resnet(
    layers: LayerFactory, input_shape: Sequence[int], num_outputs: int, depth: int = 20, width: int = 16
) -> nn.Sequential:
    """ResNet of three stages of basic blocks with width, 2 width and 4 width channels.

    Source: He, Zhang, Ren, Sun (2016), section 4.2. Difference: where the shape changes the shortcut is a 1x1
    convolution with normalizer, as in the code of Bohra et al. (2020), instead of subsampling with zero channels.

    Args:
        layers: makes the layers.
        input_shape: (channels, height, width) of one image.
        num_outputs: width of the head.
        depth: weight layers on the main path, 6 n + 2, up to 10000.
        width: channels of the first stage, at least 1.

    Raises:
        ValueError: ``input_shape`` is no image, ``depth`` is not 6 n + 2 with n >= 1, or ``width`` below 1.
    """
    check_image_shape("cifar_resnet", input_shape)
    check_depth("depth", depth, 1)
    if depth < 8 or depth % 6 != 2:
        raise ValueError(f"depth={depth}: 6 n + 2, that is 8, 14, 20, …")
    check_least("width", width, 1)
    modules, channels = layers.conv_norm_act(input_shape[0], width), width
    for stage in range(3):
        for block in range((depth - 2) // 6):
            stride = 2 if stage > 0 and block == 0 else 1
            modules += basic_block(layers, channels, width * 2**stage, stride)
            channels = width * 2**stage
    return nn.Sequential(*modules, nn.AdaptiveAvgPool2d(1), nn.Flatten(), layers.linear(channels, num_outputs))
