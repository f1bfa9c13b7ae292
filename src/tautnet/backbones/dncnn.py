"""Residual denoising network."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from tautnet.backbones.blocks import Residual
from tautnet.backbones.layers import LayerFactory, check_depth, check_image_shape, check_least


def dncnn(
    layers: LayerFactory, input_shape: Sequence[int], num_outputs: int, depth: int = 17, width: int = 64
) -> Residual:
    """Denoised image x + body(x); the body of 3x3 convolutions learns minus the noise.

    The first convolution is followed by the activation, those in the middle by normalizer and activation, the last by
    nothing; the first and the last have a bias.

    Source: Zhang, Zuo, Chen, Meng, Zhang (2017). Difference: the sign; they subtract the output of the
    body, which learns the noise.

    Args:
        layers: makes the layers.
        input_shape: (channels, height, width) of one image.
        num_outputs: channels of the output, those of the input.
        depth: number of convolutions, 3 to 10000; paper 17, for one known noise level.
        width: channels of the hidden images, at least 1; paper 64.

    Raises:
        ValueError: ``input_shape`` is no image, ``num_outputs`` other than its channels, or a value out of range.
    """
    check_image_shape("dncnn", input_shape)
    check_depth("depth", depth, 3)
    check_least("width", width, 1)
    channels = input_shape[0]
    if num_outputs != channels:
        raise ValueError(f"dncnn gives images of {channels} channels like its input, the data asks for {num_outputs}")
    modules = [layers.conv(channels, width), layers.activation(width)]
    for _ in range(depth - 2):
        modules += layers.conv_norm_act(width, width)
    return Residual(nn.Sequential(*modules, layers.conv(width, channels)), nn.Identity())
