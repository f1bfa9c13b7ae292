"""The orthonormality penalty: exact values, the smaller product, groups, layers by pattern, weights in force."""

import math

import pytest
import torch
from torch import nn

from tautnet.normalizers.aon import Aon
from tautnet.normalizers.bjorck import Bjorck
from tautnet.regularizers.orthonormality import OrthonormalityPenalty

pytestmark = pytest.mark.usefixtures("float64_on_one_thread")


def attached(net, weight=1.0, **arguments):
    penalty = OrthonormalityPenalty(weight, **arguments)
    penalty.attach(net, ())
    return penalty


def with_weight(matrix):
    layer = nn.Linear(matrix.shape[1], matrix.shape[0])
    layer.weight = nn.Parameter(matrix.clone())
    return layer


def test_exact_value_of_a_diagonal():
    layer = with_weight(torch.diag(torch.tensor([2.0, 1.0, 0.5])))
    assert attached(layer, 0.1)().item() == pytest.approx(0.1 * (9 + 0 + 0.5625), rel=1e-14)


@pytest.mark.parametrize("shape", [(3, 7), (7, 3), (4, 4)])
def test_it_is_the_sum_over_singular_values_and_zero_for_orthonormal(shape):
    matrix = torch.randn(shape)
    expected = (torch.linalg.svdvals(matrix).square() - 1).square().sum()
    assert attached(with_weight(matrix))().item() == pytest.approx(expected.item(), rel=1e-12)
    assert attached(with_weight(nn.init.orthogonal_(torch.empty(shape))))().item() < 1e-20
    weight = matrix.clone().requires_grad_()
    layer = with_weight(matrix)
    attached(layer)().backward()
    small = weight @ weight.T if shape[0] <= shape[1] else weight.T @ weight
    (small - torch.eye(len(small))).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, weight.grad)


def test_kernels_are_matrices_group_by_group_and_layers_add_up():
    conv, linear = nn.Conv2d(4, 6, (2, 3), groups=2), nn.Linear(5, 3)
    blocks = [with_weight(block) for block in conv.weight.detach().flatten(1).chunk(2)]
    expected = sum(attached(block)() for block in (*blocks, linear))
    net = nn.Sequential(conv, nn.BatchNorm2d(6), nn.Sequential(linear, linear))
    assert attached(net)().item() == pytest.approx(expected.item(), rel=1e-12)


def test_layers_are_chosen_by_their_paths():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)))
    a, b, c = (attached(layer)().item() for layer in (net[0], net[2][0], net[2][1]))
    for arguments, expected in (
        ({}, a + b + c),
        ({"exclude": ["last"]}, a + b),
        ({"include": ["2.*"]}, b + c),
        ({"include": ["0", "last"]}, a + c),
        ({"include": ["2.*"], "exclude": ["2.0"]}, c),
    ):
        assert attached(net, **arguments)().item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"include": ["head*"]}, r"^include=head\*: .*0, 2"),
        ({"exclude": ["1"]}, "^exclude=1: .*0, 2"),
        ({"exclude": ["*"]}, "^exclude="),
    ],
)
def test_patterns_have_to_match(arguments, message):
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    with pytest.raises(ValueError, match=message):
        attached(net, **arguments)


def test_a_network_without_layers_is_refused():
    with pytest.raises(ValueError, match=r"^include="):
        attached(nn.Sequential(nn.ReLU()))


@pytest.mark.parametrize("weight", [-1.0, math.inf, math.nan])
def test_weights_out_of_range_are_refused(weight):
    with pytest.raises(ValueError, match=f"^weight={weight}: "):
        OrthonormalityPenalty(weight)


def test_it_acts_on_the_weight_in_force_and_reading_it_advances_nothing_more():
    assert attached(Bjorck(60)(nn.Linear(4, 3)))().item() < 1e-12
    layer = Aon()(nn.Linear(4, 3))
    penalty, vectors = attached(layer), layer.parametrizations.weight[0].vectors
    with torch.no_grad():
        layer.parametrizations.weight.original.add_(1)
    layer(torch.randn(2, 4))
    before = vectors.u_GO.clone()
    penalty().backward()
    assert torch.equal(vectors.u_GO, before)
    assert layer.parametrizations.weight.original.grad.abs().max() > 0


def test_nothing_of_the_network_is_registered_and_autocast_changes_nothing():
    net = nn.Sequential(nn.Linear(16, 8)).float()
    penalty = attached(net)
    assert list(penalty.parameters()) == []
    exact = penalty().item()
    with torch.autocast("cpu", torch.bfloat16):
        assert penalty().item() == exact


def test_descent_makes_rows_orthonormal():
    layer = nn.Linear(8, 4)
    penalty, optimizer = attached(layer), torch.optim.SGD(layer.parameters(), lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        penalty().backward()
        optimizer.step()
    torch.testing.assert_close(layer.weight @ layer.weight.T, torch.eye(4), atol=1e-3, rtol=0)
