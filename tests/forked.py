"""train.py in processes of its own, forked from one that has imported everything: importing takes seconds.

Exit status, signals and all that is written are those of a real process; what a fresh interpreter would do at import is
not seen. The first command and --help in test_readme.py are typed into a shell's process and witness that.
"""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import yaml

# As in conftest.py: what reads conf/ is made from this class, and its grammar in C saves a tenth of a short job.
yaml.SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

TRAIN = Path(__file__).parents[1] / "train.py"

forking = multiprocessing.get_context("forkserver")
PRELOADED = ["forked", "warm", "hydra_plugins.tautnet_sweeps", "sklearn.datasets", "sklearn.model_selection"]
forking.set_forkserver_preload(PRELOADED)  # there is one server for all that a process of the tests forks


def _run(function: Callable[..., Any], arguments: tuple, environment: dict[str, str], folder: Path) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job, and what it starts, ignores it
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    function(*arguments)


def train(*arguments: str) -> None:
    """What ``python train.py`` does, in a fresh process."""
    sys.argv = [str(TRAIN), *arguments]
    runpy.run_path(str(TRAIN), run_name="__main__")


def start(function: Callable[..., Any], *arguments: Any, folder: Path, **environment: str) -> BaseProcess:
    """Begin a function of a module in its own process, whose output goes into the files out and err of a folder."""
    process = forking.Process(target=_run, args=(function, arguments, os.environ | environment, folder))
    found = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(Path(__file__).parent), found)))
    try:  # the first start starts the server, which finds modules by this variable alone
        process.start()
    finally:
        os.environ.pop("PYTHONPATH")
        os.environ |= {"PYTHONPATH": found} if found else {}
    return process


def finish(process: BaseProcess, folder: Path) -> subprocess.CompletedProcess[str]:
    """Wait for it; what it wrote, and its exit status."""
    process.join(300)
    assert process.exitcode is not None, "it has not ended"
    texts = [(folder / name).read_text() for name in ("out", "err")]
    return subprocess.CompletedProcess([], process.exitcode, *texts)
