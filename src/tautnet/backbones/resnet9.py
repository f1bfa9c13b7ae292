"""The small residual network of the CIFAR-10 speed competitions."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from torch import nn

from tautnet.backbones.blocks import Residual, Scale
from tautnet.backbones.layers import LayerFactory, check_image_shape, check_least


def _stage(layers: LayerFactory, in_channels: int, *, residual: bool) -> list[nn.Module]:
    width = 2 * in_channels
    stage = [*layers.conv_norm_act(in_channels, width), nn.MaxPool2d(2)]
    if residual:
        body = nn.Sequential(*layers.conv_norm_act(width, width), *layers.conv_norm_act(width, width))
        stage.append(Residual(body, nn.Identity()))
    return stage


def resnet9(
    layers: LayerFactory, input_shape: Sequence[int], num_outputs: int, width: int = 64, logit_scale: float = 0.125
) -> nn.Sequential:
    """A 3x3 convolution, three stages that double the channels and halve the image, global maximum, dense head.

    The first and the last stage end in a residual of two convolutions, each with normalizer and activation.

    Source: Page (2018), "How to train your ResNet"; the scale of the head's output is recalled. Difference: the head
    has a bias.

    Args:
        layers: makes the layers.
        input_shape: (channels, height, width) of one image, sides of at least 8.
        num_outputs: width of the head.
        width: channels of the first convolution, at least 1; source 64.
        logit_scale: factor of the output, above 0; with 1 the source's learning rate is far too high.

    Raises:
        ValueError: ``input_shape`` is no image or a smaller one, ``width`` below 1, or ``logit_scale`` not above 0.
    """
    check_image_shape("resnet9", input_shape, least=8)
    check_least("width", width, 1)
    if not 0 < logit_scale < inf:
        raise ValueError(f"logit_scale={logit_scale}: a finite number above 0")
    return nn.Sequential(
        *layers.conv_norm_act(input_shape[0], width),
        *_stage(layers, width, residual=True),
        *_stage(layers, 2 * width, residual=False),
        *_stage(layers, 4 * width, residual=True),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        layers.linear(8 * width, num_outputs),
        Scale(logit_scale),
    )
