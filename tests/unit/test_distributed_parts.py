"""How processes are started, how they end, and what is told about it; none is really started."""

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch.distributed import HashStore
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from tautnet import distributed, worker
from tautnet.config import ConfigError

JOB = {"settings": {"trainer": {"devices": 2, "num_nodes": 1}, "seed": 3, "allow": []}, "job_logging": {}}


@pytest.fixture
def launched(monkeypatch):
    """Start the processes of a job that do what a function of their folder does; how they were to be started."""
    seen = SimpleNamespace()

    def start(what):
        def elastic_launch(layout, program):
            def launch(*arguments):
                seen.layout, seen.command, seen.folder = layout, [program, *arguments], Path(arguments[-1])
                seen.job = json.loads((seen.folder / distributed.JOB).read_text())
                signal.signal(signal.SIGTERM, signal.default_int_handler)  # the launcher's own, which it leaves behind
                what(seen.folder)

            return launch

        monkeypatch.setattr("torch.distributed.launcher.api.elastic_launch", elastic_launch)
        distributed.run_workers(JOB)

    seen.start = start
    return seen


def failing(exitcode, rank=1):
    def end(folder):
        failure = ProcessFailure(local_rank=rank, pid=1, exitcode=exitcode, error_file="none")
        raise ChildFailedError("worker", {rank: failure})

    return end


def signalled(number):
    def end(folder):
        raise SignalException("", signal.Signals(number))

    return end


def test_as_many_processes_as_devices_read_the_job_from_a_folder_that_is_gone_then(launched):
    before = signal.getsignal(signal.SIGTERM)
    launched.start(lambda folder: None)
    assert launched.layout.nproc_per_node == 2
    assert launched.layout.max_restarts == 0
    assert launched.layout.local_addr == "localhost"  # a machine's own name need not lead to it
    assert launched.command[:3] == [sys.executable, "-m", "tautnet.worker"]
    assert launched.job == JOB | {"parent": os.getpid()}
    assert not launched.folder.exists()
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(
    ("end", "error", "words"),
    [
        (failing(-9), distributed.WorkerError, "rank 1 of 2 ended by SIGKILL; the others were stopped"),
        (failing(-15), distributed.WorkerError, "rank 1 of 2 ended by SIGTERM; the others were stopped"),
        (failing(1, rank=0), distributed.WorkerError, "rank 0 of 2 ended by exit status 1; the others were stopped"),
        (failing(2), distributed.WorkerError, "rank 1 of 2 ended by exit status 2; the others were stopped"),
        (failing(143), SystemExit, "143"),
        (failing(130), KeyboardInterrupt, ""),
        (signalled(signal.SIGTERM), SystemExit, "143"),
        (signalled(signal.SIGHUP), SystemExit, "129"),
        (signalled(signal.SIGINT), KeyboardInterrupt, ""),
    ],
)
def test_how_the_processes_end_is_how_the_job_ends(launched, end, error, words):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(error) as ended:
        launched.start(end)
    assert str(ended.value) == words
    assert signal.getsignal(signal.SIGTERM) == before
    assert not launched.folder.exists()


def test_what_a_process_refuses_is_told_as_it_said_it(launched, monkeypatch):
    def refusing(folder):
        for rank in (11, 2):
            monkeypatch.setenv("RANK", str(rank))
            distributed.tell(folder, ConfigError(f"seed=x: an integer, says {rank}"))
        failing(2)(folder)

    with pytest.raises(ConfigError, match=r"^seed=x: an integer, says 2$"):
        launched.start(refusing)


def test_an_ignored_signal_stays_ignored(launched):
    """As by nohup."""
    numbers = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)  # the tests themselves may run below nohup
    found = {number: signal.signal(number, signal.SIG_DFL) for number in numbers}
    launched.start(lambda folder: None)
    assert set(launched.layout.signals_to_handle.split(",")) == {"SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT"}
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        launched.start(lambda folder: None)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        for number, handler in found.items():
            signal.signal(number, handler)
    assert set(launched.layout.signals_to_handle.split(",")) == {"SIGTERM", "SIGINT", "SIGQUIT"}


def test_a_process_ends_with_the_one_that_started_it():
    rank = "from tautnet.distributed import end_with_; import os, time; end_with_(os.getppid()); "
    rank += "print(os.getpid(), flush=True); time.sleep(60); print('alive')"
    starter = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {rank!r}]); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", starter], stdout=subprocess.PIPE, text=True)
    pid = int(process.stdout.readline())
    process.kill()
    try:
        assert process.communicate(timeout=20)[0] == ""  # the rank has closed it
    except subprocess.TimeoutExpired:
        os.kill(pid, signal.SIGKILL)
        raise


# --- a process --------------------------------------------------------------------------------------------------------


@pytest.fixture
def ranked(monkeypatch, tmp_path):
    """Do a job as a rank whose part of it is a function; its exit status and what it was asked to do."""
    asked = {"settings": [], "logs": [], "parents": []}

    def work(rank, part):
        def execute(settings):
            asked["settings"].append(settings)
            return part()

        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setattr("tautnet.job.execute", execute)
        monkeypatch.setattr("hydra.core.utils.configure_log", lambda config: asked["logs"].append(dict(config)))
        monkeypatch.setattr(distributed, "end_with_", asked["parents"].append)
        (tmp_path / distributed.JOB).write_text(json.dumps(JOB | {"parent": 17, "job_logging": {"version": 1}}))
        return worker.main(tmp_path), asked

    interrupt, filters = signal.getsignal(signal.SIGINT), worker.warnings.filters[:]
    yield work
    signal.signal(signal.SIGINT, interrupt)
    worker.warnings.filters[:] = filters
    logging.disable(logging.NOTSET)


def raising(error):
    def part():
        raise error

    return part


def test_the_first_rank_alone_has_a_log(ranked):
    status, asked = ranked(0, lambda: 0.5)
    assert (status, asked) == (0, {"settings": [JOB["settings"]], "logs": [{"version": 1}], "parents": [17]})
    assert logging.root.isEnabledFor(logging.ERROR)
    assert logging.getLogger("tautnet").manager.disable < logging.WARNING
    status, asked = ranked(1, lambda: None)
    assert status == 0
    assert len(asked["settings"]) == 2
    assert len(asked["logs"]) == 1
    assert logging.root.manager.disable == logging.WARNING


def test_a_rank_that_refuses_leaves_word(ranked, tmp_path):
    status, _ = ranked(3, raising(ConfigError("seed=x: an integer")))
    assert status == 2
    assert [path.read_text() for path in tmp_path.glob("refusal*")] == ["seed=x: an integer"]


def test_signals_end_a_rank_with_their_status(ranked):
    assert ranked(0, raising(KeyboardInterrupt()))[0] == 130
    with pytest.raises(SystemExit) as left:
        ranked(0, raising(SystemExit(143)))
    assert left.value.code == 143


# --- processes of torchrun and srun -----------------------------------------------------------------------------------


@pytest.fixture
def prepared(monkeypatch):
    """Let preparing a job and doing it be what the job's settings name."""

    def prepare(settings):
        def job():
            if "fails" in settings:
                raise settings["fails"]
            done.append(settings["seed"])
            return 0.5

        if "refused" in settings:
            raise ConfigError(settings["refused"])
        return job

    done = []
    monkeypatch.setattr("tautnet.job.prepared", prepare)
    filters = worker.warnings.filters[:]
    yield done
    worker.warnings.filters[:] = filters
    logging.disable(logging.NOTSET)


def test_the_others_do_all_jobs_but_those_that_are_refused(prepared, monkeypatch):
    jobs = [job | {"allow": []} for job in ({"seed": 0}, {"refused": "seed=1: 0"}, {"seed": 2})]
    monkeypatch.setattr(distributed, "announced", lambda: iter(jobs))
    assert worker.follow() == 0
    assert prepared == [0, 2]
    assert logging.root.manager.disable == logging.WARNING
    monkeypatch.setattr(distributed, "announced", lambda: iter([{"fails": KeyboardInterrupt(), "allow": []}, *jobs]))
    assert worker.follow() == 130
    assert prepared == [0, 2]


def test_the_first_tells_what_all_refuse_and_goes_on(prepared, capsys):
    assert worker.do_with_others({"seed": 4}) == 0.5
    with pytest.raises(ConfigError, match="seed=5: 4"):
        worker.do_with_others({"refused": "seed=5: 4"})
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [(ConfigError("data: empty"), 2, "error: data: empty\n"), (RuntimeError("broken"), 1, "RuntimeError: broken\n")],
)
def test_a_job_that_fails_under_way_ends_the_whole_launch(prepared, capsys, error, status, words):
    with pytest.raises(SystemExit) as left:
        worker.do_with_others({"fails": error})
    assert left.value.code == status
    assert capsys.readouterr().err.endswith(words)


def test_each_job_has_a_meeting_place_of_its_own(monkeypatch):
    """The keys of the last process group are stale, and the launcher's store has them."""
    store = HashStore()
    monkeypatch.setattr(distributed, "_store", lambda: store)
    ports = []
    for _ in range(2):
        monkeypatch.setenv("MASTER_PORT", "1")
        monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
        distributed.announce({"seed": 1})
        assert os.environ["TORCHELASTIC_USE_AGENT_STORE"] == "False"
        ports.append(os.environ["MASTER_PORT"])
    distributed.dismiss()
    assert len({"1", *ports}) == 3
    met = []
    for settings in distributed.announced():
        met.append(os.environ["MASTER_PORT"])
        assert settings == {"seed": 1}
    assert met == ports


@pytest.mark.parametrize(("agent", "rank", "opens"), [("True", 0, False), ("False", 0, True), ("False", 1, False)])
def test_the_first_opens_the_store_unless_torchrun_has(monkeypatch, agent, rank, opens):
    asked = {}
    monkeypatch.setattr("torch.distributed.TCPStore", lambda *place, **options: asked.update(options, place=place))
    environment = {"TORCHELASTIC_RUN_ID": "a", "MASTER_ADDR": "here", "MASTER_PORT": "5", "RANK": str(rank)}
    for name, value in (environment | {"TORCHELASTIC_USE_AGENT_STORE": agent}).items():
        monkeypatch.setenv(name, value)
    distributed._store.__wrapped__()
    assert asked["place"] == ("here", 5)
    assert asked["is_master"] == opens
    assert not asked["wait_for_workers"]
