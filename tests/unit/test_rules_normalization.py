"""Constants of normalizers and of the softmax family against Jacobians, also where gradient ascent leads."""

from math import inf, sqrt

import pytest
import torch
from jacobians import EXPONENTS, constant, jacobians, largest_after_ascent, leaf_of, norms, randomised
from torch import nn

from tautnet.lipschitz.normalization import normalizer_constant
from tautnet.lipschitz.rules import Unbounded, leaf_constant

pytestmark = pytest.mark.usefixtures("float64_on_one_thread")

NORMALIZERS = [
    *((nn.LayerNorm(2), (2,)), (nn.LayerNorm(6), (6,)), (nn.LayerNorm(6, elementwise_affine=False), (6,))),
    *((nn.LayerNorm((3, 4), eps=0.1), (3, 4)), (nn.LayerNorm(4, eps=1.0), (3, 4)), (nn.LayerNorm(30), (30,))),
    *((nn.RMSNorm(1, eps=0.1), (1,)), (nn.RMSNorm(2, eps=0.1), (2,)), (nn.RMSNorm(30, eps=0.1), (30,))),
    *((nn.RMSNorm((3, 4), eps=0.1), (3, 4)), (nn.RMSNorm(5), (5,))),
    *((nn.GroupNorm(2, 4), (4, 3)), (nn.GroupNorm(1, 4), (4,)), (nn.GroupNorm(3, 6, eps=0.1, affine=False), (6, 2, 2))),
    *(
        (nn.InstanceNorm1d(2), (2, 5)),
        (nn.InstanceNorm2d(2, affine=True), (2, 3, 3)),
        (nn.InstanceNorm3d(1), (1, 2, 2, 2)),
    ),
]


def points(layer, shape):
    """From constant groups, where slopes are largest, to far from them, and single bright pixels."""
    scale = getattr(layer, "eps", None)
    scale = sqrt(1e-15 if scale is None else scale)
    x = torch.randn(80, *shape) * torch.logspace(-3, 3, 80).view(-1, *[1] * len(shape))
    size = torch.Size(shape).numel()
    bright = torch.eye(size).view(size, *shape) * sqrt(size)
    return scale * torch.cat([torch.zeros(1, *shape), torch.ones(1, *shape), x, 0.5 * bright, bright, 2 * bright])


@pytest.mark.parametrize(("layer", "shape"), NORMALIZERS, ids=str)
def test_normalizers(layer, shape):
    for module in (layer.double(), randomised(layer)):
        observed = jacobians(module, points(layer, shape))
        for p in EXPONENTS:
            value, found = constant(module, p, *shape), float(norms(observed, p).max())
            assert found <= value
            assert found >= 0.4 * value


@pytest.mark.parametrize(("layer", "shape"), NORMALIZERS, ids=str)
def test_normalizers_of_one_gamma_are_exact_for_p_2(layer, shape):
    for parameter in layer.double().parameters():
        nn.init.constant_(parameter, -1.7)
    at_zero = jacobians(layer, torch.zeros(1, *shape))
    assert constant(layer, 2, *shape) == pytest.approx(float(norms(at_zero, 2)), rel=1e-9)


@pytest.mark.parametrize("n", [3, 16])
@pytest.mark.parametrize("p", EXPONENTS)
@pytest.mark.parametrize("kind", [nn.LayerNorm, nn.RMSNorm])
def test_normalizers_hold_where_ascent_leads(n, p, kind):
    layer = kind(n, eps=1.0)
    start = torch.cat([torch.randn(12, n), torch.eye(n)[:4] * sqrt(n)])
    found, value = largest_after_ascent(layer, start, p), constant(layer, p, n)
    assert 0.6 * value <= found <= value * (1 + 1e-12)


def test_constants_by_hand():
    assert constant(nn.LayerNorm(2, eps=0.25), 2, 2) == pytest.approx(2)
    assert constant(nn.LayerNorm(2, eps=0.25), inf, 2) == pytest.approx(2)  # rows of P are (1, -1) / 2
    assert constant(nn.RMSNorm(1, eps=0.25), 1, 1) == pytest.approx(2)
    assert normalizer_constant(10**6, True, 1.0, None, 1) == pytest.approx(0.5 * 2 / 3**1.5 * 1000, rel=0.01)


@pytest.mark.parametrize("eps", [0.0, -1e-5, float("nan")])
def test_without_eps_there_is_no_constant(eps):
    for layer in (nn.LayerNorm(2, eps=eps), nn.GroupNorm(1, 2, eps=eps), nn.RMSNorm(2, eps=eps)):
        for p in EXPONENTS:
            with pytest.raises(Unbounded, match="eps="):
                constant(layer, p, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rms_norm_with_the_eps_of_its_type(dtype):
    layer = nn.RMSNorm(3, dtype=dtype)
    steepest = norms(jacobians(layer, torch.zeros(1, 3, dtype=dtype)).double(), 2).max()
    assert steepest <= constant(layer, 2, 3) == pytest.approx(2**26)


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm1d(2, track_running_stats=False),
        nn.BatchNorm2d(2, track_running_stats=False),
        nn.BatchNorm3d(2, track_running_stats=False),
    ],
    ids=str,
)
def test_statistics_of_the_batch_are_refused(layer):
    shape = (2, *[3] * (1 + [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d].index(type(layer))))
    for p in EXPONENTS:
        with pytest.raises(Unbounded, match="statistics of the batch"):
            constant(layer, p, *shape)


def test_weights_that_are_not_finite_give_no_finite_constant():
    for value in (inf, float("nan")):
        for layer in (nn.LayerNorm(2), nn.BatchNorm1d(2)):
            nn.init.constant_(layer.weight, value)
            for p in EXPONENTS:
                assert not constant(layer, p, 2) < inf


# --- softmax ----------------------------------------------------------------------------------------------------------

SOFTMAXES = [
    *((nn.Softmax(1), (2,)), (nn.Softmax(1), (5,)), (nn.Softmax(-1), (2, 3)), (nn.Softmin(1), (4, 2))),
    *((nn.Softmax2d(), (3, 2, 2)), (nn.LogSoftmax(1), (2,)), (nn.LogSoftmax(1), (7,)), (nn.LogSoftmax(-2), (4, 2))),
]


@pytest.mark.parametrize(("layer", "shape"), SOFTMAXES, ids=str)
def test_softmaxes_hold_and_are_approached(layer, shape):
    x = torch.randn(200, *shape) * torch.logspace(-1, 2, 200).view(-1, *[1] * len(shape))
    pair = torch.zeros(1, *shape)
    pair[:, 2:] = -40 if not isinstance(layer, nn.Softmin) else 40  # two entries share all: steepest for softmax
    last = torch.full((1, *shape), -40.0)
    last[..., -1] = 0
    x = torch.cat(
        [x, pair, last, 40 * torch.eye(shape[0]).view(shape[0], shape[0], *[1] * (len(shape) - 1)).expand(-1, *shape)]
    )
    for p in EXPONENTS:
        found, value = float(norms(jacobians(layer, x), p).max()), constant(layer, p, *shape)
        assert found <= value * (1 + 1e-12)
        assert found == pytest.approx(value, rel=0.35 if shape == (2, 3) else 1e-6)


@pytest.mark.parametrize("layer", [nn.Softmax(0), nn.Softmin(0), nn.LogSoftmax(-2)])
def test_softmax_over_the_batch_is_refused(layer):
    for p in EXPONENTS:
        with pytest.raises(Unbounded, match="mixes the samples"):
            constant(layer, p, 3)


@pytest.mark.filterwarnings("ignore:Implicit dimension choice:UserWarning")
def test_softmax_without_a_dimension_is_refused():
    for layer in (nn.Softmax(), nn.LogSoftmax()):
        with pytest.raises(Unbounded, match="dim=None"):
            leaf_constant(leaf_of(layer, 3), 2)
