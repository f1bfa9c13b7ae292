"""The README's commands, typed as they stand there; training ones with two batches."""

import json
import os
import re
import shlex
import subprocess
import sys
from math import prod
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from data_settings import small_files

from tautnet.config import build

README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"^(python train\.py.*?)(?:\s+#.*)?$", README, flags=re.MULTILINE)
CUT_OFF = README[README.index("## Cut off") : README.index("## Lipschitz bounds")]
ON_FILES = [c for c in COMMANDS if "<" in c and "ckpt" not in c and c not in CUT_OFF]
METHODS = README[README.index("## Normalizers") : README.index("## Sweeps")]
LAUNCHED = README[README.index("## Sweeps") : README.index("## As a library")]
ELSEWHERE = METHODS + LAUNCHED + CUT_OFF  # these have training tests of their own
TRAINING = [c for c in COMMANDS if "ckpt" not in c and "--help" not in c and c not in ON_FILES and c not in ELSEWHERE]
# A command on files that names the left is tried with fewer channels.
SMALLER = {
    "resnet20": ["model.net.width=4"],
    "resnet32": ["model.net.width=4"],
    "fast94": ["model.net.width=4"],
    "dncnn": ["model.net.depth=4", "model.net.width=4"],
}
CONTINUING = [c for c in COMMANDS if "ckpt" in c]
FEW_CERTIFICATES = ["callbacks.certify.num_samples=4", "callbacks.certify.num_steps=2"]


def run(line: str, folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    program, script, *arguments = shlex.split(line)
    assert (program, script) == ("python", "train.py")
    environment = os.environ | {"HYDRA_FULL_ERROR": "0"}
    return subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *arguments, *more],
        cwd=folder, capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readme")


def test_the_commands_were_found():
    assert len(TRAINING) >= 5
    assert len(ON_FILES) >= 12
    assert len(CONTINUING) == 3
    assert "python -m venv .venv && .venv/bin/pip install -e . && .venv/bin/python train.py" in README
    assert "python -m venv .venv && .venv/bin/pip install -e '.[dev]' && .venv/bin/python -m pytest" in README


@pytest.fixture(scope="module")
def main_job(folder: Path) -> Path:
    """The directory of the first command's run, in a process of its own."""
    done = run("python train.py", folder, "debug=fast")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    (result,) = folder.rglob("result.json")
    return result.parent


def test_main_job(main_job):
    assert "python train.py" in COMMANDS
    assert (main_job / "checkpoints" / "last.ckpt").exists()


@pytest.mark.parametrize("line", [line for line in TRAINING if " -m " in line])
def test_sweep(line, command, capsys, tmp_path):
    quick = ("debug=fast", "callbacks=checkpoints", "logger=none", "trainer.enable_progress_bar=false")
    assert command(*shlex.split(line)[2:], *quick) == 0
    assert "Traceback" not in capsys.readouterr().err
    jobs = prod(argument.count(",") + 1 for argument in shlex.split(line))
    assert len(list(tmp_path.rglob("result.json"))) == jobs


@pytest.mark.parametrize("line", [line for line in TRAINING if line != "python train.py" and " -m " not in line])
def test_training_commands(line, command, tmp_path):
    """Inside this process, which has imported everything."""
    few = FEW_CERTIFICATES if "certif" in line else []
    fast = [] if "debug=" in line else ["debug=fast"]
    assert command(*shlex.split(line)[2:], *fast, *few, f"hydra.run.dir={tmp_path / 'run'}") == 0
    assert (tmp_path / "run" / "result.json").exists()


@pytest.mark.parametrize("line", [line for line in COMMANDS if line in METHODS])
def test_commands_of_the_methods_build(line, settings):
    arguments = [part.split(",")[0] if " -m " in line else part for part in shlex.split(line)[2:] if part != "-m"]
    config = settings(*arguments)
    shapes = {"polynomials": (1, (10,)), "spirals": (2, (2,)), "two_gaussians": (2, (2,))}
    num_outputs, shape = next((s for name, s in shapes.items() if name in line), (10, (1, 8, 8)))
    target = {"_target_": config["model"]["_target_"]}
    model = build(target, "model", config={**config, "input_shape": list(shape), "num_outputs": num_outputs})
    assert model.net.eval()(torch.zeros(2, *shape)).shape[0] == 2


@pytest.mark.parametrize("line", ON_FILES)
def test_commands_on_files(line, command, tmp_path):
    """On small files in the true format, inside this process; every named folder, file and column is replaced."""
    given = [argument for argument in shlex.split(line)[2:] if "<" not in argument]
    data = next((argument.removeprefix("data=") for argument in given if argument.startswith("data=")), "cifar10")
    run = tmp_path / "run"
    small = next((settings for name, settings in SMALLER.items() if name in line), [])
    quick = ["debug=fast", "callbacks=checkpoints", *small]
    assert command(*given, *small_files(data, tmp_path), *quick, f"hydra.run.dir={run}") == 0
    metrics = json.loads((run / "result.json").read_text())["metrics"]
    assert {"test/acc", "test/r2", "test/psnr"} & metrics.keys()


@pytest.mark.parametrize("line", CONTINUING)
def test_continuing_commands(line, command, main_job, tmp_path):
    line = line.replace("<run>", str(main_job)).replace("max_epochs=40", "max_epochs=2")
    few = FEW_CERTIFICATES if "certify" in line else []
    assert command(*shlex.split(line)[2:], f"hydra.run.dir={tmp_path / 'run'}", *few) == 0
    assert "test/acc" in json.loads((tmp_path / "run" / "result.json").read_text())["metrics"]


def test_help_is_for_people(folder):
    before = set(folder.rglob("*"))
    done = run("python train.py --help", folder)
    assert done.returncode == 0
    for words in ("python train.py -m", "activation: ", "norm/output: ", "tensorboard --logdir"):
        assert words in done.stdout
    assert set(folder.rglob("*")) == before


def test_the_library_example_runs(folder):
    example = re.search(r"```python\n(.*?)```", README, flags=re.DOTALL).group(1)
    done = subprocess.run([sys.executable, "-c", example], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[0]) > 0
