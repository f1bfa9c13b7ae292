"""Training through the application: the main job, resuming, monitoring without side effects."""

import json
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from data_files import write_mnist
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tautnet.config import build
from tautnet.models import Classifier

QUIET = ("trainer.enable_progress_bar=false", "trainer=cpu")


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def run_dirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def main_job(command_that_draws, run_dirs, capsys) -> Path:
    """The main job once, in fewer epochs; what it printed stands in ``printed.txt``."""
    run = run_dirs / "main"
    if not run.exists():
        assert command_that_draws(*QUIET, "trainer.max_epochs=6", f"hydra.run.dir={run}") == 0
        (run / "printed.txt").write_text(capsys.readouterr().out)
    return run


def test_the_main_job_learns_the_digits(main_job):
    result = json.loads((main_job / "result.json").read_text())
    metrics = result["metrics"]
    assert metrics["test/acc"] >= 0.95
    assert metrics["lipschitz/lower_p2"] <= metrics["lipschitz/bound_p2"] < float("inf")
    assert metrics["spline/active_knots"] > 0
    assert metrics["time/fit_seconds"] > 0
    assert result["seed"] == 0
    assert set(result["versions"]) == {"python", "tautnet", "torch", "pytorch-lightning", "hydra-core"}


def test_it_ends_with_a_summary(main_job):
    printed = (main_job / "printed.txt").read_text()
    for words in (
        "test accuracy",
        "Lipschitz bound",
        "Lipschitz observed",
        "active knots",
        "seconds",
        "tensorboard --logdir",
    ):
        assert words in printed


def test_the_run_directory_is_complete(main_job):
    for name in ("config.yaml", "result.json", "checkpoints/last.ckpt", "checkpoints/best.ckpt", "pictures/2.png"):
        assert (main_job / name).stat().st_size > 0


def test_tensorboard_has_everything(main_job):
    events = EventAccumulator(str(main_job / "tensorboard"), size_guidance={"scalars": 0, "images": 0}).Reload()
    scalars = set(events.Tags()["scalars"])
    assert scalars >= {
        *("train/loss", "train/acc", "val/loss", "val/acc", "test/acc", "loss/task", "loss/tv2"),
        *("lr/weight", "lr/bias", "lr/norm", "lr/activation"),
        *("lipschitz/bound_p2", "lipschitz/lower_p2", "lipschitz/layer/0", "spline/active_knots", "spline/tv2"),
        "final/test/acc",
    }
    assert {"activation/2", "activation/5", "activation/8"} <= set(events.Tags()["images"])
    assert len(events.Scalars("val/acc")) == 6
    for bound, lower in zip(events.Scalars("lipschitz/bound_p2"), events.Scalars("lipschitz/lower_p2"), strict=True):
        assert lower.value <= bound.value
    terms = [events.Scalars(name)[-1].value for name in ("loss/task", "loss/tv2", "train/loss")]
    assert terms[0] + terms[1] == pytest.approx(terms[2], rel=1e-4)


def test_tensorboard_has_the_settings_with_the_final_metrics(main_job):
    content = b"".join(path.read_bytes() for path in (main_job / "tensorboard").glob("events*"))
    assert b"_hparams_/session_start_info" in content
    assert b"activation.num_knots" in content


def test_checkpoints_hold_plain_data_and_rebuild_the_model(main_job):
    path = main_job / "checkpoints" / "last.ckpt"
    model = Classifier.load_from_checkpoint(path, weights_only=True)
    assert same(model.state_dict(), weights(main_job))


def test_a_checkpoint_can_be_tested_alone(main_job, command, tmp_path):
    ckpt = main_job / "checkpoints" / "last.ckpt"
    assert command(*QUIET, "run=[test]", f"ckpt={ckpt}", f"hydra.run.dir={tmp_path / 'test'}") == 0
    alone = json.loads((tmp_path / "test" / "result.json").read_text())["metrics"]
    trained = json.loads((main_job / "result.json").read_text())["metrics"]
    for name in ("test/acc", "test/loss", "lipschitz/bound_p2"):
        assert alone[name] == trained[name]


@pytest.mark.parametrize("change", ["activation=relu", "activation.num_knots=7", "optimizer.lr=0.1", "seed=5"])
def test_a_checkpoint_cannot_continue_as_another_model(main_job, command, tmp_path, change, capsys):
    ckpt = main_job / "checkpoints" / "last.ckpt"
    assert command(*QUIET, f"ckpt={ckpt}", change, f"hydra.run.dir={tmp_path / 'other'}") == 2
    error = capsys.readouterr().err
    assert change.partition("=")[0].split(".")[0] in error
    assert "was trained with" in error
    assert not (tmp_path / "other").exists()


def test_a_run_is_never_overwritten(main_job, command, capsys):
    before = (main_job / "result.json").read_bytes()
    assert command(*QUIET, "debug=fast", f"hydra.run.dir={main_job}") == 2
    assert "holds a run already" in capsys.readouterr().err
    assert (main_job / "result.json").read_bytes() == before


def test_a_run_is_continued_with_its_data_elsewhere(command, tmp_path):
    """Its own settings of the data stay, also when the set is named again; what the command line names changes."""
    here, there = tmp_path / "here", tmp_path / "there"
    write_mnist(here, 120, 20)
    quick = ("debug=fast", "callbacks=checkpoints", "model.net.widths=[4]", "activation=relu")
    run = tmp_path / "run"
    own = ("data=mnist", f"data.root={here}", "data.batch_size=16", "data.augmentation.crop=1")
    assert command(*QUIET, *quick, *own, f"hydra.run.dir={run}") == 0
    here.rename(there)
    ckpt = (f"ckpt={run / 'checkpoints' / 'last.ckpt'}", "trainer.max_epochs=2", f"data.root={there}")
    for again in ((), ("data=mnist",)):
        folder = tmp_path / f"again{len(again)}"
        assert command(*ckpt, *again, f"hydra.run.dir={folder}") == 0
        data = OmegaConf.load(folder / "config.yaml")["data"]
        assert (data["root"], data["batch_size"], data["augmentation"]["crop"]) == (str(there), 16, 1)


def test_a_continued_run_keeps_what_it_holds_out(main_job, command, tmp_path, capsys):
    ckpt = f"ckpt={main_job / 'checkpoints' / 'last.ckpt'}"
    assert command(*QUIET, ckpt, "data.split_seed=1", f"hydra.run.dir={tmp_path / 'other'}") == 2
    assert "data.split_seed=1: " in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("settings_", [("norm=unitize",), ("norm=batch", "optimizer=sgd", "optimizer.lr=0.01")])
def test_one_and_one_epoch_give_the_weights_of_two(command, tmp_path, settings_):
    """With the constant schedule, since a cosine over one epoch is another one than over two."""
    few = ("trainer.limit_train_batches=6", "trainer.limit_val_batches=1", "callbacks.lipschitz.num_samples=16")
    arguments = (*QUIET, *few, "scheduler=none", "model.net.widths=[8,8]", "seed=3", *settings_)
    two, first, second = (tmp_path / name for name in ("two", "first", "second"))
    assert command(*arguments, "trainer.max_epochs=2", f"hydra.run.dir={two}") == 0
    assert command(*arguments, "trainer.max_epochs=1", f"hydra.run.dir={first}") == 0
    ckpt = first / "checkpoints" / "last.ckpt"
    # Nothing else is repeated: the settings come from the checkpoint.
    assert command(f"ckpt={ckpt}", "trainer.max_epochs=2", f"hydra.run.dir={second}") == 0
    assert not same(weights(first), weights(two))
    assert same(weights(second), weights(two))


def test_monitoring_does_not_change_training(settings, tmp_path):
    def train(*overrides: str) -> dict[str, torch.Tensor]:
        composed = settings("model.net.widths=[8,8]", *overrides)
        pl.seed_everything(0, verbose=False)
        data = build(composed["data"], "data")
        model = Classifier(composed | {"input_shape": [1, 8, 8], "num_outputs": 10})
        callbacks = [c for n, c in build(composed["callbacks"], "callbacks").items() if n in ("lipschitz", "splines")]
        trainer = pl.Trainer(
            max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=callbacks,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path, limit_train_batches=6,
        )  # fmt: skip
        trainer.fit(model, data)
        assert ("lipschitz/bound_p2" in trainer.callback_metrics) == bool(callbacks)
        return model.state_dict()

    assert same(train("callbacks=default"), train("callbacks=none"))


def test_same_seed_same_weights_other_seed_other_weights(command, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert command(*QUIET, "debug=fast", f"seed={seed}", f"hydra.run.dir={tmp_path / name}") == 0
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "c"))


@pytest.mark.parametrize("choice", ["logger=csv", "logger=none", "callbacks=none", "trainer.precision=bf16-mixed"])
def test_other_choices_run(command, tmp_path, choice):
    assert command(*QUIET, "debug=fast", choice, f"hydra.run.dir={tmp_path / 'run'}") == 0
    assert "test/acc" in json.loads((tmp_path / "run" / "result.json").read_text())["metrics"]


def test_alpha_constraint_is_applied_after_every_step(command, tmp_path):
    choice = ("norm.output.alpha_constraint=project", "optimizer.roles.norm.lr=5.0")
    assert command(*QUIET, "debug=fast", *choice, f"hydra.run.dir={tmp_path / 'run'}") == 0
    alphas = torch.cat([value for name, value in weights(tmp_path / "run").items() if name.endswith("alpha")])
    assert alphas.min() >= 0
    assert alphas.max() <= 1
    assert alphas.max() > 0


def test_a_sweep_returns_the_validation_metric_of_each_job(command, tmp_path, monkeypatch):
    import tautnet.app

    returned = []
    run = tautnet.app.run
    monkeypatch.setattr(tautnet.app, "run", lambda config: returned.append(run(config)) or returned[-1])
    sweep = tmp_path / "sweep"
    assert command("-m", *QUIET, "debug=fast", "activation=relu,spline", f"hydra.sweep.dir={sweep}") == 0
    for job, objective in enumerate(returned):
        assert json.loads((sweep / str(job) / "result.json").read_text())["metrics"]["val/acc"] == objective
    assert len(returned) == 2
