"""How far a training is, as it is shown."""

import re
import sys

import pytest

from tautnet.app_callbacks import display
from tautnet.callbacks import progress
from tautnet.callbacks.progress import Pace, PlainProgress, RichProgress
from tautnet.errors import ConfigError

SMALL = (
    *("model=mlp", "model.net.widths=[4]", "activation=relu", "data.batch_size=480", "trainer.max_epochs=2"),
    *("logger=none", "run=[fit]", "callbacks.lipschitz.num_samples=4", "callbacks.lipschitz.num_steps=0"),
)
CONTROLS = re.compile(r"\x1b\[[\d;?]*[A-Za-z]")


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_the_pace_counts_from_the_first_step_of_this_process(clock):
    pace = Pace()
    pace.note(40, 100)  # a run that goes on, and 7 seconds until its first step is done
    assert str(pace) == ""
    clock[0] += 10
    pace.note(60, 100)
    assert (pace.rate, pace.seconds_left) == (2.0, 20.0)
    assert str(pace) == "2 steps/s 0:00:20 left"


def test_without_an_end_there_is_no_time_left(clock):
    pace = Pace()
    pace.note(1, float("inf"))
    clock[0] += 1
    pace.note(301, float("inf"))
    assert str(pace) == "300 steps/s"


@pytest.mark.parametrize(
    ("settings", "terminal", "shown"),
    [
        ({"progress": "auto"}, True, RichProgress),
        ({"progress": "auto"}, False, PlainProgress),
        ({}, False, PlainProgress),
        ({"progress": "rich"}, False, RichProgress),
        ({"progress": "plain"}, True, PlainProgress),
        ({"progress": "none"}, True, None),
        ({"progress": "auto", "enable_progress_bar": False}, True, None),
        ({"progress": "none", "enable_progress_bar": False}, True, None),
    ],
)
def test_what_shows_the_progress(monkeypatch, settings, terminal, shown):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    of_trainer, callbacks = display(settings | {"max_epochs": 3})
    assert [type(each) for each in callbacks] == ([shown] if shown else [])
    assert of_trainer == {"max_epochs": 3, "enable_progress_bar": shown is RichProgress}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"progress": "fancy"}, "trainer.progress=fancy: auto, rich, plain or none"),
        ({"progress": None}, "trainer.progress=None: auto, rich, plain or none"),
        ({"progress": "plain", "enable_progress_bar": False}, "trainer.enable_progress_bar=false"),
        ({"progress": "rich", "enable_progress_bar": False}, "trainer.enable_progress_bar=false"),
    ],
)
def test_words_that_contradict_are_refused(settings, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        display(settings)


def test_plain_progress_is_one_line_an_epoch(command, capsys, tmp_path):
    assert command(*SMALL, "trainer.progress=plain", f"hydra.run.dir={tmp_path / 'run'}") == 0
    said = capsys.readouterr().out
    assert not set("\x1b\r") & set(said)
    lines = [line for line in said.splitlines() if line.startswith("epoch")]
    assert [line.split()[1] for line in lines] == ["1/2", "2/2"]
    for line in lines:
        assert re.search(r" steps/s .*loss \d.*  val/acc \d.*  bound \d", line)
    assert re.search(r" 0:00:\d\d left", lines[0]) or "steps/s  loss" in lines[0]  # half a second is not told


def test_a_bar_has_the_numbers_and_messages_stay_above_it(command, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as if the captured output were a terminal
    monkeypatch.setenv("COLUMNS", "140")
    warned = ("norm=unitize", "callbacks.lipschitz.p=inf")  # no finite bound, says the monitor
    assert command(*SMALL, *warned, "trainer.progress=rich", f"hydra.run.dir={tmp_path / 'run'}") == 0
    said = capsys.readouterr().out
    assert "\x1b[" in said
    lines = [line for line in re.split(r"[\r\n]+", CONTROLS.sub("", said)) if line.strip()]
    assert any(re.search(r"Epoch 2/2 .* 2/2\S* .*steps/s .*loss \d.*val/acc \d.*bound inf", line) for line in lines)
    assert any(line.startswith("No finite Lipschitz bound") for line in lines)
