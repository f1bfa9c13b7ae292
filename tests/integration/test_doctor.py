"""``python -m tautnet doctor`` on a sound machine and on ones with planted faults: one line each, with its cure."""

import os
import socket
import subprocess
import sys
from collections import namedtuple
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from pathlib import Path

import pytest
import torch

from tautnet.__main__ import main
from tautnet.cli import doctor
from tautnet.cli.examine import machine, packages, places, self_test
from tautnet.cli.examine.finding import NOTE, OK, PROBLEM, Finding
from tautnet.kernels import dispatch, native

COMMANDS = "evaluate, predict, certify, plot, compare, report, export, doctor"
LAUNCHERS = [*machine._TORCHRUN, "TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT", "SLURM_JOB_ID"]


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch):
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)


def only(findings):
    (finding,) = findings
    return finding


def marks(findings):
    return {finding.subject: finding.mark for finding in findings}


# --- the command ------------------------------------------------------------------------------------------------------


def test_help_answers_at_once_and_imports_nothing_heavy(tmp_path):
    code = (
        "import sys; from tautnet.__main__ import main\n"
        "try: main(['doctor', '--help'])\n"
        "except SystemExit as left: assert left.code == 0\n"
        "assert not {'torch', 'pytorch_lightning', 'hydra', 'omegaconf', 'numpy'} & set(sys.modules)\n"
        "import time; assert time.process_time() < 1"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert "one line a finding" in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["doktor"], f"error: doktor: no such command; did you mean doctor? Accepted: {COMMANDS}\n"),
        (["qqq"], f"error: qqq: no such command; Accepted: {COMMANDS}\n"),
        (["doctor", "--deep"], "error: --deep: no such option (did you mean --help?); see tautnet doctor --help\n"),
    ],
)
def test_a_mistake_is_answered_in_one_line(given, said, capsys):
    try:
        status = main(given)
    except SystemExit as left:
        status = left.code
    assert status == 2
    assert capsys.readouterr().err == said


def test_without_a_command_the_commands_are_shown(capsys):
    assert main([]) == 2
    assert "doctor" in capsys.readouterr().err


def test_on_this_machine_every_line_is_a_finding(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(packages, "imports", lambda: iter([packages.TORCH_WORKS]))  # which takes seconds
    status = main(["doctor"])
    *lines, empty, summary = capsys.readouterr().out.splitlines()
    assert all(line.startswith((OK, NOTE, PROBLEM)) for line in lines)
    assert empty == ""
    problems = [line for line in lines if line.startswith(PROBLEM)]
    assert (status, summary) == (
        (1, f"{len(problems)} problem{'s'[: len(problems) > 1]}") if problems else (0, "nothing is wrong")
    )
    assert not [
        line for line in problems if line.split()[1] in ("torch", "training,", "checkpoint", "import", "outputs")
    ]
    for subject in (
        "tautnet",
        "python",
        "torch",
        "hydra-core",
        "torchmetrics",
        "outputs",
        "cache",
        "checkpoint",
        "GPU",
    ):
        assert any(line.split()[1] == subject for line in lines), subject
    assert list(tmp_path.iterdir()) == []


def test_it_works_without_torch(capsys, monkeypatch, tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('libtorch.so: cannot open\\nshared object')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(packages, "MODULES", ("torch", "json"))
    assert main(["doctor"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert any(
        line.startswith("PROBLEM  import torch           ImportError: libtorch.so: cannot open shared object; cure: ")
        for line in lines
    )
    assert any(line.startswith("PROBLEM  self-test ") for line in lines)
    assert not any("checkpoint" in line for line in lines)


def test_an_examination_that_fails_is_a_line_too():
    def odd():
        raise RuntimeError("first\nsecond")
        yield

    finding = only(doctor._safely(odd))
    assert finding.mark == PROBLEM
    assert "RuntimeError: first second" in finding.line()


# --- packages ---------------------------------------------------------------------------------------------------------


def fake_versions(monkeypatch, **fakes):
    """Some packages have another version, or with None are not installed."""
    fakes = {name.replace("_", "-"): fake for name, fake in fakes.items()}

    def version(name):
        if name in fakes and fakes[name] is None:
            raise PackageNotFoundError(name)
        return fakes[name] if name in fakes else version_of(name)

    monkeypatch.setattr(packages, "version", version)


def test_versions_are_held_against_the_declared_ranges(monkeypatch):
    assert set(marks(packages.versions()).values()) == {OK}
    fake_versions(monkeypatch, torch="2.10.0+cpu", hydra_core=None, torchmetrics="1.6.0rc1")
    found = {finding.subject: finding for finding in packages.versions()}
    assert found["torch"].mark == found["hydra-core"].mark == found["torchmetrics"].mark == PROBLEM
    assert found["torch"].text.startswith("2.10.0+cpu, ")
    assert "pip install 'torch<2.14,>=2.11'" in found["torch"].cure
    assert "not installed" in found["hydra-core"].text
    assert found["omegaconf"].mark == OK


def test_a_python_out_of_range(monkeypatch):
    monkeypatch.setattr(packages.platform, "python_version", lambda: "3.10.4")
    assert marks(packages.versions())["python"] == PROBLEM


def test_the_malicious_uploads_are_named(monkeypatch):
    fake_versions(monkeypatch, lightning="2.6.3", pytorch_lightning="2.6.2")
    found = list(packages.malicious())
    assert [(finding.mark, finding.subject) for finding in found] == [
        (PROBLEM, "lightning"),
        (PROBLEM, "pytorch-lightning"),
    ]
    assert all("change every password" in finding.cure for finding in found)
    fake_versions(monkeypatch, lightning="2.6.6")
    assert only(packages.malicious()).mark == NOTE
    fake_versions(monkeypatch, lightning=None)
    assert list(packages.malicious()) == []


def test_extras_are_there_or_not_or_too_old(monkeypatch):
    everything = {"hydra_joblib_launcher": "1.2.0", "hydra_submitit_launcher": "1.2.0", "submitit": "1.5.3"}
    fake_versions(monkeypatch, datasets="5.2.0", optuna="5.0.0", joblib="1.5.0", **everything)
    assert marks(packages.extras()) == {"extra data": OK, "extra sweep": OK}
    fake_versions(monkeypatch, datasets=None, optuna="4.0.0", joblib="1.5.0", **everything)
    found = {finding.subject: finding for finding in packages.extras()}
    assert found["extra data"].mark == NOTE
    assert "pip install 'tautnet[data]'" in found["extra data"].text
    assert found["optuna"].mark == PROBLEM


def test_a_mismatched_torchvision_is_one_line(monkeypatch, tmp_path):
    """As a build for another torch does it; what imports it fails alike and is not told again."""
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')"
    )
    (tmp_path / "torchmetrics.py").write_text("import torchvision")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(packages, "MODULES", ("torchvision", "torchmetrics", "json"))
    found = list(packages.imports())
    assert marks(found) == {"import torchvision": PROBLEM, "import": OK}
    assert "operator torchvision::nms does not exist" in found[0].line()
    assert "pip uninstall torchvision" in found[0].cure


def test_a_torchvision_that_is_not_there_is_not_missed(monkeypatch):
    monkeypatch.setattr(packages, "MODULES", ("torchvision", "json"))
    assert only(packages.imports()).mark == OK


def test_an_import_that_ends_the_process_is_named(monkeypatch, tmp_path):
    (tmp_path / "deadly.py").write_text("import os; os.kill(os.getpid(), 11)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(packages, "MODULES", ("json", "deadly", "csv"))
    found = list(packages.imports())
    assert marks(found) == {"import deadly": PROBLEM, "import": OK}
    assert "status -11" in found[0].text


def test_an_import_that_hangs_is_named(monkeypatch, tmp_path):
    (tmp_path / "sleepy.py").write_text("import time; time.sleep(60)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(packages, "_SECONDS", 1)
    monkeypatch.setattr(packages, "MODULES", ("json", "sleepy"))
    found = list(packages.imports())
    assert marks(found) == {"import sleepy": PROBLEM, "import": OK}
    assert "takes more than 1 seconds" in found[0].text


# --- places -----------------------------------------------------------------------------------------------------------

Usage = namedtuple("Usage", "total used free")  # as of shutil


def test_outputs_that_cannot_be_written(monkeypatch, tmp_path):
    monkeypatch.chdir("/proc" if os.geteuid() == 0 else "/")  # not even root writes to the former
    finding = next(places.places())
    assert (finding.mark, finding.subject) == (PROBLEM, "outputs")
    assert "cannot be written" in finding.text
    assert "hydra.run.dir" in finding.cure
    monkeypatch.chdir(tmp_path)
    Path("outputs").write_text("")
    assert "is no folder" in next(places.places()).text


@pytest.mark.parametrize(("free", "mark"), [(1 << 20, PROBLEM), (1 << 29, NOTE), (1 << 34, OK)])
def test_a_disk_that_is_nearly_full(monkeypatch, tmp_path, free, mark):
    monkeypatch.setattr(places.shutil, "disk_usage", lambda folder: Usage(1 << 40, 0, free))
    assert places.place("outputs", tmp_path / "a" / "b", "cure").mark == mark
    assert list(tmp_path.iterdir()) == []


def test_a_user_without_a_home(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(places.os.path, "expanduser", lambda path: path)
    finding = next(finding for finding in places.places() if finding.subject == "cache")
    assert finding.mark == PROBLEM
    assert "no home" in finding.text


# --- the machine ------------------------------------------------------------------------------------------------------


def test_more_threads_than_cores(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4096)
    finding = only(machine.processors())
    assert finding.mark == NOTE
    assert "OMP_NUM_THREADS=" in finding.cure


def test_cores_that_a_container_is_given(monkeypatch, tmp_path):
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    assert machine._cpu_quota() == 1.5
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert machine._cpu_quota() is None


@pytest.mark.parametrize(
    ("driver", "built", "mark", "word"),
    [("", None, OK, "none"), ("555.1", None, PROBLEM, "built for CPUs alone"), ("470.0", "13.0", PROBLEM, "470.0")],
)
def test_gpus_that_torch_cannot_use(monkeypatch, driver, built, mark, word):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", built)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(machine, "_driver", lambda: driver)
    finding = only(machine.gpus())
    assert finding.mark == mark
    assert word in finding.line()


def test_little_memory(monkeypatch, tmp_path):
    (tmp_path / "memory.max").write_text(f"{3 << 30}\n")
    (tmp_path / "memory.current").write_text(f"{2 << 30}\n")
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    finding = next(machine.memory())
    assert (finding.mark, finding.text) == (NOTE, "1.0 GiB free")


def test_few_open_files(monkeypatch):
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda which: (256, 4096))
    finding = only(machine.files())
    assert (finding.mark, finding.cure) == (NOTE, "ulimit -n 1024")


def test_a_locale_without_unicode():
    code = (
        "from tautnet.cli.examine import machine; (f,) = machine.encoding(); print(f.line());"
        "from tautnet.cli.examine.finding import Finding; import sys; sys.exit(f.mark == 'PROBLEM')"
    )
    ascii_ = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ascii_, check=False)
    assert done.returncode == 1, done
    assert "LC_ALL=C.UTF-8" in done.stdout
    assert only(machine.encoding()).mark == OK


def test_variables_that_outlived_torchrun(monkeypatch):
    assert only(machine.launcher()).mark == OK
    monkeypatch.setenv("LOCAL_RANK", "1")
    finding = only(machine.launcher())
    assert (finding.mark, finding.cure) == (PROBLEM, "unset LOCAL_RANK")
    with socket.create_server(("127.0.0.1", 0)) as store:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", str(store.getsockname()[1]))
        assert only(machine.launcher()).mark == OK
    finding = only(machine.launcher())
    assert finding.mark == PROBLEM
    assert "TORCHELASTIC_RUN_ID=none" in finding.text


def test_an_allocation_of_slurm(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert "no srun" in only(machine.launcher()).text


# --- the self-test ----------------------------------------------------------------------------------------------------


@pytest.fixture
def _no_library_yet():
    caches = (native._library, native._function, dispatch._chosen)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.mark.usefixtures("_no_library_yet")
def test_without_a_compiler_the_slower_backend_and_its_cure_are_named(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    finding = only(self_test.kernels())
    assert finding.mark == PROBLEM
    assert finding.text.startswith("run in plain torch: No C++ compiler")
    assert "install g++" in finding.cure
    assert caplog.records == []  # said once


def test_kernels_agree_with_the_reference_or_are_named(monkeypatch):
    if not native.available():
        pytest.skip("needs a compiler")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert only(self_test.kernels()).mark == OK
    forward = native.forward
    monkeypatch.setattr(native, "forward", lambda *arguments: forward(*arguments) * 1.001)
    finding = only(self_test.kernels())
    assert finding.mark == PROBLEM
    assert "off by" in finding.text
    monkeypatch.setattr(native, "forward", lambda *arguments: forward(*arguments) * torch.nan)
    assert only(self_test.kernels()).mark == PROBLEM


def test_training_that_does_not_learn_and_checkpoints_that_lie(monkeypatch):
    before = torch.get_rng_state()
    assert only(self_test.training()).mark == OK
    assert only(self_test.checkpoint()).mark == OK
    assert torch.equal(torch.get_rng_state(), before)
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: None)
    assert only(self_test.training()).mark == PROBLEM
    load = torch.load
    monkeypatch.setattr(
        torch, "load", lambda *a, **k: {n: v * (1 + n.endswith("0.weight")) for n, v in load(*a, **k).items()}
    )
    assert only(self_test.checkpoint()).mark == PROBLEM


def test_a_finding_is_one_line():
    assert Finding(OK, "a", "b\n  c").line() == "ok       a                      b c"
