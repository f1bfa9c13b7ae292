"""What answers at once: help, settings, tab completion, and the import of the activations.

Limits of processor time are several times what it takes: they are to catch an import of torch, not a busy machine.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tautnet.__main__ import main

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "pytorch_lightning", "lightning_fabric", "torchmetrics", "matplotlib", "sklearn", "scipy", "numpy"}

TRAIN = f"""
import contextlib, io, runpy, sys, time
for arguments in (["--help"], ["--cfg", "job"]):
    start, sys.argv = time.process_time(), ["train.py", *arguments]
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):
        runpy.run_path("train.py", run_name="__main__")
    assert "activation" in said.getvalue()
    assert not {HEAVY} & set(sys.modules), {HEAVY} & set(sys.modules)
    seconds = time.process_time() - start
    assert seconds < 2.5, (arguments, seconds)
"""
COMMANDS = f"""
import contextlib, io, sys, time
start = time.process_time()
from tautnet.__main__ import _COMMANDS, main
for arguments in (["--help"], *([name, "--help"] for name in _COMMANDS)):
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):
        main(arguments)
    assert "usage: tautnet" in said.getvalue()
    assert len(arguments) == 1 or "example: tautnet" in said.getvalue()
assert not {HEAVY | {"hydra", "omegaconf", "rich"}} & set(sys.modules)
assert time.process_time() - start < 2.5
"""
ACTIVATIONS = """
import sys, time, torch
before, start = set(sys.modules), time.process_time()
import tautnet.activations
seconds = time.process_time() - start
brought = {name.partition(".")[0] for name in set(sys.modules) - before} - sys.stdlib_module_names
assert brought == {"tautnet"}, brought
assert seconds < 0.3, seconds  # where the byte code is not cached most of it is compiling
"""
COMPLETION = """
eval "$(python train.py -sc install=bash)"
ask() {
  COMP_LINE="python train.py $1"; COMP_WORDS=($COMP_LINE); COMP_CWORD=2; COMP_POINT=${#COMP_LINE}; COMPREPLY=()
  hydra_bash_completion
  echo "${COMPREPLY[@]}"
}
ask activation=spline_
ask trainer.pro
"""


@pytest.mark.parametrize("code", [TRAIN, COMMANDS, ACTIVATIONS], ids=["train.py", "tautnet", "tautnet.activations"])
def test_nothing_heavy_is_imported_for_an_answer(code):
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.skipif(not Path(sys.executable).with_name("python").exists(), reason="Python has another name")
def test_bash_completes_groups_and_keys():
    path = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
    done = subprocess.run(["bash", "-c", COMPLETION], cwd=ROOT, env=path, capture_output=True, text=True)
    options, keys = (set(line.split()) for line in done.stdout.splitlines())
    assert options == {"activation=spline_1d", "activation=spline_2d", "activation=spline_lipschitz"}
    assert keys == {"trainer.progress="}


@pytest.mark.parametrize(
    ("typed", "meant"), [("--hepl", "--help"), ("--multi-run", "--multirun"), ("--cgf=job", "--cfg")]
)
def test_a_misspelt_option_is_answered_in_one_line(command, capsys, typed, meant):
    assert command(typed) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"{typed.partition('=')[0]}: no such option; did you mean {meant}?" in said


def test_a_misspelt_option_of_a_command_is_answered_with_the_nearest(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["export", "run", "--chekpoint", "best"])
    told = "--chekpoint: no such option (did you mean --checkpoint?); see tautnet export --help"
    assert capsys.readouterr().err == f"error: {told}\n"
