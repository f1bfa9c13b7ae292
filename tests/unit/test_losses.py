"""Classification losses: exact values, soundness of the worst logits, and what is refused."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tautnet.activations import LinearSpline, ReLU
from tautnet.backbones import LayerFactory, mlp
from tautnet.backbones.blocks import Concatenation, Residual, averaged
from tautnet.config import ConfigError
from tautnet.lipschitz import lipschitz_bound
from tautnet.losses import (
    CrossEntropy,
    Hinge,
    HingeKantorovichRubinstein,
    Interval,
    MarginCrossEntropy,
    SingleProp,
)
from tautnet.losses.margin import kantorovich_rubinstein
from tautnet.models import Classifier, Regressor
from tautnet.normalizers import BatchNorm, Unitize, no_output_norm, no_weight_norm

pytestmark = pytest.mark.usefixtures("float64")


def of(loss, logits, targets, x=None, progress=1.0):
    return loss(logits if x is None else x, logits, targets, progress)


def spline_net(shape=(6,)):
    net = mlp(LayerFactory(lambda c: LinearSpline(c, 9, 2.0), no_output_norm, no_weight_norm), shape, 4, (8, 8))
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, LinearSpline):  # slopes of both signs
                module.coefficients.add_(torch.randn_like(module.coefficients) * 0.7)
    return net


def relu_net(shape=(6,)):
    return mlp(LayerFactory(ReLU, no_output_norm, no_weight_norm), shape, 4, (8, 8))


def conv_net():
    """All kinds of parts: convolutions, a sum, a concatenation, pools."""
    body = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), LinearSpline(3, 7, 2.0, init="even_odd"))
    both = Concatenation(nn.Conv2d(3, 2, 1), nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), nn.Tanh()))
    return nn.Sequential(
        *(nn.Conv2d(1, 3, 3, padding=1), averaged(body, nn.Identity(), 0.3), Residual(body, nn.Identity()), both),
        *(nn.MaxPool2d(2), ReLU(4), nn.Flatten(), nn.Linear(16, 4)),
    )


# --- margins ----------------------------------------------------------------------------------------------------------


def test_the_margin_is_taken_from_the_label_before_the_softmax():
    logits, targets = torch.tensor([[2.0, 0.5, -1.0], [0.0, 1.0, 3.0]]), torch.tensor([0, 1])
    rows = [([1.5, 0.5, -1.0], 0), ([0.0, 0.5, 3.0], 1)]
    expected = [0.2 * (math.log(sum(math.exp(v / 0.2) for v in row)) - row[y] / 0.2) for row, y in rows]
    assert of(MarginCrossEntropy(0.5, 0.2), logits, targets).item() == pytest.approx(sum(expected) / 2, rel=1e-12)


def test_a_reached_margin_costs_next_to_nothing_and_a_small_temperature_is_the_largest_shortfall():
    targets = torch.tensor([1])
    assert of(MarginCrossEntropy(1.0, 0.05), torch.tensor([[0.0, 3.0, 0.5]]), targets) < 1e-10
    short = of(MarginCrossEntropy(1.0, 1e-3), torch.tensor([[0.0, 0.75, 0.5]]), targets).item()
    assert short == pytest.approx(0.75, abs=1e-9)  # 0.5 - (0.75 - 1)


def test_hinge():
    logits = torch.tensor([[2.0, 1.5, -1.0], [0.0, 4.0, 1.0]])
    loss = of(Hinge(1.0), logits, torch.tensor([0, 1]))
    assert loss.item() == pytest.approx(0.5 / 2)  # only 2.0 - 1.5 is short, by 0.5
    assert of(Hinge(1.0), logits, torch.tensor([2, 1])).item() == pytest.approx((4.0 + 3.5) / 2)


def test_hinge_kantorovich_rubinstein_by_hand():
    logits = torch.tensor([[1.0, -2.0], [0.2, 0.3], [-1.0, 0.8]])
    targets = torch.tensor([0, 0, 1])
    distance = ((0.6 + 1.0) + (0.8 - (-2.0 + 0.3) / 2)) / 2
    hinge = (0.0 + (0.3 + 0.8) + 0.0) / 3  # the second sample: 0.5 - 0.2 for the label, 0.5 + 0.3 for the other
    assert of(HingeKantorovichRubinstein(10.0, 1.0), logits, targets).item() == pytest.approx(10 * hinge - distance)


def test_classes_without_samples_have_no_distance():
    torch.manual_seed(3)
    logits, targets = torch.randn(8, 5, requires_grad=True), torch.tensor([1, 3, 1, 3, 3, 1, 1, 3])
    one, three = targets == 1, targets == 3
    expected = [f[own].mean() - f[~own].mean() for f, own in ((logits[:, 1], one), (logits[:, 3], three))]
    hinge_free = HingeKantorovichRubinstein(1.0, 1e-9)  # margin next to 0: the hinge is that of the signs
    relu = F.relu(-logits.gather(1, targets[:, None])[:, 0]) + (F.relu(logits) * (1 - F.one_hot(targets, 5))).sum(1) / 4
    loss = of(hinge_free, logits, targets)
    assert loss.item() == pytest.approx((relu.mean() - sum(expected) / 2).item(), abs=1e-8)
    alone = of(hinge_free, logits, torch.ones(8, dtype=torch.long))
    assert torch.autograd.grad(alone, logits)[0].isfinite().all()


def test_a_class_that_is_the_whole_batch_has_no_distance():
    assert kantorovich_rubinstein(torch.randn(8, 5) + 3, torch.ones(8, dtype=torch.long)) == 0


@pytest.mark.parametrize("loss", [MarginCrossEntropy(), Hinge(2.0), HingeKantorovichRubinstein(5.0)])
def test_gradients_of_margin_losses(loss):
    targets = torch.arange(6) % 3
    assert torch.autograd.gradcheck(lambda f: of(loss, f, targets), torch.randn(6, 3, requires_grad=True))


# --- certified --------------------------------------------------------------------------------------------------------


def certified(net, shape, loss):
    loss.attach(net, shape)
    return loss


@pytest.mark.parametrize("make", [spline_net, relu_net])
@pytest.mark.parametrize("kind", [Interval, lambda e: Interval(e, elision=True), SingleProp])
def test_worst_logits_are_never_exceeded(make, kind):
    net = make()
    x, targets, epsilon = torch.randn(20, 6), torch.arange(20) % 4, 0.3
    worst = certified(net, (6,), kind(epsilon)).worst_logits(x, targets, epsilon)
    differences = worst - worst.gather(1, targets[:, None])
    reached = torch.full_like(differences, -math.inf)
    for _ in range(300):
        shift = (torch.rand(20, 6) * 2 - 1).sign() if torch.rand(()) < 0.5 else torch.rand(20, 6) * 2 - 1
        logits = net(x + epsilon * shift).detach()
        reached = torch.maximum(reached, logits - logits.gather(1, targets[:, None]))
    assert (reached <= differences + 1e-12).all()


@pytest.mark.parametrize("kind", [Interval, lambda e: Interval(e, elision=True), SingleProp])
def test_worst_logits_of_a_net_of_all_kinds_of_parts(kind):
    net, shape, epsilon = conv_net(), (1, 4, 4), 0.2
    x, targets = torch.randn(10, *shape), torch.arange(10) % 4
    worst = certified(net, shape, kind(epsilon)).worst_logits(x, targets, epsilon)
    differences = worst - worst.gather(1, targets[:, None])
    for _ in range(200):
        logits = net(x + epsilon * (torch.rand_like(x) * 2 - 1)).detach()
        assert (logits - logits.gather(1, targets[:, None]) <= differences + 1e-12).all()


def test_one_dense_layer_is_exact():
    """The worst point for class j against the label is a corner: -sign(w_j - w_y) epsilon."""
    net, x, targets = nn.Sequential(nn.Linear(5, 3)), torch.randn(7, 5), torch.arange(7) % 3
    loss = certified(net, (5,), Interval(0.4, elision=True))
    found = loss.worst_logits(x, targets, 0.4)
    weight, logits = net[0].weight, net(x)
    for n, y in enumerate(targets.tolist()):
        for j in range(3):
            exact = logits[n, j] - logits[n, y] + 0.4 * (weight[j] - weight[y]).abs().sum()
            assert found[n, j].item() == pytest.approx(exact.item(), abs=1e-12)


def test_elision_is_never_looser_and_somewhere_tighter():
    net, x, targets = spline_net(), torch.randn(20, 6), torch.arange(20) % 4
    apart, merged = (
        certified(net, (6,), Interval(0.1, elision=e)).worst_logits(x, targets, 0.1) for e in (False, True)
    )
    apart = apart - apart.gather(1, targets[:, None])
    assert (merged <= apart + 1e-12).all()
    assert (merged < apart - 0.01).any()


def test_singleprop_of_a_relu_layer_by_hand():
    """One unit with z = 1, v = 2: the box [-1, 3] has slope 1 in it; the paper's radius is (1 + 2) / 2."""
    net = nn.Sequential(nn.Linear(1, 1, bias=False), ReLU(1), nn.Linear(1, 2, bias=False))
    with torch.no_grad():
        net[0].weight.fill_(2.0)
        net[2].weight.copy_(torch.tensor([[1.0], [-1.0]]))
    x, targets = torch.tensor([[0.5]]), torch.tensor([0])
    sound, paper = (
        certified(net, (1,), SingleProp(1.0, rule=r)).worst_logits(x, targets, 1.0) for r in ("sound", "paper")
    )
    assert sound.tolist() == [[1.0 - 2.0, -1.0 + 2.0]]
    assert paper.tolist() == [[1.0 - 1.5, -1.0 + 1.5]]
    for z, v, radius in ((3.0, 2.0, 2.0), (-3.0, 2.0, 0.0)):
        x, shift = torch.tensor([[z / 2]]), v / 2
        worst = certified(net, (1,), SingleProp(1.0, rule="paper")).worst_logits(x, targets, shift)
        assert worst.tolist() == [[max(z, 0) - radius, -max(z, 0) + radius]]


@pytest.mark.parametrize("point", [-2.0, 2.0])
def test_singleprop_takes_the_longer_side_of_the_image_of_other_layers(point):
    """tanh on the box from 0 to 4, and from -4 to 0: far from its value at the middle at the end 0 alone."""
    net = nn.Sequential(nn.Tanh(), nn.Linear(1, 2, bias=False))
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([[1.0], [-1.0]]))
    worst = certified(net, (1,), SingleProp(1.0)).worst_logits(torch.tensor([[point]]), torch.tensor([0]), 2.0)
    z, v = math.tanh(point), math.tanh(2.0)
    assert worst[0].tolist() == pytest.approx([z - v, -z + v], abs=1e-12)


def test_a_single_output_is_read_as_two_logits():
    net = nn.Sequential(nn.Linear(3, 1))
    x, targets = torch.randn(6, 3), torch.arange(6) % 2
    worst = certified(net, (3,), Interval(0.2)).worst_logits(x, targets, 0.2)
    spread = 0.2 * net[0].weight.abs().sum()
    away = net(x)[:, 0] + torch.where(targets == 1, -spread, spread)
    assert torch.allclose(worst, torch.stack([torch.zeros(6), away], 1))


def test_radius_and_weight_ramp_with_the_progress():
    net, x, targets = relu_net(), torch.randn(8, 6), torch.arange(8) % 4
    loss = certified(net, (6,), Interval(0.5, clean_share=0.25, ramp_start=0.2, ramp_end=0.6))
    logits = net(x)
    clean = F.cross_entropy(logits, targets)
    assert [loss.ramp(p) for p in (0.0, 0.2, 0.3, 0.6, 1.0)] == pytest.approx([0, 0, 0.25, 1, 1])
    assert of(loss, logits, targets, x, 0.1).item() == clean.item()
    for progress, ramp in ((0.3, 0.25), (0.6, 1.0), (1.0, 1.0)):
        worst = F.cross_entropy(loss.worst_logits(x, targets, 0.5 * ramp), targets)
        share = 1 - 0.75 * ramp
        expected = share * clean + (1 - share) * worst
        assert of(loss, logits, targets, x, progress).item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("kind", [Interval, SingleProp])
def test_gradients_reach_every_parameter(kind):
    net = spline_net()
    loss = certified(net, (6,), kind(0.2, clean_share=0.0))
    x = torch.randn(50, 6) * 2
    of(loss, net(x), torch.arange(50) % 4, x).backward()
    for parameter in net.parameters():
        assert parameter.grad.isfinite().all()
        assert parameter.grad.abs().sum() > 0


def test_an_averaged_residual_has_the_constant_of_its_branches():
    body = nn.Sequential(nn.Linear(6, 6), ReLU(6))
    with torch.no_grad():
        body[0].weight.copy_(torch.linalg.qr(torch.randn(6, 6))[0])
    block = averaged(body, nn.Identity(), 0.3)
    assert lipschitz_bound(block, (6,)).total == pytest.approx(1, abs=1e-8)
    x = torch.randn(5, 6)
    assert torch.allclose(block(x), 0.3 * body(x) + 0.7 * x)
    for share in (0.0, 1.0):
        with pytest.raises(ValueError, match=f"^share={share}: "):
            averaged(body, nn.Identity(), share)


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MarginCrossEntropy(margin=0.0), r"margin=0.0: "),
        (lambda: MarginCrossEntropy(temperature=-1.0), r"temperature=-1.0: "),
        (lambda: Hinge(math.inf), r"margin=inf: "),
        (lambda: HingeKantorovichRubinstein(alpha=0.0), r"alpha=0.0: "),
        (lambda: Interval(0.0), r"epsilon=0.0: "),
        (lambda: Interval(0.1, clean_share=1.0), r"clean_share=1.0: "),
        (lambda: Interval(0.1, ramp_start=1.0), r"ramp_start=1.0: "),
        (lambda: Interval(0.1, ramp_start=0.5, ramp_end=0.5), r"ramp_end=0.5: "),
        (lambda: SingleProp(0.1, rule="fast"), r"rule=fast: one of sound, paper"),
    ],
)
def test_arguments_out_of_range(make, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        make()


@pytest.mark.parametrize("norm", [BatchNorm, Unitize])
def test_batch_statistics_are_refused(norm):
    net = mlp(LayerFactory(ReLU, norm, no_weight_norm), (6,), 4, (8,))
    with pytest.raises(ValueError, match=r"uses statistics of the batch in training.*norm=none"):
        Interval(0.1).attach(net, (6,))


@pytest.mark.parametrize("layer", [nn.BatchNorm2d(2), nn.BatchNorm3d(2), nn.SyncBatchNorm(2), nn.InstanceNorm2d(2)])
def test_batch_statistics_of_stock_layers_are_refused(layer):
    with pytest.raises(ValueError, match=r"^1 uses statistics of the batch in training"):
        Interval(0.1).attach(nn.Sequential(nn.Identity(), layer), (2, 3, 3))


def test_a_head_of_one_output_has_no_classes_to_compare():
    with pytest.raises(ValueError, match=r"^elision=True: "):
        Interval(0.1, elision=True).attach(nn.Sequential(nn.Linear(6, 1)), (6,))


def test_what_no_box_goes_through_is_named():
    net = nn.Sequential(nn.Linear(6, 6), nn.Softmax(dim=1), nn.Linear(6, 4))
    with pytest.raises(ValueError, match=r"no box goes through 1 \(Softmax\)"):
        Interval(0.1).attach(net, (6,))
    with pytest.raises(ValueError, match="elision=True: "):
        Interval(0.1, elision=True).attach(nn.Sequential(nn.Linear(6, 4), ReLU(4)), (6,))
    with pytest.raises(ValueError, match=r"rule=paper: for ReLU alone, not 3 \(LinearSpline\)"):
        SingleProp(0.1, rule="paper").attach(spline_net(), (6,))


def config(loss, num_outputs=4):
    return {
        "model": {"net": {"_target_": "tautnet.backbones.mlp", "widths": [2]}, "loss": loss},
        "activation": {"_target_": "tautnet.activations.ReLU", "_partial_": True},
        "norm": {
            "output": {"_target_": "tautnet.normalizers.no_output_norm", "_partial_": True},
            "weight": {"_target_": "tautnet.normalizers.no_weight_norm", "_partial_": True},
        },
        "optimizer": {"_target_": "torch.optim.SGD", "lr": 0.1},
        "scheduler": {"_target_": "tautnet.optim.schedules.constant"},
        "regularizer": {},
        "input_shape": (6,),
        "num_outputs": num_outputs,
    }


def test_the_classifier_takes_the_loss_and_cross_entropy_without_one():
    assert isinstance(Classifier(config({})).loss, CrossEntropy)
    model = Classifier(config({"_target_": "tautnet.losses.Hinge", "margin": 2.0}))
    model.log = lambda *_, **__: None  # there is no trainer
    x, y = torch.randn(9, 6), torch.arange(9) % 4
    assert model.task_loss((x, y), "train").item() == pytest.approx(of(Hinge(2.0), model(x), y).item())
    with pytest.raises(ConfigError, match=r"model.loss=Hinge: targets of shape \(9, 4\)"):
        model.task_loss((x, F.one_hot(y, 4).double()), "train")


def test_the_ramp_follows_the_training_steps(monkeypatch):
    model = Classifier(config({"_target_": "tautnet.losses.Interval", "epsilon": 0.5}))
    model.log, model._total_steps = (lambda *_, **__: None), 200
    batch = torch.randn(9, 6), torch.arange(9) % 4
    seen = []
    monkeypatch.setattr(model.loss, "worst_logits", lambda x, y, e: seen.append(e) or torch.zeros(9, 4))
    for step in (10, 50, 62.5, 100, 199):
        monkeypatch.setattr(type(model), "global_step", step)
        model.task_loss(batch, "train")
    model.task_loss(batch, "val")
    assert seen == pytest.approx([0.5 / 3, 0.25, 0.5, 0.5, 0.5])


def test_progress_ends_at_1(monkeypatch):
    model = Classifier(config({}))
    assert model.progress == 0  # before a fit
    model._total_steps = 200
    for step, progress in ((50, 0.25), (200, 1.0), (260, 1.0)):  # a continued run may go on behind its plan
        monkeypatch.setattr(type(model), "global_step", step)
        assert model.progress == progress


@pytest.mark.parametrize(
    ("kind", "loss", "message"),
    [
        (Regressor, {"_target_": "tautnet.losses.Hinge"}, r"loss=tautnet.losses.Hinge: default; "),
        (Classifier, {"_target_": "tautnet.losses.Hinge", "margin": -1.0}, r"model.loss.margin=-1.0: "),
        (Classifier, {"_target_": "torch.nn.CrossEntropyLoss"}, r"model.loss=.*: a loss of tautnet.losses"),
        (Classifier, {"_target_": "tautnet.losses.SingleProp", "epsilon": 0.1, "rule": "x"}, r"model.loss.rule=x: "),
    ],
)
def test_a_loss_that_does_not_fit_is_one_line(kind, loss, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        kind(config(loss))


def test_no_loss_without_a_penalty_is_refused(settings):
    config = settings("model=mlp", "activation=relu", "norm=none", "loss=none")
    with pytest.raises(ConfigError, match=r"^loss=none: needs a penalty"):
        Classifier({**config, "input_shape": [64], "num_outputs": 10})
