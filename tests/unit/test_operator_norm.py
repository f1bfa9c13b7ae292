"""Spectral norms of convolutions against their matrices: every dimension, padding mode, stride; tightness; cost."""

import math
import random

import pytest
import torch
from torch import nn

from tautnet.functional import operator_norm as module
from tautnet.functional.eigenvalues import largest_in_batch
from tautnet.functional.operator_norm import conv_spectral_norm, spectral_norm

pytestmark = pytest.mark.usefixtures("float64_on_one_thread")

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
MODES = ["zeros", "circular", "reflect", "replicate"]
LARGEST = {1: (12, 5, 3), 2: (5, 5, 2), 3: (3, 3, 2)}  # image, kernel, dilation


def matrix_of(conv, *input_shape):
    size = math.prod(input_shape)
    with torch.no_grad():
        return conv(torch.eye(size).view(size, *input_shape)).flatten(1).T


def truth_of(conv, *size):
    return float(torch.linalg.matrix_norm(matrix_of(conv, conv.in_channels, *size), ord=2))


def bound_of(conv, *size):
    if conv.padding == "same":
        totals = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        padding = [(total // 2, total - total // 2) for total in totals]
    else:
        padding = [(p, p) for p in conv.padding]
    settings = (conv.stride, padding, conv.dilation, conv.groups, conv.padding_mode)
    return conv_spectral_norm(conv.weight, size, *settings)


def conv(*arguments, weight=None, **settings):
    """A 1-d convolution without bias, with the given taps."""
    layer = nn.Conv1d(*arguments, bias=False, **settings)
    if weight is not None:
        with torch.no_grad():
            layer.weight.copy_(torch.tensor(weight).view_as(layer.weight))
    return layer


def random_layer(n, mode):
    """A convolution and an image; None if nothing would come out."""
    most_pixels, most_taps, most_dilation = LARGEST[n]
    groups = random.choice([1, 1, 2])
    size = [random.randint(1, most_pixels) for _ in range(n)]
    kernel = [random.randint(1, most_taps) for _ in range(n)]
    dilation = [random.randint(1, most_dilation) for _ in range(n)]
    stride = [random.randint(1, 3) for _ in range(n)]
    padding = [random.randint(0, 5 if mode == "zeros" else max(0, image - 1)) for image in size]
    if any(s + 2 * p <= d * (k - 1) for s, p, d, k in zip(size, padding, dilation, kernel, strict=True)):
        return None
    channels = [groups * random.randint(1, 2) for _ in range(2)]
    layer = CONV[n](*channels, kernel, stride, padding, dilation, groups, bias=False, padding_mode=mode)
    with torch.no_grad():
        kind = random.randrange(4)
        if kind == 0:
            layer.weight.normal_()
        elif kind == 1:
            layer.weight.fill_(1)
        elif kind == 2:
            layer.weight.copy_(torch.randint(-1, 2, layer.weight.shape))
        else:
            layer.weight.copy_((-1.0) ** torch.arange(layer.weight.numel()).view_as(layer.weight))
    return layer, size


# --- never violated ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("n", [1, 2, 3])
def test_bound_is_never_below_the_norm_of_the_matrix(n, mode):
    random.seed(f"{n} {mode}")
    cases = [case for case in (random_layer(n, mode) for _ in range(300)) if case]
    assert len(cases) > 30
    for layer, size in cases:
        assert bound_of(layer, *size) >= truth_of(layer, *size), (layer, size)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kernel", [2, 3, 4, (2, 5)])
@pytest.mark.parametrize("dilation", [1, 2])
def test_bound_holds_for_padding_that_keeps_the_size(kernel, mode, dilation):
    with torch.no_grad():
        layer = nn.Conv2d(2, 3, kernel, padding="same", dilation=dilation, padding_mode=mode, bias=False)
    for size in [(5, 6), (7, 9)]:
        truth = truth_of(layer, *size)
        assert truth <= bound_of(layer, *size)
        if mode == "circular":
            assert bound_of(layer, *size) == pytest.approx(truth, rel=1e-9)


@pytest.mark.parametrize("points", [4, 8])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [2, 3, 5])
def test_a_coarse_grid_still_bounds(points, stride, kernel, monkeypatch):
    monkeypatch.setattr(module, "_LEAST_FREQUENCIES", points)
    monkeypatch.setattr(module, "_MOST_FREQUENCIES", points)
    for _ in range(20):
        layer = conv(2, 2, kernel, stride=stride, padding=kernel // 2)
        truth = truth_of(layer, 80)
        assert truth <= bound_of(layer, 80) <= 1.12 * truth


def test_the_allowance_between_frequencies_is_needed(monkeypatch):
    """|1 - e^{2iw}| = 2 |sin w| peaks at pi / 2, midway between two points of a grid of 10."""
    monkeypatch.setattr(module, "_MOST_FREQUENCIES", 10)
    monkeypatch.setattr(module, "_LEAST_FREQUENCIES", 10)
    assert bound_of(conv(1, 1, 3, padding=1, weight=[1.0, 0.0, -1.0]), 1000) == pytest.approx(2, rel=1e-9)


# --- exact values -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("padding", "truth"), [(0, 2 * math.cos(math.pi / 6)), (1, 2 * math.cos(math.pi / 8))])
def test_difference_of_neighbours_on_three_pixels(padding, truth):
    """Padded, rows make the difference matrix of a path with fixed ends: 1.848, above 1.732, the circular norm."""
    layer = conv(1, 1, 2, padding=padding, weight=[1.0, -1.0])
    assert truth_of(layer, 3) == pytest.approx(truth)
    assert truth <= bound_of(layer, 3) <= 2 + 1e-9


@pytest.mark.parametrize(("kernel", "stride", "dilation"), [(3, 1, 1), (4, 2, 1), (3, 2, 2), (5, 3, 1), (2, 1, 5)])
@pytest.mark.parametrize("channels", [(1, 1), (2, 5), (5, 2)])
def test_circular_padding_that_keeps_the_positions_is_exact(kernel, stride, dilation, channels):
    before = dilation * (kernel - 1) // 2
    image = 6 * stride
    after = (6 - 1) * stride + dilation * (kernel - 1) + 1 - image - before
    weight = torch.randn(*channels[::-1], kernel)
    x = torch.eye(channels[0] * image).view(-1, channels[0], image)
    padded = nn.functional.pad(x, (before, max(after, 0)), mode="circular")
    matrix = nn.functional.conv1d(padded, weight, stride=stride, dilation=dilation)[..., :6].flatten(1)
    bound = conv_spectral_norm(weight, [image], [stride], [(before, max(after, 0))], [dilation], 1, "circular")
    assert bound == pytest.approx(float(torch.linalg.matrix_norm(matrix, ord=2)), rel=1e-9)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_disjoint_windows_are_exact(n, size):
    layer = CONV[n](2, 3, size, stride=size, bias=False)
    assert bound_of(layer, *[3 * size] * n) == pytest.approx(
        float(torch.linalg.svdvals(layer.weight.detach().flatten(1))[0])
    )


def test_taps_that_only_read_padding_do_not_count():
    layer = conv(1, 1, 5, padding=2, weight=[100.0, 100.0, 3.0, 100.0, 100.0])
    assert bound_of(layer, 1) == pytest.approx(3)
    assert bound_of(conv(1, 1, 1, stride=2, padding=1), 1) >= 0


def test_a_kernel_that_sees_no_pixel_has_norm_zero():
    layer = conv(1, 1, 2, padding=1, dilation=2)  # its only output reads both sides of the one pixel
    assert truth_of(layer, 1) == 0
    assert bound_of(layer, 1) == 0


@pytest.mark.parametrize(("mode", "copies"), [("replicate", 3), ("reflect", 2), ("circular", 2)])
def test_copied_pixels_add_up(mode, copies):
    layer = conv(1, 1, 1, padding=2, padding_mode=mode, weight=[1.0])
    assert truth_of(layer, 6) == pytest.approx(copies**0.5)
    assert bound_of(layer, 6) == pytest.approx(copies**0.5)


def test_groups_give_the_largest_of_their_norms():
    layer = nn.Conv2d(4, 6, 3, padding=1, groups=2, bias=False)
    alone = [
        conv_spectral_norm(half, (5, 5), (1, 1), [(1, 1)] * 2, (1, 1), 1, "zeros") for half in layer.weight.chunk(2)
    ]
    assert bound_of(layer, 5, 5) == pytest.approx(max(alone), rel=1e-12)


@pytest.mark.parametrize("scale", [1e-150, 1e-30, 1e30, 1e150])
def test_scale_passes_through(scale):
    layer = nn.Conv2d(3, 2, 3, padding=1, bias=False)
    before = bound_of(layer, 6, 6)
    with torch.no_grad():
        layer.weight.mul_(scale)
    assert bound_of(layer, 6, 6) == pytest.approx(scale * before, rel=1e-12)


def test_zeros_infinities_and_unknown_modes():
    layer = nn.Conv2d(2, 2, 3)
    nn.init.zeros_(layer.weight)
    assert bound_of(layer, 4, 4) == 0
    for value in (math.inf, math.nan):
        nn.init.constant_(layer.weight, value)
        assert bound_of(layer, 4, 4) == math.inf
        assert spectral_norm(layer.weight.flatten(1)) == math.inf
    with pytest.raises(ValueError, match=r"^padding_mode=mirror: one of zeros, circular, reflect, replicate"):
        conv_spectral_norm(torch.ones(1, 1, 3), [4], [1], [(0, 0)], [1], 1, "mirror")


def test_the_weight_may_ask_for_gradients_and_be_of_any_type():
    layer = nn.Conv1d(2, 3, 3, padding=1)
    exact = bound_of(layer, 8)
    assert bound_of(layer.to(torch.float32), 8) == pytest.approx(exact, rel=1e-6)


# --- tight ------------------------------------------------------------------------------------------------------------


def power_iteration(layer, *input_shape):
    """From below, on the layer itself and its transpose."""
    x = torch.randn(1, *input_shape)
    for _ in range(300):
        x = (x / x.norm()).requires_grad_()
        y = layer(x)
        norm, x = y.detach().norm(), torch.autograd.grad(y, x, y.detach())[0]
    return float(norm)


@pytest.mark.parametrize(("mode", "kernel"), [("zeros", 4), *((mode, kernel) for mode in MODES for kernel in (3, 5))])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels", [(1, 1), (3, 2), (2, 3)])
def test_lines_of_32_points_are_bounded_within_5_percent(mode, stride, kernel, channels):
    layer = conv(*channels, kernel, stride=stride, padding=(kernel - 1) // 2, padding_mode=mode)
    truth = truth_of(layer, 32)
    assert truth <= bound_of(layer, 32) <= 1.05 * truth


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("stride", [1, 2])
def test_images_of_32_x_32_are_bounded_within_5_percent(mode, stride):
    layer = nn.Conv2d(3, 4, 3, stride, padding=1, padding_mode=mode, bias=False)
    lower = power_iteration(layer, 3, 32, 32)
    assert lower <= bound_of(layer, 32, 32) <= 1.05 * lower


def test_a_stride_is_not_bounded_by_the_convolution_without():
    layer = nn.Conv2d(3, 4, 3, 2, padding=1, bias=False)
    with_stride = bound_of(layer, 16, 16)
    layer.stride = (1, 1)
    assert with_stride < 0.95 * bound_of(layer, 16, 16)


# --- few decompositions -----------------------------------------------------------------------------------------------


def largest_eigenvalues(batch):
    return torch.linalg.eigvalsh(batch)[:, -1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("num_columns", [1, 3, 6])  # of rank one: estimates may be far off
def test_the_largest_of_a_batch_is_found(dtype, num_columns):
    for size in (1, 2, 50):
        factors = torch.randn(size, 6, num_columns, dtype=dtype)
        batch = factors @ factors.mH
        values = largest_eigenvalues(batch)
        largest, index = largest_in_batch(batch, largest_eigenvalues)
        assert largest == pytest.approx(float(values.max()), rel=1e-12)
        assert index == int(values.argmax())
        assert largest_in_batch(batch, largest_eigenvalues, 2 * largest) == (2 * largest, None)
        assert largest_in_batch(batch, largest_eigenvalues, 0.5 * largest)[1] == index


def test_few_matrices_are_looked_at_closely():
    seen = []

    def close(batch):
        seen.append(len(batch))
        return largest_eigenvalues(batch)

    factors = torch.randn(200, 8, 8)
    largest_in_batch(factors @ factors.mT, close)
    assert sum(seen) <= 20


def test_equal_matrices_and_zeros_end():
    batch = torch.eye(3).expand(40, 3, 3)
    assert largest_in_batch(batch, largest_eigenvalues)[0] == pytest.approx(1)
    assert largest_in_batch(0 * batch, largest_eigenvalues)[0] == 0


def test_blocks_of_frequencies_change_nothing(monkeypatch):
    layer = nn.Conv2d(3, 4, 3, padding=1, groups=1)
    whole = bound_of(layer, 9, 9)
    monkeypatch.setattr(module, "_BLOCK", 40)
    assert bound_of(layer, 9, 9) == pytest.approx(whole, rel=1e-12)
