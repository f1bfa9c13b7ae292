"""The callback that watches the singular values of the weights."""

import json
import math
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerFn
from torch import nn
from torch.nn.utils import parametrize

from tautnet.callbacks.weight_spectrum import WeightSpectrum, singular_values
from tautnet.models.base import AbstractModel
from tautnet.normalizers import Spectral


def test_singular_values_of_dense_and_convolutional_weights():
    dense = nn.Linear(3, 2, bias=False)
    with torch.no_grad():
        dense.weight.copy_(torch.tensor([[0.0, 3.0, 0.0], [0.0, 0.0, -4.0]]))
    assert singular_values(dense).tolist() == [4, 3]
    conv = nn.Conv2d(2, 5, 3)
    assert torch.equal(singular_values(conv), torch.linalg.svdvals(conv.weight.detach().double().flatten(1)))


def test_the_weight_in_force_counts_and_reading_it_changes_nothing():
    torch.manual_seed(0)
    layer = nn.utils.parametrizations.spectral_norm(nn.Linear(6, 4))
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    assert singular_values(layer)[0] == pytest.approx(1, abs=0.05)
    assert layer.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in layer.state_dict().items())
    assert singular_values(Spectral(constant=2.0)(nn.Linear(6, 4)))[0] == pytest.approx(2, rel=0.02)
    assert parametrize.is_parametrized(layer)


def test_weights_gone_astray_do_not_stop_the_training():
    layer = nn.Linear(2, 2)
    nn.init.constant_(layer.weight, math.nan)
    assert singular_values(layer).isnan().all()


class Bare(AbstractModel):
    """A model that is a network alone; it keeps what is logged."""

    task = "regression"

    def __init__(self, net):
        pl.LightningModule.__init__(self)
        self.net, self.logged = net, {}

    def task_loss(self, batch, stage):
        raise NotImplementedError

    def log(self, name, value):
        self.logged[name] = value


def of_diagonal(*values):
    layer = nn.Linear(len(values), len(values))
    layer.weight = nn.Parameter(torch.diag(torch.tensor(values)))
    return layer


def test_largest_over_median_is_logged_and_the_figure_is_relative_to_the_largest():
    model, watch = Bare(nn.Sequential(of_diagonal(1.0, 8.0, 2.0), of_diagonal(3.0, 3.0))), WeightSpectrum()
    watch.setup(None, model, "test")
    watch.on_test_epoch_end(None, model)
    assert model.logged == {"spectrum/0": 4.0, "spectrum/1": 1.0}
    lines = watch._figure().axes[0].lines
    assert [line.get_label() for line in lines] == ["0", "1"]
    assert lines[0].get_xdata().tolist() == [0, 0.5, 1]
    assert [line.get_ydata().tolist() for line in lines] == [[1, 0.25, 0.125], [1, 1]]


@pytest.mark.parametrize(("every", "drawn"), [(1, [0, 1, 2, 3, 4]), (2, [1, 3, "end"]), (5, [4]), (10, ["end"])])
def test_every_nth_epoch_is_drawn_and_the_end_once(every, drawn, monkeypatch):
    watch, model, seen = WeightSpectrum(figure_every_n_epochs=every), Bare(of_diagonal(1.0)), []
    monkeypatch.setattr(watch, "_draw", lambda trainer: seen.append(trainer.name))
    trainer = SimpleNamespace(state=SimpleNamespace(fn=TrainerFn.FITTING), is_global_zero=True)
    for trainer.current_epoch in range(5):
        trainer.name = trainer.current_epoch
        watch.on_validation_epoch_end(trainer, model)
    trainer.current_epoch, trainer.name = 5, "end"  # by then all of them are counted
    watch.on_fit_end(trainer, model)
    assert seen == drawn


def test_a_run_logs_every_chosen_layer_and_draws(command, tmp_path):
    arguments = ("model=mlp", "callbacks=spectrum", "callbacks.spectrum.exclude=[last]", "debug=fast")
    assert command(*arguments, "hydra.run.dir=run") == 0
    metrics = json.loads((tmp_path / "run" / "result.json").read_text())["metrics"]
    found = {key: value for key, value in metrics.items() if key.startswith("spectrum/")}
    assert len(found) == 2
    assert all(1 < value < 10 for value in found.values())
    assert (tmp_path / "run" / "pictures" / "spectrum.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"figure_every_n_epochs": 0}, "figure_every_n_epochs=0"), ({"include": ["tail"]}, "include=tail: matches none")],
)
def test_bad_settings_are_refused(settings, message, command, tmp_path, capsys):
    overrides = [f"callbacks.spectrum.{key}={value}".replace("'", "") for key, value in settings.items()]
    assert command("model=mlp", "callbacks=spectrum", *overrides, "hydra.run.dir=run") == 2
    assert f"error: callbacks.spectrum.{message}" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
