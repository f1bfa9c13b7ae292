"""Settings that cannot be used: one line that says what, exit status 2, nothing left behind."""

import os
import signal
import time

import pytest
import torch
from forked import finish, start, train

from tautnet import checkpoints

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
    "activation._target_=pytorch_lightning.core.saving._load_from_checkpoint": ("_load_from_checkpoint", "tautnet"),
    "activation._target_=5": ("activation._target_=5", "tautnet"),
    "norm.output=null": ("norm.output=None", "conf/"),
    "model.net=3": ("model.net=3", "conf/"),
    "run=[test,fit]": ("run=", "[fit,test]"),
    "run_dir=elsewhere": ("run_dir=elsewhere", "hydra.run.dir"),
    "optimizer.lr=inf": ("optimizer.lr=inf", "finite"),
    "regularizer.tv2.weight=inf": ("regularizer.tv2.weight=inf", "finite"),
    "trainer.max_epochs=0": ("trainer.max_epochs=0", "at least 1"),
    "trainer.devices=0": ("trainer.devices=0", "at least 1"),
    "trainer.num_nodes=2": ("trainer.num_nodes=2", "torchrun or srun"),
    "+model.net.input_shape=5": ("model.net.input_shape=5", "application"),
    "+trainer.logger=true": ("trainer.logger=True", "application"),
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


@pytest.mark.parametrize("name", ["mine.txt", "train.log"])
def test_a_directory_that_holds_something_is_left_alone(command, tmp_path, name):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text("mine")
    assert command("optimizer.lr=-1", f"hydra.run.dir={tmp_path / 'run'}") == 2
    assert [path.name for path in (tmp_path / "run").iterdir()] == [name]


def test_the_switch_shows_the_traceback(tmp_path, monkeypatch):
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    arguments = ("optimizer.lr=-1", f"hydra.run.dir={tmp_path / 'run'}")
    quiet = finish(start(train, *arguments, folder=tmp_path), tmp_path)
    loud = finish(start(train, *arguments, folder=tmp_path, HYDRA_FULL_ERROR="1"), tmp_path)
    assert quiet.returncode == 2
    assert "Traceback" not in quiet.stdout + quiet.stderr
    assert loud.returncode != 0
    assert "Traceback" in loud.stderr


def edited(path, folder, change) -> str:
    """A copy of a checkpoint with something changed in its content."""
    content = checkpoints.read(path)
    change(content)
    checkpoints.write(content, folder / "edited.ckpt")
    return str(folder / "edited.ckpt")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return tmp_path_factory.mktemp("trained") / "run"


@pytest.fixture
def checkpoint(command, trained, capsys):
    """Trained once; not to be changed."""
    if not trained.exists():
        settings = ("model=mlp", "debug=fast", "trainer.enable_progress_bar=false", "scheduler=none")
        assert command(*settings, f"hydra.run.dir={trained}") == 0
        capsys.readouterr()
    return trained / "checkpoints" / "last.ckpt"


def test_a_checkpoint_of_other_data_is_refused_before_anything_is_written(command, checkpoint, capsys, tmp_path):
    run = tmp_path / "run"
    assert command("run=[test]", f"ckpt={checkpoint}", "data=area", f"hydra.run.dir={run}") == 2
    assert str(checkpoint) in relevant(capsys.readouterr().err)[-1]
    assert not run.exists()


def test_a_finished_run_wants_more_epochs(command, checkpoint, capsys, tmp_path):
    assert command(f"ckpt={checkpoint}", f"hydra.run.dir={tmp_path / 'run'}") == 2
    assert "trainer.max_epochs=1: " in capsys.readouterr().err


def test_settings_in_a_checkpoint_reach_neither_files_nor_other_code(command, checkpoint, tmp_path):
    victim = tmp_path / "victim"
    hostile = [
        f"callbacks.last.dirpath={victim}",
        f"callbacks.splines.folder={victim}",
        f"run_dir={victim}",
        f"logger.tensorboard.save_dir={victim}",
        "objective=${oc.env:HOME}",
        "+data.x={_target_: os.system, command: 'touch " + str(victim) + "'}",
        "+callbacks.x={_target_: pytorch_lightning.core.saving._load_from_checkpoint, cls: null}",
    ]
    ckpt = edited(checkpoint, tmp_path, lambda c: c["hyper_parameters"]["config"]["overrides"].extend(hostile))
    arguments = ("trainer.enable_progress_bar=false", f"hydra.run.dir={tmp_path / 'run'}")
    assert command(f"ckpt={ckpt}", "trainer.max_epochs=2", *arguments) == 0
    assert not victim.exists()
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()


@pytest.mark.parametrize("missing", ["state_dict", "hyper_parameters", "loops"])
def test_a_checkpoint_with_something_missing_is_named(command, checkpoint, capsys, tmp_path, missing):
    ckpt = edited(checkpoint, tmp_path, lambda content: content.pop(missing))
    assert command(f"ckpt={ckpt}", "trainer.max_epochs=2", f"hydra.run.dir={tmp_path / 'run'}") == 2
    assert ckpt in relevant(capsys.readouterr().err)[-1]
    assert not (tmp_path / "run").exists()


def test_a_pickle_in_the_place_of_a_checkpoint_is_not_executed(command, capsys, tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save({"hyper_parameters": Hostile()}, tmp_path / "hostile.ckpt")
    assert command(f"ckpt={tmp_path / 'hostile.ckpt'}", f"hydra.run.dir={tmp_path / 'run'}") == 2
    assert "hostile.ckpt" in capsys.readouterr().err
    assert not (tmp_path / "executed").exists()


def test_a_directory_that_cannot_be_made_is_named(command, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert command("optimizer.lr=-1", f"hydra.run.dir={tmp_path / 'file' / 'run'}") == 2
    lines = relevant(capsys.readouterr().err)
    assert len(lines) == 1
    assert str(tmp_path / "file") in lines[0]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_end_with_the_status_that_shells_expect(tmp_path, number, status):
    run = tmp_path / "run"
    quick = ("model=mlp", "callbacks=checkpoints", "trainer.enable_progress_bar=false")
    settings = ("data.batch_size=4", "trainer.max_epochs=500", *quick)
    process = start(train, *settings, f"hydra.run.dir={run}", folder=tmp_path, HYDRA_FULL_ERROR="0")
    while not (run / "checkpoints" / "last.ckpt").exists():
        assert process.is_alive()
        time.sleep(0.1)
    os.kill(process.pid, number)
    done = finish(process, tmp_path)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def test_batches_too_small_for_their_statistics_are_refused_before_training(command, capsys, tmp_path):
    assert command("model=mlp", "data.batch_size=1", f"hydra.run.dir={tmp_path / 'run'}") == 2
    assert "data.batch_size=1: " in relevant(capsys.readouterr().err)[-1]
    assert not (tmp_path / "run").exists()
