"""Runs that are killed, stopped or cut off go on where they were and end with the same bits."""

import os
import random
import signal
import time
from pathlib import Path

import pytest
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


def begun(folder: Path, *arguments: str):
    """Start it, and wait until it trains."""
    process = start(train_without_pictures, *ENDLESS, *arguments, folder=folder)
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
