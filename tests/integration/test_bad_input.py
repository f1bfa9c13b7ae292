"""Settings that cannot be used: one line that says what, exit status 2, nothing left behind."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT

# argument -> what the message has to name
BAD = {
    "activation=splin": ("activation=splin", "spline"),
    "norm/output=foo": ("norm/output=foo", "unitize"),
    "activation.num_knotz=9": ("activation.num_knotz", "num_knots"),
    "seeed=1": ("seeed", "seed"),
    "optimizer.roles.weigt.lr=1": ("optimizer.roles.weigt", "weight"),
    "+activation.foo=1": ("activation.foo", "num_knots"),
    "+optimizer.roles.head={lr: 1}": ("optimizer.roles.head", "weight"),
    "seed=abc": ("seed", "Integer"),
    "seed=-1": ("seed=-1", "from 0"),
    "run=[foo]": ("run=", "fit"),
    "activation.num_knots=abc": ("activation.num_knots=abc", "integer"),
    "activation.num_knots=1": ("activation.num_knots=1", "at least 3"),
    "activation.grid_range=0": ("activation.grid_range=0", "above 0"),
    "activation.init=rely": ("activation.init=rely", "relu"),
    "activation.sharing=neuron": ("sharing=neuron", "channel"),
    "norm.output.eps=0": ("norm.output.eps=0", "above 0"),
    "norm.output.norm_axes=rows": ("norm.output.norm_axes=rows", "pixel"),
    "optimizer.lr=-1": ("optimizer.lr=-1", "at least 0"),
    "optimizer.lr=nan": ("optimizer.lr=nan", "at least 0"),
    "optimizer.lr=abc": ("optimizer.lr=abc", "number"),
    "optimizer.roles.bias.lr=-1": ("optimizer.roles.bias.lr=-1", "at least 0"),
    "regularizer.tv2.weight=-1": ("regularizer.tv2.weight=-1", "at least 0"),
    "scheduler.final_factor=3": ("scheduler.final_factor=3", "0 to 1"),
    "data.batch_size=0": ("data.batch_size=0", "at least 1"),
    "data.batch_size=99999": ("data.batch_size=99999", "at most"),
    "data.test_fraction=2": ("data.test_fraction=2", "0.98"),
    "data=area": ("(2,)", "model=mlp"),
    "model.net.widths=[]": ("model.net.widths=[]", "at least 1"),
    "callbacks.lipschitz.num_samples=0": ("callbacks.lipschitz.num_samples=0", "at least 1"),
    "trainer.max_epochs=abc": ("trainer.max_epochs=abc", "integer"),
    "trainer.accelerator=quantum": ("quantum", "cpu"),
    "ckpt=nowhere.ckpt": ("ckpt=nowhere.ckpt", "no such file"),
    "activation._target_=os.system": ("os.system", "tautnet"),
    "activation._target_=tautnet.results.subprocess.run": ("tautnet.results.subprocess.run", "tautnet"),
    "model._target_=tautnet.app.torch": ("tautnet.app.torch", "tautnet"),
    "activation=null": ("string",),
}


def relevant(error: str) -> list[str]:
    return [line for line in error.splitlines() if line and not line.startswith("Error executing job")]


@pytest.mark.parametrize("argument", BAD)
def test_one_line_names_what_is_wrong_and_what_is_accepted(command, argument, capsys, tmp_path):
    run = tmp_path / "outputs" / "run"
    assert command(argument, f"hydra.run.dir={run}") == 2
    lines = relevant(capsys.readouterr().err)
    assert len(lines) == 1, lines
    assert all(words in lines[0] for words in BAD[argument]), lines[0]
    assert not run.exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 torn zip"])
def test_a_file_that_is_no_checkpoint_is_named(command, capsys, tmp_path, content):
    path = tmp_path / "wrong.ckpt"
    path.write_bytes(content)
    assert command(f"ckpt={path}", f"hydra.run.dir={tmp_path / 'run'}") == 2
    assert str(path) in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_penalty_without_effect_is_refused(command, capsys, tmp_path):
    target = "+regularizer.tv2._target_=tautnet.regularizers.SecondOrderVariation"
    assert command("activation=relu", target, f"hydra.run.dir={tmp_path / 'run'}") == 2
    assert "regularizer.tv2: " in capsys.readouterr().err


def test_a_directory_that_holds_something_is_left_alone(command, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("mine")
    assert command("optimizer.lr=-1", f"hydra.run.dir={tmp_path / 'run'}") == 2
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["mine.txt"]


def test_the_switch_shows_the_traceback(tmp_path):
    arguments = [sys.executable, str(ROOT / "train.py"), "optimizer.lr=-1", f"hydra.run.dir={tmp_path / 'run'}"]
    environment = {key: value for key, value in os.environ.items() if key != "HYDRA_FULL_ERROR"}
    quiet = subprocess.run(arguments, capture_output=True, text=True, env=environment, check=False)
    loud = subprocess.run(
        arguments, capture_output=True, text=True, env=environment | {"HYDRA_FULL_ERROR": "1"}, check=False
    )
    assert quiet.returncode == 2
    assert "Traceback" not in quiet.stdout + quiet.stderr
    assert loud.returncode != 0
    assert "Traceback" in loud.stderr
