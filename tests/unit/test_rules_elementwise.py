"""Slopes of stock activations against derivatives and difference quotients on a line."""

from math import inf, isnan

import pytest
import torch
from jacobians import EXPONENTS, constant, leaf_of, randomised
from torch import nn

from tautnet.activations import ReLU
from tautnet.lipschitz.elementwise import BY_SETTING, FIXED, slope_range
from tautnet.lipschitz.rules import Unbounded, leaf_constant

pytestmark = pytest.mark.usefixtures("float64_on_one_thread")

LAYERS = [
    *(nn.Identity(), nn.Dropout(0.5), nn.AlphaDropout(), nn.FeatureAlphaDropout()),
    *(nn.ReLU(), nn.ReLU6(), nn.Hardtanh(), nn.Hardtanh(-3, -1), nn.Softshrink()),
    *(nn.Tanh(), nn.Tanhshrink(), nn.Softsign(), nn.Sigmoid(), nn.LogSigmoid(), nn.Hardsigmoid(), nn.Hardswish()),
    *(nn.SELU(), nn.SiLU(), nn.Mish(), nn.GELU(), nn.GELU("tanh")),
    *(nn.LeakyReLU(), nn.LeakyReLU(-0.7), nn.LeakyReLU(-2.0), nn.LeakyReLU(3.0)),
    *(nn.RReLU(), nn.RReLU(-3.0, -2.0), nn.RReLU(1.0, 3.0)),
    *(nn.ELU(), nn.ELU(2.5), nn.ELU(-0.5), nn.CELU(), nn.CELU(3.0), nn.CELU(0.2)),
    *(nn.PReLU(), nn.PReLU(init=-1.5), nn.PReLU(init=1.5)),
    *(nn.Softplus(threshold=40), nn.Softplus(2.5, 50), nn.Softplus(-1.0, 40), nn.Hardshrink(0.0), nn.Hardshrink(-1.0)),
    *(nn.Threshold(0.0, 0.0), nn.Threshold(-1.5, -1.5)),
]


def line():
    """Dense where functions bend, with points at great distance, none on a kink."""
    far = torch.logspace(1.5, 7, 200)
    return torch.cat([-far.flip(0), torch.arange(-30, 30, 1.003e-3), far]) + 1.234e-5


def observed_slopes(layer):
    """Smallest and largest of the derivatives and of the difference quotients of neighbours and of distant points."""
    x = line().requires_grad_()
    y = layer(x.view(-1, 1)).view(-1)
    (derivatives,) = torch.autograd.grad(y.sum(), x)
    x, y = x.detach(), y.detach()
    quotients = [(y[gap:] - y[:-gap]) / (x[gap:] - x[:-gap]) for gap in (1, 7, 1000, 30000)]
    values = torch.cat([derivatives, *quotients])
    return float(values.min()), float(values.max())


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_slope_ranges_hold_and_are_reached(layer):
    lo, hi = slope_range(leaf_of(layer.double().eval(), 1))
    assert (lo.dtype, lo.shape, hi.shape) == (torch.float64, (1,), (1,))
    low, high = observed_slopes(layer)
    rounding = 1e-10  # of quotients of neighbours
    assert lo - rounding <= low <= lo + 1e-3
    assert hi - 1e-3 * abs(hi) <= high <= hi + rounding
    for p in EXPONENTS:
        assert constant(layer, p, 1) == max(abs(float(lo)), abs(float(hi)))


def test_every_elementwise_type_is_looked_at():
    by_rank = {nn.Dropout1d, nn.Dropout2d, nn.Dropout3d}
    assert {type(layer) for layer in LAYERS} | by_rank == {*FIXED, *BY_SETTING, nn.PReLU}
    for layer, shape in ((nn.Dropout1d(), (2, 3)), (nn.Dropout2d(), (2, 3, 3)), (nn.Dropout3d(), (2, 3, 3, 3))):
        x = torch.randn(1, *shape)
        assert (layer.eval()(x) == x).all()
        assert constant(layer, 2, *shape) == 1


@pytest.mark.parametrize(
    ("layer", "x"), [(nn.SiLU(), 2.4), (nn.Mish(), 1.5), (nn.Mish(), -2.25), (nn.GELU(), 1.4), (nn.GELU("tanh"), 1.4)]
)
def test_stationary_slopes_are_rounded_outwards_by_no_more_than_the_ninth_decimal(layer, x):
    lo, hi = (float(end) for end in slope_range(leaf_of(layer, 1)))
    points = torch.linspace(x - 0.1, x + 0.1, 200_001).requires_grad_()
    (slopes,) = torch.autograd.grad(layer(points).sum(), points)
    if x > 0:
        assert 0 <= hi - float(slopes.max()) <= 1.1e-9
    else:
        assert 0 <= float(slopes.min()) - lo <= 1.1e-9
    if not isinstance(layer, nn.Mish):
        assert lo == pytest.approx(1 - hi)  # x s(x) with s(-x) = 1 - s(x): the slopes at x and -x add up to 1


@pytest.mark.parametrize(
    ("layer", "slopes", "at"),
    [
        (nn.Threshold(0.0, 1.0), (-inf, 1.0), 0.0),
        (nn.Threshold(0.5, 0.0), (0.0, inf), 0.5),
        (nn.Hardshrink(0.5), (0.0, inf), 0.5),
        (nn.Softplus(), (-inf, inf), 20.0),
        (nn.Softplus(2.0, 30), (-inf, inf), 15.0),
        (nn.Softplus(threshold=-1.0), (-inf, inf), -1.0),
    ],
    ids=str,
)
def test_jumps_have_no_constant(layer, slopes, at):
    assert tuple(map(float, slope_range(leaf_of(layer, 1)))) == slopes
    for p in EXPONENTS:
        with pytest.raises(Unbounded, match="jumps"):
            constant(layer, p, 1)
    x = torch.tensor([at, at + 1e-14])
    assert layer(x).diff().abs() > 2 * x.diff()


def test_softplus_without_a_visible_jump_is_softplus():
    layer = nn.Softplus(threshold=40)
    x = torch.tensor([40.0, 40.0]).nextafter(torch.tensor([0.0, 99.0]))
    assert layer(x).diff() <= x.diff()


def test_celu_with_a_negative_alpha_has_no_constant():
    layer = nn.CELU(-0.5)
    assert slope_range(leaf_of(layer, 1))[1] == inf
    assert layer(torch.tensor([-10.0, -9.0])).diff() > 1e6
    with pytest.raises(Unbounded, match="alpha"):
        constant(layer, 2, 1)


@pytest.mark.parametrize("layer", [nn.LeakyReLU(float("nan")), nn.ELU(float("nan")), nn.PReLU(init=float("nan"))])
def test_settings_that_are_not_numbers_give_no_number(layer):
    assert isnan(constant(layer, 2, 1))


def test_prelu_has_a_slope_a_channel():
    layer = nn.PReLU(3)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([-2.0, 0.5, 1.5]))
    lo, hi = slope_range(leaf_of(layer, 3, 4))
    assert (lo.tolist(), hi.tolist()) == ([-2, 0.5, 1], [1, 1, 1.5])
    assert constant(layer, 1, 3, 4) == 2


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        *((nn.BatchNorm1d(3), (3,)), (nn.BatchNorm1d(3), (3, 4)), (nn.BatchNorm2d(3), (3, 2, 2))),
        *((nn.BatchNorm3d(3, affine=False), (3, 1, 2, 2)), (nn.SyncBatchNorm(3), (3, 2))),
        (nn.InstanceNorm1d(3, affine=True, track_running_stats=True), (3, 4)),
        (nn.InstanceNorm2d(3, track_running_stats=True), (3, 2, 2)),
        (nn.InstanceNorm3d(3, track_running_stats=True), (3, 1, 2, 2)),
    ],
    ids=str,
)
def test_normalizers_by_running_statistics_are_signed_factors(layer, shape):
    layer = randomised(layer.double())
    lo, hi = slope_range(leaf_of(layer, *shape))
    x = torch.randn(2, *shape)
    slopes = ((layer(x)[1] - layer(x)[0]) / (x[1] - x[0])).reshape(3, -1)
    torch.testing.assert_close(slopes, lo[:, None].expand_as(slopes), rtol=1e-9, atol=0)
    assert (lo == hi).all()
    for p in EXPONENTS:
        assert 0 <= constant(layer, p, *shape) / float(lo.abs().max()) - 1 <= 2e-10


def test_what_mixes_elements_has_no_slope():
    hooked = nn.ReLU()
    hooked.register_forward_hook(lambda module, inputs, outputs: 3 * outputs)
    for layer in (nn.Linear(2, 2), nn.Softmax(1), nn.LayerNorm(2), hooked):
        assert slope_range(leaf_of(layer, 2)) is None
    assert slope_range(leaf_of(nn.BatchNorm1d(2, track_running_stats=False), 2, 3)) is None


def test_subclasses_may_be_something_else():
    class Louder(nn.ReLU):
        def forward(self, x):
            return 3 * super().forward(x)

    assert slope_range(leaf_of(Louder(), 2)) is None
    with pytest.raises(Unbounded, match="no rule for this type"):
        leaf_constant(leaf_of(Louder(), 2), 2)


def test_own_activations_answer_for_themselves():
    lo, hi = slope_range(leaf_of(ReLU(2), 2))
    assert (lo.tolist(), hi.tolist()) == ([0, 0], [1, 1])
