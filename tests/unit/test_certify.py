"""Certificates: exact where they can be, never broken by an attack, in units of the raw input."""

import math

import pytest
import torch
from torch import nn

from tautnet.activations import LinearSpline, ReLU
from tautnet.lipschitz.attack import attack
from tautnet.lipschitz.bound import lipschitz_bound
from tautnet.lipschitz.certify import Certifier, certified_at, certified_radius, margins
from tautnet.lipschitz.input_scale import InputScale
from tautnet.lipschitz.local import local_lipschitz_bound

INF = float("inf")
P = [1, 2, INF]

pytestmark = pytest.mark.usefixtures("float64_on_one_thread")


def linear(weight, bias=None):
    weight = torch.tensor(weight)
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(torch.zeros(len(weight)) if bias is None else torch.tensor(bias))
    return layer


def trained(net, x, labels, steps=60):
    """A few steps of training, so that predictions mean something."""
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), labels).backward()
        optimizer.step()
    return net.eval()


def blobs(count=90):
    labels = torch.arange(count) % 3
    return torch.tensor([[2.0, 0.0, 0, 0], [0, 2.0, 0, 0], [-1.0, -1.0, 1, 0]])[labels] + 0.7 * torch.randn(
        count, 4
    ), labels


NETS = {
    "spline": lambda: nn.Sequential(
        nn.Linear(4, 12), LinearSpline(12, 9, 2.0), nn.Linear(12, 12), ReLU(12), nn.Linear(12, 3)
    ),
    "no_head": lambda: nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, 3), LinearSpline(3, 9, 8.0)),
    "linear": lambda: nn.Sequential(nn.Linear(4, 3)),
    "conv": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 8, 2, padding=1), nn.BatchNorm2d(8), LinearSpline(8, 9, 2.0),
        nn.Flatten(), nn.Linear(72, 3),
    ),
    "scaled": lambda: nn.Sequential(
        InputScale(torch.tensor([0.5, 2.0, 1.0, 3.0])), nn.Linear(4, 8), ReLU(8), nn.Linear(8, 3)
    ),
}  # fmt: skip


# --- formulas ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("p", "share"), [(1, 1.0), (2, 2**-0.5), (INF, 0.5)])
def test_radius_of_known_margins(p, share):
    logits = torch.tensor([[3.0, 1.0, 0.5], [3.0, 1.0, 0.5], [1.0, 1.0, 0.0], [INF, 0.0, 0.0], [float("nan"), 0, 0]])
    labels = torch.tensor([0, 1, 0, 0, 0])
    torch.testing.assert_close(certified_radius(logits, labels, 4.0, p), torch.tensor([share / 2, 0, 0, 0, 0]))
    each = certified_radius(logits[:2], torch.tensor([0, 0]), torch.tensor([1.0, INF]), p)
    torch.testing.assert_close(each, torch.tensor([2 * share, 0.0]))
    assert certified_radius(logits[:3], labels[:3], 0.0, p).tolist() == [INF, 0.0, 0.0]


def test_a_single_logit_has_the_whole_margin():
    logits, labels = torch.tensor([[2.0], [2.0], [-3.0]]), torch.tensor([1, 0, 0])
    assert margins(logits, labels).tolist() == [2, -2, 3]
    for p in P:
        assert certified_radius(logits, labels, 2.0, p).tolist() == [1.0, 0.0, 1.5]


def test_refused_arguments():
    net = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="p=3: "):
        certified_radius(torch.zeros(1, 2), torch.zeros(1, dtype=torch.long), 1.0, 3)
    with pytest.raises(ValueError, match="eps=-1: "):
        certified_at(net, torch.zeros(1, 2), torch.zeros(1, dtype=torch.long), -1)
    with pytest.raises(ValueError, match=r"net: gives \(1, 2, 2\)"):
        Certifier(nn.Unflatten(1, (2, 2)), (4,))
    for scale in ([0.0], [INF], [[1.0]]):
        with pytest.raises(ValueError, match="scale_C="):
            InputScale(torch.tensor(scale))


@pytest.mark.parametrize("p", P)
@pytest.mark.parametrize("classes", [1, 2])
def test_radius_of_a_linear_classifier_is_its_distance_to_the_boundary(p, classes):
    """|w x + b| / ||w||_q with the difference of the two rows: nothing is lost."""
    rows, bias = torch.randn(classes, 5), torch.randn(classes)
    net, x = linear(rows.tolist(), bias.tolist()), torch.randn(30, 5)
    w, b = (rows[0], bias[0]) if classes == 1 else (rows[1] - rows[0], bias[1] - bias[0])
    labels = (x @ w + b > 0).long()
    distance = (x @ w + b).abs() / torch.linalg.vector_norm(w, ord={1: INF, 2: 2, INF: 1}[p])
    certifier = Certifier(net, (5,), p)
    torch.testing.assert_close(certifier.radii(x, labels), distance, rtol=1e-6, atol=1e-8)
    assert (certifier.radii(x, 1 - labels) == 0).all()
    for sample, target, far in zip(x, labels, distance, strict=True):
        assert certifier.certified(sample[None], target[None], 0.9999 * far.item()).item()
        assert not certifier.certified(sample[None], target[None], 1.0001 * far.item()).item()


def test_scaled_input_counts_in_raw_units():
    scale = torch.tensor([0.5, 4.0])
    net = nn.Sequential(InputScale(scale), linear([[3.0, 0.0], [0.0, 4.0]]))
    assert lipschitz_bound(net, (2,)).total == pytest.approx(6.0)  # not 4 / 0.5
    raw = torch.randn(50, 2, 3, 3)
    layer = InputScale(scale)
    torch.testing.assert_close(layer(raw), raw / scale.view(2, 1, 1))
    low, high = layer.interval(raw, raw + 1)
    torch.testing.assert_close((low, high), (layer(raw), layer(raw + 1)))
    assert layer.lipschitz_constant(2) == 2.0
    x, labels = torch.tensor([[1.0, 0.0]]), torch.tensor([0])  # difference of the rows in raw units: (6, -1)
    certifier, distance = Certifier(net, (2,), 2), 6 / 37**0.5
    assert certifier.radii(x, labels).item() == pytest.approx(6 / (6 * 2**0.5))
    assert certifier.certified(x, labels, 0.9999 * distance).item()
    assert not certifier.certified(x, labels, 1.0001 * distance).item()


def test_constant_and_unbounded_networks():
    labels = torch.tensor([1, 0])
    constant = linear([[0.0, 0.0], [0.0, 0.0]], [0.0, 1.0])
    assert Certifier(constant, (2,)).radii(torch.randn(2, 2), labels).tolist() == [INF, 0.0]

    class Unknown(nn.Linear):
        pass

    for net in (Unknown(2, 2), nn.Sequential(Unknown(2, 2), nn.Linear(2, 2))):
        x = torch.randn(2, 2)
        labels = net.double()(x).argmax(1)
        assert (Certifier(net, (2,)).radii(x, labels) == 0).all()
        assert not certified_at(net, x, labels, 1e-6).any()


@pytest.mark.parametrize("p", P)
@pytest.mark.parametrize(("margin", "radius"), [(0.1, 0.0), (10.0, INF)])
def test_a_margin_within_the_rounding_of_the_logits_certifies_nothing(p, margin, radius):
    """1e-9 of the logits is 1 here."""
    net, x, labels = linear([[0.0, 0.0], [0.0, 0.0]], [1e9, 1e9 + margin]), torch.randn(1, 2), torch.tensor([1])
    assert Certifier(net, (2,), p).radii(x, labels).item() == radius
    assert certified_at(net, x, labels, 0.0, p).item() == (radius > 0)


def test_the_unit_of_the_data_is_a_copy():
    scale = torch.tensor([0.5, 4.0])
    layer = InputScale(scale)
    scale.fill_(100.0)
    assert layer.scale.tolist() == [0.5, 4.0]


def test_values_that_are_no_numbers_are_not_certified():
    net = NETS["spline"]()
    x = torch.tensor([[float("nan"), 0, 0, 0], [INF, 0, 0, 0]])
    for p in P:
        assert not certified_at(net, x, torch.tensor([0, 0]), 0.0, p).any()
        assert (Certifier(net, (4,), p).radii(x, torch.tensor([0, 0])) == 0).all()


# --- against attacks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [2, INF])
@pytest.mark.parametrize("name", NETS)
def test_no_attack_flips_a_certified_prediction(name, p):
    torch.manual_seed(3)
    x, labels = blobs()
    net = trained(NETS[name](), x, labels)
    certifier = Certifier(net, (4,), p)
    radii = certifier.radii(x, labels)
    clean = net(x).argmax(1) == labels
    assert ((radii > 0) == clean).all()
    points = attack(net, x, labels, radii * (1 - 1e-9), p, num_steps=20)
    assert (net(points).argmax(1) == labels)[clean].all()
    shares = []
    for eps in (0.0, 0.02, 0.1, 0.3, 1.0):
        certified = certifier.certified(x, labels, eps)
        attacked = net(attack(net, x, labels, eps, p, num_steps=20)).argmax(1) == labels
        assert (certified <= attacked).all()
        assert (attacked <= clean).all()
        assert (certified >= (radii > eps)).all()
        shares.append(certified.double().mean())
    assert shares[0] == clean.double().mean() > 0.8
    assert shares == sorted(shares, reverse=True)
    assert shares[2] > 0.1


@pytest.mark.parametrize("p", P)
def test_random_points_of_the_ball_keep_certified_predictions(p):
    x, labels = blobs()
    net = trained(NETS["spline"](), x, labels)
    for eps in (0.05, 0.2, 0.5):
        certified = certified_at(net, x, labels, eps, p)
        for _ in range(50):
            step = torch.randn_like(x)
            step = step.sign() if p == INF else step
            step = eps * step / torch.linalg.vector_norm(step, ord=p, dim=1, keepdim=True)
            assert (net(x + step).argmax(1) == labels)[certified].all()


def test_local_constants_and_boxes_add_to_the_global_radius():
    x, labels = blobs()
    net = trained(NETS["spline"](), x, labels)
    for p in (2, INF):
        certifier = Certifier(net, (4,), p)
        by_global, by_all = certifier.radii(x, labels) > 0.2, certifier.certified(x, labels, 0.2)
        by_local = certified_radius(net(x), labels, local_lipschitz_bound(net, x, 0.2, p), p) > 0.2
        assert by_all.sum() > by_global.sum()
        assert (by_all >= by_local).all()


def test_side_effects_and_modes():
    x, labels = blobs(130)
    net = NETS["conv"]().float().train()
    before = {name: value.clone() for name, value in net.state_dict().items() if "extra" not in name}
    with torch.inference_mode():
        inside = certified_at(net, x.float(), labels, 0.01)
    assert (inside == certified_at(net, x.float(), labels, 0.01)).all()
    assert net[1].weight.dtype == torch.float32
    assert all(module.training for module in net.modules())
    assert all(torch.equal(before[name], net.state_dict()[name]) for name in before)


def test_tiny_weights_in_between_do_not_underflow_into_a_certificate():
    first, second, head = (nn.Linear(1, o, bias=False, dtype=torch.float64) for o in (1, 1, 2))
    for layer, weight in ((first, [[1e-170]]), (second, [[1e170]]), (head, [[1.0], [-1.0]])):
        layer.weight.data = torch.tensor(weight, dtype=torch.float64)
    net = nn.Sequential(first, second, head)
    x = torch.tensor([[0.1]], dtype=torch.float64)
    for p in (1, 2, math.inf):
        assert not certified_at(net, x, torch.tensor([0]), 1.0, p)
        assert certified_at(net, x, torch.tensor([0]), 0.09, p)


@pytest.mark.parametrize("labels", [torch.tensor([0]), torch.zeros(3), torch.zeros(2, 1, dtype=torch.long)])
def test_labels_of_another_shape_or_type_are_refused(labels):
    with pytest.raises(ValueError, match="labels of shape"):
        certified_radius(torch.zeros(2, 3), labels, 1.0)
    with pytest.raises(ValueError, match="labels of shape"):
        certified_at(nn.Linear(2, 3), torch.zeros(2, 2), labels, 0.1)


@pytest.mark.parametrize("constant", [-1.0, math.nan, torch.ones(2, 1)])
def test_constants_that_are_none_are_refused(constant):
    with pytest.raises(ValueError, match="constant="):
        certified_radius(torch.zeros(2, 3), torch.tensor([0, 1]), constant)
