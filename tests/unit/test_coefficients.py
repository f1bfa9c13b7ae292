"""The penalty on the coefficients of SLAFs, in the loss and beside it."""

import json

import pytest
import torch
from torch import nn

from tautnet.activations import LinearSpline, Slaf
from tautnet.regularizers.coefficients import CoefficientPenalty

SMALL = (
    *("debug=fast", "trainer=cpu", "trainer.enable_progress_bar=false", "logger=none", "callbacks=checkpoints"),
    *("model=mlp", "model.net.widths=[4]", "norm=none"),
)
SLAF = ("activation=slaf", "activation.degree=2")


@torch.no_grad()
def slaf(*coefficients, gate=None):
    layer = Slaf(1, degree=len(coefficients), gate=gate is not None)
    layer.coefficients.copy_(torch.tensor([coefficients]))
    if gate is not None:
        layer.gate_logits.copy_(torch.tensor(gate))
    return layer


def attached(net, **arguments):
    penalty = CoefficientPenalty(**arguments)
    penalty.attach(net, (1,))
    return penalty


@pytest.mark.usefixtures("float64")
def test_the_penalty_is_that_of_the_effective_coefficients():
    shared = slaf(3.0, -2.0)
    net = nn.Sequential(shared, nn.Linear(1, 1), slaf(4.0, 8.0, gate=[0.0, 0.0]), shared)
    assert attached(net, weight=0.5)().item() == 0.5 * (3 + 2 + 2 + 4)
    assert attached(net, weight=0.5, exponent=2)().item() == 0.5 * (9 + 4 + 4 + 16)
    assert attached(net, weight=0.5, decoupled=True, step=1.0)().item() == 0.0


@pytest.mark.usefixtures("float64")
def test_gradients_reach_coefficients_and_gates_but_not_the_bias():
    layer = slaf(3.0, -2.0, gate=[0.0, 0.0])
    attached(layer, weight=0.1, exponent=2)().backward()
    assert layer.coefficients.grad.tolist()[0] == pytest.approx([0.1 * 2 * 1.5 * 0.5, -0.1 * 2 * 0.5])
    assert layer.gate_logits.grad.tolist() == pytest.approx([0.1 * 2 * 1.5 * 3 / 4, 0.1 * 2 * 2 / 4])
    assert layer.bias.grad is None


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("exponent", "expected"), [(1, [2.8, -1.8, 0.0]), (2, [2.4, -1.6, 0.0])])
def test_the_decoupled_step_is_plain_gradient_descent(exponent, expected):
    layer = slaf(3.0, -2.0, 0.0)
    penalty = attached(layer, weight=0.1 if exponent == 2 else 0.2, exponent=exponent, decoupled=True, step=1.0)
    layer.coefficients.grad = torch.ones_like(layer.coefficients)  # of the loss; it has no part in it
    before = layer.bias.clone()
    penalty.project_()
    assert layer.coefficients.tolist()[0] == pytest.approx(expected)
    assert torch.equal(layer.bias, before)
    assert (layer.coefficients.grad == 1).all()


@pytest.mark.usefixtures("float64")
def test_a_coefficient_without_a_gradient_rests_and_gates_step_too():
    resting, moving = slaf(3.0), slaf(4.0, gate=[0.0])
    moving.coefficients.grad = torch.zeros_like(moving.coefficients)
    moving.gate_logits.grad = torch.zeros_like(moving.gate_logits)
    attached(nn.Sequential(resting, moving), weight=0.5, decoupled=True, step=0.2).project_()
    assert resting.coefficients.item() == 3.0
    assert moving.coefficients.item() == pytest.approx(4 - 0.1 * 0.5)
    assert moving.gate_logits.item() == pytest.approx(-0.1 * 4 / 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight": -1.0}, "weight=-1.0: "),
        ({"exponent": 3}, "exponent=3: 1 or 2"),
        ({"decoupled": True}, "step=None: a finite number above 0 with decoupled"),
        ({"decoupled": True, "step": 0.0}, "step=0.0: a finite number above 0"),
        ({"step": 0.1}, "step=0.1: has an effect with decoupled only"),
    ],
)
def test_arguments_out_of_range_or_without_effect_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        CoefficientPenalty(**arguments)


def test_a_network_without_slaf_is_refused():
    with pytest.raises(ValueError, match="the network has no SLAF; choose activation=slaf"):
        attached(nn.Sequential(nn.Linear(1, 1), LinearSpline(1)))


def size_after(command, folder, *overrides):
    assert command(*SMALL, *SLAF, "regularizer=coefficients", *overrides, f"hydra.run.dir={folder}") == 0
    weights = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    result = json.loads((folder / "result.json").read_text())
    size = sum(value.abs().sum().item() for name, value in weights.items() if name.endswith(".coefficients"))
    return size, result["metrics"]["loss/coefficients"]


def test_both_kinds_shrink_the_coefficients_in_training(command, tmp_path, capsys):
    free, _ = size_after(command, tmp_path / "0", "regularizer.coefficients.weight=0")
    coupled, term = size_after(command, tmp_path / "1", "regularizer.coefficients.weight=10")
    far = ("regularizer.coefficients.weight=0.1", "regularizer.coefficients.exponent=2")
    beside, nothing = size_after(
        command, tmp_path / "2", *far, "regularizer.coefficients.decoupled=true", "regularizer.coefficients.step=1"
    )
    assert coupled < free
    assert term > 0
    assert beside == pytest.approx(0.8**2 * free, rel=0.02)  # two steps
    assert nothing == 0
    assert command(*SMALL, "regularizer=coefficients", "activation=relu") == 2
    assert "error: regularizer.coefficients: the penalty has no effect: the network has no " in capsys.readouterr().err
