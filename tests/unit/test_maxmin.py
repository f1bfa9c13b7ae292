"""MaxMin: exact values, images of boxes, Lipschitz constant; and the absolute value beside it."""

import pytest
import torch
from torch import nn

from tautnet.activations import Absolute, MaxMin
from tautnet.lipschitz import lipschitz_bound, lipschitz_lower

pytestmark = pytest.mark.usefixtures("float64")


def test_neighbours_are_sorted_and_the_last_odd_one_passes():
    x = torch.tensor([[1.0, 2.0, 5.0, -3.0, -7.0]])
    assert MaxMin(5)(x).tolist() == [[2, 1, 5, -3, -7]]
    assert MaxMin(4)(x[:, :4]).tolist() == [[2, 1, 5, -3]]
    assert MaxMin(1)(x[:, :1]).tolist() == [[1]]


@pytest.mark.parametrize("shape", [(0, 6), (2, 6), (2, 5), (2, 4, 3), (2, 5, 3, 2)])
def test_each_position_is_sorted_for_itself(shape):
    x = torch.randn(shape)
    expected = x.clone()
    for c in range(0, shape[1] - 1, 2):
        expected[:, c : c + 2] = x[:, c : c + 2].sort(dim=1, descending=True).values
    assert torch.equal(MaxMin(shape[1])(x), expected)
    moved = x.movedim(1, -1).contiguous().movedim(-1, 1)  # channels last
    assert torch.equal(MaxMin(shape[1])(moved), expected)


def test_not_a_number_stays_in_its_pair():
    y = MaxMin(4)(torch.tensor([[float("nan"), 1.0, 4.0, 3.0]]))
    assert y.isnan().tolist() == [[True, True, False, False]]
    assert y[0, 2:].tolist() == [4, 3]


def test_the_jacobian_is_a_permutation():
    x = torch.randn(5)
    jacobian = torch.autograd.functional.jacobian(lambda v: MaxMin(5)(v.unsqueeze(0)).squeeze(0), x)
    assert set(jacobian.flatten().tolist()) == {0.0, 1.0}
    assert (jacobian.sum(0) == 1).all()
    assert (jacobian.sum(1) == 1).all()


def test_gradients_are_right():
    assert torch.autograd.gradcheck(MaxMin(5), torch.randn(3, 5, 2, requires_grad=True))


def test_boxes_are_mapped_exactly():
    lo = torch.randn(20, 5)
    hi = lo + 2 * torch.rand_like(lo)
    points = lo + (hi - lo) * torch.rand(4000, 20, 5)
    images = torch.stack([MaxMin(5)(x) for x in points])
    low, high = MaxMin(5).interval(lo, hi)
    assert (images >= low).all()
    assert (images <= high).all()
    corners = torch.stack([MaxMin(5)(lo), MaxMin(5)(hi)])
    assert torch.equal(corners.amin(0), low)
    assert torch.equal(corners.amax(0), high)


def test_the_constant_is_one_and_attained():
    net = nn.Sequential(MaxMin(5))
    assert lipschitz_bound(net, (5,)).total == 1
    assert lipschitz_lower(net, torch.randn(10, 5)) == pytest.approx(1)


@pytest.mark.parametrize("shape", [(2, 3), (2, 5), (4,)])
def test_another_number_of_channels_is_refused(shape):
    with pytest.raises(ValueError, match=r"this layer takes \(N, 4, \*\)"):
        MaxMin(4)(torch.zeros(shape))


def test_no_channels_are_refused():
    with pytest.raises(ValueError, match=r"^num_channels=0: "):
        MaxMin(0)


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
