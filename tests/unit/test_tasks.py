"""Losses and metrics of the models: what they are of, and over which samples."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tautnet.models import Classifier, Denoiser, Regressor

pytestmark = pytest.mark.usefixtures("float64")


def model(kind, num_outputs=3, input_shape=(4,)):
    """A model whose network is the identity, so that a batch's inputs are its outputs."""
    config = {
        "model": {"net": {"_target_": "tautnet.backbones.mlp", "widths": [2]}},
        "activation": {"_target_": "tautnet.activations.ReLU", "_partial_": True},
        "norm": {
            "output": {"_target_": "tautnet.normalizers.no_output_norm", "_partial_": True},
            "weight": {"_target_": "tautnet.normalizers.no_weight_norm", "_partial_": True},
        },
        "optimizer": {"_target_": "torch.optim.SGD", "lr": 0.1},
        "scheduler": {"_target_": "tautnet.optim.schedules.constant"},
        "regularizer": {},
        "input_shape": input_shape,
        "num_outputs": num_outputs,
    }
    made = kind(config)
    made.net = nn.Identity()
    made.logged = {}
    made.log = lambda name, value, **_: made.logged.update({name: value})  # there is no trainer
    return made


def evaluated(made, batches, stage="test"):
    """Losses of the batches, and the metric over all of them."""
    losses = [made.task_loss(batch, stage).item() for batch in batches]
    (metric,) = made.logged.values()
    return losses, metric.compute().item()


# --- classification ---------------------------------------------------------------------------------------------------


def test_cross_entropy_and_accuracy_of_classes():
    logits = torch.tensor([[2.0, 0.0, 1.0], [0.0, 0.0, 3.0], [1.0, 5.0, 0.0]])
    classes = torch.tensor([0, 1, 1])
    expected = sum(
        math.log(sum(math.exp(v) for v in row)) - row[c] for row, c in zip(logits.tolist(), [0, 1, 1], strict=True)
    )
    (loss,), accuracy = evaluated(model(Classifier), [(logits, classes)])
    assert loss == pytest.approx(expected / 3, rel=1e-12)
    assert accuracy == pytest.approx(2 / 3)


def test_soft_targets():
    logits, soft = torch.randn(50, 3), torch.rand(50, 3).softmax(1)
    (loss,), accuracy = evaluated(model(Classifier), [(logits, soft)])
    assert loss == pytest.approx(-(soft * logits.log_softmax(1)).sum(1).mean().item(), rel=1e-12)
    assert accuracy == pytest.approx((logits.argmax(1) == soft.argmax(1)).double().mean().item())


def test_one_hot_targets_are_classes():
    logits, classes = torch.randn(50, 3), torch.arange(50) % 3
    hard, soft = (evaluated(model(Classifier), [(logits, y)]) for y in (classes, F.one_hot(classes, 3).double()))
    assert soft[0] == pytest.approx(hard[0], rel=1e-12)
    assert soft[1] == hard[1] > 0


def test_a_single_logit_is_the_binary_cross_entropy():
    logit, classes = torch.randn(50, 1) * 3, torch.arange(50) % 2
    (loss,), accuracy = evaluated(model(Classifier, 2), [(logit, classes)])
    expected = F.binary_cross_entropy_with_logits(logit[:, 0], classes.double()).item()
    assert loss == pytest.approx(expected, rel=1e-12)
    assert accuracy == pytest.approx(((logit[:, 0] > 0) == classes.bool()).double().mean().item())


def test_a_single_logit_with_soft_targets():
    logit, second = torch.randn(50, 1) * 3, torch.rand(50)
    (loss,), accuracy = evaluated(model(Classifier, 2), [(logit, torch.stack([1 - second, second], 1))])
    assert loss == pytest.approx(F.binary_cross_entropy_with_logits(logit[:, 0], second).item(), rel=1e-12)
    assert accuracy == pytest.approx(((logit[:, 0] > 0) == (second > 0.5)).double().mean().item())


def test_accuracy_is_over_samples_not_batches():
    batches = [(torch.eye(3)[[0, 1, 2, 0]], torch.tensor([0, 1, 2, 0])), (torch.eye(3)[[0]], torch.tensor([1]))]
    assert evaluated(model(Classifier), batches)[1] == pytest.approx(0.8)


# --- regression -------------------------------------------------------------------------------------------------------


def test_squared_error_and_r2_over_all_samples():
    outputs, targets = torch.randn(30, 1), torch.randn(30, 1) * 2 + 1
    batches = list(zip(outputs.split(8), targets.split(8), strict=True))
    losses, r2 = evaluated(model(Regressor, 1), batches)
    assert losses == pytest.approx([((x - y) ** 2).mean().item() for x, y in batches], rel=1e-12)
    assert r2 == pytest.approx(
        1 - ((outputs - targets) ** 2).mean().item() / targets.var(correction=0).item(), rel=1e-9
    )


def test_r2_of_the_mean_is_zero_and_of_the_truth_one():
    targets = torch.randn(30, 1)
    assert evaluated(model(Regressor, 1), [(targets.mean().expand(30, 1), targets)])[1] == pytest.approx(0, abs=1e-12)
    assert evaluated(model(Regressor, 1), [(targets, targets)]) == ([0.0], 1.0)


# --- denoising --------------------------------------------------------------------------------------------------------


def test_psnr_is_the_mean_over_images_of_different_sizes():
    made = model(Denoiser, 1, (1, 4, 4))
    clean = [torch.rand(1, 1, 4, 4), torch.rand(1, 1, 6, 3), torch.rand(1, 1, 2, 2)]
    errors = [0.1, 0.01, 1.5]
    losses, psnr = evaluated(made, [(x + e, x) for x, e in zip(clean, errors, strict=True)])
    assert losses == pytest.approx([e * e for e in errors], rel=1e-9)
    assert psnr == pytest.approx(sum(-20 * math.log10(e) for e in errors) / 3, rel=1e-6)


def test_psnr_is_the_mean_over_the_images_of_a_batch():
    clean = torch.rand(2, 1, 4, 4)
    noisy = clean + torch.tensor([0.1, 0.001]).view(2, 1, 1, 1)
    assert evaluated(model(Denoiser, 1, (1, 4, 4)), [(noisy, clean)])[1] == pytest.approx(40, rel=1e-6)


# --- stages -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "batch", "name"),
    [
        (Classifier, (torch.eye(3), torch.tensor([0, 1, 0])), "acc"),
        (Regressor, (torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [3.0]])), "r2"),
        (Denoiser, (torch.zeros(2, 1, 2, 2), torch.ones(2, 1, 2, 2) * 0.1), "psnr"),
    ],
)
def test_each_stage_has_a_metric_and_a_name_of_its_own(kind, batch, name):
    made = model(kind, input_shape=(1, 2, 2), num_outputs=3 if kind is Classifier else 1)
    made.training_step(batch, 0)
    trained = made.logged[f"train/{name}"]
    made.validation_step(batch, 0)
    made.test_step(batch, 0)
    metrics = [made.logged[f"{stage}/{name}"] for stage in ("train", "val", "test")]
    assert len(set(map(id, metrics))) == 3
    assert metrics[0] is trained
    assert (
        made.logged["loss/task"] == made.logged["train/loss"] == made.logged["val/loss"] == made.logged["test/loss"] > 0
    )
