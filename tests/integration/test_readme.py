"""The commands of README and docs/: those of README run with two batches, of the others everything is built."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from data_settings import small_files
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep

from tautnet.job import prepared
from tautnet.quoting import quoted

PAGES = {path.name: path.read_text() for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}
CODE = {  # in blocks and in the cells of tables
    name: "\n".join(
        block * (language == "") + cell
        for language, block, cell in re.findall(r"^```(\w*)\n(.*?)^```|`(python train[^`]*)`", text, re.M | re.S)
    )
    for name, text in PAGES.items()
}
COMMAND = re.compile(r"^(?:[\w./-]+ )*?(?:python )?train\.py(?= |$)(.*?)(?:\s+#.*)?$", re.M)


def commands(text: str) -> list[list[str]]:
    """The arguments of each ``train.py`` in a text, whatever starts it."""
    return [shlex.split(line) for line in dict.fromkeys(match.strip() for match in COMMAND.findall(text))]


IN_README = commands(CODE["README.md"])
ALL = commands("\n".join(CODE.values()))
OF_HYDRA = [c for c in ALL if {"--help", "--cfg"} & set(c)]  # print, and run nothing
OF_A_RUN = [c for c in ALL if any(argument.startswith(("ckpt=", "resume=")) for argument in c)]
WITH_PARTS = [c for c in ALL if any(argument.startswith("allow=") for argument in c)]  # in test_docs.py
SWEEPS_OF_README = [c for c in IN_README if "-m" in c]
OPTIONS = [c for c in ALL if len(c) == 1 and re.fullmatch(r"\w+=\w+", c[0])]  # one each, as in test_configs_conform.py
BUILT = [c for c in ALL if c and c not in OF_HYDRA + OF_A_RUN + WITH_PARTS + SWEEPS_OF_README + OPTIONS]
# What is large is built with fewer channels.
SMALLER = {
    **{name: ["model.net.width=4"] for name in ("resnet20", "resnet32_spline", "fast94")},
    "dncnn": ["model.net.depth=4", "model.net.width=4"],
    "lipschitz_1": ["model.net.width=8"],
}
FEW_CERTIFICATES = [
    *("callbacks.certify.num_samples=2", "callbacks.certify.num_steps=2", "callbacks.certify.num_restarts=1"),
    *("callbacks.lipschitz.num_samples=2", "callbacks.lipschitz.num_steps=2"),
]
_PARSER = OverridesParser.create()


def shown(arguments: list[str]) -> str:
    return " ".join(arguments)


def of_one_job(arguments: list[str]) -> list[str]:
    """Without a sweep: the first value of each list; intervals and what concerns the launcher are left out."""
    if "-m" not in arguments:
        return arguments
    overrides = _PARSER.parse_overrides([quoted(a, multirun=True) for a in arguments if a != "-m" and "hydra" not in a])
    jobs = [o for o in overrides if not isinstance(o.value(), IntervalSweep)]
    return [
        f"{o.key_or_group}={next(o.sweep_string_iterator())}" if o.is_sweep_override() else o.input_line for o in jobs
    ]


def smaller(arguments: list[str]) -> list[str]:
    """Settings for what ``SMALLER`` knows."""
    chosen = [argument.partition("=")[2] for argument in arguments]
    return [setting for name, settings in SMALLER.items() if name in chosen for setting in settings]


def test_the_commands_were_found():
    assert [] in IN_README
    assert sum("<" in shown(c) for c in BUILT) >= 12
    assert len(BUILT) >= 30
    assert len(OF_A_RUN) >= 5
    assert len(WITH_PARTS) == 1
    readme = PAGES["README.md"]
    assert "python -m venv .venv && .venv/bin/pip install -e . && .venv/bin/python train.py" in readme
    first = next(line for line in readme.splitlines() if "-m pytest" in line)  # what .ci/run types
    assert first == "python -m venv .venv && .venv/bin/pip install -e '.[dev]' && .venv/bin/python -m pytest"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readme")


@pytest.fixture(scope="module")
def main_job(folder: Path) -> Path:
    """The directory of the first command's run, in a fresh interpreter."""
    line = [sys.executable, str(ROOT / "train.py"), "debug=fast", "hydra.run.dir=run"]
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return folder / "run"


def test_main_job(main_job):
    assert (main_job / "result.json").exists()
    assert (main_job / "checkpoints" / "last.ckpt").exists()


def test_the_circle_leaves_the_picture_that_readme_names(command_that_draws, tmp_path):
    assert ["experiment=area_circle"] in IN_README
    assert command_that_draws("experiment=area_circle", "debug=fast", f"hydra.run.dir={tmp_path / 'run'}") == 0
    (picture,) = re.findall(r"`(pictures/\d\.png)`", PAGES["README.md"])
    assert (tmp_path / "run" / picture).exists()


@pytest.mark.parametrize("arguments", SWEEPS_OF_README, ids=shown)
def test_the_sweep_of_readme_runs(arguments, command, capsys, tmp_path):
    """Two of its jobs, on a small table; test_sweeps.py has sweeps of all kinds."""
    two = [re.sub(r"^(norm|seed)=(\w+),.*", r"\1=\2", argument) for argument in arguments]
    small = ("debug=fast", "data=iris", "model=mlp", "callbacks=checkpoints", "logger=none")
    assert command(*two, *small, "trainer.enable_progress_bar=false") == 0
    assert "Traceback" not in capsys.readouterr().err
    assert len(list((tmp_path / "outputs" / "first_sweep").rglob("result.json"))) == 2


@pytest.mark.parametrize("arguments", BUILT, ids=shown)
def test_everything_is_built_that_a_command_names(arguments, settings, tmp_path):
    """On small files in the true format, which replace every named one; a batch passes the network."""
    given = [argument for argument in of_one_job(arguments) if "<" not in argument and "hydra" not in argument]
    options = dict(argument.split("=", 1) for argument in given)
    files = small_files(options.get("data", "cifar10"), tmp_path) if "<" in shown(arguments) else []
    composed = settings(*given, *files, *smaller(given))
    if "trainer" not in options:  # several processes are started by test_distributed.py
        assert callable(prepared(composed))


@pytest.mark.parametrize("arguments", OPTIONS, ids=shown)
def test_a_single_option_is_there(arguments):
    group, option = arguments[0].split("=")
    assert (ROOT / "conf" / group / f"{option}.yaml").exists()


def test_a_finished_run_is_certified(command, main_job, tmp_path):
    (arguments,) = (c for c in OF_A_RUN if "callbacks=certify" in c)
    given = [argument.replace("<run>", str(main_job)) for argument in arguments]
    assert command(*given, *FEW_CERTIFICATES, f"hydra.run.dir={tmp_path / 'run'}") == 0
    assert "test/acc" in json.loads((tmp_path / "run" / "result.json").read_text())["metrics"]


def test_commands_on_a_run_name_what_it_has(main_job):
    """What they do is in test_training.py, test_kill_resume.py and test_resume.py."""
    for arguments in OF_A_RUN:
        path = (
            dict(argument.split("=", 1) for argument in arguments).get("ckpt", "<run>").replace("<run>", str(main_job))
        )
        assert Path(path).exists(), arguments


def test_help_is_for_people(folder):
    assert ["--help"] in OF_HYDRA
    before = set(folder.rglob("*"))
    line = [sys.executable, str(ROOT / "train.py"), "--help"]
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    for words in ("python train.py -m", "activation: ", "norm/output: ", "tensorboard --logdir"):
        assert words in done.stdout
    assert set(folder.rglob("*")) == before


def test_all_options_are_named_in_the_table_of_groups():
    named = set(re.findall(r"`(\w+)`", PAGES["usage.md"]))
    in_conf = {p.stem for p in (ROOT / "conf").glob("*/**/*.yaml") if "hydra" not in p.parts}
    assert in_conf - named == set()
