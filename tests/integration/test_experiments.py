"""The two reproduction experiments, shortened: they run, and go the way that the long runs go."""

import json
import math
from pathlib import Path

import pytest
import torch

from tautnet.config import build
from tautnet.lipschitz import lipschitz_bound
from tautnet.models.network import build_net
from tautnet.optim.roles import parameters_by_role

QUIET = ("trainer=cpu", "trainer.enable_progress_bar=false", "logger=none", "callbacks.lipschitz.every_n_epochs=100")


def metrics(run: Path) -> dict[str, float]:
    return json.loads((run / "result.json").read_text())["metrics"]


def net_of(settings, *overrides):
    composed = settings(*overrides)
    data = build(composed["data"], "data")
    return build_net(composed | {"input_shape": list(data.input_shape), "num_outputs": data.num_outputs})


def test_the_circle_net_is_the_one_of_the_paper(settings):
    net = net_of(settings, "experiment=area_circle")
    sizes = {role: sum(p.numel() for p in found) for role, found in parameters_by_role(net).items()}
    assert sizes == {"weight": 4 + 2, "bias": 2 + 1, "activation": 2 * 21}
    assert net(torch.zeros(3, 2)).shape == (3, 1)


def test_two_spline_neurons_separate_the_circle_where_relu_cannot(command, tmp_path):
    found = {}
    for activation in ("spline_2d", "relu"):
        run = tmp_path / activation
        short = (f"activation={activation}", "trainer.max_epochs=12", f"hydra.run.dir={run}")
        assert command("experiment=area_circle", *QUIET, *short) == 0
        found[activation] = metrics(run)["test/acc"]
    assert found["spline_2d"] > 0.92
    assert found["relu"] < 0.8


@pytest.mark.parametrize("activation", ["spline_1d", "absolute", "maxmin", "relu"])
def test_every_net_of_the_fit_is_1_lipschitz_from_the_start(settings, activation):
    net = net_of(settings, "experiment=fit_1d", f"activation={activation}")
    report = lipschitz_bound(net, (1,))
    assert math.log(0.99) < report.log_product <= 1e-5
    assert report.total <= math.exp(report.log_product)
    assert len([layer for layer in report.layers if layer.kind == "Linear"]) == 4
    x = torch.linspace(-1, 1, 2001).view(-1, 1)
    with torch.no_grad():
        assert net(x).diff(dim=0).abs().max() <= 1e-3 * (1 + 1e-3)


def test_the_fit_stays_1_lipschitz_while_it_learns(command, tmp_path):
    run = tmp_path / "run"
    short = ("trainer.max_epochs=6", "callbacks.lipschitz.num_samples=10000", f"hydra.run.dir={run}")
    assert command("experiment=fit_1d", *QUIET, *short) == 0
    found = metrics(run)
    assert found["test/loss"] < 0.02  # the variance of the targets is 0.13
    assert found["lipschitz/lower_p2"] <= found["lipschitz/bound_p2"] <= 1 + 1e-5
    assert found["lipschitz/lower_p2"] > 0.8
    assert found["lr/weight"] == pytest.approx(40 * found["lr/activation"])
