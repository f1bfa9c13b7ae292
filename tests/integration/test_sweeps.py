"""Sweeps through the command line: what runs, what is skipped, what is left; small nets, one epoch, this process."""

import csv
import json
from pathlib import Path

import pytest

import tautnet.app

QUIET = ("data=breast_cancer", "model=one_hidden", "norm=none", "activation=relu", "trainer=cpu", "debug=fast")
QUIET = (*QUIET, "callbacks=none", "logger=none", "trainer.enable_progress_bar=false")


@pytest.fixture
def sweep(command, monkeypatch, tmp_path):
    """Run a sweep in ``tmp_path/sweep``; its status and the numbers of the directories whose jobs ran."""
    run = tautnet.app.run

    def swept(*arguments: str, at_job=lambda number: None):
        numbers = []

        def noted(config):
            numbers.append(int(Path(config.run_dir).name))
            at_job(numbers[-1])
            return run(config)

        with monkeypatch.context() as patch:
            patch.setattr(tautnet.app, "run", noted)
            return command("-m", *QUIET, *arguments, "hydra.sweep.dir=sweep"), numbers

    return swept


def rows(tmp_path: Path) -> list[dict[str, str]]:
    with (tmp_path / "sweep" / "sweep.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_sweep_is_taken_up_again(sweep, capsys, tmp_path):
    grid = ("optimizer.lr=0.1,-1", "seed=0,1")
    assert sweep(*grid) == (1, [0, 1, 2, 3])
    error = capsys.readouterr().err.splitlines()
    assert error[0].startswith("error: 2 failed")
    assert error[1].startswith("  sweep/2 (optimizer.lr=-1 seed=0): optimizer.lr=-1: ")
    assert len(error) == 3
    assert [(row["directory"], row["seed"]) for row in rows(tmp_path)] == [("0", "0"), ("1", "1")]
    times = [(tmp_path / "sweep" / name / "result.json").stat().st_mtime_ns for name in "01"]

    assert sweep(*grid) == (1, [2, 3])  # those that failed, and nothing else
    assert sweep("seed=0,1", "optimizer.lr=0.1") == (0, [])
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == "2 runs in sweep/sweep.csv"
    assert "│ 2    │" in printed
    assert times == [(tmp_path / "sweep" / name / "result.json").stat().st_mtime_ns for name in "01"]

    (tmp_path / "sweep" / "1" / "result.json").unlink()  # cut off
    assert sweep("optimizer.lr=0.1,0.2", "seed=0,1") == (0, [1, 2, 3])
    assert f"{tmp_path / 'sweep' / '1'} was cut off" in capsys.readouterr().out
    assert [(row["directory"], row["optimizer.lr"], row["seed"]) for row in rows(tmp_path)] == [
        ("0", "0.1", "0"),
        ("1", "0.1", "1"),
        ("2", "0.2", "0"),
        ("3", "0.2", "1"),
    ]
    saved = json.loads((tmp_path / "sweep" / "2" / "result.json").read_text())["metrics"]
    assert float(rows(tmp_path)[2]["test/acc"]) == saved["test/acc"]


def test_an_interrupt_keeps_what_is_finished(sweep, capsys, tmp_path):
    def interrupted(number):
        if number == 1:
            raise KeyboardInterrupt

    assert sweep("seed=0,1", at_job=interrupted) == (130, [0, 1])
    assert [row["directory"] for row in rows(tmp_path)] == ["0"]
    assert sweep("seed=0,1") == (0, [1])


def test_a_crash_is_told_with_its_traceback_and_the_others_run(sweep, capsys):
    def crash(number):
        if number < 2:
            raise RuntimeError("first line\nsecond line")

    assert sweep("seed=0,1", at_job=crash) == (1, [0, 1])
    out, err = capsys.readouterr()
    assert err.splitlines()[2] == "  sweep/1 (seed=1): RuntimeError: first line second line"
    assert "Traceback" in out + err


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("seeed=0,1", ("seeed",)),
        ("activation=relu,splin", ("activation=splin", "spline")),
        ("optimizer.lr=interval(0.1,1)", ("optimizer.lr=interval(0.1,1)", "hydra/sweeper=optuna")),
        ("hydra.sweep.subdir=x", ("hydra.sweep.subdir=x",)),
    ],
)
def test_a_sweep_that_cannot_be_runs_nothing_and_leaves_nothing(sweep, capsys, tmp_path, argument, words):
    assert sweep("norm=none,batch", argument) == (2, [])
    error = [line for line in capsys.readouterr().err.splitlines() if line]
    assert len(error) == 1
    assert all(word in error[0] for word in words)
    assert not (tmp_path / "sweep").exists()


def test_the_directory_of_a_single_run_is_left_alone(sweep, capsys, tmp_path):
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "config.yaml").write_text("seed: 0")
    assert sweep("seed=0,1") == (2, [])
    assert "hydra.sweep.dir=sweep: holds a single run" in capsys.readouterr().err


def test_the_test_of_a_checkpoint_is_skipped_too(sweep, command, tmp_path):
    few = [word for word in QUIET if "sweeper" not in word and word != "callbacks=none"]
    assert command(*few, "callbacks=checkpoints", "hydra.run.dir=trained") == 0
    test = ("run=[test]", "ckpt=trained/checkpoints/last.ckpt")
    assert sweep(*test) == (0, [0])
    assert sweep(*test) == (0, [])


def test_a_study_is_taken_up_again(sweep, capsys, tmp_path):
    pytest.importorskip("optuna", reason="Optuna comes with the extra `sweep`")
    objectives = "hydra.sweeper.objectives={val/acc: maximize, val/loss: minimize}"
    study = ("hydra/sweeper=optuna", objectives, "optimizer.lr=tag(log,interval(1e-3,1))", "seed=0,1")

    def interrupted(number):
        if number == 3:
            raise KeyboardInterrupt

    assert sweep(*study, "hydra.sweeper.n_trials=2", at_job=interrupted) == (130, [0, 1, 2, 3])
    assert sweep(*study, "hydra.sweeper.n_trials=2") == (0, [3])
    assert len({row["optimizer.lr"] for row in rows(tmp_path)}) == 2
    assert (tmp_path / "sweep" / "pareto.png").stat().st_size > 0
    assert "best: " in capsys.readouterr().out
    assert sweep(*study, "hydra.sweeper.n_trials=2") == (0, [])
