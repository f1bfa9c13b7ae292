"""Constants of layers that pool, pad, copy or rearrange, against matrices and Jacobians."""

from math import inf, sqrt

import pytest
import torch
from jacobians import EXPONENTS, constant, jacobians, leaf_of, matrix, norms
from torch import nn

from tautnet.lipschitz.pooling import ONE_SIGNED
from tautnet.lipschitz.rules import Unbounded, leaf_constant
from tautnet.lipschitz.structure import Leaf

pytestmark = pytest.mark.usefixtures("float64_on_one_thread")

LINE, IMAGE, VOLUME = (2, 7), (2, 6, 7), (2, 4, 3, 5)
CROP = (-1, 2, 1, -2)

AVERAGES = [
    *((nn.AvgPool1d(3, 2, 1), LINE), (nn.AvgPool1d(2), LINE), (nn.AvgPool1d((3,), stride=(1,)), LINE)),
    *((nn.AvgPool2d(2), IMAGE), (nn.AvgPool2d((2, 3)), IMAGE), (nn.AvgPool2d(6), IMAGE), (nn.AvgPool2d(1), IMAGE)),
    *((nn.AvgPool2d(2, stride=3), IMAGE), (nn.AvgPool2d(3, stride=1), IMAGE), (nn.AvgPool2d(3, 1, 1), IMAGE)),
    *((nn.AvgPool2d(3, 2, 1), IMAGE), (nn.AvgPool2d((3, 2), stride=(1, 2), padding=(1, 0)), IMAGE)),
    *((nn.AvgPool2d(4, stride=3, ceil_mode=True), IMAGE), (nn.AvgPool2d(3, 2, 1, ceil_mode=True), IMAGE)),
    *((nn.AvgPool2d(3, padding=1, count_include_pad=False), IMAGE), (nn.AvgPool2d(2, divisor_override=1), IMAGE)),
    *((nn.AvgPool2d(3, 1, 1, True, False), IMAGE), (nn.AvgPool2d(3, 2, divisor_override=-2), IMAGE)),
    *((nn.AvgPool3d(2), VOLUME), (nn.AvgPool3d(2, 1, 1, True, False), VOLUME)),
    *((nn.AdaptiveAvgPool1d(3), LINE), (nn.AdaptiveAvgPool1d(9), LINE), (nn.AdaptiveAvgPool2d(1), IMAGE)),
    *(
        (nn.AdaptiveAvgPool2d(4), IMAGE),
        (nn.AdaptiveAvgPool2d((2, 3)), IMAGE),
        (nn.AdaptiveAvgPool2d((None, 2)), IMAGE),
    ),
    *(
        (nn.AdaptiveAvgPool2d(9), IMAGE),
        (nn.AdaptiveAvgPool3d(2), VOLUME),
        (nn.AdaptiveAvgPool3d((3, 5, None)), VOLUME),
    ),
]
COPIES = [
    *((nn.ZeroPad1d(2), LINE), (nn.ZeroPad2d(CROP), IMAGE), (nn.ZeroPad3d(1), VOLUME)),
    *((nn.ConstantPad1d(2, 3.5), LINE), (nn.ConstantPad2d(CROP, -1e9), IMAGE), (nn.ConstantPad3d(1, 0.1), VOLUME)),
    *((nn.ReflectionPad1d((3, 1)), LINE), (nn.ReflectionPad2d((2, 1, 0, 5)), IMAGE), (nn.ReflectionPad3d(1), VOLUME)),
    *((nn.ReplicationPad1d(2), LINE), (nn.ReplicationPad2d((1, 0, 2, 3)), IMAGE), (nn.ReplicationPad3d(1), VOLUME)),
    *((nn.CircularPad1d(4), LINE), (nn.CircularPad2d((1, 2, 3, 0)), IMAGE), (nn.CircularPad3d(2), VOLUME)),
    *((nn.UpsamplingNearest2d(scale_factor=2), IMAGE), (nn.Upsample(size=(9, 11)), IMAGE)),
    *((nn.Upsample(scale_factor=1.7), LINE), (nn.Upsample(scale_factor=2, mode="nearest-exact"), VOLUME)),
    *((nn.Upsample(scale_factor=1.09), LINE), (nn.Upsample(scale_factor=(2.3, 0.7, 1.36)), VOLUME)),
    *((nn.Unfold(3), IMAGE), (nn.Unfold((2, 3), dilation=2, padding=1, stride=(1, 2)), IMAGE)),
    *((nn.Fold((5, 5), 2, stride=1), (8, 16)), (nn.Fold((6, 4), (3, 2), padding=1, stride=(2, 1)), (6, 15))),
    *((nn.Flatten(), IMAGE), (nn.Unflatten(1, (2, 3)), (6, 4)), (nn.PixelShuffle(2), (4, 3, 2))),
    *((nn.PixelUnshuffle(2), (1, 4, 6)), (nn.ChannelShuffle(2), (4, 3, 3))),
]
INTERPOLATIONS = [
    (nn.UpsamplingBilinear2d(scale_factor=2), IMAGE),
    *[
        (nn.Upsample(scale_factor=factor, mode=mode, align_corners=align), shape)
        for mode, shape in (("linear", LINE), ("bilinear", IMAGE), ("trilinear", VOLUME))
        for factor in (0.6, 2)
        for align in (False, True)
    ],
    (nn.Upsample(size=(4, 9), mode="area"), IMAGE),
]
SLACK = {"copies": 1e-9, "averages": 0.12, "interpolations": 0.12}  # of p = 2


@pytest.mark.parametrize(
    ("layer", "shape", "kind"),
    [
        *[(*case, "averages") for case in AVERAGES],
        *[(*case, "copies") for case in COPIES],
        *[(*case, "interpolations") for case in INTERPOLATIONS],
    ],
    ids=str,
)
def test_linear_maps_with_entries_of_one_sign(layer, shape, kind):
    weights, leaf = matrix(layer, *shape), leaf_of(layer, *shape)
    for p in (1, inf):
        assert leaf_constant(leaf, p) == pytest.approx(float(norms(weights, p)), rel=2e-9)
        assert leaf_constant(leaf, p) >= float(norms(weights, p)) * (1 - 1e-12)
    truth = float(norms(weights, 2))
    overlapping_sums = isinstance(layer, nn.Fold)
    assert (
        truth
        <= leaf_constant(leaf, 2)
        <= truth * (1 + (0 if overlapping_sums else SLACK[kind]) + 0.12 * overlapping_sums)
    )


def test_every_type_by_matrix_is_looked_at():
    looked_at = {type(layer) for layer, _shape in AVERAGES + COPIES + INTERPOLATIONS}
    assert set(ONE_SIGNED) <= looked_at


@pytest.mark.parametrize("layer", [nn.AvgPool2d(2), nn.AvgPool2d((2, 3)), nn.AvgPool2d(2, 3), nn.AdaptiveAvgPool2d(1)])
def test_disjoint_windows_are_exact(layer):
    truth = float(norms(matrix(layer, 1, 6, 6), 2))
    assert constant(layer, 2, 1, 6, 6) == pytest.approx(truth, rel=1e-9)


def test_adaptive_windows_that_overlap_are_exact():
    """Windows {0, 1} and {1, 2} of three positions: A A^T is ((1/2, 1/4), (1/4, 1/2))."""
    assert constant(nn.AdaptiveAvgPool1d(2), 2, 1, 3) == pytest.approx(sqrt(0.75), rel=1e-6)


def test_a_map_of_zeros():
    layer = nn.ZeroPad1d((-2, 3))  # nothing of the image is left
    for p in EXPONENTS:
        assert constant(layer, p, 1, 2) == 0


def test_windows_in_the_padding_alone_are_refused():
    layer = nn.MaxPool1d(2, padding=1, dilation=3)
    leaf = Leaf("", layer, (1, 2), (1, 1))  # positions -1 and 2 of two; torch reads beyond the image there
    for p in EXPONENTS:
        with pytest.raises(Unbounded, match="padding"):
            leaf_constant(leaf, p)


def test_bicubic_interpolation_is_refused():
    with pytest.raises(Unbounded, match="bicubic"):
        constant(nn.Upsample(scale_factor=2, mode="bicubic"), 2, 1, 4, 4)


# --- maxima -----------------------------------------------------------------------------------------------------------

MAXIMA = [  # layer, shape, windows that share a position
    *(
        (nn.MaxPool1d(3, 1), LINE, 3),
        (nn.MaxPool1d(2), LINE, 1),
        (nn.MaxPool1d((3,), dilation=2, stride=(1,)), LINE, 2),
    ),
    *((nn.MaxPool2d(2), IMAGE, 1), (nn.MaxPool2d(2, stride=3), IMAGE, 1), (nn.MaxPool2d(3, 1, 1), IMAGE, 9)),
    *((nn.MaxPool2d(3, 2, 1), IMAGE, 4), (nn.MaxPool2d(3, 2), IMAGE, 4), (nn.MaxPool2d((3, 2), (1, 2)), IMAGE, 3)),
    *((nn.MaxPool2d(3, 2, ceil_mode=True), IMAGE, 4), (nn.MaxPool2d(2, 1, 1, dilation=2), IMAGE, 4)),
    *((nn.MaxPool2d(2, dilation=2), IMAGE, 4), (nn.MaxPool3d(2, 1), VOLUME, 8), (nn.MaxPool3d(3, 2, 1), VOLUME, 8)),
    *((nn.MaxPool2d(2, 2, 1, dilation=3), IMAGE, 1), (nn.AdaptiveMaxPool1d(5), LINE, 2)),
    *(
        (nn.AdaptiveMaxPool2d(1), IMAGE, 1),
        (nn.AdaptiveMaxPool2d((4, 9)), IMAGE, 6),
        (nn.AdaptiveMaxPool3d(2), VOLUME, 4),
    ),
]


@pytest.mark.parametrize(("layer", "shape", "overlap"), MAXIMA, ids=str)
def test_maxima(layer, shape, overlap):
    size = torch.Size(shape).numel()
    with torch.no_grad():
        pixels = layer(torch.eye(size).view(size, *shape)).flatten(1)
    x = torch.cat([torch.eye(size).view(size, *shape), torch.randn(200, *shape)])
    for p in EXPONENTS:
        value = constant(layer, p, *shape)
        assert value == pytest.approx(1 if p == inf else overlap ** (1 / p))
        # A bright pixel attains it: every window that holds it gives its value.
        assert torch.linalg.vector_norm(pixels, ord=p, dim=1).max() == pytest.approx(value)
        assert norms(jacobians(layer, x), p).max() <= value


LP_POOLS = [
    *((nn.LPPool1d(2, 3, 1), LINE), (nn.LPPool1d(4, 2), LINE), (nn.LPPool1d(2, 3, 2, ceil_mode=True), (2, 6))),
    *(
        (nn.LPPool2d(2, 2), IMAGE),
        (nn.LPPool2d(2.0, (3, 2), (1, 2)), IMAGE),
        (nn.LPPool2d(4, 3, 2, ceil_mode=True), IMAGE),
    ),
    *((nn.LPPool3d(2, 2, 1), VOLUME), (nn.LPPool2d(2, 4, 3, ceil_mode=True), IMAGE)),
]


@pytest.mark.parametrize(("layer", "shape"), LP_POOLS, ids=str)
def test_lp_pools(layer, shape):
    size = torch.Size(shape).numel()
    x = torch.cat([torch.ones(1, *shape), 1e-3 + torch.eye(size).view(size, *shape), torch.randn(100, *shape).exp()])
    for p in EXPONENTS:
        found, value = float(norms(jacobians(layer, x), p).max()), constant(layer, p, *shape)
        assert 0.5 * value <= found <= value
        if p == inf:
            assert found == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize("layer", [nn.LPPool2d(1, 2, 1), nn.LPPool2d(1.0, 3, 2, ceil_mode=True)], ids=str)
def test_lp_pool_of_one_is_a_sum(layer):
    weights = matrix(layer, *IMAGE)
    for p in EXPONENTS:
        truth = float(norms(weights, p))
        assert truth <= constant(layer, p, *IMAGE) <= 1.12 * truth


@pytest.mark.parametrize("exponent", [3, 1.5, inf, -2])
def test_lp_pools_of_other_exponents_are_refused(exponent):
    layer = nn.LPPool2d(exponent, 2)
    for p in EXPONENTS:
        with pytest.raises(Unbounded, match="norm_type"):
            constant(layer, p, 1, 4, 4)


def test_inference_mode_and_gradients_of_the_caller_change_nothing():
    layer = nn.AvgPool2d(3, 2, 1)
    values = [constant(layer, p, *IMAGE) for p in EXPONENTS]
    with torch.inference_mode():
        assert [constant(layer, p, *IMAGE) for p in EXPONENTS] == values
