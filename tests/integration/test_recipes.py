"""Training recipes through the application: averaged weights, accumulation, clipping, precision, compilation."""

import copy
import json
import os
import shutil
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

from tautnet.callbacks import SplineMonitor
from tautnet.config import build
from tautnet.lipschitz import lipschitz_bound
from tautnet.models import Classifier

QUIET = ("trainer.enable_progress_bar=false", "trainer=cpu", "logger=none", "debug=fast", "model.net.widths=[4,4]")


def checkpoint(run: Path, name: str = "last") -> dict:
    return torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return checkpoint(run)["state_dict"]


def metrics(run: Path) -> dict[str, float]:
    return json.loads((run / "result.json").read_text())["metrics"]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# --- averaged weights -------------------------------------------------------------------------------------------------


class RawWeights(pl.Callback):
    """The weights after every step, and the values of the last validation's network."""

    def __init__(self):
        self.steps, self.validated = [], {}

    def on_train_batch_end(self, trainer, model, *_):
        self.steps.append({name: value.detach().clone() for name, value in model.net.state_dict().items()})

    def on_validation_batch_end(self, trainer, model, *_):
        self.validated = {name: value.clone() for name, value in model.net.state_dict().items()}


@pytest.mark.parametrize("norm", ["unitize", "batch"])
def test_the_average_is_the_exponential_one_and_is_what_is_looked_at(settings, tmp_path, norm):
    composed = settings(*QUIET, "callbacks=ema", "callbacks.ema.decay=0.7", f"norm={norm}", "optimizer.lr=0.05")
    data = build(composed["data"], "data")
    model = Classifier(composed | {"input_shape": [1, 8, 8], "num_outputs": 10})
    raw, made = RawWeights(), build(composed["callbacks"], "callbacks")
    assert list(made)[-1] == "ema"  # the monitors must look before it takes the averaged weights out again
    trainer = pl.Trainer(
        max_epochs=2, limit_train_batches=3, limit_val_batches=1, accelerator="cpu", logger=False,
        enable_checkpointing=False, callbacks=[raw, made["lipschitz"], made["ema"]], num_sanity_val_steps=0,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(model, data)

    assert len(raw.steps) == 6
    expected = raw.steps[0]
    for step in raw.steps[1:]:
        expected = {name: 0.7 * expected[name] + (1 - 0.7) * step[name] for name in step}
    final, parameters = model.net.state_dict(), dict(model.net.named_parameters())
    assert not same(final, raw.steps[-1])
    for name, value in final.items():
        torch.testing.assert_close(value, expected[name] if name in parameters else raw.steps[-1][name])
    assert same(raw.validated, final)
    bound = lipschitz_bound(model.net, model.input_shape).total
    assert trainer.callback_metrics["lipschitz/bound_p2"] == pytest.approx(bound, rel=1e-6)
    net = Classifier(composed | {"input_shape": [1, 8, 8], "num_outputs": 10}).net
    net.load_state_dict(raw.steps[-1])
    assert lipschitz_bound(net, model.input_shape).total != pytest.approx(bound, rel=1e-6)


def test_a_run_with_averaged_weights_is_tested_rebuilt_and_continued(command, tmp_path):
    common = (*QUIET, "callbacks=ema", "callbacks.ema.decay=0.6", "scheduler=none")
    two, one, continued, alone = (tmp_path / name for name in ("two", "one", "continued", "alone"))
    assert command(*common, "trainer.max_epochs=2", f"hydra.run.dir={two}") == 0
    assert command(*common, "trainer.max_epochs=1", f"hydra.run.dir={one}") == 0
    ckpt = f"ckpt={one / 'checkpoints' / 'last.ckpt'}"
    assert command("logger=none", ckpt, "trainer.max_epochs=2", f"hydra.run.dir={continued}") == 0
    for key in ("state_dict", "current_model_state"):
        assert same(checkpoint(continued)[key], checkpoint(two)[key])
        assert not same(checkpoint(one)[key], checkpoint(two)[key])
    assert not same(checkpoint(two)["state_dict"], checkpoint(two)["current_model_state"])

    model = Classifier.load_from_checkpoint(two / "checkpoints" / "last.ckpt", weights_only=True)
    assert same(model.state_dict(), weights(two))
    bound = lipschitz_bound(model.net, model.input_shape).total
    assert metrics(two)["lipschitz/bound_p2"] == pytest.approx(bound, rel=1e-6)
    assert command("logger=none", "run=[test]", ckpt.replace("/one/", "/two/"), f"hydra.run.dir={alone}") == 0
    for name in ("test/acc", "test/loss", "lipschitz/bound_p2"):
        assert metrics(alone)[name] == metrics(two)[name]


def test_averaged_weights_stay_on_their_set_and_are_what_is_drawn(command, tmp_path, monkeypatch):
    drawn = []
    draw = SplineMonitor._draw
    monkeypatch.setattr(
        SplineMonitor,
        "_draw",
        lambda self, trainer, model: drawn.append(copy.deepcopy(model.state_dict())) or draw(self, trainer, model),
    )
    run = tmp_path / "run"
    constraint = ("norm.output.alpha_constraint=project", "optimizer.roles.norm.lr=5.0")
    assert command(*QUIET, *constraint, "callbacks=ema", "callbacks.ema.decay=0.5", f"hydra.run.dir={run}") == 0
    alphas = torch.cat([value for name, value in weights(run).items() if name.endswith("alpha")])
    assert alphas.min() >= 0
    assert 0 < alphas.max() <= 1
    assert same(drawn[-1], weights(run))


# --- trainer ----------------------------------------------------------------------------------------------------------

PLAIN = ("norm=none", "activation=relu", "optimizer=sgd")


def test_two_halves_of_a_batch_make_the_step_of_the_whole(command, tmp_path):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    for run, *sizes in (
        (whole, "data.batch_size=64", "trainer.limit_train_batches=3"),
        (halves, "data.batch_size=32", "trainer.limit_train_batches=6", "trainer.accumulate_grad_batches=2"),
    ):
        assert command(*QUIET, *PLAIN, "scheduler=onecycle", *sizes, f"hydra.run.dir={run}") == 0
    assert checkpoint(halves)["global_step"] == checkpoint(whole)["global_step"] == 3
    # the rates are those of three steps of three: the schedule counts steps, not batches
    rates = [checkpoint(run)["optimizer_states"][0]["param_groups"][0]["lr"] for run in (whole, halves)]
    assert rates == pytest.approx([0.1 * 1e-4] * 2)
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(halves)[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("algorithm", "norm_of_step"), [("norm", 2), ("value", float("inf"))])
def test_the_gradient_is_clipped(command, tmp_path, algorithm, norm_of_step):
    plain = (*QUIET, *PLAIN, "optimizer.momentum=0", "optimizer.nesterov=false", "optimizer.weight_decay=0")
    clip = ("trainer.limit_train_batches=1", "scheduler=none", f"trainer.gradient_clip_algorithm={algorithm}")
    flat = []
    for lr in (0, 1):
        run = tmp_path / str(lr)
        chosen = (f"optimizer.lr={lr}", "trainer.gradient_clip_val=0.01", f"hydra.run.dir={run}")
        assert command(*plain, *clip, *chosen) == 0
        flat.append(torch.cat([value.flatten() for value in weights(run).values()]))
    assert torch.linalg.vector_norm(flat[1] - flat[0], norm_of_step).item() == pytest.approx(0.01, rel=1e-3)


def test_sixteen_bits_train_and_keep_float32_weights(command, tmp_path):
    runs = [tmp_path / precision for precision in ("32-true", "bf16-mixed")]
    for run in runs:
        assert command(*QUIET, f"trainer.precision={run.name}", f"hydra.run.dir={run}") == 0
    full, mixed = (weights(run) for run in runs)
    assert not same(full, mixed)
    assert {name: value.dtype for name, value in mixed.items()} == {name: value.dtype for name, value in full.items()}
    assert all(value.isfinite().all() for value in mixed.values())


def test_muon_trains_a_network_with_splines(command, tmp_path):
    run = tmp_path / "run"
    assert command(*QUIET, "optimizer=muon", "scheduler=warmup", f"hydra.run.dir={run}") == 0
    kinds = [set(state) for state in checkpoint(run)["optimizer_states"][0]["state"].values()]
    assert {"momentum_buffer"} in kinds
    assert {"step", "exp_avg", "exp_avg_sq"} in kinds


# --- what a machine cannot do -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("trainer.gradient_clip_val=-1",), "trainer.gradient_clip_val=-1: a finite number above 0"),
        (("trainer.gradient_clip_algorithm=norm",), "trainer.gradient_clip_algorithm=norm: null while"),
        (("trainer.gradient_clip_val=1", "trainer.gradient_clip_algorithm=size"), "trainer"),
        (("trainer.accumulate_grad_batches=0",), "trainer.accumulate_grad_batches=0: an integer"),
        (("callbacks=ema", "callbacks.ema.decay=2.0"), "callbacks.ema: Invalid decay value 2.0"),
        (("trainer.precision=16-mixed",), "trainer.precision=16-mixed: needs a GPU"),
        (("compile=true",), "compile=true: needs a C++ compiler"),
        (("compile=true", "run=[test]"), "compile=true: training alone is compiled"),
        (("compile=maybe",), "compile: Value 'maybe'"),
    ],
)
def test_it_is_refused_in_one_line_before_anything_is_written(
    command, tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    monkeypatch.delenv("CXX", raising=False)
    assert command(*QUIET, *arguments, f"hydra.run.dir={tmp_path / 'run'}") == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {message}")
    assert not (tmp_path / "run").exists()


# --- compilation ------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")  # torch warns in its own compiler
@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="needs a C++ compiler")
def test_compiled_training_is_the_same_training(command, tmp_path):
    """One test for all of it, since translating a network takes many seconds."""
    from torch._dynamo.utils import counters

    counters.clear()
    plain, compiled, continued = (tmp_path / name for name in ("plain", "compiled", "continued"))
    small = (*QUIET[:-1], "model=mlp", "model.net.widths=[4]", "optimizer=sgd")  # Adam would magnify rounding
    assert command(*small, f"hydra.run.dir={plain}") == 0
    assert not counters["stats"]
    assert command(*small, "compile=true", f"hydra.run.dir={compiled}") == 0
    assert counters["stats"]["unique_graphs"] == 1  # training alone, in one piece
    assert not counters["graph_break"]
    assert weights(compiled).keys() == weights(plain).keys()
    for name, value in weights(plain).items():
        torch.testing.assert_close(weights(compiled)[name], value, rtol=1e-3, atol=1e-4)
    for name in ("lipschitz/bound_p2", "lipschitz/lower_p2", "spline/active_knots"):
        assert metrics(compiled)[name] == pytest.approx(metrics(plain)[name], rel=1e-3)
    ckpt = f"ckpt={compiled / 'checkpoints' / 'last.ckpt'}"
    assert command("logger=none", ckpt, "trainer.max_epochs=2", f"hydra.run.dir={continued}") == 0
    assert counters["stats"]["unique_graphs"] == 1  # compilation is no property of a checkpoint
    torch._dynamo.reset()
    counters.clear()
    ckpt, again = f"ckpt={plain / 'checkpoints' / 'last.ckpt'}", tmp_path / "again"
    assert command("logger=none", ckpt, "trainer.max_epochs=2", "compile=true", f"hydra.run.dir={again}") == 0
    assert counters["stats"]["unique_graphs"] == 1
    for name, value in weights(again).items():
        torch.testing.assert_close(value, weights(continued)[name], rtol=1e-3, atol=1e-4)
