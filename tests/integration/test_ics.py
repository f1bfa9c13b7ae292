"""The meter of internal covariate shift in training: what it logs, and that training does not notice."""

import csv
import json

import pytest
import pytorch_lightning as pl
import torch
from conftest import ROOT
from data_settings import small_files
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import EMAWeightAveraging
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from tautnet.callbacks import IcsMeter
from tautnet.callbacks.layer_outputs import layer_outputs
from tautnet.config import build
from tautnet.functional.earth_mover import coupling_distance, earth_mover_exact
from tautnet.models import Classifier

QUIET = ("trainer.enable_progress_bar=false", "trainer=cpu")
SMALL = ("model=mlp", "model.net.widths=[6,6]", "activation.num_knots=9")
QUANTITIES = ("lower", "upper", "coupling", "sliced", "per_unit", "relative")


@pytest.fixture
def fit(settings, tmp_path):
    """Train on the digits; gives trainer and model."""

    def fit(*overrides, meter=None, callbacks=(), change=None, epochs=2, batches=4, logger=False, **trainer_settings):
        composed = settings(*SMALL, *overrides)
        pl.seed_everything(0, verbose=False)
        data = build(composed["data"], "data")
        model = Classifier(composed | {"input_shape": [1, 8, 8], "num_outputs": 10})
        model.calibrate_(next(iter(data.train_dataloader()))[0])
        if change is not None:
            change(model.net)
        trainer = pl.Trainer(
            max_epochs=epochs, accelerator="cpu", logger=logger, enable_checkpointing=False,
            callbacks=[*([meter] if meter else []), *callbacks], enable_progress_bar=False, enable_model_summary=False,
            default_root_dir=tmp_path, limit_train_batches=batches, limit_val_batches=1, num_sanity_val_steps=0,
            log_every_n_steps=3, **trainer_settings,
        )  # fmt: skip
        trainer.fit(model, data)
        return trainer, model

    return fit


# --- without effect ---------------------------------------------------------------------------------------------------


def insert_dropout(net):
    net.insert(len(net) - 1, nn.Dropout(0.3))


def power_iterated(net):
    for layer in [layer for layer in net if isinstance(layer, nn.Linear)]:
        nn.utils.parametrizations.spectral_norm(layer)  # a forward in training mode moves its buffers


CASES = {
    "default": {},
    "dropout": {"change": insert_dropout},
    "ema": {"callbacks": lambda: [EMAWeightAveraging(decay=0.9)]},
    "accumulation": {"accumulate_grad_batches": 2},
    "power_iteration": {"change": power_iterated},
    "aon": {"overrides": ("norm/weight=aon",)},
    "mixed": {"precision": "bf16-mixed"},
}


@pytest.mark.parametrize("case", CASES)
def test_training_is_bit_identical_with_and_without(fit, case):
    """Parameters, buffers, gradients, optimizer, random state, and all that is logged."""
    arguments = dict(CASES[case])
    overrides, callbacks = arguments.pop("overrides", ()), arguments.pop("callbacks", list)

    def trained(meter):
        trainer, model = fit(*overrides, meter=meter, callbacks=callbacks(), **arguments)
        (optimizer,) = trainer.optimizers
        states = [state[name] for state in optimizer.state.values() for name in sorted(state)]
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        tensors = [*model.state_dict().values(), *gradients, *states, torch.get_rng_state()]
        return tensors, {name: value.item() for name, value in trainer.callback_metrics.items()}

    (with_it, logged), (without, expected) = trained(IcsMeter(every_n_steps=1, num_samples=20)), trained(None)
    assert len(with_it) == len(without)
    assert all(torch.equal(*map(torch.as_tensor, pair)) for pair in zip(with_it, without, strict=True))
    found = {name: logged.pop(name) for name in list(logged) if name.startswith("ics/")}
    assert logged == expected
    assert len(found) >= 14  # 7 quantities of two layers
    assert all(value > 0 for name, value in found.items() if "lower" not in name), found


# --- what is measured -------------------------------------------------------------------------------------------------


class Copies(pl.Callback):
    """Networks before and after every update, and the first batch."""

    def __init__(self):
        self.before, self.after, self.x = [], [], None

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.x = batch[0].clone() if self.x is None else self.x

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.before.append({name: value.clone() for name, value in pl_module.net.state_dict().items()})

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if len(self.after) < len(self.before):
            self.after.append({name: value.clone() for name, value in pl_module.net.state_dict().items()})


def logged_rows(logger):
    with open(f"{logger.log_dir}/metrics.csv") as file:
        rows = [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]
    return {int(row["step"]): row for row in rows if any(name.startswith("ics/") for name in row)}


def test_values_are_those_of_the_networks_before_and_after(fit, tmp_path):
    """With project: what is clamped after the step belongs to the update."""
    copies, logger = Copies(), CSVLogger(tmp_path, "log", "")
    alpha = ("norm.output.alpha_constraint=project", "optimizer.lr=0.5")
    trainer, model = fit(*alpha, meter=IcsMeter(every_n_steps=2, num_samples=30), callbacks=[copies], logger=logger)
    rows = logged_rows(logger)
    assert list(rows) == [1, 3, 5, 7]  # numbers of updates, none of which log_every_n_steps=3 hits but one
    sums = dict.fromkeys(("2", "5"), 0.0)
    for step, row in rows.items():
        ends = []
        for states in (copies.before, copies.after):
            model.net.load_state_dict(states[step - 1])
            model.net.train()
            ends.append(layer_outputs(model.net, ["2", "5"], copies.x[:30], "sample"))
        for path in ("2", "5"):
            w1 = earth_mover_exact(ends[0][path], ends[1][path])
            assert float(row[f"ics/{path}"]) == pytest.approx(w1, rel=1e-9)
            assert float(row[f"ics/coupling/{path}"]) == pytest.approx(
                coupling_distance(ends[0][path], ends[1][path]), rel=1e-9
            )
            lower, upper = (float(row[f"ics/{name}/{path}"]) for name in ("lower", "upper"))
            assert 0 < lower <= w1 <= upper
            assert float(row[f"ics/relative/{path}"]) == pytest.approx(2 * w1 / upper, rel=1e-9)
            sums[path] += w1
    for path, total in sums.items():
        assert trainer.callback_metrics[f"ics/{path}"].item() == pytest.approx(total / 4, rel=1e-9)
    alphas = torch.stack([state["2.alpha"] for state in copies.after])
    assert ((alphas == 0) | (alphas == 1)).any()  # something was clamped


def test_updates_are_counted_not_batches(fit, tmp_path):
    logger = CSVLogger(tmp_path, "log", "")
    trainer, _ = fit(meter=IcsMeter(every_n_steps=2), logger=logger, epochs=2, batches=6, accumulate_grad_batches=2)
    assert trainer.global_step == 6
    assert list(logged_rows(logger)) == [1, 3, 5]


def test_nothing_moves_at_rate_zero(fit):
    trainer, _ = fit("optimizer.lr=0", "optimizer.roles.activation.lr=0", meter=IcsMeter(every_n_steps=1))
    for path in ("2", "5"):
        values = {name: trainer.callback_metrics[f"ics/{name}/{path}"].item() for name in QUANTITIES}
        assert trainer.callback_metrics[f"ics/{path}"] == 0
        assert values.pop("upper") > 0
        assert set(values.values()) == {0.0}


@pytest.mark.parametrize(("epochs", "drawn"), [(3, [8, 12]), (2, [8]), (1, [4])])
def test_scalars_and_figures_are_in_tensorboard(fit, tmp_path, epochs, drawn):
    logger = TensorBoardLogger(tmp_path, "board", "")
    meter = IcsMeter(every_n_steps=1, figure_every_n_epochs=2, folder=str(tmp_path / "pictures"))
    fit(meter=meter, logger=logger, epochs=epochs)
    logger.finalize("success")
    events = EventAccumulator(logger.log_dir, size_guidance={"images": 0, "scalars": 0}).Reload()
    tags = {f"ics/{part}{path}" for part in ("", *(f"{name}/" for name in QUANTITIES)) for path in ("2", "5")}
    assert tags == {tag for tag in events.Tags()["scalars"] if tag.startswith("ics/")}
    assert [event.step for event in events.Scalars("ics/2")] == list(range(1, 4 * epochs + 1))
    assert [event.step for event in events.Images("ics/layers")] == drawn
    assert (tmp_path / "pictures" / "ics.png").stat().st_size > 0


def test_a_diverged_net_is_measured_as_nan_and_training_goes_on(fit):
    def diverge(net):
        nn.init.constant_(next(layer for layer in net if isinstance(layer, nn.Linear)).weight, torch.nan)

    trainer, _ = fit(meter=IcsMeter(every_n_steps=1), change=diverge)
    assert trainer.callback_metrics["ics/2"].isnan()


class Dtypes(nn.Module):
    """Notes the type of what passes without gradients in training mode: in the passes of the meter."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        if self.training and not torch.is_grad_enabled():
            self.seen.append(x.dtype)
        return x


def test_the_passes_have_the_precision_of_training(fit):
    noted = Dtypes()
    fit(meter=IcsMeter(every_n_steps=1), change=lambda net: net.insert(2, noted), precision="bf16-mixed")
    assert noted.seen == 16 * [torch.bfloat16]


def test_every_process_measures_and_the_first_one_writes(fit, monkeypatch):
    """Synchronised statistics wait for all processes; a second one must not stay away. It writes nothing."""
    looks = []
    monkeypatch.setattr(
        "tautnet.callbacks.ics_meter.layer_outputs", lambda *given: looks.append(1) or layer_outputs(*given)
    )
    monkeypatch.setattr(pl.Trainer, "is_global_zero", property(lambda trainer: False))
    trainer, _ = fit(meter=IcsMeter(every_n_steps=1, folder="/nowhere/at/all"), epochs=1)
    assert len(looks) == 8
    assert any(name.startswith("ics/") for name in trainer.callback_metrics)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"include": ["7", "8.*"]}, "callbacks.ics.include=8.*: matches none of the layers"),
        ({"exclude": ["*"]}, "callbacks.ics.exclude=['*']: leaves none of the layers 2, 5"),
        ({"include": ["1"], "exclude": ["2"]}, None),
    ],
)
def test_patterns_choose_layers_before_training(fit, arguments, message):
    if message is None:
        trainer, _ = fit(meter=IcsMeter(**arguments))
        names = {name for name in trainer.callback_metrics if name.startswith("ics/")}
        assert names == {"ics/1", *(f"ics/{name}/1" for name in QUANTITIES)}
        return
    with pytest.raises(MisconfigurationException) as caught:
        fit(meter=IcsMeter(**arguments))
    assert str(caught.value).startswith(message)


# --- from the command line --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "paths"),
    [
        (("callbacks.ics.positions=mean", "logger=csv"), {"1", "4", "7"}),
        (("data=diabetes", "model=mlp", "norm=batch", "logger=none"), {"2", "5"}),
        (("data=denoising", "model=dncnn", "model.net.depth=3", "norm=none", "logger=none"), {"body.0", "body.2"}),
        (("callbacks=[ics,ema]", "callbacks.ics.include=[2,last]"), {"2", "11"}),
    ],
    ids=["mean", "regression", "denoising", "ema"],
)
def test_every_task_is_measured(command, tmp_path, overrides, paths):
    run = tmp_path / "run"
    small = ("debug=fast", "callbacks=ics", "callbacks.ics.num_samples=8", "activation.num_knots=9")
    files = small_files("denoising", tmp_path) if "data=denoising" in overrides else ()
    assert command(*QUIET, *small, *overrides, *files, f"hydra.run.dir={run}") == 0
    metrics = json.loads((run / "result.json").read_text())["metrics"]
    found = {name.removeprefix("ics/") for name in metrics if name.startswith("ics/") and name.count("/") == 1}
    assert found == paths
    assert (run / "pictures" / "ics.png").exists()


def test_the_experiment_composes_with_fixed_alpha(settings):
    composed = settings("experiment=ics_alpha", "norm.output.alpha_init=0.5")
    assert composed["norm"]["output"]["alpha_init"] == 0.5
    assert composed["norm"]["output"]["learn_alpha"] is False
    assert composed["callbacks"]["ics"]["every_n_steps"] == 1
    assert (ROOT / "conf" / "experiment" / "ics_alpha.yaml").read_text().startswith("# @package _global_\n")
