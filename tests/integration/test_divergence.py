"""Divergence through the whole application: what is said, what is left behind, and that all ranks agree."""

import json
from math import inf, isfinite, nan

import pytest
import torch
from conftest import CONF
from hydra import compose, initialize_config_dir
from ranks import in_ranks

from tautnet.callbacks.divergence_guard import Diverged
from tautnet.command_line import register_schema
from tautnet.config import plain
from tautnet.job import execute
from tautnet.models import Classifier

PLAIN = (
    *("model=mlp", "model.net.widths=[8]", "activation=relu", "logger=none", "trainer.enable_progress_bar=false"),
    "trainer.max_epochs=2",
)
QUICK = (*PLAIN, "callbacks.lipschitz.num_samples=4", "callbacks.lipschitz.num_steps=1")


def test_a_huge_learning_rate_ends_in_one_line_and_a_post_mortem(command, capfd, tmp_path):
    assert command(*QUICK, "optimizer.lr=1e20", "trainer=cpu", "hydra.run.dir=run") == 1
    *_, line = capfd.readouterr().err.splitlines()
    assert line.startswith("error: training diverged in step ")
    assert (
        f"; {tmp_path}/run/post_mortem has the batch, the weights before it and a report; a smaller optimizer.lr"
        in line
    )
    folder = tmp_path / "run" / "post_mortem"
    assert {path.name for path in folder.iterdir()} == {"batch.pt", "weights.pt", "report.json"}
    assert not (tmp_path / "run" / "result.json").exists()
    first = json.loads((folder / "report.json").read_text())["first_bad"]
    assert f"{first['kind']} {first['name']}" in line or first["name"] in line
    x, y = torch.load(folder / "batch.pt", weights_only=True)
    assert len(x) == len(y) == 64


def test_steps_may_be_skipped(command, tmp_path, monkeypatch):
    plain_loss, calls = Classifier.task_loss, []

    def task_loss(model, batch, stage):
        calls.append(stage)
        return plain_loss(model, batch, stage) * (inf if calls == ["train"] * 3 else 1)

    monkeypatch.setattr(Classifier, "task_loss", task_loss)
    assert command(*QUICK, "callbacks.divergence.skip_steps=1", "trainer=cpu", "hydra.run.dir=run") == 0
    metrics = json.loads((tmp_path / "run" / "result.json").read_text())["metrics"]
    assert metrics["divergence/skipped_steps"] == 1
    assert isfinite(float(metrics["test/loss"]))


def test_an_evaluation_that_is_not_finite_is_warned_of_once(command, capsys, monkeypatch):
    plain_loss = Classifier.task_loss
    stages = {"train": 1.0, "val": inf, "test": nan}
    monkeypatch.setattr(Classifier, "task_loss", lambda *given: plain_loss(*given) * stages[given[2]])
    assert command(*PLAIN, "trainer=cpu", "callbacks=none", "hydra.run.dir=run") == 0
    printed = capsys.readouterr().out
    assert printed.count("val/loss is inf: evaluation uses") == 1
    assert printed.count("test/loss is nan: evaluation uses") == 1


def test_a_gradient_that_anomaly_detection_finds_is_told_in_a_line(command, capsys, monkeypatch):
    plain_loss = Classifier.task_loss

    def task_loss(model, batch, stage):
        loss = plain_loss(model, batch, stage)
        return loss + (0 * loss).sqrt() * 0  # finite, with a gradient 0 * inf

    monkeypatch.setattr(Classifier, "task_loss", task_loss)
    with pytest.warns(UserWarning, match="Error detected in SqrtBackward0"):
        assert command(*QUICK, "trainer=cpu", "trainer.detect_anomaly=true", "hydra.run.dir=run") == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: trainer.detect_anomaly=True: Function 'SqrtBa")


def diverging(settings, culprit):
    """In a rank: do a job whose loss is infinite, with a finite gradient, in the third batch of one rank alone."""
    states, plain_loss = [], Classifier.task_loss

    def task_loss(model, batch, stage):
        states.append({name: value.clone() for name, value in model.state_dict().items()})
        rank = model.trainer.global_rank
        return plain_loss(model, batch, stage) + (inf if len(states) == 3 and rank == culprit else 0)

    Classifier.task_loss = task_loss
    with pytest.raises(Diverged) as stop:
        execute(settings)
    return str(stop.value), states


@pytest.mark.parametrize("culprit", [0, 1])
def test_all_ranks_stop_where_one_diverges(tmp_path, culprit):
    register_schema()
    folder = tmp_path / "run"
    folder.mkdir()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", overrides=["trainer=ddp_cpu", f"run_dir={folder}", "norm=batch", *QUICK])
    settings = plain(config) | {"overrides": []}
    settings["trainer"] |= {"devices": 2, "num_nodes": 1}
    (told, states), (other, others) = in_ranks(diverging, 2, tmp_path, settings, culprit)
    assert told == other
    assert f"in step 2, epoch 0: the loss is not finite, first of all the loss itself, in rank {culprit}; " in told
    assert len(states) == len(others) == 3
    kept = torch.load(folder / "post_mortem" / "weights.pt", weights_only=True)
    report = json.loads((folder / "post_mortem" / "report.json").read_text())
    assert report["rank"] == culprit
    for each in (states, others):
        assert all(torch.equal(value, kept[name]) for name, value in each[2].items())
        assert any(not torch.equal(value, kept[name]) for name, value in each[1].items())
