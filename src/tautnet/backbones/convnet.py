"""Plain convolutional networks."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from tautnet.backbones.layers import LayerFactory, check_image_shape, check_widths


def convnet(
    layers: LayerFactory, input_shape: Sequence[int], num_outputs: int, widths: Sequence[int] = (32, 64, 64)
) -> nn.Sequential:
    """3x3 convolutions with normalizer and activation, global average, dense head.

    Args:
        layers: makes the layers.
        input_shape: (channels, height, width) of one image.
        num_outputs: width of the head.
        widths: channels of each convolution, one or more; every one after the first halves the image.

    Raises:
        ValueError: ``input_shape`` is no image, or ``widths`` empty or below 1.
    """
    check_image_shape("convnet", input_shape)
    check_widths("widths", widths, least=1)
    body, channels = [], input_shape[0]
    for index, width in enumerate(widths):
        body += layers.conv_norm_act(channels, width, stride=1 if index == 0 else 2)
        channels = width
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), layers.linear(channels, num_outputs))
