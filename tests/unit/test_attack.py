"""Attacks stay in their ball, find what there is to find, and leave no trace."""

import pytest
import torch
from torch import nn

from tautnet.activations import LinearSpline
from tautnet.lipschitz.attack import attack
from tautnet.lipschitz.certify import margins

INF = float("inf")

pytestmark = pytest.mark.usefixtures("float64_on_one_thread")


def net_and_data(count=40):
    net = nn.Sequential(nn.Flatten(), nn.Linear(6, 10), nn.Dropout(0.5), LinearSpline(10, 9, 2.0), nn.Linear(10, 4))
    nn.init.normal_(net[3].coefficients)
    x = torch.rand(count, 2, 3)
    with torch.no_grad():
        return net, x, net.eval()(x).argmax(1)


@pytest.mark.parametrize("p", [2, INF])
def test_points_lie_in_the_ball_and_are_no_better_than_the_sample(p):
    net, x, labels = net_and_data()
    radius = torch.linspace(0, 0.5, 40)
    points = attack(net, x, labels, radius, p)
    assert (torch.linalg.vector_norm((points - x).flatten(1), ord=p, dim=1) <= radius * (1 + 1e-12)).all()
    assert (margins(net(points), labels) <= margins(net(x), labels)).all()
    assert torch.equal(points[0], x[0])
    assert (net(points).argmax(1) != labels).any()


@pytest.mark.parametrize("p", [2, INF])
def test_the_optimum_of_a_linear_classifier_is_found(p):
    net, x = nn.Linear(6, 2), torch.randn(20, 6)
    with torch.no_grad():
        labels = net(x).argmax(1)
        w = net.weight[1] - net.weight[0]
        expected = margins(net(x), labels) - 0.3 * torch.linalg.vector_norm(w, ord={2: 2, INF: 1}[p])
        points = attack(net, x, labels, 0.3, p, num_steps=10, num_restarts=1)
        torch.testing.assert_close(margins(net(points), labels), expected)


@pytest.mark.parametrize("p", [2, INF])
def test_the_point_behind_the_last_step_counts(p):
    """One step of 2.5 radii along the slope of a linear classifier ends at the optimum."""
    net, x = nn.Linear(6, 2), torch.randn(20, 6)
    with torch.no_grad():
        labels = net(x).argmax(1)
        one, ten = (margins(net(attack(net, x, labels, 0.3, p, steps, 1)), labels) for steps in (1, 10))
        torch.testing.assert_close(one, ten)
        assert (one < margins(net(x), labels)).all()


def test_more_starts_find_at_least_as_much():
    net, x, labels = net_and_data()
    found = [margins(net(attack(net, x, labels, 0.4, 2, 5, starts)), labels) for starts in (1, 2, 6)]
    assert (found[1] <= found[0]).all()
    assert (found[2] <= found[1]).all()
    assert (found[2] < found[0]).any()


@pytest.mark.parametrize("p", [2, INF])
def test_points_can_be_kept_in_a_valid_range(p):
    net, x, labels = net_and_data()
    points = attack(net, x, labels, 0.5, p, valid=(0.0, 1.0))
    assert points.min() >= 0
    assert points.max() <= 1
    assert (torch.linalg.vector_norm((points - x).flatten(1), ord=p, dim=1) <= 0.5 + 1e-12).all()


def test_nothing_is_left_behind():
    net, x, labels = net_and_data()
    net.train()
    before, state = x.clone(), torch.get_rng_state()
    with torch.inference_mode():
        one = attack(net, x.clone(), labels, 0.3, 2, 5)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one, attack(net, x, labels, 0.3, 2, 5))
    assert torch.equal(x, before)
    assert all(module.training for module in net.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in net.parameters())
    assert not torch.equal(one, attack(net, x, labels, 0.3, 2, 5, seed=1))


def test_flat_networks_and_single_logits():
    flat = nn.Linear(3, 2)
    nn.init.zeros_(flat.weight)
    x, labels = torch.randn(4, 3), torch.zeros(4, dtype=torch.long)
    assert attack(flat, x, labels, 0.5).isfinite().all()
    single = nn.Linear(3, 1)
    labels = (single(x)[:, 0] > 0).long()
    points = attack(single, x, labels, 100.0)
    assert ((single(points)[:, 0] > 0).long() != labels).all()


@pytest.mark.parametrize("p", [2, INF])
def test_random_starts_lie_on_all_sides_and_a_sample_that_nothing_changes_comes_back(p):
    net, seen = nn.Linear(3, 2), []
    nn.init.zeros_(net.weight)  # no slope: every start stays where it is
    watched = nn.Sequential(nn.Identity(), net)
    watched[0].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].detach().clone()))
    x, labels = torch.randn(50, 3), torch.zeros(50, dtype=torch.long)
    assert torch.equal(attack(watched, x, labels, 0.5, p, num_steps=1, num_restarts=2), x)
    steps = seen[-1] - x
    assert (steps.amin(0) < -0.2).all()
    assert (steps.amax(0) > 0.2).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"p": 1}, "p=1: "),
        ({"radius": -0.1}, "radius=-0.1: "),
        ({"radius": INF}, "radius=inf: "),
        ({"num_steps": 0}, "num_steps=0: "),
        ({"num_restarts": 0}, "num_restarts=0: "),
    ],
)
def test_arguments_out_of_range_are_refused(settings, message):
    net, x, labels = net_and_data(2)
    with pytest.raises(ValueError, match=message):
        attack(net, x, labels, **{"radius": 0.1} | settings)
