"""The processes of a job: who starts them, and how each of them gets the same settings.

Three ways. One process: nothing to do. Several under plain ``python train.py``, also inside a sweep and below any Hydra
launcher: the process that composed the settings starts fresh ones as torchrun would, and they read the settings from a
file. Several that torchrun or srun has started: the first alone runs Hydra, and hands each job's settings to the others
through a key-value store. In none of them does a second process compose settings, which in a sweep could come out
differently.

Imports neither torch nor Lightning before they are needed: ``--help`` stays fast.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tautnet.config import ConfigError
from tautnet.layout import launched, num_processes

if TYPE_CHECKING:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]


class WorkerError(RuntimeError):
    """A process of a job failed under way. What went wrong stands above its message, if the process could say it."""


JOB = "job.json"
_REFUSAL, _FAILURE = "refusal", "failure"  # files of a job, followed by the rank
_SIGNALS = tuple(number for number in signal.Signals if number.name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT"))
_WATCH_SECONDS = 0.2
_PATIENCE = timedelta(hours=1)  # that processes wait for the first one, which may still be composing settings


def run_workers(job: Mapping[str, Any]) -> None:
    """Do a job in new processes on this machine, and wait for them. If one fails, the others are stopped.

    Args:
        job: ``settings`` with their layout, and ``job_logging``, Hydra's settings of the first one's log.

    Raises:
        ConfigError: what a process refused.
        WorkerError: one failed; it names its rank.
        SystemExit: the processes were stopped by SIGTERM.
        KeyboardInterrupt: they were stopped by SIGINT.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    count = num_processes(job["settings"]["trainer"])
    _silence_launcher()
    with tempfile.TemporaryDirectory(prefix="tautnet-") as folder:
        Path(folder, JOB).write_text(json.dumps({**job, "parent": os.getpid()}))
        layout = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            run_id=Path(folder).name,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            # Not those that are ignored, as by nohup: workers inherit that, and the launcher would overrule it.
            signals_to_handle=",".join(each.name for each in _SIGNALS if signal.getsignal(each) != signal.SIG_IGN),
        )
        try:
            with _own_handlers():
                elastic_launch(layout, sys.executable)("-m", "tautnet.worker", folder)
        except ChildFailedError as error:
            for kind, name in ((ConfigError, _REFUSAL), (WorkerError, _FAILURE)):
                told = sorted(Path(folder).glob(f"{name}*"))
                if told:
                    raise kind(told[0].read_text()) from None
            rank, failure = error.get_first_failure()
            _end_by(failure.exitcode - 128)  # a signal that the ranks alone have got; they have seen to it
            how = failure.signal_name() if failure.exitcode < 0 else f"exit status {failure.exitcode}"
            raise WorkerError(f"rank {rank} of {count} ended by {how}; the others were stopped") from None
        except SignalException as stop:
            _end_by(int(stop.sigval))


def _end_by(number: int) -> None:
    """End as the processes have ended, by a signal; anything else is none."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    if number in _SIGNALS:
        raise SystemExit(128 + number)


@contextmanager
def _own_handlers() -> Iterator[None]:
    """Give signals back to whom they belonged: the launcher keeps them, and between two jobs of a sweep it is gone."""
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():  # else the launcher has taken none
            for number, handler in handlers.items():
                signal.signal(number, handler)


def end_with_(parent: int) -> None:
    """End this process as soon as the one that started it is gone.

    A process that is killed stops nobody. The ranks would go on in a directory in which the same command, given again,
    starts others.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_WATCH_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def tell(folder: Path, error: ConfigError | WorkerError) -> None:
    """Tell the process that started this one why it ends."""
    kind = _REFUSAL if isinstance(error, ConfigError) else _FAILURE
    (folder / f"{kind}{int(os.environ['RANK']):06d}").write_text(str(error))


def _silence_launcher() -> None:
    """What it says about failures is told in a line of our own."""
    import logging

    for name in ("multiprocessing.api", "agent.server.api", "multiprocessing.errors"):
        logging.getLogger(f"torch.distributed.elastic.{name}").setLevel(logging.CRITICAL)


# --- processes of torchrun and srun -----------------------------------------------------------------------------------


def announce(settings: Mapping[str, Any]) -> None:
    """Hand a job's settings to the other processes, and choose the port of its process group."""
    from lightning_fabric.plugins.environments.lightning import find_free_network_port

    store, port = _store(), find_free_network_port()
    number = store.add(_key("jobs"), 1)
    store.set(_key(f"job {number}"), json.dumps({"settings": settings, "port": port}))
    _meet_at(port)


def announced() -> Iterator[dict[str, Any]]:
    """The settings of the jobs that the first process announces, in their order, until it dismisses the others."""
    store, number = _store(), 0
    while True:
        number += 1
        store.wait([_key(f"job {number}")], _PATIENCE)
        job = json.loads(store.get(_key(f"job {number}")))
        if job is None:
            return
        _meet_at(job["port"])
        yield job["settings"]


def dismiss() -> None:
    """Tell the other processes that no job follows."""
    store = _store()
    store.set(_key(f"job {store.add(_key('jobs'), 1)}"), json.dumps(None))


@cache
def _store() -> TCPStore:
    """The store that all processes know: torchrun has one already, under srun the first process opens it."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    env = os.environ
    if "TORCHELASTIC_RUN_ID" in env:
        address, port = env["MASTER_ADDR"], int(env["MASTER_PORT"])
        opens = env.get("TORCHELASTIC_USE_AGENT_STORE") != "True" and env["RANK"] == "0"
    else:
        from lightning_fabric.plugins.environments.slurm import SLURMEnvironment

        # Lightning accepts a number of tasks in this form alone; what srun has started is the same either way.
        world = launched()
        assert world is not None
        env.setdefault("SLURM_NTASKS_PER_NODE", str(world.local_size))
        slurm = SLURMEnvironment(auto_requeue=False)
        address, port, opens = slurm.main_address, slurm.main_port, env["SLURM_PROCID"] == "0"
    return TCPStore(address, port, is_master=opens, timeout=_PATIENCE, wait_for_workers=False)


def _key(name: str) -> str:
    """Of its own for each time that torchrun starts the processes again."""
    return f"tautnet/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{name}"


def _meet_at(port: int) -> None:
    """Let the next process group of this process be made at a port of its own: keys of the last one are stale."""
    os.environ["MASTER_PORT"] = str(port)
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = str(False)
