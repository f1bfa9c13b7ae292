"""Choosing layers by their paths."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from tautnet.activations import ReLU
from tautnet.backbones import LayerFactory, Residual, mlp
from tautnet.config import ConfigError
from tautnet.models import Classifier
from tautnet.models.network import build_net
from tautnet.normalizers import Bjorck, Spectral, no_output_norm, no_weight_norm
from tautnet.normalizers.selection import matching, normalize_weights_, select_layers

PATHS = ["stem", "body.0", "body.1", "head"]


@pytest.mark.parametrize(
    ("include", "exclude", "left"),
    [
        (["*"], [], PATHS),
        (["*"], ["last"], PATHS[:3]),
        (["body.*", "stem"], ["body.1"], ["stem", "body.0"]),
        (["last"], [], ["head"]),
        (["body.[1-9]", "body.1"], [], ["body.1"]),
        ([7], [], ["7"]),
    ],
)
def test_patterns_choose_paths_in_their_order(include, exclude, left):
    assert matching([*PATHS, "7"] if left == ["7"] else PATHS, include, exclude) == left


@pytest.mark.parametrize(
    ("include", "exclude", "message"),
    [
        (["body"], [], "include=body: matches none of the layers stem, body.0, body.1, head"),
        (["*"], ["tail.*"], r"exclude=tail.\*: matches none of the layers stem"),
        (["*"], ["*"], r"exclude=\['\*'\]: leaves none of the layers stem"),
        ([], [], r"include=\[\]: at least one pattern"),
        ("last", [], "include=last: a list of patterns"),
    ],
)
def test_a_pattern_that_matches_nothing_is_refused(include, exclude, message):
    with pytest.raises(ValueError, match=message):
        matching(PATHS, include, exclude)


def test_a_net_without_layers_is_refused():
    with pytest.raises(ValueError, match=r"include=\*: matches none of the layers \(there are none\)"):
        select_layers(nn.Sequential(nn.ReLU()))


def test_a_layer_called_last_is_meant_too():
    assert matching(["last", "head"], ["last"], []) == ["last", "head"]


def test_dense_and_convolutional_layers_are_found_once_and_parametrised_ones_too():
    shared = nn.Linear(2, 2)
    net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), Residual(nn.Sequential(shared, shared), nn.Identity()))
    Spectral()(shared)
    assert select_layers(net) == {"0": net[0], "2.body.0": shared}


def test_weights_are_parametrised_as_by_the_layer_factory():
    def make(weight_norm):
        torch.manual_seed(0)
        return mlp(LayerFactory(ReLU, no_output_norm, weight_norm), (4,), 2, widths=[3, 3])

    x = torch.randn(5, 4)
    late, early = make(no_weight_norm), make(Bjorck())
    normalize_weights_(late, Bjorck())
    assert torch.equal(late(x), early(x))
    some = make(no_weight_norm)
    normalize_weights_(some, Bjorck(), exclude=["last"])
    flags = [parametrize.is_parametrized(layer) for layer in some.modules() if isinstance(layer, nn.Linear)]
    assert flags == [True, True, False]


def test_a_weight_is_normalised_once_only():
    net = nn.Sequential(nn.Linear(2, 2))
    normalize_weights_(net, Spectral())
    with pytest.raises(ValueError, match="not parametrised yet"):
        normalize_weights_(net, Spectral())


def test_a_model_takes_the_patterns_of_its_settings(settings):
    def model(*overrides):
        config = settings("model=mlp", "activation=relu", "norm=none", *overrides)
        return Classifier({**config, "input_shape": [64], "num_outputs": 10})

    net = model("norm/weight=bjorck", "norm.exclude=[last]").net
    assert [parametrize.is_parametrized(layer) for layer in select_layers(net).values()] == [True] * (
        len(select_layers(net)) - 1
    ) + [False]
    with pytest.raises(ConfigError, match=r"norm\.include=head: matches none of the layers"):
        model("norm/weight=bjorck", "norm.include=[head]")
    with pytest.raises(
        ConfigError, match=r"norm.include=\['\*'\] norm.exclude=\['last'\]: without effect, norm/weight is none"
    ):
        model("norm.exclude=[last]")
    with pytest.raises(ConfigError, match=r"norm\.exclude=last: a list of patterns"):
        model("norm/weight=bjorck", "norm.exclude=last")


def test_a_net_of_settings_from_before_there_were_patterns_is_built_and_trains():
    partial = {"_partial_": True}
    norm = {"output": {"_target_": "tautnet.normalizers.BatchNorm"} | partial}
    net = build_net(
        {
            "activation": {"_target_": "tautnet.activations.ReLU"} | partial,
            "norm": norm | {"weight": {"_target_": "tautnet.normalizers.Bjorck"}},
            "model": {"net": {"_target_": "tautnet.backbones.mlp", "widths": [3]}},
            "input_shape": [4],
            "num_outputs": 2,
        }
    )
    assert [parametrize.is_parametrized(layer) for layer in select_layers(net).values()] == [True, True]
    assert all(module.training for module in net.modules())
    (batch_norm,) = (layer for layer in net.modules() if isinstance(layer, nn.BatchNorm1d))
    assert batch_norm.num_batches_tracked == 0  # the sample that it is tried on leaves nothing behind
