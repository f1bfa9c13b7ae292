"""Runs that are killed, stopped or cut off go on where they were and end with the same bits."""

import errno
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from forked import finish, start
from killing import (
    arguments_of,
    difference,
    finished,
    killed,
    left_in,
    train_without_pictures,
    uninterrupted,
    wait_for_signals,
)

from tautnet import checkpoints
from tautnet.checkpoints import read


def test_killed_at_any_moment_the_same_command_ends_with_the_same_bits(tmp_path):
    """benchmarks/kill_resume.py does it a hundred times."""
    rng = random.Random(0)
    for job, kills in (("spline", 3), ("slaf", 2)):
        arguments = arguments_of(job)
        folders = [tmp_path / f"{job}{number}" for number in range(kills + 1)]
        for folder in folders:
            folder.mkdir()
        seconds = uninterrupted(folders[0], *arguments)
        expected = left_in(folders[0])
        for folder in folders[1:]:
            killed(folder, rng.uniform(*seconds), *arguments)
            finished(folder, *arguments)
            assert difference(expected, left_in(folder)) is None


ENDLESS = (
    *("data=iris", "model=mlp", "model.net.widths=[6]", "norm=none", "activation=relu", "callbacks=checkpoints"),
    *("trainer=cpu", "trainer.enable_progress_bar=false", "trainer.max_epochs=100000", "data.batch_size=10"),
    *("callbacks.last.every_n_epochs=null", "logger=none", "run=[fit]"),
)


def begun(folder: Path, *arguments: str, **environment: str):
    """Start it, and wait until it trains."""
    process = start(train_without_pictures, *ENDLESS, *arguments, folder=folder, **environment)
    while not list(folder.rglob("best.ckpt")) and process.is_alive():
        time.sleep(0.01)
    assert process.is_alive(), (folder / "err").read_text()
    return process


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_the_step_and_ends_the_run(tmp_path, number, status):
    process = begun(tmp_path, "hydra.run.dir=run")
    os.kill(process.pid, number)
    result = finish(process, tmp_path)
    assert result.returncode == status
    assert "Traceback" not in result.stderr
    step = read(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"]
    assert step > 0
    assert f"Stopped by {number.name} after step {step}; resume={tmp_path / 'run'} goes on." in result.stdout
    assert not (tmp_path / "run" / "result.json").exists()
    assert not list(tmp_path.rglob("*.part"))


def test_a_stopped_run_goes_on_by_its_directory_alone(tmp_path):
    """And is the same as one that was not stopped."""
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    for folder in (stopped, whole):
        folder.mkdir()
    process = begun(stopped, "hydra.run.dir=run", "trainer.max_epochs=60")
    os.kill(process.pid, signal.SIGTERM)
    assert finish(process, stopped).returncode == 143
    result = finish(start(train_without_pictures, "resume=run", folder=stopped), stopped)
    assert result.returncode == 0, result.stderr
    assert "was cut off; it goes on after step" in result.stdout
    uninterrupted(whole, *ENDLESS, "trainer.max_epochs=60", "hydra.run.dir=run")
    left = left_in(stopped)
    del left["last-1.ckpt"]  # of the step where it was stopped
    assert difference(left_in(whole), left) is None


def test_slurm_has_the_job_started_again(tmp_path):
    """Told by SIGUSR1 that the time is nearly over, a run saves and asks for it."""
    asked, program = tmp_path / "asked", tmp_path / "scontrol"
    program.write_text(f'#!/bin/sh\necho "$@" > "{asked}"\n')
    program.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    process = begun(tmp_path, "hydra.run.dir=run", SLURM_JOB_ID="7", PATH=path)
    os.kill(process.pid, signal.SIGUSR1)
    assert finish(process, tmp_path).returncode == 128 + signal.SIGUSR1
    assert asked.read_text() == "requeue 7\n"
    assert read(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"] > 0


def test_a_second_signal_ends_it_at_once(tmp_path):
    """Within a second it is the first once more, which a launcher passes on to processes that have it already."""
    process = start(wait_for_signals, folder=tmp_path)
    while "ready" not in ((tmp_path / "out").read_text() if (tmp_path / "out").exists() else ""):
        time.sleep(0.01)
    for seconds in (0.0, 0.1, 1.2):
        time.sleep(seconds)
        assert process.is_alive()
        os.kill(process.pid, signal.SIGTERM)
    process.join(10)
    assert process.exitcode == -signal.SIGTERM


def test_auto_goes_on_with_the_newest_run_of_the_same_command(command, tmp_path, capsys):
    quick = (*ENDLESS, "trainer.max_epochs=2", "~callbacks.best")
    other = tmp_path / "outputs" / "other"
    other.mkdir(parents=True)
    (other / "config.yaml").write_text("of another program")
    assert command(*quick, "resume=auto") == 0
    shutil.rmtree(other)
    (first,) = (tmp_path / "outputs").iterdir()
    result = (first / "result.json").read_bytes()
    assert command(*quick, "resume=auto") == 0  # finished: a new one
    assert len(list((tmp_path / "outputs").iterdir())) == 2
    assert (first / "result.json").read_bytes() == result
    (first / "result.json").unlink()
    assert command(*quick, "seed=1", "resume=auto") == 0  # another command: a new one
    capsys.readouterr()
    assert command(*quick, "resume=auto") == 0
    assert f"{first} was cut off; it goes on after step" in capsys.readouterr().out
    assert len(list((tmp_path / "outputs").iterdir())) == 3
    assert (first / "result.json").exists()


@pytest.mark.parametrize("state", ["finished", "empty", "missing"])
def test_a_directory_without_a_run_that_was_cut_off_is_named(command, tmp_path, capsys, state):
    run = tmp_path / "a run"
    if state != "missing":
        run.mkdir()
    if state == "finished":
        (run / "result.json").write_text("{}")
    assert command(f"resume='{run}'") == 2
    what = "holds a finished run" if state == "finished" else "holds no run"
    assert f"error: resume={run}: {what}; auto, or the directory" in capsys.readouterr().err
    assert sorted(path.name for path in run.rglob("*")) == (["result.json"] if state == "finished" else [])


def test_two_runs_do_not_share_a_directory(tmp_path, command, capsys):
    process = begun(tmp_path, "hydra.run.dir=run")
    assert command(*ENDLESS, f"hydra.run.dir={tmp_path / 'run'}") == 2
    assert "another run is at work in it" in capsys.readouterr().err
    process.kill()
    process.join()


@pytest.mark.parametrize("override", ["callbacks.last.folder=/elsewhere", "optimizer._target_=os.system", "x=${now:}"])
def test_a_hostile_run_directory_sets_no_path_and_no_target(command, tmp_path, capsys, override):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(f"overrides: ['data=iris', '{override}']")
    assert command(f"resume={tmp_path / 'run'}") == 2
    error = capsys.readouterr().err
    assert f"config.yaml: began by {override}, which is not taken from a file; repeat it" in error


def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(command, tmp_path, capsys):
    run = tmp_path / "run"
    quick = (*ENDLESS, "trainer.max_epochs=2", "callbacks.last.every_n_epochs=1", f"hydra.run.dir={run}")
    assert command(*quick) == 0
    expected = read(run / "checkpoints" / "last.ckpt")
    (run / "result.json").unlink()
    torn = run / "checkpoints" / "last.ckpt"
    torn.write_bytes(torn.read_bytes()[:-9])
    capsys.readouterr()
    assert command(*quick) == 0
    printed = capsys.readouterr().out
    assert f"{torn}: not a checkpoint of tautnet, or cut off; it is last.ckpt.damaged now" in printed
    assert "from last-1.ckpt" in printed
    assert difference(expected["state_dict"], read(torn)["state_dict"]) is None


def test_a_run_that_was_moved_goes_on_and_what_does_not_fit_is_named(tmp_path, command, capsys):
    process = begun(tmp_path, "hydra.run.dir=run", "trainer.max_epochs=60")
    os.kill(process.pid, signal.SIGTERM)
    assert finish(process, tmp_path).returncode == 143
    moved = tmp_path / "moved"
    (tmp_path / "run").rename(moved)
    kept = read(moved / "checkpoints" / "last.ckpt")["run_state"]
    for change, named in (
        ("trainer.max_epochs=1", "trainer.max_epochs=1: "),
        ("run=[test]", "run=['test']: "),
        ("+trainer.max_steps=9", "trainer.max_steps=9: "),
        ("data.batch_size=20", "data.batch_size=20: " if kept["inside_epoch"] else None),
    ):
        if named is not None:
            assert command(f"resume={moved}", change) == 2
            assert f"error: {named}" in capsys.readouterr().err
    assert command(f"resume={moved}") == 0
    states = read(moved / "checkpoints" / "last.ckpt")["callbacks"]
    (best,) = (state for name, state in states.items() if name.startswith("ModelCheckpoint"))
    assert best["dirpath"] == str(moved / "checkpoints")
    assert best["best_model_path"].startswith(str(moved))


def test_checkpoints_without_settings_are_left_alone(tmp_path, command, capsys):
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "last.ckpt").write_text("mine")
    assert command(*ENDLESS, f"hydra.run.dir={tmp_path / 'run'}") == 2
    assert "holds checkpoints and no config.yaml" in capsys.readouterr().err
    assert (folder / "last.ckpt").read_text() == "mine"


def test_a_disk_that_fills_up_stops_the_run_and_leaves_its_checkpoints(command, tmp_path, capsys, monkeypatch):
    run, written = tmp_path / "run", []

    def full(checkpoint, file):
        if len(written) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(torch.save(checkpoint, file))

    monkeypatch.setattr(checkpoints, "_save", full)
    quick = (*ENDLESS, "trainer.max_epochs=5", "callbacks.last.every_n_epochs=1", f"hydra.run.dir={run}")
    assert command(*quick, "~callbacks.best") == 2
    assert f"error: {run}/checkpoints/last.ckpt: No space left on device" in capsys.readouterr().err
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["last-1.ckpt", "last.ckpt"]
    monkeypatch.undo()
    assert read(run / "checkpoints" / "last.ckpt")["epoch"] == 1
