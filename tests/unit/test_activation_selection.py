"""Hybrids: the chosen activation at some places of a network, ReLU at the others."""

import json

import pytest
import torch
from torch import nn

from tautnet.activations import GroupSort, LinearSpline, ReLU, Slaf
from tautnet.activations.base import AbstractActivation
from tautnet.config import ConfigError
from tautnet.models.activation_at import place_activations_
from tautnet.models.network import build_net


@pytest.fixture
def net(settings):
    def build(*overrides, shape=(1, 8, 8)):
        composed = settings("regularizer=none", *overrides)
        return build_net(composed | {"input_shape": list(shape), "num_outputs": 10})

    return build


def kinds(net):
    found = {p: type(m) for p, m in net.named_modules() if isinstance(m, AbstractActivation | GroupSort)}
    return found, [path for path, kind in found.items() if kind is ReLU]


def test_everywhere_unless_asked_otherwise(net):
    assert kinds(net("activation=slaf", "model=resnet20"))[1] == []


def test_the_last_activation_alone(net):
    found, relu = kinds(net("activation=slaf", "model=resnet20", "model.activation_at.include=[last]"))
    assert len(found) == 19
    assert relu == list(found)[:-1]
    assert found["20"] is Slaf


def test_all_but_the_first_block_of_each_stage(net):
    """The hybrid of the authors of SLAF: the stem has SLAF, the blocks that change the shape ReLU."""
    hybrid = net("activation=slaf", "model=resnet20", "model.activation_at.exclude=[3.*,4,9.*,10,15.*,16]")
    found, relu = kinds(hybrid)
    assert relu == ["3.body.2", "4", "9.body.2", "10", "15.body.2", "16"]
    assert found["2"] is Slaf
    assert hybrid.get_submodule("9.body.2").num_channels == 32
    assert hybrid(torch.randn(2, 1, 8, 8)).shape == (2, 10)


def test_of_other_activations_too(net):
    assert kinds(net("activation=groupsort", "model.activation_at.exclude=[last]"))[0].popitem()[1] is ReLU
    spline = kinds(net("activation=spline", "model=mlp", "model.activation_at.include=[last]"))[0]
    assert list(spline.values()) == [ReLU, LinearSpline]


def test_the_network_is_otherwise_the_same(net):
    torch.manual_seed(1)
    whole = net("activation=spline", "model=mlp").state_dict()
    torch.manual_seed(1)
    part = net("activation=spline", "model=mlp", "model.activation_at.include=[last]").state_dict()
    assert all(torch.equal(value, whole[name]) for name, value in part.items())
    assert {name.split(".")[0] for name in set(whole) - set(part)} == {"3"}  # the first activation


def test_settings_of_older_checkpoints_lack_the_key(settings):
    composed = settings("model=mlp", "activation=slaf")
    del composed["model"]["activation_at"]
    assert kinds(build_net(composed | {"input_shape": [5], "num_outputs": 2}))[1] == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["include=[head]"], "include=head: matches none of the layers 3, 6"),
        (["exclude=['*']"], r"exclude=\['\*'\]: leaves none of the layers"),
        (["include=last"], r"include=last: a list of patterns, as \[last\]"),
        (["include=[3,last]"], "without effect, that are all activations"),
    ],
)
def test_patterns_that_choose_nothing_are_refused(net, overrides, message):
    with pytest.raises(ConfigError, match=rf"model\.activation_at\.{message}" if "=" in message else message):
        net("activation=slaf", "model=mlp", *[f"model.activation_at.{override}" for override in overrides])


def test_unknown_keys_and_relu_for_relu_are_refused(net):
    with pytest.raises(ConfigError, match=r"model\.activation_at\.only: no such key; accepted: exclude, include"):
        net("+model.activation_at.only=[3]")
    with pytest.raises(ConfigError, match=r"model\.activation_at=None: include and exclude, lists of patterns"):
        net("model.activation_at=null")
    with pytest.raises(ConfigError, match="without effect, the activation is ReLU"):
        net("activation=relu", "model.activation_at.include=[last]")


def test_a_checkpoint_brings_its_hybrid_along(command, tmp_path, capsys):
    quiet = ("trainer=cpu", "trainer.enable_progress_bar=false", "logger=none", "callbacks=checkpoints", "debug=fast")
    hybrid = ("model=mlp", "model.net.widths=[4,4]", "activation=slaf", "model.activation_at.include=[last]")
    run, again = tmp_path / "run", tmp_path / "again"
    assert command(*quiet, *hybrid, f"hydra.run.dir={run}") == 0
    weights = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert sum(name.endswith("coefficients") for name in weights) == 1
    ckpt = f"ckpt={run / 'checkpoints/last.ckpt'}"
    assert command("run=[test]", ckpt, *quiet[:-1], f"hydra.run.dir={again}") == 0
    tested = [json.loads((folder / "result.json").read_text())["metrics"]["test/loss"] for folder in (run, again)]
    assert tested[0] == pytest.approx(tested[1], rel=1e-6)
    assert command("run=[test]", ckpt, "model.activation_at.include=['*']", f"hydra.run.dir={tmp_path / 'x'}") == 2
    assert "was trained with" in capsys.readouterr().err


def test_an_activation_at_two_places_may_be_replaced_at_one():
    shared = Slaf(2, 2)
    net = nn.Sequential(shared, nn.Linear(2, 2), shared)
    place_activations_(net, {"model": {"activation_at": {"exclude": [2]}}})
    assert net[0] is shared
    assert type(net[2]) is ReLU
