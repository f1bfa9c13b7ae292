"""Constants of dense and convolutional layers against their matrices, written out."""

from itertools import product
from math import inf

import pytest
import torch
from jacobians import EXPONENTS, constant, leaf_of, matrix, norms
from torch import nn
from torch.nn.utils import parametrizations

from tautnet.lipschitz.linear_maps import is_linear_map, linear_constant
from tautnet.lipschitz.rules import Unbounded, leaf_constant

pytestmark = pytest.mark.usefixtures("float64_on_one_thread")

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
SIZES = ((7,), (5, 4), (4, 3, 3))


def check(layer, *shape, sums_are_exact=True):
    """The constants of a layer, and of the layer between random diagonals, are not below the matrix's norms."""
    leaf, weights = leaf_of(layer, *shape), matrix(layer, *shape)
    rows = torch.randn(leaf.output_shape[0])
    columns = torch.randn(shape[0])
    diagonal = [f.repeat_interleave(n) for f, n in zip((rows, columns), blocks(leaf), strict=True)]
    scaled = diagonal[0][:, None] * weights * diagonal[1]
    for p in EXPONENTS:
        truth, between = float(norms(weights, p)), float(norms(scaled, p))
        assert leaf_constant(leaf, p) >= truth
        assert linear_constant(leaf, p, rows, columns) >= between
        if sums_are_exact and p != 2:
            assert leaf_constant(leaf, p) == pytest.approx(truth, rel=1e-9)
            assert linear_constant(leaf, p, rows, columns) == pytest.approx(between, rel=1e-9)


def blocks(leaf):
    """Values a channel behind and in front."""
    return [torch.Size(shape[1:]).numel() for shape in (leaf.output_shape, leaf.input_shape)]


# --- dense ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (1, 4), (4, 1)])
def test_dense(shape):
    layer = nn.Linear(*shape)
    check(layer, shape[0])
    assert is_linear_map(leaf_of(layer, shape[0]))
    assert constant(layer, 2, shape[0]) == pytest.approx(float(norms(layer.weight.detach(), 2)), rel=1e-9)


def test_dense_on_a_table_is_one_block_many_times_and_folds_no_channel_factor():
    layer = nn.Linear(4, 3)
    weights = matrix(layer, 2, 5, 4)
    for p in EXPONENTS:
        assert constant(layer, p, 2, 5, 4) == pytest.approx(float(norms(weights, p)), rel=1e-9)
    assert not is_linear_map(leaf_of(layer, 2, 5, 4))


def test_factors_that_are_the_same_for_all_channels():
    leaf, half = leaf_of(nn.Conv1d(2, 3, 2), 2, 5), torch.full((1,), 0.5)
    for p in EXPONENTS:
        assert linear_constant(leaf, p, half, -half) == pytest.approx(leaf_constant(leaf, p) / 4)


# --- convolutions -----------------------------------------------------------------------------------------------------

SETTINGS = [
    {"padding": padding} | rest
    for padding in (0, 1, 2)
    for rest in ({}, {"stride": 2}, {"dilation": 2}, {"groups": 2}, {"stride": 3, "groups": 2, "dilation": 2})
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("kernel", [1, 2, 3])
def test_convolutions(settings, kernel):
    for (inputs, outputs), (conv, size) in product([(2, 4), (4, 2)], zip(CONVS, SIZES, strict=True)):
        if (min(size) + 2 * settings["padding"]) <= settings.get("dilation", 1) * (kernel - 1) or (
            len(size) == 3 and inputs == 4
        ):
            continue  # no output, or more of the same
        check(conv(inputs, outputs, kernel, **settings), inputs, *size)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("kernel", [2, 3, 4])
@pytest.mark.parametrize("mode", ["zeros", "circular", "replicate", "reflect"])
def test_padding_by_name(padding, kernel, mode):
    for conv, size in zip(CONVS[:2], SIZES, strict=False):
        layer = conv(2, 3, kernel, padding=padding, padding_mode=mode)
        check(layer, 2, *size, sums_are_exact=mode == "zeros" or padding == "valid")


@pytest.mark.parametrize("mode", ["circular", "replicate", "reflect"])
@pytest.mark.parametrize("settings", [{}, {"stride": 2}, {"dilation": 2}, {"groups": 2}], ids=str)
@pytest.mark.parametrize("padding", [1, 2])
def test_padding_modes(mode, settings, padding):
    for conv, size in zip(CONVS, SIZES, strict=True):
        check(conv(2, 2, 3, padding=padding, padding_mode=mode, **settings), 2, *size, sums_are_exact=False)


def test_copied_pixels_count_as_often_as_they_are_read():
    """The matrix is ((2, 1), (1, 2)): both rows read one pixel twice."""
    layer = nn.Conv1d(1, 1, 3, padding=1, padding_mode="replicate", bias=False)
    nn.init.ones_(layer.weight)
    truth = matrix(layer, 1, 2)
    assert truth.tolist() == [[2, 1], [1, 2]]
    assert constant(layer, 1, 1, 2) == constant(layer, inf, 1, 2) == pytest.approx(3)
    assert constant(layer, 2, 1, 2) >= 3


def test_rectangular_settings():
    check(nn.Conv2d(2, 2, (3, 2), stride=(1, 2), padding=(2, 0), dilation=(1, 3)), 2, 4, 5)
    check(nn.ConvTranspose2d(2, 2, (3, 2), stride=(1, 3), padding=(1, 0), output_padding=(0, 2)), 2, 4, 3)


@pytest.mark.parametrize(
    "settings",
    [
        *({}, {"stride": 2}, {"stride": 3, "padding": 1}, {"padding": 2}, {"dilation": 2}, {"groups": 2}),
        *({"stride": 2, "output_padding": 1}, {"stride": 3, "output_padding": 2, "padding": 1, "groups": 2}),
        {"dilation": 3, "output_padding": 2, "padding": 1},  # more output padding than the stride
    ],
    ids=str,
)
@pytest.mark.parametrize("kernel", [1, 2, 3])
def test_transposed_convolutions(settings, kernel):
    for (inputs, outputs), (conv, size) in product(
        [(2, 4), (4, 2)], zip(TRANSPOSED, ((5,), (3, 4), (2, 2, 3)), strict=True)
    ):
        layer = conv(inputs, outputs, kernel, **settings)
        lengths = [(n - 1) * layer.stride[0] - 2 * layer.padding[0] + layer.dilation[0] * (kernel - 1) for n in size]
        if min(lengths) + layer.output_padding[0] < 0 or (len(size) == 3 and inputs == 4):
            continue
        check(layer, inputs, *size)
        if (
            settings.get("stride", 1) == 1
            and settings.get("groups", 1) == 1
            and kernel == 1
            and "padding" not in settings
        ):
            truth = float(norms(matrix(layer, inputs, *size), 2))
            assert constant(layer, 2, inputs, *size) == pytest.approx(truth, rel=1e-9)


def test_unbatched_convolution_is_bounded_but_not_folded():
    layer = nn.Conv1d(1, 3, 2)
    leaf = leaf_of(layer, 5)  # one sample (5,) enters as one channel
    assert not is_linear_map(leaf)
    assert leaf_constant(leaf, 2) >= float(norms(matrix(layer, 5), 2))


@pytest.mark.parametrize("made", [nn.Linear, nn.Conv2d, nn.ConvTranspose2d])
@pytest.mark.parametrize("norm", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_parametrised_weights_are_looked_through(made, norm):
    layer, shape = (made(4, 3), (4,)) if made is nn.Linear else (made(4, 2, 3), (4, 4, 3))
    layer = norm(layer).eval()
    assert is_linear_map(leaf_of(layer, *shape))
    check(layer, *shape)


def test_float32_and_gradients_of_weights_change_nothing():
    layer = nn.Conv2d(2, 3, 3, padding=1).float()
    for p in EXPONENTS:
        assert constant(layer, p, 2, 4, 4) == constant(layer.double(), p, 2, 4, 4)
        layer.float()
    with torch.inference_mode():
        assert constant(nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"), 1, 1, 4, 4) > 0
    assert layer.weight.grad is None


@pytest.mark.parametrize("value", [inf, -inf, float("nan")])
@pytest.mark.parametrize("p", EXPONENTS)
def test_weights_that_are_not_finite_have_no_constant(value, p):
    for layer, shape in ((nn.Linear(2, 2), (2,)), (nn.Conv1d(2, 2, 2), (2, 3)), (nn.ConvTranspose1d(2, 2, 2), (2, 3))):
        nn.init.constant_(layer.weight, value)
        assert constant(layer, p, *shape) == inf
    assert linear_constant(leaf_of(nn.Linear(2, 2), 2), p, torch.tensor([value, 0.0])) == inf


def test_complex_weights_are_refused():
    for p in EXPONENTS:
        with pytest.raises(Unbounded, match="complex"):
            leaf_constant(leaf_of(nn.Linear(2, 2, dtype=torch.complex128), 2), p)


def test_other_layers_and_unknown_ones_are_no_linear_maps():
    hooked = nn.Linear(2, 2)
    hooked.register_forward_hook(lambda module, inputs, outputs: 3 * outputs)
    for layer in (nn.ReLU(), nn.BatchNorm1d(2), hooked):
        assert not is_linear_map(leaf_of(layer, 2))
