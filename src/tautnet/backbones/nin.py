"""Network in Network."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from tautnet.backbones.layers import LayerFactory, check_image_shape, check_probability


def nin(layers: LayerFactory, input_shape: Sequence[int], num_outputs: int, dropout: float = 0.5) -> nn.Sequential:
    """Three groups of one spatial and two 1x1 convolutions, the last of which scores the classes; global average.

    The scores pass an activation before they are averaged. That last convolution has a bias and no normalizer.

    Source: Lin, Chen, Yan (2014); widths, pooling and dropout as in the CIFAR code of Bohra et al. (2020). Difference:
    weights start He-normal, where that code draws them from N(0, 0.05).

    Args:
        layers: makes the layers.
        input_shape: (channels, height, width) of one image; paper (3, 32, 32).
        num_outputs: number of classes.
        dropout: probability behind each of the two poolings, from 0 to below 1; paper 0.5; 0 builds no such layer.

    Raises:
        ValueError: ``input_shape`` is no image, or ``dropout`` out of range.
    """
    check_image_shape("nin", input_shape)
    check_probability("dropout", dropout)

    def dropped() -> list[nn.Module]:
        return [nn.Dropout(dropout)] if dropout > 0 else []

    return nn.Sequential(
        *layers.conv_norm_act(input_shape[0], 192, 5),
        *layers.conv_norm_act(192, 160, 1),
        *layers.conv_norm_act(160, 96, 1),
        nn.MaxPool2d(3, stride=2, padding=1),
        *dropped(),
        *layers.conv_norm_act(96, 192, 5),
        *layers.conv_norm_act(192, 192, 1),
        *layers.conv_norm_act(192, 192, 1),
        nn.AvgPool2d(3, stride=2, padding=1),
        *dropped(),
        *layers.conv_norm_act(192, 192, 3),
        *layers.conv_norm_act(192, 192, 1),
        layers.conv(192, num_outputs, 1),
        layers.activation(num_outputs),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
