"""Convolutions that repeat pixels, against their matrices: every cut decides exactly, no estimate is trusted."""

import math
import random

import pytest
import torch
import torch.nn.functional as F

from tautnet.functional import operator_norm
from tautnet.functional import padded_norm as module
from tautnet.functional.operator_norm import conv_spectral_norm
from tautnet.functional.padded_norm import padded_spectral_norm

pytestmark = pytest.mark.usefixtures("float64_on_one_thread")

MODES = ["circular", "reflect", "replicate"]
CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
LARGEST = {1: (40, 7), 2: (9, 5), 3: (4, 3)}  # image, kernel


def random_setting(n, mode):
    """Arguments of ``conv_spectral_norm`` with uneven padding, up to far beyond the kernel; None without an output."""
    most_pixels, most_taps = LARGEST[n]
    groups = random.choice([1, 1, 2])
    size = [random.randint(1, most_pixels) for _ in range(n)]
    kernel = [random.randint(1, most_taps) for _ in range(n)]
    dilation = [random.randint(1, 3) for _ in range(n)]
    stride = [random.randint(1, 4) for _ in range(n)]
    widest = [{"reflect": image - 1, "circular": image, "replicate": 9}[mode] for image in size]
    padding = [(random.randint(0, most), random.randint(0, most)) for most in widest]
    if any(s + sum(p) <= d * (k - 1) for s, p, d, k in zip(size, padding, dilation, kernel, strict=True)):
        return None
    shape = groups * random.randint(1, 3), random.randint(1, 3), *kernel
    weight = torch.randn(shape) if random.random() < 0.6 else torch.randint(-1, 2, shape).double()
    return weight, size, stride, padding, dilation, groups, mode


def random_settings(seed, num, dims=(1, 2, 3)):
    random.seed(seed)
    drawn = (random_setting(random.choice(dims), random.choice(MODES)) for _ in range(num))
    return [setting for setting in drawn if setting]


def matrix_of(weight, size, stride, padding, dilation, groups, mode):
    channels = weight.shape[1] * groups
    num = channels * math.prod(size)
    x = torch.eye(num).view(num, channels, *size)
    for axis, widths in enumerate(padding):
        lines = x.movedim(2 + axis, -1)
        padded = F.pad(lines.flatten(1, -2), widths, mode=mode)
        x = padded.reshape(*lines.shape[:-1], -1).movedim(-1, 2 + axis)
    return CONV[len(size)](x, weight, None, stride, 0, dilation, groups).flatten(1).T


def truth_of(*setting):
    return float(torch.linalg.matrix_norm(matrix_of(*setting), ord=2))


def known_of(*setting):
    """The bound that takes copies for pixels of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(operator_norm, "padded_spectral_norm", lambda *_, known: known)
        return conv_spectral_norm(*setting)


# --- never violated, and tight ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("decomposed", "block"), [(256, 64), (0, 64), (0, 1), (0, 9)])
def test_bound_is_the_norm_of_the_matrix(decomposed, block, monkeypatch):
    monkeypatch.setattr(module, "_MOST_DECOMPOSED", decomposed)
    monkeypatch.setattr(module, "_LEAST_BLOCK", block)
    settings = random_settings(f"{decomposed} {block}", 150)
    assert len(settings) > 100
    for setting in settings:
        truth, known = truth_of(*setting), known_of(*setting)
        bound = padded_spectral_norm(*setting, known=known)
        assert truth <= bound <= known, setting
        assert bound <= 1.00101 * truth + 1e-4 * known * (truth < 1e-3 * known), setting


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_lines_of_64_points(mode, stride):
    for kernel, before, after, dilation in [(3, 1, 1, 1), (4, 1, 2, 1), (5, 4, 0, 2), (2, 20, 31, 1), (3, 1, 1, 9)]:
        setting = torch.randn(4, 5, kernel), [64], [stride], [(before, after)], [dilation], 1, mode
        truth = truth_of(*setting)
        bound = conv_spectral_norm(*setting)
        assert truth <= bound
        if mode != "circular":  # where nothing is copied, its strides may be bounded by the convolution without
            assert bound <= 1.01 * truth


@pytest.mark.parametrize("mode", ["reflect", "replicate"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels", [(3, 4), (4, 3)])
def test_images_of_12_x_7(mode, stride, channels):
    for size in [(12, 7), (7, 12)]:
        setting = torch.randn(*channels, 3, 3), size, [stride] * 2, [(1, 1)] * 2, [1, 1], 1, mode
        truth = truth_of(*setting)
        assert truth <= conv_spectral_norm(*setting) <= 1.00101 * truth < known_of(*setting)


def test_every_cut_decides_exactly():
    """Just above the norm there is a factor, just below there is none, whatever axis and product is taken."""
    for setting in random_settings("cuts", 60, dims=(1, 2)):
        weight, size, stride, padding, dilation, groups, mode = setting
        truth, known = truth_of(*setting), known_of(*setting)
        if truth <= 1e-3 * known:
            continue
        kernel_GOI = weight.view(groups, -1, *weight.shape[1:])
        lines = zip(weight.shape[2:], size, stride, padding, dilation, strict=True)
        axes = [module._sources(*line, mode) for line in lines]
        for cut in module._cuts(kernel_GOI, axes, size):
            matrices = module._line_matrices(kernel_GOI, axes, size, cut)
            blocks = module._blocks(matrices, cut)
            assert module._is_below(blocks, cut, (truth * (1 + 1e-9)) ** 2), (setting, cut)
            assert not module._is_below(blocks, cut, (truth * (1 - 1e-9)) ** 2), (setting, cut)
            assert module._estimate(matrices, cut) <= truth * (1 + 1e-12)


# --- exact values -----------------------------------------------------------------------------------------------------


def test_one_pixel_replicated_is_the_sum_of_the_taps():
    assert conv_spectral_norm(torch.tensor([[[1.0, 2.0, 3.0]]]), [1], [1], [(1, 1)], [1], 1, "replicate") == (
        pytest.approx(6, rel=1e-9)
    )


def test_two_pixels_reflected():
    """Rows (0, 1), (1, 0), (0, 1), (1, 0) of a kernel of one tap: two copies of either."""
    setting = torch.ones(1, 1, 1), [2], [1], [(1, 1)], [1], 1, "reflect"
    assert conv_spectral_norm(*setting) == pytest.approx(2**0.5, rel=1e-9)


def test_the_ends_of_a_difference_are_free():
    """x_i - x_{i-1} over a replicated line of n: 0 at the ends, the path's Laplacian, 2 cos(pi / 2n)."""
    for n in (3, 12, 300):
        bound = conv_spectral_norm(torch.tensor([[[-1.0, 1.0]]]), [n], [1], [(1, 1)], [1], 1, "replicate")
        truth = 2 * math.cos(math.pi / (2 * n))
        assert truth <= bound <= 1.00101 * truth


def test_taps_that_cancel_in_a_pixel_are_allowed_for():
    kernel = [0.1, 0.2, -0.3]
    exact = abs(math.fsum(kernel))  # of the numbers that stand for them: 2.8e-17; rounded sums may give 0 or twice it
    bound = conv_spectral_norm(torch.tensor([[kernel]]), [1], [1], [(1, 1)], [1], 1, "replicate")
    assert exact <= bound <= 1e-4


def test_a_large_map_whose_taps_cancel():
    setting = torch.tensor([[[1.0, -1.0]]]).expand(300, 1, 2).contiguous(), [1], [1], [(1, 1)], [1], 1, "replicate"
    setting_of_rows = setting[0].transpose(0, 1).contiguous(), *setting[1:]
    for each in (setting, setting_of_rows):
        assert 0 <= conv_spectral_norm(*each) <= 1e-2 * known_of(*each)


def test_groups_give_the_largest_of_their_norms():
    weight = torch.randn(6, 2, 3, 3)
    weight[2:4] *= 3
    rest = [8, 9], [1, 1], [(1, 1)] * 2, [1, 1]
    alone = [conv_spectral_norm(part, *rest, 1, "reflect") for part in weight.split(2)]
    assert conv_spectral_norm(weight, *rest, 3, "reflect") == pytest.approx(max(alone), rel=2e-3)


# --- no estimate is trusted -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [0.0, 1e-3, 0.5, 0.9, 0.99, 1.5, 10.0])
def test_a_wrong_estimate_cannot_break_the_bound(wrong, monkeypatch):
    monkeypatch.setattr(module, "_MOST_DECOMPOSED", 0)
    lanczos = module._lanczos
    monkeypatch.setattr(module, "_lanczos", lambda *arguments: wrong**2 * lanczos(*arguments))
    for mode in ("reflect", "replicate"):
        setting = torch.randn(3, 2, 3, 3), [9, 8], [1, 1], [(1, 1)] * 2, [1, 1], 1, mode
        truth, known = truth_of(*setting), known_of(*setting)
        bound = conv_spectral_norm(*setting)
        assert truth <= bound <= known
        if wrong in (0.9, 0.99):
            assert bound <= 1.3 * truth
        if wrong in (0.0, 10.0):
            assert bound == pytest.approx(known, rel=1e-12)


@pytest.mark.parametrize(("name", "value"), [("_MOST_OPERATIONS", 0), ("_MOST_NUMBERS", 0)])
def test_what_costs_too_much_keeps_the_known_bound(name, value, monkeypatch):
    setting = torch.randn(3, 2, 3, 3), [9, 8], [1, 1], [(1, 1)] * 2, [1, 1], 1, "reflect"
    known = known_of(*setting)
    assert conv_spectral_norm(*setting) < 0.9 * known
    monkeypatch.setattr(module, name, value)
    assert conv_spectral_norm(*setting) == known


def test_long_lines_keep_the_known_bound():
    setting = torch.randn(1, 1, 5), [10**6], [1], [(2, 2)], [1], 1, "reflect"
    assert conv_spectral_norm(*setting) == known_of(*setting)
