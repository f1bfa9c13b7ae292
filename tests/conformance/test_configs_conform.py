"""Every option of every group composes and builds; every combination of activation, norm and backbone too."""

from itertools import product
from math import inf

import pytest
import torch
from conftest import CONF, options, settings_with
from data_settings import small_files
from omegaconf import OmegaConf
from torch import nn

from tautnet.config import ConfigError, build, locate
from tautnet.lipschitz import linear_maps, lipschitz_bound
from tautnet.models import AbstractModel
from tautnet.models.network import build_net
from tautnet.normalizers import spectral
from tautnet.optim.roles import parameters_by_role
from tautnet.optim.settings import make_optimizer, role_settings

IMAGE = (3, 32, 32)
# model: the number of outputs that it needs, and the shape of one output; any other: 4 classes
OUTPUTS = {"dncnn": (3, IMAGE), "one_hidden": (2, (1,)), "two_hidden": (2, (1,))}
# Activations without the options that are another one with other numbers, and of the fixed scalar functions two.
_ALIKE = {"slaf_2", "slaf_7", "spline_1d", "spline_2d", "absolute", "elu", "leaky_relu", "tanh"}
ACTIVATIONS = [o for o in options("activation") if o not in _ALIKE]
# Activations without a global constant: a bound is inf on their account alone.
UNBOUNDED = {"slaf": "Slaf"}
# The same backbone with less of the same, to be crossed with every activation and every normalizer.
SMALLER = {
    "cifar_resnet": {"depth": 8},
    "dncnn": {"depth": 4, "width": 8},
    "elu11": {"widen_factor": 1},
    "imagenet_resnet": {"depth": 18, "width": 8},
    "preact_resnet": {"depth": 8, "bottleneck": False},
    "resnet9": {"width": 8},
    "unshuffle_convnet": {"width": 4},
    "wide_resnet": {"depth": 10, "widen_factor": 2},
}


ONE_PIXEL = {"elu11", "mlp", "resnet18"}  # have layers of one position, for which there is no instance normalisation


def one_model_of_each_backbone() -> list[str]:
    targets = {m: OmegaConf.load(CONF / "model" / f"{m}.yaml")["net"]["_target_"] for m in options("model")}
    return sorted({target: model for model, target in sorted(targets.items(), reverse=True)}.values())


def with_image(composed: dict, model: str) -> dict:
    return composed | {"input_shape": list(IMAGE), "num_outputs": OUTPUTS.get(model, (4, None))[0]}


def small_net(model: str, activation: str, norm: str) -> nn.Module:
    made = with_image(settings_with("model", model), model)
    net = made["model"]["net"]
    smaller = SMALLER.get(net["_target_"].rpartition(".")[2], {})
    made |= {group: settings_with(group, o)[group] for group, o in (("activation", activation), ("norm", norm))}
    return build_net(made | {"model": {"net": net | smaller}})


def check_outputs(net: nn.Module, model: str, size: int = 2) -> None:
    with torch.no_grad():
        outputs = net(torch.zeros(size, *IMAGE, device=next(net.parameters()).device))
    assert outputs.shape == (size, *OUTPUTS.get(model, (4, (4,)))[1])
    assert sum(map(len, parameters_by_role(net).values())) == len(list(net.parameters()))


@pytest.fixture
def _quick_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Constants for the norms of weights, whose decompositions take long: the walk through the net is what counts."""
    monkeypatch.setattr(linear_maps, "spectral_norm", lambda *_: 1.0)
    monkeypatch.setattr(linear_maps, "conv_spectral_norm", lambda *_: 1.0)
    monkeypatch.setattr(spectral, "gram_spectral_norm", lambda weight, *_: weight.new_ones(()))
    monkeypatch.setattr(spectral, "gram_conv_spectral_norm", lambda kernel, *_: kernel.new_ones(()))


@pytest.mark.usefixtures("_quick_norms")
@pytest.mark.parametrize(("model", "activation"), list(product(one_model_of_each_backbone(), ACTIVATIONS)))
def test_every_backbone_builds_and_is_bounded_with_every_activation_and_norm(model, activation):
    # Presets of weights alone know nothing of the activation: with one of them.
    # Nor do normalizers of single samples: with one of them too.
    of_outputs = ["batch", "unitize"]
    for norm in options("norm") if activation == "relu" else ["none", *of_outputs]:
        if norm == "instance" and model in ONE_PIXEL:
            with pytest.raises(ConfigError, match="norm=instance needs several pixels"):
                small_net(model, activation, norm)
            continue
        net = small_net(model, activation, norm)
        kinds = {layer.kind for layer in lipschitz_bound(net, IMAGE).layers if layer.value == inf}
        assert kinds == ({UNBOUNDED[activation]} if activation in UNBOUNDED else set())
        check_outputs(net, model)


@pytest.mark.usefixtures("_quick_norms")
@pytest.mark.parametrize("model", options("model"))
def test_every_model_builds_and_is_bounded(model):
    made = with_image(settings_with("model", model), model)
    module = build({"_target_": made["model"]["_target_"]}, "model", config=made)
    assert isinstance(module, AbstractModel)
    report = lipschitz_bound(module.net, IMAGE)
    assert report.unbounded == ()
    check_outputs(module.net.eval(), model, size=1)


@pytest.mark.parametrize("experiment", options("experiment"))
def test_every_experiment_builds(settings, experiment, tmp_path):
    overrides = [f"experiment={experiment}"]
    if settings(*overrides)["data"]["_target_"] == "tautnet.data.images.Images":
        overrides += small_files("cifar10", tmp_path)
    composed = settings(*overrides)
    data = build(composed["data"], "data")
    spec = composed | {"input_shape": list(data.input_shape), "num_outputs": data.num_outputs}
    assert isinstance(build({"_target_": composed["model"]["_target_"]}, "model", config=spec), AbstractModel)


@pytest.mark.parametrize(
    "option", [f"debug={o}" for o in options("debug")] + [f"trainer={o}" for o in options("trainer")]
)
def test_overlays_compose(settings, option):
    assert settings(option)["trainer"]["max_epochs"] >= 1


@pytest.mark.parametrize("data", options("data"))
def test_data_sets_give_batches_of_the_stated_shape_for_their_model(settings, data, tmp_path):
    composed = settings(f"data={data}", *small_files(data, tmp_path))
    module = build(composed["data"], "data")
    task = module.task
    assert locate(composed["model"]["_target_"], "model").task == task
    assert composed["metric"] == {"classification": "acc", "regression": "r2", "denoising": "psnr"}[task]
    for loader in (module.train_dataloader(), module.val_dataloader(), module.test_dataloader()):
        x, y = next(iter(loader))
        assert x.dtype == torch.float32
        if task == "denoising":  # images of any size to evaluate
            assert y.shape == x.shape
            assert x.shape[1] == module.input_shape[0] == module.num_outputs
            continue
        assert x.shape[1:] == module.input_shape
        if task == "classification":
            assert y.shape == (len(x),)
            assert y.min() >= 0
            assert y.max() < module.num_outputs
        else:
            assert y.shape == (len(x), module.num_outputs)
            assert y.dtype == torch.float32


@pytest.mark.parametrize(("optimizer", "scheduler"), list(product(options("optimizer"), options("scheduler"))))
def test_optimizers_and_schedules_step(optimizer, scheduler):
    composed = settings_with("optimizer", optimizer)
    weight = torch.nn.Parameter(torch.ones(3, 2, 3, 3))
    made = make_optimizer([weight], "weight", *role_settings(composed["optimizer"])["weight"])
    chosen = settings_with("scheduler", scheduler)["scheduler"]  # neither group changes the other
    schedule = build(chosen, "scheduler", optimizer=made, total_steps=10)
    weight.sum().backward()
    made.step()
    schedule.step()
    assert (weight < 1).all()
    assert 0 <= made.param_groups[0]["lr"] <= composed["optimizer"]["roles"]["weight"]["lr"]


def test_spline_brings_its_penalty_and_its_optimizer_with_any_other():
    for optimizer in options("optimizer"):
        composed = settings_with("optimizer", optimizer)  # with activation=spline, of train.yaml
        assert composed["regularizer"]["tv2"]["weight"] == 1e-4
        _key, role = role_settings(composed["optimizer"])["activation"]
        assert (role["_target_"], role["lr"], role["weight_decay"]) == ("torch.optim.Adam", 1e-3, 0.0)
    assert settings_with("activation", "relu")["regularizer"] == {}
