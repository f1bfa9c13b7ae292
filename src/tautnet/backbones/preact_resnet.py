"""Pre-activation residual networks for small images."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from tautnet.backbones.blocks import Residual
from tautnet.backbones.layers import LayerFactory, check_depth, check_image_shape, check_least


def norm_act_conv(
    layers: LayerFactory, in_channels: int, out_channels: int, kernel_size: int = 3, *, stride: int = 1
) -> list[nn.Module]:
    """Normalizer, activation, convolution; the convolution has a bias only where the normalizer is none."""
    bias = layers.bias_before_norm(out_channels)
    conv = layers.conv(in_channels, out_channels, kernel_size, stride=stride, bias=bias)
    return [*layers.norm_act(in_channels), conv]


def _body(layers: LayerFactory, in_channels: int, out_channels: int, stride: int, bottleneck: bool) -> nn.Sequential:
    if not bottleneck:
        return nn.Sequential(
            *norm_act_conv(layers, in_channels, out_channels, stride=stride),
            *norm_act_conv(layers, out_channels, out_channels),
        )
    inner = out_channels // 4
    return nn.Sequential(
        *norm_act_conv(layers, in_channels, inner, 1, stride=stride),
        *norm_act_conv(layers, inner, inner),
        *norm_act_conv(layers, inner, out_channels, 1),
    )


def _block(layers: LayerFactory, in_channels: int, out_channels: int, stride: int, bottleneck: bool) -> Residual:
    body = _body(layers, in_channels, out_channels, stride, bottleneck)
    if in_channels == out_channels and stride == 1:
        return Residual(body, nn.Identity())
    bias = layers.bias_before_norm(out_channels)
    return Residual(body, layers.conv(in_channels, out_channels, 1, stride=stride, bias=bias))


def preact_resnet(
    layers: LayerFactory,
    input_shape: Sequence[int],
    num_outputs: int,
    depth: int = 20,
    width: int = 16,
    bottleneck: bool = False,
) -> nn.Sequential:
    """ResNet of three stages of blocks that normalise and activate in front of each convolution.

    Stage s has width 2**s channels, four times as many with bottlenecks. A last normalizer and activation, the global
    average and a dense head follow. Every convolution, those at the end of a block and on a shortcut included, has a
    bias only where the normalizer is none: each is read through the normalizer of a later block.

    Source: He, Zhang, Ren, Sun (2016), "Identity mappings in deep residual networks"; a projection reads the raw input
    of its block and a bottleneck halves the image in its first 1x1 convolution, as in the code of the Unitization
    authors. Whether their convolutions have biases was not seen.

    Args:
        layers: makes the layers.
        input_shape: (channels, height, width) of one image.
        num_outputs: width of the head.
        depth: weight layers on the main path, 6 n + 2, or 9 n + 2 with bottlenecks, up to 10000.
        width: channels of the first convolution, at least 1; paper 16.
        bottleneck: blocks of 1x1, 3x3, 1x1 instead of 3x3, 3x3.

    Raises:
        ValueError: ``input_shape`` is no image, ``depth`` is not of that form with n >= 1, or ``width`` below 1.
    """
    check_image_shape("preact_resnet", input_shape)
    check_least("width", width, 1)
    period, expansion = (9, 4) if bottleneck else (6, 1)
    check_depth("depth", depth, 1)
    if depth < period + 2 or depth % period != 2:
        raise ValueError(f"depth={depth}: {period} n + 2 with bottleneck={bottleneck}, n at least 1")
    modules = [layers.conv(input_shape[0], width, bias=layers.bias_before_norm(width))]
    channels = width
    for stage in range(3):
        for index in range(depth // period):
            stride = 2 if stage > 0 and index == 0 else 1
            modules.append(_block(layers, channels, expansion * width * 2**stage, stride, bottleneck))
            channels = expansion * width * 2**stage
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), layers.linear(channels, num_outputs)]
    return nn.Sequential(*modules, *layers.norm_act(channels), *head)
