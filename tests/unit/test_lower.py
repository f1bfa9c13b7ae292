"""The observed side of the sandwich: Jacobian norms in three norms, and what ascent adds to them."""

import math

import pytest
import torch
from torch import nn

from tautnet.activations import GroupSort, LeakyReLU, LinearSpline, ReLU
from tautnet.backbones import LayerFactory, convnet, mlp
from tautnet.lipschitz import lipschitz_bound, lipschitz_lower
from tautnet.lipschitz import lower as module
from tautnet.lipschitz.lower import ascend, jacobian_norms, start_pairs
from tautnet.normalizers import BatchNorm, Bjorck, Unitize, no_output_norm, no_weight_norm

INF = math.inf
EXPONENTS = (1, 2, INF)

pytestmark = pytest.mark.usefixtures("float64_on_one_thread")


def jacobians(net, x):
    """The Jacobian at each sample as a matrix, by torch's own means."""
    return [torch.autograd.functional.jacobian(lambda y: net(y[None])[0], row).reshape(-1, row.numel()) for row in x]


def operator_norm(matrix, p):
    return torch.linalg.matrix_norm(matrix, ord=p).item()


def rough_spline(channels):
    spline = LinearSpline(channels, 9, 2.0)
    with torch.no_grad():
        spline.coefficients.normal_()
    return spline


def image_net():
    return nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), rough_spline(3), nn.Conv2d(3, 2, 3, padding=1))


def dense_net(activation=rough_spline, norm=no_output_norm):
    return mlp(LayerFactory(activation, norm, no_weight_norm), (4,), 3, (8, 8)).eval()


# --- Jacobians --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("p", "value"), [(1, 7.0), (2, math.sqrt((27 + math.sqrt(533)) / 2)), (INF, 5.0)])
def test_a_matrix_has_its_operator_norm(p, value):
    """[[1, 3], [-1, 4]]: column sums 2 and 7, row sums 4 and 5, W^T W = [[2, -1], [-1, 25]]."""
    layer = nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 3.0], [-1.0, 4.0]]))
    assert lipschitz_lower(layer, torch.randn(3, 2), p) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("p", EXPONENTS)
def test_every_sample_has_its_own_jacobian(p):
    net, x = dense_net(), torch.randn(260, 4)  # more than are looked at together
    exact = torch.tensor([operator_norm(jacobian, p) for jacobian in jacobians(net, x)])
    torch.testing.assert_close(jacobian_norms(net, x, p), exact)


@pytest.mark.parametrize("p", EXPONENTS)
@pytest.mark.parametrize("seed", range(5))
def test_the_power_method_stays_below_and_comes_close(p, seed):
    torch.manual_seed(seed)
    net, x = image_net(), torch.randn(3, 1, 5, 5)
    exact = torch.tensor([operator_norm(jacobian, p) for jacobian in jacobians(net, x)])
    ratio = jacobian_norms(net, x, p) / exact
    assert (ratio <= 1 + 1e-12).all()
    assert (ratio >= 0.7).all()


@pytest.mark.parametrize("p", EXPONENTS)
def test_the_power_method_finds_the_norm_of_a_diagonal_matrix(p):
    layer = nn.Linear(130, 130, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.diag(2.0 ** torch.arange(130)))
    assert lipschitz_lower(layer, torch.zeros(1, 130), p) == pytest.approx(2**129, rel=1e-6)


@pytest.mark.parametrize("p", EXPONENTS)
@pytest.mark.parametrize("outputs", [3, 130])
def test_a_constant_net_has_zero(p, outputs):
    layer = nn.Linear(4, outputs)
    nn.init.zeros_(layer.weight)
    assert lipschitz_lower(layer, torch.randn(2, 4), p, num_steps=3) == 0


@pytest.mark.parametrize("p", EXPONENTS)
@pytest.mark.parametrize("outputs", [3, 130])
@pytest.mark.parametrize("value", [math.nan, INF])
def test_a_diverged_net_is_not_a_number(p, outputs, value):
    layer = nn.Linear(4, outputs)
    with torch.no_grad():
        layer.weight[1, 2] = value
    assert math.isnan(lipschitz_lower(layer, torch.randn(2, 4), p, num_steps=3))


# --- ascent -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", EXPONENTS)
def test_ascent_finds_a_steep_piece_away_from_the_data(p):
    """Slope 5 between 1 and 1.5, which no sample enters, 0.1 elsewhere."""
    spline = LinearSpline(1, 9, 2.0)
    with torch.no_grad():
        spline.coefficients.copy_(torch.tensor([[0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 2.8, 2.85]]))
    x = torch.tensor([[-1.2], [0.3], [0.8], [1.9]])
    assert lipschitz_lower(spline, x, p) == pytest.approx(0.1)
    assert lipschitz_lower(spline, x, p, num_steps=10) == pytest.approx(5)


@pytest.mark.parametrize("p", EXPONENTS)
@pytest.mark.parametrize("make", [dense_net, lambda: dense_net(LeakyReLU), lambda: dense_net(GroupSort, Unitize)])
def test_more_steps_see_more_and_never_more_than_the_bound(p, make):
    gains = []
    for seed in range(4):
        torch.manual_seed(seed)
        net, x = make(), torch.randn(20, 4)
        data, climbed = (lipschitz_lower(net, x, p, num_steps) for num_steps in (0, 50))
        assert climbed <= lipschitz_bound(net, (4,), p).total * (1 + 1e-9)
        gains.append(climbed / data)
    assert min(gains) >= 1
    assert max(gains) > 1.02


@pytest.mark.parametrize("p", EXPONENTS)
def test_ascent_turns_pairs_of_an_affine_net_into_the_steepest_direction(p):
    layer = nn.Linear(6, 6)
    x, y = torch.randn(3, 6), torch.randn(3, 6)
    norm = operator_norm(layer.weight.detach(), p)
    value, x, y = ascend(layer, x, y, p, num_steps=60)
    assert value == pytest.approx(norm)
    layer.requires_grad_(False)
    secant = torch.linalg.vector_norm(layer(y) - layer(x), ord=p, dim=1) / torch.linalg.vector_norm(y - x, ord=p, dim=1)
    assert secant.max() == pytest.approx(norm, rel=1e-6)


@pytest.mark.parametrize("p", EXPONENTS)
def test_pairs_come_back_steepest_first_and_as_long_as_they_were(p):
    net = dense_net()
    x, y = start_pairs(net, torch.randn(40, 4), p, num_pairs=6)
    length = torch.linalg.vector_norm(y - x, ord=p, dim=1)
    assert length.min() > 0
    values = [ascend(net, x[i : i + 1], y[i : i + 1], p, 15)[0] for i in range(6)]
    value, new_x, new_y = ascend(net, x, y, p, 15)
    assert value == pytest.approx(max(values))
    new_length = torch.linalg.vector_norm(new_y - new_x, ord=p, dim=1)
    order = torch.tensor(values).argsort(descending=True)
    torch.testing.assert_close(new_length, length[order])


def test_a_warm_start_goes_on_from_what_was_found():
    net, x = dense_net(), torch.randn(40, 4)
    pairs, values = start_pairs(net, x), []
    for _ in range(8):
        value, *pairs = ascend(net, *pairs, num_steps=10)
        values.append(value)
    assert max(values[4:]) > lipschitz_lower(net, x)
    assert max(values) > values[0]


@pytest.mark.parametrize(("count", "value"), [(1, 0.0), (5, 1.0), (2, 0.0)])
def test_few_or_equal_samples_give_pairs_of_different_points(count, value):
    net, x = dense_net(), torch.full((count, 4), value)
    first, second = start_pairs(net, x)
    assert len(first) == min(4, len(x))
    assert ((first - second).norm(dim=1) > 0).all()
    assert lipschitz_lower(net, x, num_steps=5) >= lipschitz_lower(net, x)


@pytest.mark.parametrize("p", EXPONENTS)
def test_equal_points_stay_where_they_are(p):
    net, x = dense_net(), torch.randn(2, 4)
    value, first, second = ascend(net, x, x, p, 3)
    assert torch.equal(first, second)
    assert value == pytest.approx(lipschitz_lower(net, x, p))


@pytest.mark.parametrize("p", EXPONENTS)
def test_ascent_starts_and_climbs_in_the_norm_that_is_asked_for(p, monkeypatch):
    seen = []
    monkeypatch.setattr(module, "start_pairs", lambda *a, **k: seen.append(a[2:]) or start_pairs(*a, **k))
    monkeypatch.setattr(module, "ascend", lambda *a, **k: seen.append(a[3:]) or ascend(*a, **k))
    lipschitz_lower(dense_net(), torch.randn(5, 4), p, num_steps=2)
    assert seen == [(p,), (p, 2)]


def test_the_start_is_among_the_steepest_samples():
    """Slopes 3 right of 0 and 1 left of it."""
    net = nn.Sequential(LeakyReLU(1, 1 / 3), nn.Linear(1, 1))
    nn.init.constant_(net[1].weight, 3)
    x, _ = start_pairs(net, torch.linspace(-5, 1, 40).view(-1, 1), num_pairs=3)
    assert (x > 0).all()


# --- rounding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", EXPONENTS)
@pytest.mark.parametrize("num_steps", [0, 30])
@pytest.mark.parametrize("seed", range(3))
def test_rounding_of_float32_does_not_pass_a_tight_bound(p, num_steps, seed):
    """A linear net whose bound is attained: a large offset, taken away again, leaves only rounding in the values."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5)).float()
    with torch.no_grad():
        net[0].weight.copy_(torch.diag(torch.tensor([3.0, 1, 1, 1, 1])))
        net[1].weight.copy_(torch.diag(torch.tensor([0.7, 0.1, 0.1, 0.1, 0.1])))
        net[0].bias.fill_(1e6)
        net[1].bias.copy_(-1e6 * net[1].weight.sum(1))
    x = torch.randn(20, 5).float()
    assert lipschitz_lower(net, x, p, num_steps) == pytest.approx(2.1, rel=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_orthogonal_nets_in_float32_stay_within_the_stated_margin(seed):
    torch.manual_seed(seed)
    factory = LayerFactory(GroupSort, no_output_norm, Bjorck())
    net = mlp(factory, (6,), 6, (6,) * 10).float()
    x = torch.randn(20, 6).float()
    bound = lipschitz_bound(net, (6,)).total
    assert 0.9 <= lipschitz_lower(net, x, num_steps=10) <= bound * (1 + 1e-4)


# --- side effects -----------------------------------------------------------------------------------------------------


def images():
    return convnet(LayerFactory(rough_spline, Unitize, no_weight_norm), (1, 6, 6), 4, (2, 3)), torch.randn(5, 1, 6, 6)


@pytest.mark.parametrize("context", [torch.inference_mode, torch.no_grad])
@pytest.mark.parametrize("p", EXPONENTS)
def test_it_works_where_nothing_is_differentiated(context, p):
    net, x = images()
    expected = lipschitz_lower(net, x, p, num_steps=3)
    with context():
        assert lipschitz_lower(net, x.clone(), p, num_steps=3) == expected
        assert torch.is_inference_mode_enabled() == (context is torch.inference_mode)
        assert not torch.is_grad_enabled()


@pytest.mark.parametrize("p", EXPONENTS)
def test_autocast_around_it_changes_nothing(p):
    net, x = images()
    net, x = net.float(), x.float()
    expected = lipschitz_lower(net, x, p, num_steps=3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert lipschitz_lower(net, x, p, num_steps=3) == expected


def test_full_precision_is_set_and_given_back():
    seen = []

    class Watch(nn.Module):
        def forward(self, x):
            seen.append(torch.backends.cuda.matmul.fp32_precision)
            return x

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        lipschitz_lower(nn.Sequential(nn.Linear(2, 2), Watch()), torch.zeros(1, 2))
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.backends.cuda.matmul.allow_tf32
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision(before)
    assert set(seen) == {"ieee"}


@pytest.mark.parametrize("p", EXPONENTS)
def test_it_leaves_no_trace(p):
    net, x = images()
    net.train()
    net(x).sum().backward()
    net[1].eval()

    def state():
        tensors = [*net.state_dict().values(), *(q.grad for q in net.parameters()), torch.get_rng_state(), x]
        return [tensor.clone() for tensor in tensors], [module.training for module in net.modules()]

    tensors, flags = state()
    lipschitz_lower(net, x, p, num_steps=3)
    tensors_after, flags_after = state()
    assert flags_after == flags
    assert all(torch.equal(*pair) for pair in zip(tensors, tensors_after, strict=True))
    assert not x.requires_grad


def test_it_sees_the_net_in_eval_mode():
    net = nn.Sequential(BatchNorm(3), nn.Dropout(), ReLU(3)).train()
    assert lipschitz_lower(net, torch.ones(2, 3), num_steps=2) == pytest.approx(
        1 / math.sqrt(1 + net[0].batch_norm.eps)
    )


# --- arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("p=3: ", lambda net, x: lipschitz_lower(net, x, 3)),
        ("p=0: ", lambda net, x: ascend(net, x, x, 0)),
        ("p=3: ", lambda net, x: start_pairs(net, x, 3)),
        (r"num_steps=-1: ", lambda net, x: lipschitz_lower(net, x, num_steps=-1)),
        (r"num_steps=-1: ", lambda net, x: ascend(net, x, x, num_steps=-1)),
        (r"x=\(0, 4\)", lambda net, x: lipschitz_lower(net, x[:0])),
        (r"x=\(0, 4\)", lambda net, x: start_pairs(net, x[:0])),
        (r"x=\(0, 4\)", lambda net, x: ascend(net, x[:0], x[:0])),
        (r"x=\(2, 4\), num_pairs=0", lambda net, x: start_pairs(net, x, num_pairs=0)),
        (r"y=\(1, 4\): ", lambda net, x: ascend(net, x, x[:1])),
    ],
)
def test_bad_arguments_are_named(message, call):
    with pytest.raises(ValueError, match=f"^{message}"):
        call(dense_net(), torch.randn(2, 4))
