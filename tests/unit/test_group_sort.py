"""GroupSort: exact values, images of boxes, Lipschitz constant; and the absolute value beside it."""

import numpy as np
import pytest
import torch
from torch import nn

from tautnet.activations import Absolute, GroupSort, MaxMin
from tautnet.export import plain_net
from tautnet.export.program import traced
from tautnet.lipschitz import lipschitz_bound, lipschitz_lower

pytestmark = pytest.mark.usefixtures("float64")

SIZES = [2, 3, 4, 7, "full"]


def test_groups_are_sorted_and_the_rest_is_a_smaller_one():
    x = torch.tensor([[1.0, 2.0, 5.0, -3.0, -7.0]])
    assert GroupSort(5)(x).tolist() == [[2, 1, 5, -3, -7]]
    assert GroupSort(4)(x[:, :4]).tolist() == [[2, 1, 5, -3]]
    assert GroupSort(5, 3)(x).tolist() == [[5, 2, 1, -3, -7]]
    assert GroupSort(5, 3)(-x).tolist() == [[-1, -2, -5, 7, 3]]
    assert GroupSort(5, 4)(-x).tolist() == [[3, -1, -2, -5, 7]]
    for everything in (5, 6, "full"):
        assert GroupSort(5, everything)(x).tolist() == [[5, 2, 1, -3, -7]]


@pytest.mark.parametrize("group_size", SIZES)
def test_one_channel_passes(group_size):
    assert GroupSort(1, group_size)(torch.tensor([[-3.0]])).tolist() == [[-3]]


@pytest.mark.parametrize("group_size", SIZES)
@pytest.mark.parametrize("shape", [(0, 6), (2, 6), (2, 5), (2, 4, 3), (2, 11, 3, 2)])
def test_each_position_is_sorted_for_itself(shape, group_size):
    x = torch.randn(shape)
    channels, step = shape[1], shape[1] if group_size == "full" else group_size
    expected = np.concatenate([-np.sort(-x[:, c : c + step].numpy(), axis=1) for c in range(0, channels, step)], axis=1)
    layer = GroupSort(channels, group_size)
    assert layer(x).numpy().tolist() == expected.tolist()
    moved = x.movedim(1, -1).contiguous().movedim(-1, 1)  # channels last
    assert torch.equal(layer(moved), layer(x))


def test_not_a_number_stays_in_its_group():
    x = torch.tensor([[float("nan"), 1.0, 4.0, 3.0, 5.0, 6.0]])
    y = GroupSort(6)(x)
    assert y.isnan().tolist() == [[True, True, False, False, False, False]]
    assert y[0, 2:].tolist() == [4, 3, 6, 5]
    y = GroupSort(6, 3)(x)
    assert y.isnan().tolist() == [[True, False, False, False, False, False]]
    assert y[0, 1:].tolist() == [4, 1, 6, 5, 3]


@pytest.mark.parametrize("group_size", SIZES)
def test_the_jacobian_is_a_permutation(group_size):
    x = torch.randn(5)
    jacobian = torch.autograd.functional.jacobian(lambda v: GroupSort(5, group_size)(v.unsqueeze(0)).squeeze(0), x)
    assert set(jacobian.flatten().tolist()) == {0.0, 1.0}
    assert (jacobian.sum(0) == 1).all()
    assert (jacobian.sum(1) == 1).all()


@pytest.mark.parametrize("group_size", [2, 3])
def test_gradients_are_right(group_size):
    assert torch.autograd.gradcheck(GroupSort(5, group_size), torch.randn(3, 5, 2, requires_grad=True))


@pytest.mark.parametrize("group_size", SIZES)
def test_boxes_are_mapped_exactly(group_size):
    layer = GroupSort(5, group_size)
    lo = torch.randn(20, 5)
    hi = lo + 2 * torch.rand_like(lo)
    points = lo + (hi - lo) * torch.rand(4000, 20, 5)
    images = layer(points.flatten(0, 1)).view_as(points)
    low, high = layer.interval(lo, hi)
    assert (images >= low).all()
    assert (images <= high).all()
    corners = torch.stack([layer(lo), layer(hi)])
    assert torch.equal(corners.amin(0), low)
    assert torch.equal(corners.amax(0), high)


@pytest.mark.parametrize("group_size", SIZES)
@pytest.mark.parametrize("p", [1, 2, float("inf")])
def test_the_constant_is_one_and_attained(group_size, p):
    net = nn.Sequential(GroupSort(5, group_size))
    assert lipschitz_bound(net, (5,), p=p).total == 1
    assert lipschitz_lower(net, torch.randn(10, 5), p=p) == pytest.approx(1)
    x, y = torch.randn(2, 1000, 5)
    stretched = (net(x) - net(y)).norm(p, dim=1) / (x - y).norm(p, dim=1)
    assert stretched.max() <= 1 + 1e-12


@pytest.mark.parametrize("group_size", [2, 3, "full"])
def test_it_exports_in_operators_of_torch_alone(group_size):
    plain = plain_net(GroupSort(5, group_size))
    x = torch.randn(4, 5, dtype=torch.float32)
    assert torch.equal(traced(plain, (5,)).module()(x), plain(x))


@pytest.mark.parametrize("shape", [(2, 3), (2, 5), (4,)])
def test_another_number_of_channels_is_refused(shape):
    with pytest.raises(ValueError, match=r"this layer takes \(N, 4, \*\)"):
        GroupSort(4)(torch.zeros(shape))


def test_no_channels_are_refused():
    with pytest.raises(ValueError, match=r"^num_channels=0: "):
        GroupSort(0)


@pytest.mark.parametrize("group_size", [1, 0, -2, 2.0, True, None, "whole"])
def test_no_groups_are_refused(group_size):
    with pytest.raises(ValueError, match=rf"^group_size={group_size}: an integer of at least 2, or full$"):
        GroupSort(4, group_size)


def test_maxmin_is_its_name_for_pairs():
    x = torch.randn(3, 5)
    assert torch.equal(MaxMin(5)(x), GroupSort(5, 2)(x))


def test_absolute_value():
    activation = Absolute(2)
    assert activation(torch.tensor([[-2.0, 3.0]])).tolist() == [[2, 3]]
    assert [slopes.tolist() for slopes in activation.slope_range()] == [[-1, -1], [1, 1]]
    assert activation.lipschitz_constant(2) == 1
    lo, hi = torch.tensor([[-2.0, 1.0], [-3.0, -1.0], [0.0, -1.0]]), torch.tensor([[1.0, 4.0], [-2.0, 0.0], [2.0, 1.0]])
    low, high = activation.interval(lo, hi)
    assert low.tolist() == [[0, 1], [2, 0], [0, 0]]
    assert high.tolist() == [[2, 4], [3, 1], [2, 1]]
    low, high = activation.local_slope_range(lo, hi)
    assert low.tolist() == [[-1, 1], [-1, -1], [-1, -1]]  # at 0 both slopes are met
    assert high.tolist() == [[1, 1], [-1, 1], [1, 1]]
