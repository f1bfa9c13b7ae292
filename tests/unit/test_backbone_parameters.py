"""Numbers of parameters of the backbones against published ones, exactly or to the printed digits."""

import pytest
import torch

from tautnet.activations import PReLU, ReLU
from tautnet.backbones import (
    LayerFactory,
    cifar_resnet,
    dncnn,
    elu11,
    imagenet_resnet,
    mlp,
    preact_resnet,
    resnet9,
    unshuffle_convnet,
    wide_resnet,
)
from tautnet.normalizers import BatchNorm, no_output_norm, no_weight_norm

BATCH = LayerFactory(ReLU, BatchNorm, no_weight_norm)
PLAIN = LayerFactory(ReLU, no_output_norm, no_weight_norm)
CIFAR, IMAGENET = (3, 32, 32), (3, 224, 224)


def count(backbone, layers, input_shape, num_outputs, **arguments):
    with torch.device("meta"):
        net = backbone(layers, input_shape, num_outputs, **arguments)
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize(
    ("backbone", "layers", "input_shape", "num_outputs", "arguments", "expected"),
    [
        (imagenet_resnet, BATCH, IMAGENET, 1000, {"depth": 18}, 11_689_512),
        (imagenet_resnet, BATCH, IMAGENET, 1000, {"depth": 34}, 21_797_672),
        (imagenet_resnet, BATCH, IMAGENET, 1000, {"depth": 50}, 25_557_032),
        (imagenet_resnet, BATCH, IMAGENET, 1000, {"depth": 101}, 44_549_160),
        (imagenet_resnet, BATCH, IMAGENET, 1000, {"depth": 152}, 60_192_808),
        # Page's 6,573,120 and the biases of our head
        (resnet9, BATCH, CIFAR, 10, {}, 6_573_120 + 10),
        (dncnn, PLAIN, (1, 40, 40), 1, {}, 640 + 15 * 36_928 + 577),
        # scale and shift instead of a bias in the 15 layers of the middle
        (dncnn, BATCH, (1, 40, 40), 1, {}, 640 + 15 * (36_928 + 64) + 577),
        (mlp, PLAIN, (2,), 2, {"widths": [10], "single_logit": True}, 41),
        (mlp, PLAIN, (2,), 2, {"widths": [10, 10], "single_logit": True}, 41 + 110),
        (mlp, LayerFactory(PReLU, no_output_norm, no_weight_norm), (2,), 2, {"widths": [10], "single_logit": True}, 51),
    ],
)
def test_number_of_parameters(backbone, layers, input_shape, num_outputs, arguments, expected):
    assert count(backbone, layers, input_shape, num_outputs, **arguments) == expected


@pytest.mark.parametrize(
    ("backbone", "layers", "arguments", "millions", "digits"),
    [
        (cifar_resnet, BATCH, {"depth": 20}, 0.27, 2),
        (cifar_resnet, BATCH, {"depth": 32}, 0.46, 2),
        (cifar_resnet, BATCH, {"depth": 56}, 0.85, 2),
        (cifar_resnet, BATCH, {"depth": 110}, 1.7, 1),
        (preact_resnet, BATCH, {"depth": 20}, 0.27, 2),
        (preact_resnet, BATCH, {"depth": 110}, 1.7, 1),
        (preact_resnet, BATCH, {"depth": 164, "bottleneck": True}, 1.7, 1),
        (wide_resnet, BATCH, {}, 36.5, 1),
        (elu11, PLAIN, {"widen_factor": 1}, 1.64, 2),
        (elu11, PLAIN, {"widen_factor": 2}, 6.44, 2),
    ],
)
def test_number_of_parameters_to_the_printed_digits(backbone, layers, arguments, millions, digits):
    value = count(backbone, layers, CIFAR, 10, **arguments)
    if backbone is cifar_resnet:  # the paper's shortcuts have no parameters, ours two convolutions and normalizers
        value -= 16 * 32 + 32 * 64 + 2 * (32 + 64)
    assert round(value / 1e6, digits) == millions


@pytest.mark.parametrize("width", [16, 32, 64])
def test_unshuffle_convnet_lacks_what_the_authors_compute_and_drop(width):
    channels = [width * 2**block for block in range(5)]
    kernels = [9, 9, 9, 9, 1]
    theirs = width * (width + 1) + sum(5 * c * (c * k + 1) for c, k in zip(channels, kernels, strict=True))
    theirs += 32 * width * (32 * width + 1)
    zero_inputs = width * (width - 3)
    dropped = sum(c // 2 * (c * k + 1) for c, k in zip(channels, kernels, strict=True))
    dropped += (32 * width - 10) * (32 * width + 1)
    assert count(unshuffle_convnet, PLAIN, CIFAR, 10, width=width) == theirs - zero_inputs - dropped
