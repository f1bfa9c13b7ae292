"""Parameters that rest while others are trained: alternating updates and released coefficients."""

import copy
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException

from tautnet.callbacks.resting import Alternation, Release
from tautnet.config import build
from tautnet.factories import ROLES
from tautnet.models import Classifier
from tautnet.optim import parameters_by_role

QUIET = ("trainer=cpu", "trainer.enable_progress_bar=false", "logger=none")
NET = ("model=mlp", "model.net.widths=[4]", "norm=batch", "scheduler=none")
SLAF = ("activation=slaf", "activation.degree=2")
OPTIMIZERS = {
    "adamw": ["optimizer=adamw", "optimizer.roles.activation.weight_decay=0.1"],
    "sgd": ["optimizer=sgd", "optimizer.lr=0.01", "optimizer.roles.activation.weight_decay=0.1"],
    "muon": ["optimizer=muon"],
}


class Record(pl.Callback):
    """All parameters after every update."""

    def __init__(self):
        self.seen = []

    def on_train_start(self, trainer, model):
        learned = set(parameters_by_role(model)["activation"])
        self.learned = {name for name, parameter in model.named_parameters() if parameter in learned}
        self.seen.append(copy.deepcopy(dict(model.named_parameters())))

    def on_train_batch_end(self, trainer, model, outputs, batch, batch_idx):
        self.seen.append(copy.deepcopy(dict(model.named_parameters())))

    def moved(self):
        """Of each update: C if all coefficients moved, W if all else did; a small letter if only some."""
        letters = []
        for before, after in zip(self.seen, self.seen[1:], strict=False):
            flags = {"c": [], "w": []}
            for name, value in after.items():
                flags["c" if name in self.learned else "w"].append(not torch.equal(value, before[name]))
            letters.append("".join(k.upper() if all(v) else k for k, v in flags.items() if any(v)))
        return letters


def fit(settings, tmp_path, callback, *overrides, activation=SLAF, epochs=2, batches=4, **arguments):
    composed = settings(*NET, *activation, "regularizer=none", *overrides)
    pl.seed_everything(0, verbose=False)
    model = Classifier(composed | {"input_shape": [1, 8, 8], "num_outputs": 10})
    record = Record()
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[callback, record],
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path, limit_train_batches=batches,
        limit_val_batches=0, **arguments,
    )  # fmt: skip
    trainer.fit(model, build(composed["data"], "data"))
    return record.moved()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_n_steps_the_other_set_rests_bit_by_bit(settings, tmp_path, optimizer):
    moved = fit(settings, tmp_path, Alternation(every_n_steps=2), *OPTIMIZERS[optimizer])
    assert moved == ["W", "W", "C", "C", "W", "W", "C", "C"]


def test_every_n_epochs(settings, tmp_path):
    moved = fit(settings, tmp_path, Alternation(every_n_epochs=2), epochs=5, batches=1)
    assert moved == ["W", "W", "C", "C", "W"]


def test_coefficients_are_released(settings, tmp_path):
    moved = fit(settings, tmp_path, Release(2), *OPTIMIZERS["sgd"], epochs=3, batches=2)
    assert moved == ["W", "W", "W", "W", "CW", "CW"]


def test_a_decoupled_penalty_rests_with_its_coefficients(settings, tmp_path):
    decoupled = (
        "regularizer=coefficients",
        "regularizer.coefficients.decoupled=true",
        "regularizer.coefficients.step=0.1",
    )
    moved = fit(settings, tmp_path, Alternation(every_n_steps=1), *decoupled, epochs=1)
    assert moved == ["W", "C", "W", "C"]


@pytest.mark.parametrize("activation", ["spline", "spline_lipschitz"])
def test_splines_rest_too(settings, tmp_path, activation):
    limits = "activation.slope_max=1.001"  # leaky_relu and absolute are close to it
    net = [f"activation={activation}", "activation.slope_min=-1.001", limits, "optimizer.roles.activation.lr=0.01"]
    moved = fit(settings, tmp_path, Alternation(every_n_steps=3), activation=net, epochs=1, batches=9)
    assert [letter.upper() for letter in moved] == 3 * ["W"] + 3 * ["C"] + 3 * ["W"]


def test_a_prox_that_would_move_resting_splines_is_refused(settings, tmp_path):
    with pytest.raises(MisconfigurationException, match=r"callbacks\.release: the prox of TV\(2\) would move"):
        fit(settings, tmp_path, Release(1), "regularizer.tv2.prox=0.1", activation=["activation=spline"])


def test_accumulated_batches_are_one_update(settings, tmp_path):
    moved = fit(settings, tmp_path, Alternation(every_n_steps=1), epochs=1, accumulate_grad_batches=2)
    assert moved == ["", "W", "", "C"]


def test_clipping_sees_the_moving_parameters_alone(settings, tmp_path):
    moved = fit(settings, tmp_path, Alternation(every_n_steps=1), epochs=1, gradient_clip_val=1e-3)
    assert moved == ["W", "C", "W", "C"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Alternation(), "every_n_steps=None: that or every_n_epochs=None, the other null"),
        (lambda: Alternation(1, 1), "every_n_steps=1: that or every_n_epochs=1, the other null"),
        (lambda: Alternation(every_n_epochs=0), "every_n_epochs=0: at least 1"),
        (lambda: Release(0), "num_epochs=0: at least 1"),
    ],
)
def test_arguments_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("callback", "activation", "message"),
    [
        (Release(1), ["activation=relu"], "callbacks.release: needs learned activations"),
        (Release(2), SLAF, "callbacks.release.num_epochs=2: below 2, what the fit has"),
        (Alternation(every_n_steps=8), SLAF, "callbacks.alternate.every_n_steps=8: below 8, "),
        (Alternation(every_n_epochs=3), SLAF, "callbacks.alternate.every_n_epochs=3: below 2, "),
    ],
)
def test_what_would_have_no_effect_is_refused(settings, tmp_path, callback, activation, message):
    with pytest.raises(MisconfigurationException, match=message):
        fit(settings, tmp_path, callback, activation=activation)


# --- from the command line --------------------------------------------------------------------------------------------


def weights(run):
    return torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]


SHORT = (*QUIET, *NET, *SLAF, "trainer.limit_train_batches=3", "trainer.limit_val_batches=1", "run=[fit]")


@pytest.mark.parametrize(
    "routine", [("callbacks=alternate", "callbacks.alternate.every_n_steps=4"), ("callbacks=release",)]
)
def test_a_continued_run_goes_on_in_its_phase(command, tmp_path, routine):
    whole, half, rest = (tmp_path / name for name in ("whole", "half", "rest"))
    common = (*SHORT, *routine, "~callbacks.lipschitz", "~callbacks.splines", "~callbacks.best")
    assert command(*common, "trainer.max_epochs=4", f"hydra.run.dir={whole}") == 0
    assert command(*common, "trainer.max_epochs=3", f"hydra.run.dir={half}") == 0
    ckpt = (f"ckpt={half / 'checkpoints/last.ckpt'}", "trainer.max_epochs=4")
    assert command(*common, *ckpt, f"hydra.run.dir={rest}") == 0
    continued, uninterrupted = weights(rest), weights(whole)
    assert all(torch.equal(value, continued[name]) for name, value in uninterrupted.items())


def test_another_schedule_and_two_routines_are_refused(command, tmp_path, capsys):
    run = tmp_path / "run"
    release = ("callbacks=release", "callbacks.release.num_epochs=1")
    assert command(*SHORT, *release, "trainer.max_epochs=2", f"hydra.run.dir={run}") == 0
    ckpt = (f"ckpt={run / 'checkpoints/last.ckpt'}", "trainer.max_epochs=4", f"hydra.run.dir={tmp_path / 'x'}")
    assert command(*QUIET, *ckpt, "callbacks=release", "callbacks.release.num_epochs=3") == 2
    assert "error: callbacks.release: {'num_epochs': 3}, trained so far by {'num_epochs': 1}" in capsys.readouterr().err
    both = ("callbacks=[alternate,release]", "trainer.max_epochs=4", f"hydra.run.dir={tmp_path / 'x'}")
    assert command(*SHORT, *both) == 2
    assert "error: callbacks=[alternate,release]: one of them" in capsys.readouterr().err


@pytest.mark.parametrize(("step", "rest"), [(0, {"activation"}), (1, {"weight", "bias", "norm"})])
def test_parameters_of_penalties_move_in_both_phases(step, rest):
    parameters = {role: torch.nn.Parameter(torch.zeros(2)) for role in ROLES}
    for parameter in parameters.values():
        parameter.grad = torch.ones(2)
    groups = [{"role": role, "params": [parameter]} for role, parameter in parameters.items()]
    trainer, optimizer = SimpleNamespace(global_step=step, current_epoch=0), SimpleNamespace(param_groups=groups)
    Alternation(every_n_steps=1).on_before_optimizer_step(trainer, None, optimizer)
    assert {role for role, parameter in parameters.items() if parameter.grad is None} == rest
