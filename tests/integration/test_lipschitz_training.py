"""Training for Lipschitz control through the command line, shortened: the guarantees hold, and every loss runs."""

import json
from math import inf
from pathlib import Path

import pytest
import torch
from data_settings import small_files

from tautnet.config import build
from tautnet.lipschitz import lipschitz_bound
from tautnet.models.network import build_net

QUIET = ("trainer=cpu", "trainer.enable_progress_bar=false", "logger=none", "callbacks.lipschitz.every_n_epochs=100")


def metrics(run: Path) -> dict[str, float]:
    return json.loads((run / "result.json").read_text())["metrics"]


def net_of(settings, *overrides):
    composed = settings(*overrides)
    data = build(composed["data"], "data")
    return build_net(composed | {"input_shape": list(data.input_shape), "num_outputs": data.num_outputs})


@pytest.mark.parametrize(
    "overrides", [(), ("activation=maxmin", "~activation.init"), ("model.net.layers_per_block=2",)]
)
def test_every_net_of_the_1_lipschitz_experiment_is_1_lipschitz(settings, overrides):
    net = net_of(settings, "experiment=lipschitz_1", *overrides)
    assert lipschitz_bound(net, (1, 8, 8)).log_product <= 1e-5
    residual = ("model.net.residual=0.5", "model.net.layers_per_block=2")
    net = net_of(settings, "experiment=lipschitz_1", *overrides, *(r for r in residual if r not in overrides))
    assert lipschitz_bound(net, (1, 8, 8)).log_product <= 1e-5


def test_it_stays_1_lipschitz_while_it_learns(command, tmp_path):
    run = tmp_path / "run"
    assert (
        command("experiment=lipschitz_1", *QUIET, "trainer.max_epochs=1", "model.net.width=16", f"hydra.run.dir={run}")
        == 0
    )
    found = metrics(run)
    assert found["lipschitz/lower_p2"] <= found["lipschitz/bound_p2"] <= 1 + 1e-5
    assert found["test/acc"] > 0.3


def test_certified_training_certifies(command, tmp_path):
    shares = {}
    for epsilon in (1e-9, 0.266):
        run = tmp_path / str(epsilon)
        sizes = ("trainer.max_epochs=5", "callbacks.certify.num_samples=60", "callbacks.certify.num_steps=5")
        assert (
            command(
                "experiment=certified_digits", f"model.loss.epsilon={epsilon}", *QUIET, *sizes, f"hydra.run.dir={run}"
            )
            == 0
        )
        rows = [line.split(",") for line in (run / "certificates" / "certificates.csv").read_text().splitlines()[1:]]
        shares[epsilon] = {(norm, float(eps)): float(certified) for norm, eps, *_, certified in rows}
    assert shares[0.266]["linf", 0.05] > shares[1e-9]["linf", 0.05] + 0.2


@pytest.mark.parametrize("loss", ["margin", "hinge", "hkr", "interval", "singleprop"])
def test_every_loss_is_one_word(loss, command, tmp_path):
    run = tmp_path / "run"
    overrides = ("debug=fast", "model=mlp", "norm=none", "callbacks=none", f"loss={loss}", f"hydra.run.dir={run}")
    assert command(*overrides, *QUIET[:3]) == 0
    assert -inf < metrics(run)["test/loss"] < inf


def test_the_penalty_is_one_word_and_brings_the_bound_down(command, tmp_path):
    bounds = {}
    for name in ("none", "lipschitz"):
        run = tmp_path / name
        weight = ("regularizer.lipschitz.weight=1.0",) if name == "lipschitz" else ()
        short = ("trainer.max_epochs=3", f"regularizer={name}", *weight, f"hydra.run.dir={run}")
        assert command("model=mlp", "norm=none", *QUIET, *short) == 0
        bounds[name] = metrics(run)["lipschitz/product_p2"]
    assert bounds["lipschitz"] < 0.7 * bounds["none"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("loss=interval",), "model.loss: 1.batch_norm uses statistics of the batch in training"),
        (("loss=hkr", "data=diabetes", "norm=none"), "loss=tautnet.losses.HingeKantorovichRubinstein: default; "),
        (("loss=hinge", "model.loss.margin=-1"), "model.loss.margin=-1: "),
        (("regularizer=lipschitz", "regularizer.lipschitz.scale=root"), "regularizer.lipschitz.scale=root: "),
    ],
)
def test_what_does_not_fit_is_one_line(overrides, message, command, tmp_path, capfd):
    assert command(*overrides, *QUIET[:3], f"hydra.run.dir={tmp_path / 'run'}") == 2
    assert capfd.readouterr().err.splitlines()[-1].startswith(f"error: {message}")
    assert not (tmp_path / "run").exists()


def test_soft_labels_are_refused_by_losses_of_classes(command, tmp_path, capfd):
    files = small_files("cifar10", tmp_path)
    overrides = ("data=cifar10", *files, "data.augmentation.mixup=0.2", "loss=hinge", "model=mlp", "debug=fast")
    assert command(*overrides, *QUIET[:3], f"hydra.run.dir={tmp_path / 'run'}") == 2
    error = capfd.readouterr().err
    assert "model.loss=Hinge: targets of shape" in error
    assert "mixup" in error


def test_the_averaged_residual_keeps_the_constant_and_is_refused_without_effect(settings):
    torch.manual_seed(0)
    overrides = ("model=convnet_xs", "model.net.num_blocks=3", "norm=none", "norm/weight=aol", "activation=relu")
    net = net_of(settings, *overrides, "model.net.residual=0.25")
    assert lipschitz_bound(net, (1, 8, 8)).log_product <= 1e-5
    with pytest.raises(ValueError, match=r"residual=0\.25: "):
        net_of(settings, *overrides, "model.net.residual=0.25", "model.net.layers_per_block=1")
