"""Every option of every group composes and builds; every combination of activation, norm and model too."""

from itertools import product

import pytest
import torch
from conftest import options

from tautnet.config import build
from tautnet.lipschitz import lipschitz_bound
from tautnet.models import AbstractModel
from tautnet.models.base import build_net
from tautnet.optim.roles import parameters_by_role
from tautnet.optim.settings import make_optimizer, role_settings

IMAGE = {"input_shape": [3, 8, 8], "num_outputs": 4}


@pytest.mark.parametrize(
    ("activation", "norm", "model"), list(product(options("activation"), options("norm"), options("model")))
)
def test_every_combination_builds(settings, activation, norm, model):
    composed = settings(f"activation={activation}", f"norm={norm}", f"model={model}") | IMAGE
    with torch.device("meta"):
        net = build_net(composed)
        assert net(torch.zeros(2, 3, 8, 8)).shape == (2, 4)
    assert sum(map(len, parameters_by_role(net).values())) == len(list(net.parameters()))


@pytest.mark.parametrize("norm", options("norm"))
@pytest.mark.parametrize("model", options("model"))
def test_every_network_is_bounded(settings, model, norm):
    report = lipschitz_bound(build_net(settings(f"norm={norm}", f"model={model}") | IMAGE), (3, 8, 8))
    assert report.unbounded == ()
    assert report.total < float("inf")


@pytest.mark.parametrize("experiment", options("experiment"))
def test_every_experiment_builds(settings, experiment):
    composed = settings(f"experiment={experiment}")
    data = build(composed["data"], "data")
    spec = composed | {"input_shape": list(data.input_shape), "num_outputs": data.num_outputs}
    assert isinstance(build({"_target_": composed["model"]["_target_"]}, "model", config=spec), AbstractModel)


@pytest.mark.parametrize(
    "option", [f"debug={o}" for o in options("debug")] + [f"trainer={o}" for o in options("trainer")]
)
def test_overlays_compose(settings, option):
    assert settings(option)["trainer"]["max_epochs"] >= 1


@pytest.mark.parametrize("data", options("data"))
def test_data_sets_give_batches_of_the_stated_shape(settings, data):
    module = build(settings(f"data={data}")["data"], "data")
    for loader in (module.train_dataloader(), module.val_dataloader(), module.test_dataloader()):
        x, y = next(iter(loader))
        assert x.shape[1:] == module.input_shape
        assert x.dtype == torch.float32
        assert y.min() >= 0
        assert y.max() < module.num_outputs


@pytest.mark.parametrize(("optimizer", "scheduler"), list(product(options("optimizer"), options("scheduler"))))
def test_optimizers_and_schedules_step(settings, optimizer, scheduler):
    composed = settings(f"optimizer={optimizer}", f"scheduler={scheduler}")
    weight = torch.nn.Parameter(torch.ones(3))
    made = make_optimizer([weight], "weight", *role_settings(composed["optimizer"])["weight"])
    schedule = build(composed["scheduler"], "scheduler", optimizer=made, total_steps=10)
    weight.sum().backward()
    made.step()
    schedule.step()
    assert (weight < 1).all()


def test_spline_brings_its_penalty_and_its_optimizer_with_any_other(settings):
    for optimizer in options("optimizer"):
        composed = settings(f"optimizer={optimizer}", "activation=spline")
        assert composed["regularizer"]["tv2"]["weight"] == 1e-4
        _key, role = role_settings(composed["optimizer"])["activation"]
        assert (role["_target_"], role["lr"], role["weight_decay"]) == ("torch.optim.Adam", 1e-3, 0.0)
    assert settings("activation=relu")["regularizer"] == {}
