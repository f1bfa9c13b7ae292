"""Backbones: the order of their layers, shapes, bad options, bounds."""

import math

import pytest
import torch
from torch import nn

from tautnet.activations import LeakyReLU, ReLU
from tautnet.backbones import (
    LayerFactory,
    Residual,
    cifar_resnet,
    convnet,
    dncnn,
    elu11,
    imagenet_resnet,
    mlp,
    nin,
    preact_resnet,
    resnet9,
    unshuffle_convnet,
    wide_resnet,
)
from tautnet.lipschitz import lipschitz_bound, lipschitz_lower
from tautnet.normalizers import BatchNorm, no_output_norm, no_weight_norm

BATCH = LayerFactory(ReLU, BatchNorm, no_weight_norm)
PLAIN = LayerFactory(ReLU, no_output_norm, no_weight_norm)
CIFAR, IMAGENET = (3, 32, 32), (3, 224, 224)


def leaves(net):
    return [type(module).__name__ for module in net.modules() if not list(module.children())]


def convolutions(net):
    return [module for module in net.modules() if isinstance(module, nn.Conv2d)]


# --- structure --------------------------------------------------------------------------------------------------------


def test_preactivation_normalises_and_activates_in_front_of_each_convolution():
    net = preact_resnet(BATCH, CIFAR, 10, depth=8)
    triple = ["BatchNorm", "ReLU", "Conv2d"]
    assert [type(module) for module in net[:4]] == [nn.Conv2d, Residual, Residual, Residual]
    for block in net[1:4]:
        assert [type(module).__name__ for module in block.body] == 2 * triple
    assert isinstance(net[1].shortcut, nn.Identity)
    assert [block.shortcut.kernel_size for block in net[2:4]] == [(1, 1), (1, 1)]  # on the raw input
    assert [block.shortcut.stride for block in net[2:4]] == [(2, 2), (2, 2)]
    assert [type(module).__name__ for module in net[4:]] == [
        *["BatchNorm", "ReLU"],
        *["AdaptiveAvgPool2d", "Flatten", "Linear"],
    ]


def test_preactivated_bottleneck_halves_the_image_in_its_first_convolution():
    block = preact_resnet(BATCH, CIFAR, 10, depth=11, bottleneck=True)[2]
    shapes = [(c.in_channels, c.out_channels, c.kernel_size[0], c.stride[0]) for c in convolutions(block.body)]
    assert shapes == [(64, 32, 1, 2), (32, 32, 3, 1), (32, 128, 1, 1)]


def test_bottleneck_of_the_imagenet_net_halves_the_image_in_its_3x3_convolution():
    with torch.device("meta"):
        net = imagenet_resnet(BATCH, IMAGENET, 10, depth=50)
    bodies = [module.body for module in net if isinstance(module, Residual)]
    assert [[c.stride[0] for c in convolutions(bodies[i])] for i in (0, 3, 7, 13)] == [[1, 1, 1]] + 3 * [[1, 2, 1]]


def test_wide_block_projects_the_activated_input_and_drops_between_its_convolutions():
    net = wide_resnet(BATCH, CIFAR, 10, depth=10, widen_factor=1, dropout=0.3)
    names = [type(module).__name__ for module in net]
    assert names[:5] == ["Conv2d", "Residual", "BatchNorm", "ReLU", "Residual"]  # the first block keeps its shape
    assert [type(module).__name__ for module in net[4].body] == ["Conv2d", "BatchNorm", "ReLU", "Dropout", "Conv2d"]
    assert net[4].shortcut.kernel_size == (1, 1)
    assert "Dropout" not in leaves(wide_resnet(BATCH, CIFAR, 10, depth=10, widen_factor=1))


@pytest.mark.parametrize("backbone", [preact_resnet, wide_resnet, cifar_resnet, imagenet_resnet, resnet9])
@pytest.mark.parametrize("layers", [BATCH, PLAIN])
def test_convolutions_of_residual_nets_have_a_bias_only_without_normalizer(backbone, layers):
    with torch.device("meta"):
        net = backbone(layers, CIFAR, 10)
    assert {conv.bias is not None for conv in convolutions(net)} == {layers is PLAIN}


def test_dncnn_with_a_zero_body_is_the_identity():
    net = dncnn(BATCH, (1, 9, 7), 1, depth=4, width=3)
    for parameter in net.body[-1].parameters():
        nn.init.zeros_(parameter)
    x = torch.randn(2, 1, 9, 7)
    assert torch.equal(net(x), x)


def test_dncnn_is_convolution_activation_then_triples_then_convolution():
    middle = ["Conv2d", "BatchNorm", "ReLU"]
    body = dncnn(BATCH, (1, 9, 7), 1, depth=5).body
    assert [type(module).__name__ for module in body] == ["Conv2d", "ReLU", *3 * middle, "Conv2d"]


@pytest.mark.parametrize("kernel_size", [1, 2, 3, 4, 5, 6])
def test_convolution_keeps_the_image_and_pads_one_more_behind_an_even_kernel(kernel_size):
    conv = PLAIN.conv(1, 1, kernel_size, bias=False)
    assert conv(torch.zeros(1, 1, 8, 9)).shape == (1, 1, 8, 9)
    for parameter in conv.parameters():
        nn.init.ones_(parameter)
    x = torch.zeros(1, 1, 15, 15)
    x[..., 7, 7] = 1
    rows = conv(x)[0, 0, :, 7].nonzero().flatten().tolist()
    before = (kernel_size - 1) // 2  # values padded in front: how far behind the pixel the last window starts
    assert rows == list(range(7 - (kernel_size - 1 - before), 7 + before + 1))


@pytest.mark.parametrize(("widen_factor", "units"), [(1, 350_460), (2, 504_312)])
def test_elu11_has_the_activated_units_of_the_authors(widen_factor, units):
    counted = []
    with torch.device("meta"):
        net = elu11(PLAIN, CIFAR, 10, widen_factor)
        for module in net:
            if isinstance(module, ReLU):
                module.register_forward_pre_hook(lambda _, inputs: counted.append(inputs[0][0].numel()))
        net(torch.zeros(1, *CIFAR))
    assert sum(counted) == units
    assert len(convolutions(net)) == 11


def test_elu11_halves_the_image_five_times_in_its_poolings_alone():
    sizes = []
    with torch.device("meta"):
        net = elu11(BATCH, CIFAR, 10, 1)
        for module in net:
            if isinstance(module, nn.MaxPool2d):
                module.register_forward_hook(
                    lambda _, inputs, output: sizes.append((inputs[0].shape[-1], *output.shape[2:]))
                )
        net(torch.zeros(2, *CIFAR))
    assert sizes == [(32, 16, 16), (16, 8, 8), (8, 4, 4), (4, 2, 2), (2, 1, 1)]
    assert [module.p for module in net if isinstance(module, nn.Dropout)] == [0.1, 0.2, 0.3, 0.4, 0.5]


def test_single_logit_has_one_output():
    assert mlp(BATCH, (2,), 2, single_logit=True)(torch.zeros(3, 2)).shape == (3, 1)
    assert mlp(BATCH, (2,), 2)(torch.zeros(3, 2)).shape == (3, 2)


@pytest.mark.parametrize(
    ("backbone", "input_shape", "arguments"),
    [
        (cifar_resnet, (1, 8, 8), {"depth": 8}),
        (preact_resnet, (1, 7, 9), {"depth": 8}),
        (preact_resnet, (2, 32, 32), {"depth": 11, "bottleneck": True}),
        (wide_resnet, (1, 8, 8), {"depth": 10, "widen_factor": 1}),
        (nin, (3, 8, 8), {}),
        (nin, (3, 32, 32), {"dropout": 0.0}),
        (elu11, (1, 64, 40), {"widen_factor": 1}),
        (imagenet_resnet, (3, 32, 32), {"depth": 50, "width": 8}),
        (imagenet_resnet, (1, 64, 48), {"depth": 18, "width": 8}),
        (resnet9, (1, 8, 8), {}),
        (resnet9, (3, 40, 33), {}),
        (unshuffle_convnet, (3, 64, 32), {"width": 4}),
        (unshuffle_convnet, (3, 8, 8), {"num_blocks": 3, "layers_per_block": 1, "kernel_size": 2}),
    ],
)
def test_one_score_for_each_class(backbone, input_shape, arguments):
    with torch.device("meta"):
        assert backbone(BATCH, input_shape, 5, **arguments)(torch.zeros(2, *input_shape)).shape == (2, 5)


@pytest.mark.parametrize(
    ("backbone", "input_shape", "arguments", "message"),
    [
        (cifar_resnet, CIFAR, {"depth": 21}, "depth=21: "),
        (cifar_resnet, CIFAR, {"width": 0}, "width=0: "),
        (preact_resnet, CIFAR, {"depth": 18}, "depth=18: 6 n"),
        (preact_resnet, CIFAR, {"depth": 26, "bottleneck": True}, "depth=26: 9 n"),
        (preact_resnet, CIFAR, {"depth": 2}, "depth=2: "),
        (preact_resnet, CIFAR, {"width": -1}, "width=-1: "),
        (wide_resnet, CIFAR, {"depth": 26}, "depth=26: "),
        (wide_resnet, CIFAR, {"depth": 4}, "depth=4: "),
        (wide_resnet, CIFAR, {"widen_factor": 0}, "widen_factor=0: "),
        (wide_resnet, CIFAR, {"dropout": 1.0}, "dropout=1.0: "),
        (nin, CIFAR, {"dropout": -0.1}, "dropout=-0.1: "),
        (nin, CIFAR, {"dropout": math.nan}, "dropout=nan: "),
        (elu11, CIFAR, {"widen_factor": 0}, "widen_factor=0: "),
        (elu11, (3, 31, 40), {}, "at least 32"),
        (imagenet_resnet, CIFAR, {"depth": 20}, "depth=20: one of 18"),
        (imagenet_resnet, CIFAR, {"width": 0}, "width=0: "),
        (resnet9, CIFAR, {"width": 0}, "width=0: "),
        (resnet9, CIFAR, {"logit_scale": 0.0}, "logit_scale=0.0: "),
        (resnet9, (1, 7, 8), {}, "at least 8"),
        (dncnn, CIFAR, {"depth": 2}, "depth=2: "),
        (dncnn, CIFAR, {"width": 0}, "width=0: "),
        (dncnn, (1, 8, 8), {}, "asks for 2"),
        (unshuffle_convnet, CIFAR, {"width": 15}, "width=15: "),
        (unshuffle_convnet, CIFAR, {"num_blocks": 6}, "num_blocks=6: .* 64"),
        (unshuffle_convnet, CIFAR, {"num_blocks": 0}, "num_blocks=0: "),
        (unshuffle_convnet, CIFAR, {"layers_per_block": 0}, "layers_per_block=0: "),
        (unshuffle_convnet, CIFAR, {"kernel_size": 0}, "kernel_size=0: "),
        (mlp, (2,), {"widths": []}, "widths="),
    ],
)
def test_bad_options_are_named(backbone, input_shape, arguments, message):
    num_outputs = 3 if backbone is dncnn and input_shape == CIFAR else 2
    with pytest.raises(ValueError, match=message):
        backbone(BATCH, input_shape, num_outputs, **arguments)


@pytest.mark.parametrize(
    "backbone",
    [
        *[cifar_resnet, convnet, dncnn, elu11, imagenet_resnet, nin],
        *[preact_resnet, resnet9, unshuffle_convnet, wide_resnet],
    ],
)
def test_what_is_no_image_is_refused(backbone):
    with pytest.raises(ValueError, match=f"{backbone.__name__} takes images"):
        backbone(BATCH, (5,), 2)


def test_single_logit_needs_two_classes():
    with pytest.raises(ValueError, match=r"single_logit=True: .* 3$"):
        mlp(BATCH, (2,), 3, single_logit=True)


# --- Lipschitz bounds -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("layer", "exact"),
    [
        (nn.ZeroPad2d((0, 1, 2, 3)), 1.0),
        (nn.ZeroPad2d((-1, 1, 0, -1)), 1.0),
        (nn.PixelUnshuffle(2), 1.0),
        (nn.PixelShuffle(2), 1.0),
        (nn.AdaptiveMaxPool2d(1), 1.0),
        (nn.AdaptiveMaxPool2d(3), 1.0),
        (nn.AdaptiveMaxPool2d(6), 1.0),
        (nn.AdaptiveMaxPool2d((4, None)), math.sqrt(2)),
        (nn.AdaptiveMaxPool2d((4, 5)), 2.0),
        (nn.AdaptiveMaxPool2d((13, 6)), math.sqrt(3)),
    ],
    ids=str,
)
def test_rules_of_leaf_layers_are_sound_and_attained_by_a_single_bright_pixel(layer, exact):
    x, y = torch.randn(2, 500, 4, 6, 6)
    pixels = torch.eye(4 * 36).view(-1, 4, 6, 6)
    ratios = (layer(x) - layer(y)).flatten(1).norm(dim=1) / (x - y).flatten(1).norm(dim=1)
    attained = (layer(pixels) - layer(torch.zeros_like(pixels))).flatten(1).norm(dim=1)
    assert ratios.max() <= exact * (1 + 1e-12)
    assert attained.max() == pytest.approx(exact)
    assert lipschitz_bound(layer, (4, 6, 6)).total == pytest.approx(exact)


@pytest.mark.usefixtures("float64_on_one_thread")
@pytest.mark.parametrize(
    ("backbone", "input_shape", "arguments"),
    [
        (preact_resnet, (1, 6, 6), {"depth": 8, "width": 2}),
        (preact_resnet, (1, 6, 6), {"depth": 11, "width": 1, "bottleneck": True}),
        (resnet9, (1, 8, 8), {"width": 1}),
        (imagenet_resnet, (1, 16, 16), {"depth": 18, "width": 1}),
        (unshuffle_convnet, (2, 8, 4), {"width": 4, "num_blocks": 2, "layers_per_block": 2, "kernel_size": 2}),
    ],
)
@pytest.mark.parametrize("norm", [BatchNorm, no_output_norm])
def test_nothing_observed_exceeds_the_bound(backbone, input_shape, arguments, norm):
    net = backbone(LayerFactory(LeakyReLU, norm, no_weight_norm), input_shape, 3, **arguments)
    report = lipschitz_bound(net, input_shape)
    assert report.unbounded == ()
    assert 0 < lipschitz_lower(net, torch.randn(4, *input_shape)) <= report.total * (1 + 1e-8)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("kernel_size", [2, 4])
def test_bound_of_an_even_kernel_is_sound_and_nearly_exact(kernel_size):
    conv = PLAIN.conv(2, 2, kernel_size, bias=False)
    matrix = conv(torch.eye(2 * 36).view(-1, 2, 6, 6)).flatten(1).detach()
    truth = float(torch.linalg.matrix_norm(matrix, ord=2))
    assert truth <= lipschitz_bound(conv, (2, 6, 6)).total <= 1.4 * truth
