"""Penalties on splines: TV(2) and BV(2), their norms over a layer, the balanced rule, the shrinking step."""

import copy
import re

import pytest
import torch
from torch import nn

from tautnet.activations import LinearSpline
from tautnet.regularizers import SecondOrderVariation

pytestmark = pytest.mark.usefixtures("float64")


def make_net() -> nn.Sequential:
    """Two spline layers of which every norm is known: |x| and soft thresholds, then ReLU; the second one twice."""
    shared = LinearSpline(3, 21, 2.0, init="relu")
    return nn.Sequential(
        nn.Linear(2, 4), LinearSpline(4, 21, 1.0, init="even_odd"), nn.Linear(4, 3), shared, nn.Linear(3, 3), shared
    )


@pytest.mark.parametrize(
    ("variation", "outer_norm", "expected"),
    [
        ("tv2", 1, 4 * 2 + 3 * 1),
        ("tv2", 2, (4 * 4) ** 0.5 + 3**0.5),
        ("bv2", 1, 2 * 3 + 2 * 2.5 + 3 * 2),
        ("bv2", 2, (2 * 9 + 2 * 6.25) ** 0.5 + (3 * 4) ** 0.5),
    ],
)
def test_values_of_known_functions(variation, outer_norm, expected):
    penalty = SecondOrderVariation(0.3, variation, outer_norm)
    penalty.attach(make_net(), ())
    assert penalty().item() == pytest.approx(0.3 * expected, rel=1e-12)


@pytest.mark.parametrize("variation", ["tv2", "bv2"])
@pytest.mark.parametrize("outer_norm", [1, 2])
def test_gradients_are_finite_where_nothing_bends(variation, outer_norm):
    spline = LinearSpline(3, 5, 1.0, init="zero")
    penalty = SecondOrderVariation(1.0, variation, outer_norm)
    penalty.attach(nn.Sequential(spline), ())
    penalty().backward()
    assert spline.coefficients.grad.isfinite().all()


def test_bv2_sees_the_affine_part_and_tv2_does_not():
    for init, tv2, bv2 in (("identity", 0.0, 1.0), ("zero", 0.0, 0.0), ("relu", 1.0, 2.0)):
        for variation, expected in (("tv2", tv2), ("bv2", bv2)):
            penalty = SecondOrderVariation(1.0, variation)
            penalty.attach(nn.Sequential(LinearSpline(1, 21, 2.0, init=init)), ())
            assert penalty().item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("variation", ["tv2", "bv2"])
@pytest.mark.parametrize("outer_norm", [1, 2])
def test_balanced_terms_start_equal_and_scale_with_what_grows(variation, outer_norm):
    net, weight = make_net(), 0.01
    penalty = SecondOrderVariation(weight, variation, outer_norm, balanced=True)
    penalty.attach(net, ())
    assert penalty().item() == pytest.approx(weight * (2 + 3 / 2), rel=1e-12)
    with torch.no_grad():
        net[1].coefficients.mul_(3)  # homogeneous of degree 1
        net[4].weight.mul_(5)  # a squared norm
        net[0].bias.add_(1)
    assert penalty().item() == pytest.approx(weight * (3 + 1 + (1 + 1 + 25) / 2), rel=1e-12)


def test_balanced_starts_at_the_balance_of_the_theorem():
    net = make_net()
    penalty = SecondOrderVariation(0.01, "bv2", balanced=True)
    penalty.attach(net, ())
    penalty().backward()
    # scaling the first splines by s and the next weight by 1 / s leaves the function: no gain at the start
    spline, weight = net[1].coefficients, net[2].weight
    assert (spline.grad * spline).sum().item() == pytest.approx((weight.grad * weight).sum().item(), rel=1e-9)


def test_balanced_denominators_are_those_of_the_start_also_in_a_continued_run():
    started, other = (SecondOrderVariation(0.01, balanced=True) for _ in range(2))
    net = make_net()
    started.attach(net, ())
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.7)
    expected = started()
    other.attach(net, ())
    assert other() != expected
    other.load_state_dict(started.state_dict())
    assert other() == expected
    assert not SecondOrderVariation(0.01).state_dict()
    twin_net, twin = copy.deepcopy((net, started))
    with torch.no_grad():
        twin_net[0].weight.mul_(2)
    assert twin() > expected
    assert started() == expected


def test_balanced_sees_a_parametrised_weight():
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(2, 3))
    penalty = SecondOrderVariation(1.0, balanced=True)
    penalty.attach(nn.Sequential(layer, LinearSpline(3, 5, 1.0, init="relu")), ())
    penalty().backward()
    assert layer.parametrizations.weight.original0.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight": -1.0}, "weight=-1.0"),
        ({"variation": "tv1"}, "variation=tv1: one of tv2, bv2"),
        ({"outer_norm": 3}, "outer_norm=3: 1 or 2"),
        ({"prox": -0.1}, "prox=-0.1"),
        ({"prox": float("nan")}, "prox=nan"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        SecondOrderVariation(**arguments)


def zeros(layer: nn.Module) -> nn.Module:
    nn.init.zeros_(layer.weight)
    return layer


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (nn.Sequential(nn.Linear(2, 2)), "no spline"),
        (nn.Sequential(LinearSpline(2, 5, 1.0)), "balanced=True: the network has no linear"),
        (nn.Sequential(nn.Linear(2, 2), LinearSpline(2, 5, 1.0, init="zero")), "balanced=True: 1 starts at 0"),
        (nn.Sequential(nn.Linear(2, 2), LinearSpline(2, 51, 4.0, init="identity").float()), "balanced=True: 1 starts"),
        (
            nn.Sequential(LinearSpline(1, 5), nn.Conv2d(1, 2, 1), zeros(nn.Conv2d(2, 2, 1))),
            "balanced=True: 2 starts",
        ),
    ],
)
def test_what_cannot_be_weighed_is_refused(net, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        SecondOrderVariation(1.0, balanced=True).attach(net, ())


def test_shrinking_steps_leave_the_kinks_that_the_data_needs():
    torch.set_default_dtype(torch.float32)
    spline = LinearSpline(1, 41, 1.0, init="zero")
    penalty = SecondOrderVariation(0.0, prox=2e-4)
    penalty.attach(nn.Sequential(spline), ())
    x = torch.linspace(-1, 1, 400).unsqueeze(1)
    target = (x - 0.5).abs() - 2 * x.clamp(max=-0.25)
    optimizer = torch.optim.SGD([spline.coefficients], lr=1.0)
    for _ in range(800):
        optimizer.zero_grad()
        (spline(x) - target).square().mean().backward()
        optimizer.step()
        penalty.project_()
    changes = spline.slope_changes()[0].detach()
    live = changes.abs() > 1e-3
    assert changes[~live].abs().max() <= 2 * torch.finfo(torch.float32).eps * 2 / 0.05  # rounding of values up to 2
    torch.testing.assert_close(changes[[14, 29]], torch.tensor([2.0, 2.0]), rtol=0, atol=0.02)
    assert live.sum() <= 6
    before = spline.coefficients.detach().clone()
    idle = SecondOrderVariation(0.0)
    idle.attach(nn.Sequential(spline), ())
    idle.project_()
    assert torch.equal(spline.coefficients, before)
