"""Convolutional network whose blocks turn pixels into channels."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from tautnet.backbones.blocks import averaged
from tautnet.backbones.layers import LayerFactory, check_depth, check_image_shape, check_least


def _check(input_shape: Sequence[int], width: int, num_blocks: int, layers_per_block: int, kernel_size: int) -> None:
    check_image_shape("unshuffle_convnet", input_shape)
    if width < 2 or width % 2 == 1:
        raise ValueError(f"width={width}: an even integer of at least 2")
    check_depth("num_blocks", num_blocks, 1)
    check_depth("layers_per_block", layers_per_block, 1)
    check_least("kernel_size", kernel_size, 1)
    if any(side % 2**num_blocks for side in input_shape[1:]):
        raise ValueError(
            f"num_blocks={num_blocks}: the sides of an image must be multiples of {2**num_blocks}, "
            f"the data has shape {tuple(input_shape)}"
        )


def unshuffle_convnet(
    layers: LayerFactory,
    input_shape: Sequence[int],
    num_outputs: int,
    width: int = 16,
    num_blocks: int = 5,
    layers_per_block: int = 5,
    kernel_size: int = 3,
    residual: float | None = None,
) -> nn.Sequential:
    """A 1x1 convolution, blocks that double the channels and halve the image without losing a value, a dense head.

    A block is ``layers_per_block`` convolutions of equal width, the last of which has half as many channels, and a
    pixel unshuffle: 2x2 pixels of c / 2 channels become one of 2 c. Kernels of the last block are 1x1. A global
    maximum, which does nothing at one pixel, precedes the head.

    Source: Prach, Brau, Buttazzo, Lampert (2024), the ConvNet of "1-Lipschitz layers compared", read in the authors'
    code; the paper's table of it was not seen. Difference: they pad the image to ``width`` channels of zeros and drop
    half of the channels behind each block and all but the classes behind a square head; here what would be zero or
    dropped is not computed. With free weights these are the same functions, of fewer parameters. Theirs has
    MaxMin throughout and no normalizer of outputs; here both are the factory's.

    Args:
        layers: makes the layers.
        input_shape: (channels, height, width) of one image, sides multiples of 2**num_blocks; authors (3, 32, 32).
        num_outputs: width of the head.
        width: channels of the first block, even; authors 16, 32, 64, 128 for XS, S, M, L.
        num_blocks: 1 to 10000; authors 5, and 6 with half the width for images of 64 x 64.
        layers_per_block: 1 to 10000; authors 5.
        kernel_size: of the blocks but the last, at least 1; authors 3.
        residual: ours, not theirs. None, or r above 0, below 1: convolution, normalizer and activation of equal width
            become x to r layers(x) + (1 - r) x, which keeps a Lipschitz constant of 1.

    Raises:
        ValueError: ``input_shape`` is no image or of other sides, a value out of range, or ``residual`` with blocks of
            one layer, none of which keeps the width.
    """
    _check(input_shape, width, num_blocks, layers_per_block, kernel_size)
    if residual is not None and not (0 < residual < 1 and layers_per_block > 1):
        raise ValueError(f"residual={residual}: null, or above 0 and below 1 with layers_per_block of at least 2")
    modules = layers.conv_norm_act(input_shape[0], width, 1)
    channels = width
    for block in range(num_blocks):
        size = 1 if block == num_blocks - 1 else kernel_size
        for _ in range(layers_per_block - 1):
            layer = layers.conv_norm_act(channels, channels, size)
            modules += layer if residual is None else [averaged(nn.Sequential(*layer), nn.Identity(), residual)]
        modules += [*layers.conv_norm_act(channels, channels // 2, size), nn.PixelUnshuffle(2)]
        channels *= 2
    return nn.Sequential(*modules, nn.AdaptiveMaxPool2d(1), nn.Flatten(), layers.linear(channels, num_outputs))
