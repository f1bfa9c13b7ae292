"""DivergenceGuard and its post-mortem: what stops a training, what is skipped, what remains, what is named."""

import copy
import json
from functools import cache
from math import inf, nan

import pytest
import pytorch_lightning as pl
import torch
from conftest import CONF
from hydra import compose, initialize_config_dir
from pytorch_lightning.callbacks import EMAWeightAveraging
from pytorch_lightning.plugins.precision import MixedPrecision
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tautnet.callbacks import Alternation
from tautnet.callbacks.divergence_guard import Diverged, DivergenceGuard
from tautnet.command_line import register_schema
from tautnet.config import plain
from tautnet.models import Classifier, Regressor

NET = ("model=mlp", "model.net.widths=[5,4]", "activation=relu", "scheduler=none", "optimizer=sgd", "optimizer.lr=0.1")


class Recorder(pl.Callback):
    """The model's state after every batch, and the losses."""

    def __init__(self):
        self.states, self.losses = [], []

    def on_train_start(self, trainer, model):
        self.states.append(copy.deepcopy(model.net.state_dict()))

    def on_before_backward(self, trainer, model, loss):
        self.losses.append(loss.item())

    def on_train_batch_end(self, trainer, model, outputs, batch, batch_idx):
        self.states.append(copy.deepcopy(model.net.state_dict()))


class Planted(nn.Module):
    """The identity, but in training batches ``at``, counted from 0, times ``factor`` forwards or backwards."""

    def __init__(self, at=(), forwards=1.0, backwards=1.0):
        super().__init__()
        self.at, self.forwards, self.backwards, self.count = at, forwards, backwards, 0

    def __deepcopy__(self, memo):
        return Planted(self.at, self.forwards, self.backwards)

    def forward(self, x):
        if not self.training:
            return x
        bad = self.count in self.at
        self.count += 1
        if not bad:
            return x
        if self.backwards != 1:
            x = x.clone()
            x.register_hook(lambda gradient: gradient * self.backwards)
        return x * self.forwards


class Stays(Planted):
    """The same, for one step that may run again: ``at`` is a number of optimizer steps behind."""

    def __init__(self, trainer_of, **others):
        super().__init__(**others)
        self.trainer_of = trainer_of

    def forward(self, x):
        self.count = self.trainer_of().global_step
        return super().forward(x)


def data(num_batches=6, size=8, spoil=lambda x, y: None, targets="classes"):
    """Batches in order; ``spoil`` may write into inputs (B, N, 6) and targets."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(num_batches, size, 6, generator=generator)
    y = torch.randint(3, (num_batches, size), generator=generator)
    y = y if targets == "classes" else torch.randn(num_batches, size, 3, generator=generator)
    spoil(x, y)
    return DataLoader(TensorDataset(x.flatten(0, 1), y.flatten(0, 1)), batch_size=size)


@cache
def composed(*overrides):
    register_schema()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return plain(compose("train", overrides=["run_dir=none", *overrides]))


def classifier(*overrides, kind=Classifier, norm="batch"):
    pl.seed_everything(0, verbose=False)
    task = () if kind is Classifier else ("data=diabetes",)
    settings = copy.deepcopy(composed(*task, *NET, f"norm={norm}", *overrides))
    return kind(settings | {"input_shape": [6], "num_outputs": 3})


def fit(model, batches, *callbacks, epochs=1, **arguments):
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, max_epochs=epochs, limit_val_batches=0, callbacks=list(callbacks), **arguments,
    )  # fmt: skip
    trainer.fit(model, batches, batches)
    return trainer


def stopped(model, batches, folder, *callbacks, match, skip_steps=0, **arguments):
    """Fit until it stops; the state of the network after each batch, and the report."""
    recorder = Recorder()
    guard = DivergenceGuard(skip_steps, str(folder / "post_mortem"))
    with pytest.raises(Diverged, match=match):
        fit(model, batches, guard, *callbacks, recorder, **arguments)
    return recorder, json.loads((folder / "post_mortem" / "report.json").read_text())


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def planted_in(model, position, module):
    model.net.insert(position, module)
    return model


# --- what stops -------------------------------------------------------------------------------------------------------


def test_a_nan_in_the_input_stops_before_its_step(tmp_path):
    def spoil(x, y):
        x[3, 5, 2] = nan

    model = classifier()
    recorder, report = stopped(
        model, data(spoil=spoil), tmp_path, match="^training diverged in step 3, epoch 0: the loss"
    )
    assert len(recorder.states) == 4
    assert same(model.net.state_dict(), recorder.states[-1])  # running statistics too
    assert report["not_finite"] == "the loss"
    assert (report["step"], report["epoch"], report["batch"], report["rank"]) == (3, 0, 3, 0)
    assert report["first_bad"]["kind"] == "input"
    assert report["first_bad"]["values"]["first_bad"] == [5, 2]
    assert report["first_bad"]["values"]["num_nan"] == 1
    assert report["lr"] == {"weight": 0.1, "bias": 0.1, "norm": 0.1}
    assert report["modules"][0]["path"] == "net.0"

    weights = torch.load(tmp_path / "post_mortem" / "weights.pt", weights_only=True)
    assert same(weights, model.state_dict())
    x, y = torch.load(tmp_path / "post_mortem" / "batch.pt", weights_only=True)
    assert x.shape == (8, 6)
    assert x[5, 2].isnan()
    assert x.isnan().sum() == 1
    assert torch.equal(y, list(data())[3][1])


def test_the_line_says_where_and_what_to_do(tmp_path):
    def spoil(x, y):
        x[0, 1, 4] = inf

    with pytest.raises(Diverged) as stop:
        fit(classifier(), data(spoil=spoil), DivergenceGuard(folder=str(tmp_path / "here")))
    text = str(stop.value)
    assert "\n" not in text
    assert "first of all the input at [1, 4] (values in [" in text
    assert f"1 inf); {tmp_path / 'here'} has the batch" in text
    assert text.endswith("; look at the data")


def test_a_nan_in_a_target_is_named(tmp_path):
    def spoil(x, y):
        y[1, 7, 0] = nan

    model = classifier(kind=Regressor)
    _, report = stopped(
        model, data(spoil=spoil, targets="values"), tmp_path, match="first of all the target at \\[7, 0\\]"
    )
    assert report["first_bad"]["kind"] == "target"
    assert report["batch"] == 1


@pytest.mark.parametrize("position", [1, 4, 7])
@pytest.mark.parametrize("factor", [inf, nan])
def test_the_first_bad_module_is_named_with_the_range_of_its_input(tmp_path, position, factor):
    model = classifier()
    module = Stays(lambda: model.trainer, at=(2,), forwards=factor)
    planted_in(model, position, module)
    seen = []
    module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    recorder, report = stopped(
        model, data(), tmp_path, match=rf"the output of net\.{position} \(Stays; its input: values"
    )
    first = report["first_bad"]
    assert (first["kind"], first["name"]) == ("module", f"net.{position}")
    assert len(seen) == 4  # three steps, and the last one again
    assert torch.equal(seen[2], seen[3])
    visit = next(visit for visit in report["modules"] if visit["path"] == first["name"])
    assert visit["input"]["low"] == seen[2].min().item()
    assert visit["input"]["high"] == seen[2].max().item()
    assert visit["output"] == first["values"]
    paths = [visit["path"] for visit in report["modules"] if "batch_norm" not in visit["path"]]
    assert paths == [*(f"net.{n}" for n in range(len(model.net))), "net"]
    assert same(model.net.state_dict(), recorder.states[-1])


def test_a_bad_gradient_with_a_finite_loss_stops_and_the_first_in_backward_order_is_named(tmp_path):
    model = planted_in(classifier(), 4, Stays(lambda: model.trainer, at=(2,), backwards=inf))
    recorder, report = stopped(
        model, data(), tmp_path, match=r"the gradient is not finite, first of all the gradient of net\.2\."
    )
    assert all(loss == loss for loss in recorder.losses)
    assert report["first_bad"]["kind"] == "gradient"
    owners = list(dict.fromkeys(name.rpartition(".")[0] for name in report["bad_gradients"]))
    assert owners == ["net.2.batch_norm", "net.1"]  # what stands before it; what lies behind is finite
    assert same(model.net.state_dict(), recorder.states[-1])


def test_a_loss_that_is_bad_by_itself(tmp_path):
    model = classifier()
    plain = model.task_loss
    model.task_loss = lambda batch, stage: (
        plain(batch, stage) + (inf if model.global_step == 2 else 0)
    )  # finite gradient
    _, report = stopped(model, data(), tmp_path, match="first of all the loss itself")
    assert report["first_bad"]["kind"] == "loss"
    assert report["bad_gradients"] == []


def test_a_penalty_is_named(tmp_path):
    model = classifier("activation=spline", norm="none")
    model.regularizers["tv2"].weight = inf
    _, report = stopped(model, data(), tmp_path, match=r"first of all the penalty regularizers\.tv2")
    assert report["first_bad"]["kind"] == "penalty"


def test_a_parameter_that_is_bad_already_is_named(tmp_path):
    model = classifier()
    with torch.no_grad():
        model.net[1].weight[2, 3] = nan
    _, report = stopped(model, data(), tmp_path, match=r"the parameter net\.1\.weight at \[2, 3\]")
    assert report["batch"] == 0


def test_parameters_are_looked_at_at_the_end_of_an_epoch(tmp_path):
    model = planted_in(classifier("optimizer.lr=1e30", norm="none"), 3, Planted(at=(0,), backwards=1e20))
    _, report = stopped(model, data(num_batches=1), tmp_path, match="a parameter is not finite")
    assert report["batch"] is None
    assert not (tmp_path / "post_mortem" / "batch.pt").exists()


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("norm", ["none", "unitize"])
def test_a_huge_learning_rate_stops_at_the_first_bad_loss_and_a_tiny_one_does_not(tmp_path, optimizer, norm):
    def model(rate):
        overrides = (f"optimizer={optimizer}", f"optimizer.lr={rate}")
        return classifier(*overrides, "activation=relu", norm=norm).train()

    fit(model("1e-10"), data(), DivergenceGuard())
    recorder = Recorder()
    with pytest.raises(Diverged):
        fit(model("1e20"), data(30), DivergenceGuard(), recorder, epochs=5)
    assert all(abs(loss) < inf for loss in recorder.losses[:-1])


def test_a_finite_gradient_whose_square_overflows_is_no_divergence():
    model = planted_in(classifier("optimizer.lr=1e-30", norm="none"), 3, Planted(at=(1,), backwards=1e25))
    fit(model, data(), DivergenceGuard())


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    def spoil(x, y):
        x[0] = nan

    (tmp_path / "file").write_text("")
    with pytest.raises(Diverged, match=f"the input.*; {tmp_path}/file.* could not be written: "):
        fit(classifier(), data(spoil=spoil), DivergenceGuard(folder=str(tmp_path / "file" / "below")))


def test_bad_argument():
    with pytest.raises(ValueError, match=r"^skip_steps=-1: at least 0$"):
        DivergenceGuard(skip_steps=-1)


# --- what is skipped --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["forwards", "backwards"])
def test_bad_steps_are_skipped_and_counted(caplog, where):
    model = planted_in(classifier(), 4, Planted(at=(1, 2, 4), **{where: nan}))
    guard, recorder = DivergenceGuard(skip_steps=2), Recorder()
    trainer = fit(model, data(), guard, recorder)
    moved = [not same(*pair) for pair in zip(recorder.states, recorder.states[1:], strict=False)]
    assert moved == [True, False, False, True, False, True]
    assert trainer.callback_metrics["divergence/skipped_steps"] == 3
    assert trainer.global_step == 6
    warned = [record.getMessage() for record in caplog.records if "skipped" in record.getMessage()]
    what = "loss" if where == "forwards" else "gradient"
    assert warned == [
        f"step 1 is skipped, 1 of at most 2 in a row: the {what} is not finite",
        f"step 2 is skipped, 2 of at most 2 in a row: the {what} is not finite",
        f"step 4 is skipped, 1 of at most 2 in a row: the {what} is not finite",
    ]
    assert guard.state_dict() == {"num_skipped": 3, "in_a_row": 0}


def test_one_too_many_in_a_row_stops(tmp_path):
    model = planted_in(classifier(), 4, Stays(lambda: model.trainer, at=(2, 3, 4), forwards=inf))
    recorder, report = stopped(model, data(), tmp_path, skip_steps=2, match="step 4")
    assert report["skipped_steps"] == 2
    assert same(model.net.state_dict(), recorder.states[2])


def test_counts_go_on_from_a_checkpoint():
    model = planted_in(classifier(), 4, Planted(at=(0,), forwards=inf))
    guard = DivergenceGuard(skip_steps=2)
    guard.load_state_dict({"num_skipped": 7, "in_a_row": 2})
    with pytest.raises(Diverged):
        fit(model, data(), guard)


# --- with everything else ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_accumulated_batches_are_one_step(tmp_path, bad):
    def spoil(x, y):
        x[3 + bad, 0, 0] = nan

    model = classifier()
    recorder, report = stopped(model, data(spoil=spoil), tmp_path, accumulate_grad_batches=3, match="step 1,")
    assert report["batch"] == 3 + bad
    assert same(model.net.state_dict(), recorder.states[3])


def with_dropout(*overrides):
    model = classifier(*overrides)
    return planted_in(model, 4, nn.Dropout(0.5))


def test_dropout_is_alike_when_the_step_runs_again(tmp_path):
    model = with_dropout()
    planted_in(model, 5, Stays(lambda: model.trainer, at=(3,), forwards=inf))
    seen = []
    model.net[5].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    stopped(model, data(), tmp_path, match=r"net\.5")
    assert torch.equal(seen[-1], seen[-2])
    assert (seen[-1] == 0).any()


@pytest.mark.parametrize(
    ("overrides", "arguments"),
    [
        ((), {}),
        (("optimizer=adamw",), {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1}),
        ((), {"precision": "bf16-mixed"}),
    ],
)
def test_a_finite_training_is_the_same_to_the_bit(overrides, arguments):
    def trained(*callbacks):
        model = with_dropout(*overrides)
        fit(model, data(), *callbacks, epochs=2, **arguments)
        return model.state_dict(), torch.get_rng_state()

    plain, state = trained()
    guarded, other = trained(DivergenceGuard(skip_steps=1))
    assert same(plain, guarded)
    assert torch.equal(state, other)


# The scaler skips the first step, and torch takes that for a mistake in the order of calls.
scaler_skips = pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")


def scaled(scale):
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))


@scaler_skips
def test_what_overflows_for_the_scale_is_the_scalers_matter():
    model, recorder, precision = classifier(), Recorder(), scaled(2.0**40)
    fit(model, data(20), DivergenceGuard(), recorder, epochs=2, plugins=[precision])
    moved = [recorder.states[0]["1.weight"].ne(state["1.weight"]).any() for state in recorder.states[1:]]
    assert not moved[0]
    assert moved[-1]
    assert precision.scaler.get_scale() < 2.0**30


@scaler_skips
def test_a_gradient_that_overflows_at_any_scale_stops(tmp_path):
    model = planted_in(classifier(), 4, Planted(at=range(99), backwards=inf))
    precision = scaled(8.0)
    _, report = stopped(model, data(), tmp_path, plugins=[precision], match="the gradient is not finite")
    assert report["step"] == 3  # at scales 8, 4, 2 the scaler skips
    assert precision.scaler.get_scale() == 1


def test_a_bad_loss_stops_with_a_scaler_too(tmp_path):
    model = planted_in(classifier(), 4, Planted(at=(1, 2, 3), forwards=nan))
    _, report = stopped(model, data(), tmp_path, plugins=[scaled(8.0)], match="the loss is not finite")
    assert report["step"] == 1


def test_with_averaged_weights_and_alternating_updates(tmp_path):
    def spoil(x, y):
        x[4, 0, 0] = nan

    model = classifier("activation=slaf", "activation.degree=2")
    others = (Alternation(every_n_steps=1), EMAWeightAveraging(decay=0.5, use_buffers=False))
    recorder, _ = stopped(model, data(spoil=spoil), tmp_path, *others, match="step 4")
    assert same(model.net.state_dict(), recorder.states[-1])
