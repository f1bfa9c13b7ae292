"""The machine and the environment: processors, memory, limits, locale, variables of launchers."""

from __future__ import annotations

import locale
import os
import shutil
import socket
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

from tautnet.cli.examine.finding import NOTE, OK, PROBLEM, Finding

_CGROUP = Path("/sys/fs/cgroup")
_LITTLE = 2 << 30  # bytes of memory
_FEW_FILES = 1024  # data workers and ranks open dozens each
_TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "NODE_RANK")


def processors() -> Iterator[Finding]:
    """Cores that this process may use, and the threads of torch on them."""
    import torch

    usable = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    quota = _cpu_quota()
    cores = min(usable, max(1, round(quota))) if quota else usable
    threads = torch.get_num_threads()
    text = f"{os.cpu_count()}, {cores} for this process; torch computes on {threads}"
    if threads > cores:
        yield Finding(NOTE, "processor cores", text, f"export OMP_NUM_THREADS={cores}: more only wait for each other")
    else:
        yield Finding(OK, "processor cores", text)


def _cpu_quota() -> float | None:
    """Cores that the container is given, if it says so."""
    path = _CGROUP / "cpu.max"
    quota, period = path.read_text().split() if path.is_file() else ("max", "0")
    return None if quota == "max" else int(quota) / int(period)


def gpus() -> Iterator[Finding]:
    """The GPUs that torch can use; if there are none, why."""
    import torch

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for index in range(count):
        free, total = (size / 2**30 for size in torch.cuda.mem_get_info(index))
        name = torch.cuda.get_device_name(index)
        yield Finding(OK, f"GPU {index}", f"{name}, {free:.1f} of {total:.1f} GiB free, CUDA {torch.version.cuda}")
    if count:
        return
    driver, built = _driver(), torch.version.cuda or torch.version.hip
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if driver and built and hidden in ("", "-1"):
        yield Finding(NOTE, "GPU", f"hidden by CUDA_VISIBLE_DEVICES={hidden!r}; training runs on CPUs")
    elif driver and built:
        why = f" ({said[0].message})" if said else ""
        cure = "update the driver, or install a torch for an older CUDA: https://pytorch.org/get-started/locally"
        yield Finding(PROBLEM, "GPU", f"torch is built for CUDA {built}, the driver {driver} cannot run it{why}", cure)
    elif driver:
        cure = "for training on it, install a torch for CUDA: https://pytorch.org/get-started/locally"
        yield Finding(PROBLEM, "GPU", f"there is one (driver {driver}), this torch is built for CPUs alone", cure)
    else:
        yield Finding(OK, "GPU", "none; training runs on CPUs")


def _driver() -> str:
    """Version of the NVIDIA driver, "" where there is none."""
    if shutil.which("nvidia-smi") is None:
        return ""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return (done.stdout.split() or [""])[0] if done.returncode == 0 else ""


def memory() -> Iterator[Finding]:
    """Main memory that is free, and the shared one through which data workers hand batches over."""
    info = Path("/proc/meminfo")
    if not info.is_file():
        return
    sizes = dict(line.split(":") for line in info.read_text().splitlines())
    free = int(sizes["MemAvailable"].split()[0]) * 1024
    limit, used = (_CGROUP / name for name in ("memory.max", "memory.current"))
    if limit.is_file() and used.is_file() and limit.read_text().strip() != "max":
        free = min(free, int(limit.read_text()) - int(used.read_text()))
    text = f"{free / 2**30:.1f} GiB free"
    yield Finding(OK, "memory", text) if free >= _LITTLE else Finding(NOTE, "memory", text, "end other programs")
    shared = Path("/dev/shm")
    if shared.is_dir() and shutil.disk_usage(shared).free < _LITTLE // 4:
        text = f"{shutil.disk_usage(shared).free / 2**20:.0f} MiB free; data workers (data.num_workers) need it"
        yield Finding(NOTE, "shared memory", text, "start the container with --shm-size=2g")


def files() -> Iterator[Finding]:
    """How many files a process may have open."""
    try:
        import resource
    except ImportError:  # no Unix
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = 0 <= soft < _FEW_FILES
    cure = f"ulimit -n {_FEW_FILES if hard < 0 else min(_FEW_FILES, hard)}" if few else ""
    yield Finding(NOTE if few else OK, "open files", f"up to {'any number' if soft < 0 else soft}", cure)


def encoding() -> Iterator[Finding]:
    """Whether names of files and texts may hold any character."""
    names, texts = sys.getfilesystemencoding().lower(), locale.getencoding().lower()
    if sys.flags.utf8_mode:
        texts = "utf-8"
    wrong = {names, texts} - {"utf-8", "utf8"}
    text = f"file names {names}, texts {texts}"
    cure = "export LC_ALL=C.UTF-8 (or PYTHONUTF8=1)" if wrong else ""
    yield Finding(PROBLEM if wrong else OK, "encoding", text, cure)


def launcher() -> Iterator[Finding]:
    """Variables of torchrun that outlived it, and an allocation of SLURM."""
    here = [name for name in (*_TORCHRUN, "TORCHELASTIC_RUN_ID") if name in os.environ]
    if here and not _agent_answers():
        text = f"{' '.join(f'{name}={os.environ[name]}' for name in here)}, but no torchrun answers"
        yield Finding(PROBLEM, "launcher", f"{text}; train.py would wait for others", f"unset {' '.join(here)}")
    elif here:
        yield Finding(OK, "launcher", f"torchrun, process {os.environ.get('RANK')} of {os.environ.get('WORLD_SIZE')}")
    elif "SLURM_JOB_ID" in os.environ:
        tasks = os.environ.get("SLURM_STEP_NUM_TASKS")
        text = f"{tasks} tasks by srun" if tasks else "no srun: train.py is one process here, whatever was asked for"
        yield Finding(NOTE, "launcher", f"SLURM job {os.environ['SLURM_JOB_ID']}, {text}")
    else:
        yield Finding(OK, "launcher", "none: train.py starts its processes itself")


def _agent_answers() -> bool:
    """Whether there is a store at the address that torchrun has given."""
    address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT", "")
    if "TORCHELASTIC_RUN_ID" not in os.environ or address is None or not port.isdigit():
        return False
    try:
        socket.create_connection((address, int(port)), timeout=2).close()
    except OSError:
        return False
    return True
