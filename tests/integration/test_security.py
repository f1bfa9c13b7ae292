"""Hostile files, through the application: nothing in them runs, nothing is written elsewhere, one line names them."""

import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra._internal import hydra as hydra_application

from tautnet import checkpoints, guard

SMALL = ("model=mlp", "debug=fast", "scheduler=none", "activation=relu", "norm=none", "regularizer=none")
QUICK = (*SMALL, "callbacks=checkpoints", "trainer.enable_progress_bar=false", "logger=none")
CALL = "{_target_: os.mkdir, path: canary}"


@pytest.fixture(autouse=True)
def _guarded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hydra_application, "ConfigLoaderImpl", guard.CheckedLoader)


@pytest.fixture
def refused(command, capsys, tmp_path: Path) -> Callable[..., str]:
    """The one line that the application ends with, status 2; nothing has been made in the working directory."""

    def run(*arguments: str) -> str:
        before = sorted(tmp_path.rglob("*"))
        capsys.readouterr()
        assert command(*arguments, f"hydra.run.dir={tmp_path / 'run'}") == 2
        error = capsys.readouterr().err
        lines = [line for line in error.splitlines() if line and not line.startswith("Error executing job")]
        assert len(lines) == 1, error
        assert sorted(tmp_path.rglob("*")) == before
        return lines[0]

    return run


# -- a config file: what it adds -> what is named
CONFIGS = {
    f"model: {{net: {CALL}}}": "model.net._target_=os.mkdir",
    "model: {net: {_target_: torch.nn.modules.module.os.mkdir, name: canary}}": "torch.nn.modules.module.os.mkdir",
    "data: {_target_: pytorch_lightning.demos.transformer.WikiText2, data_dir: canary}": "demos.transformer",
    "activation: {_target_: tautnet.sweeps.folder.make_ready_, directory: /victim}": "make_ready_",
    "callbacks: {x: {_target_: pytorch_lightning.callbacks.ModelCheckpoint, dirpath: /victim}}": "callbacks.x.dirpath=",
    "callbacks: {splines: {folder: victim}}": "callbacks.splines.folder=victim",
    "callbacks: {x: {_target_: pytorch_lightning.callbacks.ModelCheckpoint, filename: ../../victim}}": "x.filename=",
    "logger: {x: {_target_: pytorch_lightning.loggers.CSVLogger, save_dir: '${run_dir}/..'}}": "logger.x.save_dir=",
    "trainer: {profiler: {_target_: pytorch_lightning.profilers.AdvancedProfiler, dirpath: /victim}}": "r.dirpath=",
    "run_dir: /victim": "run_dir=/victim",
    "objective: '${oc.env:HOME}'": "objective=${oc.env:HOME}",
    f"hydra: {{callbacks: {{x: {CALL}}}}}": "hydra.callbacks.x._target_=os.mkdir",
    'hydra: {job_logging: {handlers: {x: {"()": os.mkdir, path: canary}}}}': "hydra.job_logging.handlers.x.()=os.mkdir",
}


@pytest.mark.parametrize("added", CONFIGS)
def test_a_hostile_config_file(refused, tmp_path, added):
    (tmp_path / "evil" / "experiment").mkdir(parents=True)
    (tmp_path / "evil" / "experiment" / "x.yaml").write_text(f"# @package _global_\n{added}\n")
    line = refused("--config-dir", str(tmp_path / "evil"), "experiment=x", *QUICK[:3], "model=mlp")
    assert CONFIGS[added] in line


# -- a checkpoint


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trained") / "run"


@pytest.fixture
def checkpoint(command, trained: Path, capsys) -> Path:
    """Trained once; not to be changed."""
    if not trained.exists():
        assert command(*QUICK, f"hydra.run.dir={trained}") == 0
        capsys.readouterr()
    return trained / "checkpoints" / "last.ckpt"


class Payload:
    """Makes a directory when it is unpickled."""

    def __reduce__(self) -> tuple:
        return os.mkdir, ("canary",)


def sealed(content: object, path: Path) -> Path:
    """A checkpoint as tautnet writes it: whoever forges one can compute its digest too."""
    checkpoints.write(content, path)
    return path


def legacy(content: object, path: Path) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=False)
    return path


def scripted(content: object, path: Path) -> Path:
    """What torch takes for a program of its own and would hand on to another loader."""
    with zipfile.ZipFile(sealed({}, path), "a") as archive:
        archive.writestr(f"{archive.namelist()[0].partition('/')[0]}/constants.pkl", b"")
    rewritten(path, lambda _, record: record)
    return path


def rewritten(path: Path, change: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED) -> None:
    """The same archive with other records, sealed."""
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as old:
        records = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", compression) as new:
        for name, record in records.items():
            new.writestr(name, change(name, record))
    with path.open("r+b") as file:
        checkpoints._seal(file)


def bomb(content: object, path: Path) -> Path:
    sealed({"x": torch.zeros(2**22)}, path)
    rewritten(path, lambda _, record: record, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 2**17
    return path


def torn_size(content: object, path: Path) -> Path:
    """A tensor that says it is larger than its bytes."""
    sealed({"x": torch.zeros(4)}, path)
    rewritten(path, lambda name, record: record[:8] if "/data/" in name else record)
    return path


@pytest.mark.filterwarnings("ignore:'torch.load' received a zip file that looks like a TorchScript:UserWarning")
@pytest.mark.parametrize(
    ("write", "content"),
    [
        (sealed, Payload()),
        (legacy, Payload()),
        (sealed, {"hyper_parameters": {"_instantiator": "os.mkdir"}}),
        *((write, None) for write in (scripted, bomb, torn_size)),
    ],
)
def test_a_file_that_is_no_checkpoint(refused, tmp_path, write, content):
    path = write(content, tmp_path / "x.ckpt")
    assert str(path) in refused(f"ckpt={path}", *QUICK)


def continued(command, tmp_path: Path, content: dict, *arguments: str) -> int:
    path = sealed(content, tmp_path / "x.ckpt")
    return command(f"ckpt={path}", "trainer.max_epochs=2", *QUICK[-3:], f"hydra.run.dir={tmp_path / 'run'}", *arguments)


@pytest.mark.parametrize("where", ["local://{0}", "{1}/../../{2}", "{0}"])
def test_the_states_of_callbacks_name_no_file_to_delete(command, checkpoint, tmp_path, where):
    content = checkpoints.read(checkpoint)
    victim, folder = tmp_path / "victim", tmp_path / "run" / "checkpoints"
    victim.write_text("mine")
    path = where.format(victim, folder, victim.name)
    for key, state in content["callbacks"].items():
        if "ModelCheckpoint" in key:  # the best so far, which a better one replaces
            state.update(dirpath=str(folder), best_model_path=path, kth_best_model_path=path, last_model_path=path)
            state.update(best_k_models={path: torch.tensor(-2.0)}, best_model_score=torch.tensor(-2.0))
    assert continued(command, tmp_path, content) == 0
    assert victim.exists()


OVERRIDES = (
    *("data=../../evil/evil", "experiment=/evil/evil", "+data@hydra.callbacks.x=digits", "callbacks=[ema,../evil]"),
    *("+data.x={_target_: os.mkdir, path: canary}", "callbacks.splines.folder=/victim", "run_dir=/victim"),
    *("hydra.run.dir=/victim", "allow=[os]", "--config-dir=evil", "-m", "model=mlp\nhydra.run.dir=/victim"),
    *("objective=${oc.env:HOME}", "callbacks.ema.decay=${oc.env:HOME}", 'data.root="${oc.env:HOME}"'),
    *("logger.x={_target_: pytorch_lightning.loggers.CSVLogger, save_dir: /victim}", "trainer.x='${oc.env:HOME}'"),
)


def test_of_the_overrides_of_a_checkpoint_only_plain_ones_count(command, checkpoint, tmp_path):
    content = checkpoints.read(checkpoint)
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "evil.yaml").write_text(f"# @package _global_\nhydra: {{callbacks: {{x: {CALL}}}}}")
    content["hyper_parameters"]["config"]["overrides"] += OVERRIDES
    assert continued(command, tmp_path, content) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"evil", "run", "x.ckpt"}
    assert not {path.name for path in (tmp_path / "evil").iterdir()} - {"evil.yaml"}


def test_the_application_checks_hydras_settings(command, monkeypatch, tmp_path, capsys):
    monkeypatch.undo()  # what this file has put in place
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "x.yaml").write_text(f"# @package _global_\nhydra: {{callbacks: {{x: {CALL}}}}}")
    assert command("--config-dir", str(tmp_path), "experiment=x", *SMALL, f"hydra.run.dir={tmp_path / 'run'}") == 2
    assert "hydra.callbacks.x._target_=os.mkdir: " in capsys.readouterr().err
    assert not (tmp_path / "canary").exists()


# -- packages that the user names


def test_own_packages_are_named_on_the_command_line_alone(command, refused, monkeypatch, tmp_path):
    (tmp_path / "own_package.py").write_text(
        "from torch import nn\n\n\ndef rectifier(channels):\n    return nn.ReLU()\n"
    )
    (tmp_path / "experiment").mkdir()
    for name, allow in (("plain", "[]"), ("forward", "[own_package]")):
        content = f"# @package _global_\nallow: {allow}\nactivation: {{_target_: own_package.rectifier}}\n"
        (tmp_path / "experiment" / f"{name}.yaml").write_text(content)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    files = ("--config-dir", str(tmp_path))
    assert refused(*files, *QUICK, "experiment=forward").startswith("error: allow=['own_package']: in a file; ")
    assert "activation._target_=own_package.rectifier: " in refused(*files, *QUICK, "experiment=plain")
    run = f"hydra.run.dir={tmp_path / 'run'}"
    assert command(*files, *QUICK, "experiment=plain", "allow=[own_package]", run) == 0


@pytest.mark.parametrize("key", ["state_dict", "callbacks", "optimizer_states", "run_state"])
def test_states_that_are_none_are_named(command, checkpoint, tmp_path, capsys, key):
    content = checkpoints.read(checkpoint) | {key: {"text": "text"} if key in ("state_dict", "run_state") else "text"}
    assert continued(command, tmp_path, content) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith(f"error: ckpt={tmp_path / 'x.ckpt'}: its states are not those of this run")
