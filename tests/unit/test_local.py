"""Local Lipschitz constants: never exceeded in the ball, never above the global bound, sharp for small balls."""

import pytest
import torch
from torch import nn

from tautnet.activations import GELU, Absolute, GroupSort, LinearSpline, ReLU
from tautnet.backbones.blocks import Concatenation, Residual
from tautnet.lipschitz.bound import lipschitz_bound
from tautnet.lipschitz.enclosure import channel_norms, matrix_norm
from tautnet.lipschitz.local import LocalBound, local_lipschitz_bound
from tautnet.lipschitz.structure import read
from tautnet.normalizers import BatchNorm, Unitize

INF = float("inf")
P = [1, 2, INF]

pytestmark = pytest.mark.usefixtures("float64_on_one_thread")


@torch.no_grad()
def randomised(net):
    for parameter in net.parameters():
        parameter.normal_().mul_(parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.5)
    for module in net.modules():
        if isinstance(module, LinearSpline):
            module.coefficients.normal_()
    for name, buffer in net.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_()
        elif name.endswith("running_var"):
            buffer.uniform_(0.1, 2.0)
    return net


def norm(x, p):
    return torch.linalg.vector_norm(x.flatten(1), ord=p, dim=1)


def in_ball(x, radius, p):
    """A random point of each ball: on its surface, in the middle, or in a corner."""
    step = torch.randn_like(x)
    if torch.rand(()) < 0.5:
        step = step * (torch.rand_like(x) < 0.2) + 1e-9 * step
    if p == INF and torch.rand(()) < 0.5:
        step = step.sign()
    share = torch.rand(()) ** 0.2 if torch.rand(()) < 0.5 else 1.0
    return x + step * (share * radius / norm(step, p)).view(-1, *[1] * (x.dim() - 1))


def observed(net, x, radius, p, pairs=60, steps=15):
    """Largest ratio of distances over pairs of points of each ball, by search and gradient ascent, (N,)."""
    largest = torch.zeros(len(x))
    for _ in range(pairs):
        a, b = in_ball(x, radius, p), in_ball(x, radius, p)
        if torch.rand(()) < 0.5:
            b = a + 1e-3 * (b - a)  # convex, so inside too
        with torch.no_grad():
            largest = torch.maximum(largest, (norm(net(a) - net(b), p) / norm(a - b, p)).nan_to_num())  # a = b
    for _ in range(steps):  # ascent from the last pair, inside the ball by shrinking
        if (norm(a - b, p) < 1e-9).any():
            break
        a, b = (point.clone().requires_grad_() for point in (a, b))
        ratio = norm(net(a) - net(b), p) / norm(a - b, p)
        grads = torch.autograd.grad(ratio.sum(), (a, b))
        with torch.no_grad():
            largest = torch.maximum(largest, ratio.detach())
            moved = []
            for point, grad in zip((a, b), grads, strict=True):
                step = point - x + 0.2 * radius * grad / norm(grad, 2).clamp(min=1e-300).view(-1, *[1] * (x.dim() - 1))
                shrink = (radius / norm(step, p)).clamp(max=1).view(-1, *[1] * (x.dim() - 1))
                moved.append(x + step * shrink)
            a, b = moved
    return largest


def dense(activation):
    return nn.Sequential(nn.Linear(5, 8), activation(8), nn.Linear(8, 8), activation(8), nn.Linear(8, 3)), (5,)


NETS = {
    "spline": lambda: dense(lambda c: LinearSpline(c, 9, 2.0)),
    "spline_scaled": lambda: dense(lambda c: LinearSpline(c, 9, 2.0, learn_scale=True, linear_term=True)),
    "relu": lambda: dense(ReLU),
    "gelu": lambda: dense(GELU),
    "groupsort": lambda: dense(lambda c: GroupSort(c, 3)),
    "stock": lambda: dense(lambda c: nn.LeakyReLU(-0.7)),
    "tanh": lambda: dense(lambda c: nn.Tanh()),
    "softmax": lambda: (nn.Sequential(nn.Linear(4, 6), nn.Softmax(1), nn.Linear(6, 3)), (4,)),
    "normed": lambda: (
        nn.Sequential(nn.Linear(5, 6), BatchNorm(6), Absolute(6), nn.Linear(6, 6), Unitize(6), nn.Linear(6, 3)),
        (5,),
    ),
    "residual": lambda: (
        nn.Sequential(
            nn.Linear(5, 6),
            Residual(nn.Sequential(nn.Linear(6, 6), LinearSpline(6, 7, 2.0), nn.Linear(6, 6)), nn.Identity()),
            Concatenation(nn.Linear(6, 3), LinearSpline(6, 5, 1.0), nn.Identity()),
            Residual(nn.Sequential(GroupSort(15), nn.Linear(15, 15)), nn.Sequential(GroupSort(15), nn.Linear(15, 15))),
            Absolute(15),
            nn.Linear(15, 3),
        ),
        (5,),
    ),
    "conv": lambda: (
        nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), LinearSpline(4, 9, 2.0), nn.MaxPool2d(2),
            nn.Conv2d(4, 3, 3, 2, 1, padding_mode="circular"), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(12, 3),
        ),
        (2, 8, 8),
    ),
    "transposed": lambda: (
        nn.Sequential(
            nn.ConvTranspose2d(2, 4, 3, 2, 1, 1, groups=2), ReLU(4),
            nn.Conv2d(4, 2, 3, padding=1, padding_mode="reflect"), nn.AvgPool2d(3, 2, 1), nn.Flatten(),
            nn.Linear(18, 3),
        ),
        (2, 3, 3),
    ),
}  # fmt: skip


@pytest.mark.parametrize("p", P)
@pytest.mark.parametrize("name", NETS)
def test_constants_are_never_exceeded_in_the_ball(name, p):
    net, shape = NETS[name]()
    net, x = randomised(net.double()).eval(), torch.randn(5, *shape)
    whole = lipschitz_bound(net, shape, p).total
    for radius in (1e-3, 0.1, 1.0, 5.0):
        local = local_lipschitz_bound(net, x, radius, p)
        assert local.shape == (5,)
        assert (local <= whole * (1 + 1e-12)).all()
        assert (observed(net, x, radius, p) <= local * (1 + 1e-7)).all()


@pytest.mark.parametrize("p", P)
@pytest.mark.parametrize("name", NETS)
def test_boxes_and_distances_contain_the_images_of_balls(name, p):
    net, shape = NETS[name]()
    net, x = randomised(net.double()).eval(), torch.randn(5, *shape)
    bound = LocalBound(read(net, shape), p)
    for radius in (1e-3, 0.3, 3.0):
        reach = bound(x, torch.full((5,), radius))
        for _ in range(40):
            with torch.no_grad():
                y = net(in_ball(x, radius, p))
            assert (y >= reach.lo - 1e-9).all()
            assert (y <= reach.hi + 1e-9).all()
            assert (norm(y - reach.centre, p) <= reach.constant * radius + 1e-9).all()


@pytest.mark.parametrize("p", P)
@pytest.mark.parametrize("name", ["spline", "spline_scaled", "relu", "gelu", "stock"])
def test_small_balls_give_the_norm_of_the_jacobian(name, p):
    net, shape = NETS[name]()
    net, x = randomised(net.double()).eval(), torch.randn(6, *shape)
    jacobians = torch.stack([torch.autograd.functional.jacobian(net, point[None])[0, :, 0] for point in x])
    truth = torch.linalg.matrix_norm(jacobians, ord=p)
    local = local_lipschitz_bound(net, x, 1e-9, p)
    assert (local >= truth * (1 - 1e-9)).all()
    assert (local <= truth * (1 + 1e-5) + 1e-7).all()


def test_constants_grow_with_the_ball_and_are_smaller_than_the_global_one():
    net, shape = NETS["relu"]()
    net, x = randomised(net), torch.randn(20, *shape)
    constants = torch.stack([local_lipschitz_bound(net, x, radius) for radius in (0.001, 0.01, 0.1, 1.0, 100.0)])
    assert (constants.diff(dim=0) >= -1e-9).all()
    assert constants[0].mean() < 0.7 * lipschitz_bound(net, shape).total


def test_branches_that_restart_behind_different_layers_are_not_mixed_up():
    """GroupSort ends an enclosure with the constant 1: what follows in two branches must not be summed as matrices."""
    swap = nn.Sequential(GroupSort(2), nn.Linear(2, 2, bias=False))
    keep = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        swap[1].weight.copy_(torch.tensor([[-1.0, 0.0], [0.0, -1.0]]))
        keep.weight.copy_(torch.eye(2))
    net, x = Residual(swap, keep).double(), torch.tensor([[0.0, 1.0]])  # x - (x swapped): norm 2
    assert local_lipschitz_bound(net, x, 0.01).item() >= 2 - 1e-9


@pytest.mark.parametrize("p", P)
@pytest.mark.parametrize("last", [False, True])
def test_the_errors_of_all_branches_count(p, last):
    """x + |x| has the slopes 0 and 2 around 0, (x, |x|) the constant of (1, 1)."""
    branches = (nn.Identity(), Absolute(1)) if last else (Absolute(1), nn.Identity())
    x = torch.zeros(1, 1)
    assert local_lipschitz_bound(Residual(*branches), x, 1.0, p).item() == pytest.approx(2)
    assert local_lipschitz_bound(Concatenation(*branches), x, 1.0, p).item() == pytest.approx(2 ** (1 / p))


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_both_kinds_of_gelu_have_their_own_slopes(approximate):
    layer, x = nn.GELU(approximate), torch.linspace(-5, 5, 401).view(-1, 1).requires_grad_()
    (slopes,) = torch.autograd.grad(layer(x).sum(), x)
    assert (local_lipschitz_bound(layer, x, 1e-9)[:, None] >= slopes.abs() * (1 - 1e-9)).all()


def test_side_effects_and_dtypes():
    net, shape = NETS["conv"]()
    net = randomised(net).float().train()
    before, x = {k: v.clone() for k, v in net.state_dict().items()}, torch.randn(70, *shape, dtype=torch.float32)
    local = local_lipschitz_bound(net, x, torch.linspace(0, 1, 70))
    assert local.dtype == torch.float64
    torch.testing.assert_close(
        local[[3, 68]], local_lipschitz_bound(net, x[[3, 68]], torch.linspace(0, 1, 70)[[3, 68]])
    )
    assert net[0].weight.dtype == torch.float32
    assert all(module.training for module in net.modules())
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items() if "extra" not in k)
    assert all(parameter.grad is None for parameter in net.parameters())
    with torch.inference_mode():
        inside = local_lipschitz_bound(net, x.clone(), 0.5)
    torch.testing.assert_close(inside, local_lipschitz_bound(net, x, 0.5))


def test_unbounded_layers_and_values_that_are_no_numbers_give_infinity():
    x = torch.randn(2, 3)

    class Mine(nn.Linear):
        pass

    assert (local_lipschitz_bound(nn.Sequential(Mine(3, 3)), x, 0.1) == INF).all()
    net = nn.Sequential(nn.Linear(3, 4), LinearSpline(4), nn.Linear(4, 2))
    local = local_lipschitz_bound(net, torch.tensor([[float("nan"), 0, 0], [0, 0, 0]]), 0.1)
    assert local[1] < INF
    assert not local.isnan().any()
    net[0].weight.data[0, 0] = float("nan")
    assert (local_lipschitz_bound(net, x, 0.1) == INF).all()


@pytest.mark.parametrize(("radius", "p", "message"), [(-1.0, 2, "radius=-1.0: "), (1.0, 3, "p=3: ")])
def test_arguments_out_of_range_are_refused(radius, p, message):
    with pytest.raises(ValueError, match=message):
        local_lipschitz_bound(nn.Linear(2, 2), torch.zeros(1, 2), radius, p)


# --- parts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", P)
@pytest.mark.parametrize("shape", [(4, 3, 6), (4, 6, 3), (2, 1, 5)])
def test_matrix_norms(p, shape):
    matrices = torch.randn(shape)
    torch.testing.assert_close(matrix_norm(matrices, p), torch.linalg.matrix_norm(matrices, ord=p), rtol=1e-8, atol=0)
    matrices[1, 0, 0] = float("nan")
    assert matrix_norm(matrices, p)[1] == INF
    assert matrix_norm(matrices, p)[0] < INF


@pytest.mark.parametrize("p", P)
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(4, 3), (4,)),
        (nn.Conv2d(4, 6, 3, 2, 1, groups=2), (4, 5, 5)),
        (nn.Conv1d(2, 3, 3, padding=1, padding_mode="replicate"), (2, 4)),
        (nn.Conv1d(1, 1, 5, padding=2, padding_mode="circular"), (1, 3)),
        (nn.ConvTranspose2d(4, 6, 3, 2, 1, groups=2), (4, 3, 3)),
    ],
    ids=str,
)
def test_row_norms_of_linear_maps(layer, shape, p):
    size, layer = torch.Size(shape).numel(), layer.double()
    with torch.no_grad():
        outputs = layer(torch.eye(size).view(size, *shape)) - layer(torch.zeros(1, *shape))
        dual = {1: INF, 2: 2, INF: 1}[p]
        rows = torch.linalg.vector_norm(outputs, ord=dual, dim=0)
        truth = rows.flatten(1).amax(1) if rows.dim() > 1 else rows
        stated = channel_norms(layer, p)
    assert (stated >= truth * (1 - 1e-12)).all()
    if isinstance(layer, nn.Linear | nn.Conv2d):
        assert (stated <= truth * (1 + 1e-6)).all()
