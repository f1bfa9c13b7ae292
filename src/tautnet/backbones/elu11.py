"""The eleven-layer network of the variance constancy experiments."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from tautnet.backbones.layers import LayerFactory, check_image_shape, check_least

# channels before widening and size of the spatial kernel that opens each of the stages two to five
STAGES = ((240, 3), (260, 2), (280, 2), (300, 2))


def elu11(layers: LayerFactory, input_shape: Sequence[int], num_outputs: int, widen_factor: int = 2) -> nn.Sequential:
    """Eleven convolutions, spatial and 1x1 by turns, five 2x2 max-poolings, growing dropout, no dense layer.

    With k the widen factor: 192 (5x5), pool, 192 k (1x1); then for c = 240, 260, 280, 300 of kernels 3, 2, 2, 2: c k
    (spatial), pool, dropout 0.1 … 0.4, c k (1x1); dropout 0.5, classes (1x1). Images of 32 x 32 end at one pixel; of
    larger ones the scores are averaged. The last convolution has a bias and no normalizer.

    Source: Littwin, Wolf (2018), by their code, which sets k = 2; the 350 thousand loss parameters that a later paper
    gives for this network are those of k = 1 (350,460 activated units). A modified network of Clevert, Unterthiner,
    Hochreiter (2016). Difference: weights start He-normal, where that code keeps the framework's default.

    Args:
        layers: makes the layers; the experiments use ELU without normalizer.
        input_shape: (channels, height, width) of one image, sides of at least 32.
        num_outputs: number of classes.
        widen_factor: k, at least 1.

    Raises:
        ValueError: ``input_shape`` is no image or a smaller one, or ``widen_factor`` below 1.
    """
    check_image_shape("elu11", input_shape, least=32)
    check_least("widen_factor", widen_factor, 1)
    channels = 192 * widen_factor
    modules = [
        *layers.conv_norm_act(input_shape[0], 192, 5),
        nn.MaxPool2d(2),
        *layers.conv_norm_act(192, channels, 1),
    ]
    for index, (width, kernel_size) in enumerate(STAGES):
        modules += layers.conv_norm_act(channels, width * widen_factor, kernel_size)
        channels = width * widen_factor
        modules += [nn.MaxPool2d(2), nn.Dropout((index + 1) / 10), *layers.conv_norm_act(channels, channels, 1)]
    head = [nn.Dropout(0.5), layers.conv(channels, num_outputs, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*modules, *head)
