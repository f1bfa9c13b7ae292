"""Paths, homes, locales and folders that are unlike those of whoever wrote the program."""

import json
import os
import pwd
import subprocess
import sys
from pathlib import Path

import forked
import pytest
import torch
from conftest import ROOT
from data_files import write_mnist

from tautnet.data.cache import cached
from tautnet.kernels import native

ODD = "a=b, c 'd' \"e\" ü漢 [1]{2}(3) #~!;&%^\\"
QUICK = ("debug=fast", "trainer=cpu", "trainer.enable_progress_bar=false", "model.net.widths=[4]")


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """A folder with a name that shells and Hydra's grammar would both like to have quoted, 200 characters deep."""
    folder = tmp_path / ODD / ("long " * 40)[: max(1, 200 - len(str(tmp_path / ODD)))]
    folder.mkdir(parents=True)
    assert len(str(folder)) >= 200
    return folder


def metrics(run: Path) -> dict:
    return json.loads((run / "result.json").read_text())["metrics"]


def done(process: subprocess.CompletedProcess) -> None:
    assert process.returncode == 0, process.stderr
    assert "Traceback" not in process.stderr, process.stderr


def test_a_run_is_made_continued_and_tested_in_an_odd_folder(odd, command, capsys):
    """As a shell hands the paths over, without quotes of Hydra's own."""
    run, again, test = (odd / name for name in ("run", "again", "test"))
    assert command(*QUICK, f"hydra.run.dir={run}") == 0
    assert (run / "pictures").is_dir()
    assert list((run / "tensorboard").glob("events*"))
    ckpt = f"ckpt={run / 'checkpoints' / 'last.ckpt'}"
    assert command(ckpt, "trainer.max_epochs=2", f"hydra.run.dir={again}") == 0
    assert torch.load(again / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == 1
    assert command(ckpt, "run=[test]", f"hydra.run.dir={test}") == 0
    assert metrics(test)["test/acc"] == metrics(run)["test/acc"]
    assert "Traceback" not in capsys.readouterr().err


def test_a_sweep_and_its_data_in_odd_folders(odd, command):
    write_mnist(odd / "data", 120, 20)
    data = ("data=mnist", f"data.root={odd / 'data'}", "data.batch_size=16", "callbacks=checkpoints")
    assert command("-m", *QUICK, *data, "seed=0,1", f"hydra.sweep.dir={odd / 'sweep'}") == 0
    assert "test/acc" in metrics(odd / "sweep" / "1")


def test_a_file_that_is_not_there_is_named_as_it_was_typed(odd, command, capsys):
    path = odd / "no.ckpt"
    assert command(*QUICK, f"ckpt={path}") == 2
    assert capsys.readouterr().err.startswith(f"error: ckpt={path}: no such file")


def test_started_from_an_odd_folder(odd, command, monkeypatch):
    monkeypatch.chdir(odd)
    assert command(*QUICK, "callbacks=checkpoints") == 0
    (run,) = (odd / "outputs").iterdir()
    assert metrics(run)


def test_kernels_are_compiled_into_an_odd_cache(odd, monkeypatch):
    if native._compiler() is None:
        pytest.skip("needs a compiler")
    monkeypatch.setenv("XDG_CACHE_HOME", str(odd / "cache"))
    monkeypatch.setenv("TMPDIR", str(odd))
    source = odd / "one.cpp"
    source.write_text('extern "C" int one() { return 1; }')
    library = native.compiled(source, "ones")
    assert library is not None
    assert library.one() == 1
    assert list((odd / "cache").rglob("one-*.so"))


@pytest.mark.parametrize("home", ["/proc", "/dev/null/home", None])
def test_nothing_is_kept_where_there_is_no_home(home, tmp_path, monkeypatch, caplog):
    """Kernels are compiled for this process, images are decoded for it, and each says so once."""
    if native._compiler() is None:
        pytest.skip("needs a compiler")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    if home is not None:
        monkeypatch.setenv("HOME", home)
    Path("one.cpp").write_text('extern "C" int one() { return 1; }')
    library = native.compiled(Path("one.cpp"), "ones")
    assert library is not None
    assert library.one() == 1
    assert cached("key", lambda: {"x": torch.ones(2)})["x"].sum() == 2
    assert os.listdir() == ["one.cpp"]
    (compiling, decoding) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "not writable" in compiling
    assert "not stored" in decoding


@pytest.mark.parametrize("home", ["/proc", "/dev/null/home", "gone"])
def test_homes_that_cannot_be_written_or_are_not_there(home, tmp_path):
    """A read-only one, one that is no folder, and a user whom the system does not know."""
    done(forked.finish(forked.start(homeless, home, *QUICK, folder=tmp_path), tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {"outputs", "out", "err"}


def homeless(home: str, *arguments: str) -> None:
    """``train.py`` without a cache folder of its own."""
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        os.environ.pop(name, None)
    os.environ["HOME"] = home
    if home == "gone":
        del os.environ["HOME"]
        pwd.getpwuid = unknown
    forked.train(*arguments)


def unknown(uid: int) -> None:
    raise KeyError(f"getpwuid(): uid not found: {uid}")


def test_everything_odd_at_once_in_a_fresh_interpreter(tmp_path):
    """A locale of ASCII alone, a read-only home, temporary files and a project in folders with spaces."""
    project, temporary, folder = tmp_path / "my project=1", tmp_path / "my files", tmp_path / "here, and there"
    project.symlink_to(ROOT)
    temporary.mkdir()
    folder.mkdir()
    environment = os.environ | {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    environment |= {"HOME": "/proc", "TMPDIR": str(temporary), "PYTHONPATH": str(project / "src")}
    environment.pop("XDG_CACHE_HOME", None)
    arguments = [*QUICK, "callbacks=checkpoints", "trainer.enable_progress_bar=true", "activation=relu"]
    command = [sys.executable, str(project / "train.py"), *arguments]
    done(subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False))
    (run,) = (folder / "outputs").iterdir()
    assert metrics(run)
    assert not list(temporary.glob("tautnet*"))
