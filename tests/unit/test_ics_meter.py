"""Looking at layers without effect, their history, and the arguments of IcsMeter."""

import contextlib
import copy
import types
from math import inf, nan

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from tautnet.activations import LinearSpline, Slaf
from tautnet.callbacks import IcsMeter, layer_history
from tautnet.callbacks.layer_history import LayerHistory
from tautnet.callbacks.layer_outputs import channel_vectors, layer_outputs, watched_paths
from tautnet.functional.earth_mover import earth_mover_exact, sliced
from tautnet.models.base import AbstractModel
from tautnet.normalizers import BatchNorm, Unitize


def dense(norm):
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3), norm(3), LinearSpline(3, 9, 2.0), nn.Linear(3, 2))


# --- which layers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "norm",
    [BatchNorm, Unitize, nn.BatchNorm1d, nn.SyncBatchNorm, nn.LayerNorm, nn.RMSNorm, lambda c: nn.GroupNorm(1, c)],
)
def test_output_normalizers_are_watched_and_count_as_one(norm):
    assert watched_paths(dense(norm)) == ["2"]
    assert watched_paths(nn.Sequential(dense(norm), norm(2))) == ["0.2", "1"]


def test_without_normalizers_all_maps_but_the_last_are():
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(2, 3), nn.Linear(3, 1))
    assert watched_paths(net) == ["0", "3"]
    assert watched_paths(net[2:4]) == ["3"]
    nn.utils.parametrizations.orthogonal(net[3])
    assert watched_paths(net) == ["0", "3"]


def test_a_net_with_nothing_to_watch_is_refused():
    with pytest.raises(ValueError, match=r"^include=None: the network has neither"):
        watched_paths(nn.Sequential(nn.Flatten(), nn.ReLU()))


def test_a_path_that_begins_like_another_is_not_inside_it():
    assert watched_paths(nn.Sequential(*[nn.BatchNorm1d(2) for _ in range(12)])) == [str(i) for i in range(12)]


# --- looking ----------------------------------------------------------------------------------------------------------


def restless():
    """Statistics, power iteration, chance, and a layer that works in place."""
    net = nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(6, 5), Unitize(5)
    )
    nn.utils.parametrizations.spectral_norm(net[0])
    return net


def everything(net):
    tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    return {name: (id(t), t._version, t.detach().clone()) for name, t in tensors.items()}


def test_looking_leaves_no_trace():
    net, x = restless(), torch.randn(8, 4)
    before, chance = everything(net), torch.get_rng_state()
    layer_outputs(net, ["0", "1", "3", "5"], x, "sample")
    after = everything(net)
    assert torch.equal(torch.get_rng_state(), chance)
    assert net.training
    for name, (identity, version, value) in before.items():
        assert after[name][:2] == (identity, version), name
        assert torch.equal(after[name][2], value), name
    assert not any(module._forward_hooks for module in net.modules())


def test_what_is_seen_is_the_training_forward():
    net, x = restless(), torch.randn(8, 4)
    seen = layer_outputs(net, ["1", "3", "5"], x, "sample")
    assert not any(vectors.requires_grad for vectors in seen.values())
    twin = copy.deepcopy(net)
    torch.manual_seed(0)  # that of the probe
    assert torch.allclose(seen["5"], twin(x), atol=1e-6)
    assert seen["1"].mean(0).abs().max() < 1e-5  # statistics of the probe, not the running ones
    assert (seen["1"] < 0).any()  # before the layer that works in place
    assert (seen["3"] == 0).any()
    again = layer_outputs(net, ["1", "3", "5"], x, "sample")
    assert all(torch.equal(seen[path], again[path]) for path in seen)


class WithoutGradients(nn.Module):
    def forward(self, x):
        assert not torch.is_grad_enabled()
        return x


def test_layers_that_act_on_training_with_gradients_see_none():
    assert layer_outputs(nn.Sequential(WithoutGradients()), ["0"], torch.zeros(2, 3), "sample")["0"].shape == (2, 3)


def test_frozen_statistics_stay_frozen():
    net, x = restless(), torch.randn(8, 4)
    net[1].eval()
    assert layer_outputs(net, ["1"], x, "sample")["1"].mean(0).abs().max() > 0.01


def test_splines_are_seen_as_a_fused_optimizer_left_them():
    """It changes parameters without counting up their version, on which kept tables rely."""
    net, x = nn.Sequential(LinearSpline(3, 9, 2.0, slope_min=-1, slope_max=1).eval()), torch.randn(8, 3)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1, fused=True)
    net(x).square().sum().backward()
    before = layer_outputs(net, ["0"], x, "sample")["0"]
    optimizer.step()
    after = layer_outputs(net, ["0"], x, "sample")["0"]
    with torch.no_grad():
        plain = net(x)  # nothing old was kept for it either
    assert torch.equal(after, copy.deepcopy(net)(x).detach())
    assert torch.equal(plain, after)
    assert not torch.equal(before, after)


def test_an_error_leaves_no_hook():
    net = nn.Sequential(nn.Linear(4, 3), nn.Linear(2, 2))
    with pytest.raises(RuntimeError):
        layer_outputs(net, ["0"], torch.zeros(2, 4), "sample")
    assert not net[0]._forward_hooks


class Pair(nn.Module):
    def forward(self, x):
        return x, x


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(2, 2)

    def forward(self, x):
        return x


class First(nn.Module):
    def forward(self, pair):
        return pair[0]


@pytest.mark.parametrize(
    ("path", "message"),
    [("0", "its output is not a tensor"), ("2.inner", "the network does not run"), ("3", "its output is not a tensor")],
)
def test_layers_without_vectors_are_named(path, message):
    net = nn.Sequential(Pair(), First(), Unused(), nn.Flatten(0))
    with pytest.raises(ValueError, match=f"^include={path}: {message}"):
        layer_outputs(net, [path], torch.zeros(2, 2), "sample")


def test_vectors_of_images():
    output = torch.arange(2 * 3 * 4 * 5.0).view(2, 3, 4, 5)
    assert torch.equal(channel_vectors(output, "mean"), output.mean((2, 3)))
    drawn = channel_vectors(output, "sample")
    assert drawn.shape == (2, 3)
    for n in range(2):  # all channels of one position
        assert any(torch.equal(drawn[n], output[n, :, h, w]) for h in range(4) for w in range(5))
    assert torch.equal(drawn, channel_vectors(output, "sample"))
    many = channel_vectors(torch.arange(7.0).expand(200, 1, 7), "sample")
    assert many.unique().tolist() == list(range(7))


@pytest.mark.parametrize("positions", ["sample", "mean"])
def test_vectors_of_half_precision_are_widened(positions):
    assert channel_vectors(torch.full((2, 3, 100), 60000.0, dtype=torch.float16), positions).max() == 60000.0
    assert channel_vectors(torch.zeros(2, 3, dtype=torch.bfloat16), positions).shape == (2, 3)


def test_of_a_layer_that_runs_twice_the_last_output_counts():
    shared, x = nn.Linear(3, 3), torch.randn(4, 3)
    net = nn.Sequential(shared, nn.ReLU(), shared)
    assert torch.equal(layer_outputs(net, ["0"], x, "sample")["0"], net(x).detach())


# --- history ----------------------------------------------------------------------------------------------------------


def test_the_history_halves_when_it_is_full(monkeypatch):
    monkeypatch.setattr(layer_history, "_MOST_COLUMNS", 4)
    history = LayerHistory(["a", "b"])
    for step in range(11):
        history.add(step, torch.tensor([float(step), 1.0]))
        assert history.values().shape[1] <= 4
    assert history.steps == [0, 10]
    assert history.values().tolist() == [[1.5, 5.5, 9.0], [1.0, 1.0, 1.0]]


@pytest.mark.parametrize("values", [[0.0, 0.0], [nan, inf], [0.0, 2.0], [1e-12, 3.0]])
def test_figures_show_what_they_can(values, tmp_path):
    history = LayerHistory(["first", "second"])
    history.add(1, torch.tensor(values, dtype=torch.float64))
    figure = history.figure("title")
    figure.savefig(tmp_path / "figure.png")
    image = figure.axes[0].images[0].get_array()
    assert np.ma.getmaskarray(image).ravel().tolist() == [not 0 < value < inf for value in values]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["first", "second"]


def test_the_first_layer_stands_above():
    history = LayerHistory(["first", "second"])
    history.add(3, torch.tensor([1.0, 2.0]))
    history.add(7, torch.tensor([1.0, 2.0]))
    axes = history.figure("title").axes[0]
    image = axes.images[0]
    assert image.get_array().tolist() == [[1.0, 1.0], [2.0, 2.0]]
    assert image.origin == "upper"
    assert list(image.get_extent()) == [2.5, 7.5, 1.5, -0.5]  # the rows lie where their labels are
    assert axes.get_yticks().tolist() == [0, 1]


# --- hooks ------------------------------------------------------------------------------------------------------------


class Bare(AbstractModel):
    """A model that is a network alone."""

    task = "regression"

    def __init__(self, net):
        pl.LightningModule.__init__(self)
        self.net = net

    def task_loss(self, batch, stage):
        raise NotImplementedError


def measured(meter, net, x, change):
    """The means that a fit of one update leaves behind, which ``change`` makes."""
    trainer, model = TrainerStub(), Bare(net)
    meter.setup(trainer, model, "fit")
    batch = (x.clone(), None)
    meter.on_train_batch_start(trainer, model, batch, 0)
    batch[0].zero_()  # a training step may work in place
    meter.on_before_optimizer_step(trainer, model, None)
    change(net)
    trainer.global_step = 1
    meter.on_train_batch_end(trainer, model, None, batch, 0)
    meter.on_fit_end(trainer, model)
    return {name: value.item() for name, value in trainer.callback_metrics.items()}


class TrainerStub(types.SimpleNamespace):
    """What the meter reads of a trainer."""

    def __init__(self):
        plugin = types.SimpleNamespace(train_step_context=contextlib.nullcontext)
        super().__init__(global_step=0, is_global_zero=True, loggers=[], callback_metrics={}, precision_plugin=plugin)


@torch.no_grad()
def double_(net):
    for parameter in net.parameters():
        parameter.mul_(2)


def expected(net, x, positions, num_projections):
    first = layer_outputs(net, ["0"], x, positions)["0"]
    net = copy.deepcopy(net)
    double_(net)
    second = layer_outputs(net, ["0"], x, positions)["0"]
    return earth_mover_exact(first, second), sliced(first, second, num_projections, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("positions", ["sample", "mean"])
@pytest.mark.parametrize("num_projections", [1, 64])
def test_the_meter_measures_as_it_is_told(positions, num_projections):
    net, x = nn.Sequential(nn.Conv1d(2, 3, 2)), torch.randn(6, 2, 9)
    w1, projected = expected(net, x[:4], positions, num_projections)
    meter = IcsMeter(num_samples=4, positions=positions, num_projections=num_projections)
    found = measured(meter, net, x, double_)
    assert found["ics/0"] == pytest.approx(w1, rel=1e-9)
    assert found["ics/sliced/0"] == pytest.approx(projected, rel=1e-9)


def test_another_fit_begins_anew():
    meter, x = IcsMeter(), torch.randn(2, 6, 2, 9)
    measured(meter, nn.Sequential(nn.Conv1d(2, 3, 2)), x[0], double_)
    net = nn.Sequential(nn.Conv1d(2, 3, 2))
    w1, _ = expected(net, x[1], "sample", 64)
    assert measured(meter, net, x[1], double_)["ics/0"] == pytest.approx(w1, rel=1e-9)


# --- arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"every_n_steps": 0}, "every_n_steps=0: at least 1"),
        ({"num_projections": 0}, "num_projections=0: at least 1"),
        ({"figure_every_n_epochs": 0}, "figure_every_n_epochs=0: at least 1"),
        ({"num_samples": 1}, "num_samples=1: at least 2"),
        ({"positions": "all"}, "positions=all: one of sample, mean"),
    ],
)
def test_bad_arguments_are_named(argument, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        IcsMeter(**argument)


def test_a_normalizer_inside_an_activation_is_not_an_output_norm():
    net = nn.Sequential(nn.Linear(3, 4), Slaf(4, degree=2), nn.Linear(4, 4), BatchNorm(4), nn.Linear(4, 2))
    assert watched_paths(net) == ["3"]
    assert watched_paths(net[:3]) == ["0"]
