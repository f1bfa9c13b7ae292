"""Real jobs of two processes: started by the program itself, by torchrun on two nodes, by srun; and how they end."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
TRAIN = [sys.executable, str(ROOT / "train.py")]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
SMALL = [
    *("data=iris", "data.batch_size=20", "model=mlp", "callbacks=checkpoints", "logger=none"),
    *("trainer.enable_progress_bar=false", "trainer.max_epochs=2", "trainer.precision=64-true"),
]
FILES = {"config.yaml", "result.json", "checkpoints"}  # and perhaps the first process's log


def environment(**others: str) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"} | others


def start(command: list[str], folder: Path, **others: str) -> subprocess.Popen:
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, env=environment(**others), **streams)


def ended(*processes: subprocess.Popen) -> list[str]:
    """What each has written to stderr, all having ended well."""
    try:
        written = [process.communicate(timeout=180) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * len(processes), written
    return [error for _, error in written]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def metrics(run: Path) -> dict[str, float]:
    found = json.loads((run / "result.json").read_text())["metrics"]
    return {name: value for name, value in found.items() if "seconds" not in name}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> Path:
    """One process and two, each a job of a sweep."""
    folder = tmp_path_factory.mktemp("sweep")
    ended(start([*TRAIN, "-m", "trainer=cpu,ddp_cpu", *SMALL, f"hydra.sweep.dir={folder / 'jobs'}"], folder))
    return folder / "jobs"


def test_a_sweep_with_several_processes_has_one_directory_a_job(sweep):
    jobs = [path for path in sweep.iterdir() if path.is_dir()]
    assert {path.name for path in jobs} == {"0", "1"}
    for job in jobs:
        assert {path.name for path in job.iterdir()} - {"train.log"} == FILES


def test_two_processes_give_the_answer_of_one(sweep):
    one, two = weights(sweep / "0"), weights(sweep / "1")
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-9, atol=1e-9, msg=name)
    alone, together = metrics(sweep / "0"), metrics(sweep / "1")
    assert together == pytest.approx(alone, rel=1e-6)
    assert "test/acc" in alone


def test_two_nodes_give_the_answer_of_one(sweep, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=nodes"]
    nodes = []
    for rank in range(2):
        (tmp_path / str(rank)).mkdir()
        agent = [*TORCHRUN, "--nnodes=2", f"--node-rank={rank}", "--nproc-per-node=1", *meeting, TRAIN[1]]
        nodes.append(start([*agent, "trainer=ddp_cpu", *SMALL, "hydra.run.dir=run"], tmp_path / str(rank)))
    ended(*nodes)
    first, other = (tmp_path / str(rank) for rank in range(2))
    if not (first / "run").exists():  # which node comes first is torchrun's matter
        first, other = other, first
    assert {path.name for path in (first / "run").iterdir()} - {"train.log"} == FILES
    assert list(other.iterdir()) == []
    expected = weights(sweep / "1")
    assert all(torch.equal(value, expected[name]) for name, value in weights(first / "run").items())
    assert metrics(first / "run") == metrics(sweep / "1")


def test_under_srun_the_first_task_composes_a_sweep_for_both(sweep, tmp_path):
    slurm = {
        **{"SLURM_JOB_ID": str(10_000 + os.getpid() % 10_000), "SLURM_JOB_NAME": "train", "SLURM_NODEID": "0"},
        **{"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "1", "SLURM_NNODES": "1"},
        **{"SLURM_NODELIST": "127.0.0.1", "MASTER_ADDR": "127.0.0.1"},
    }
    command = [*TRAIN, "-m", "trainer=ddp_cpu", "seed=0,1", *SMALL, f"hydra.sweep.dir={tmp_path / 'jobs'}"]
    tasks = [start(command, tmp_path, **slurm, SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank)) for rank in range(2)]
    ended(*tasks)
    assert {path.name for path in (tmp_path / "jobs").iterdir() if path.is_dir()} == {"0", "1"}
    expected = weights(sweep / "1")
    assert all(torch.equal(value, expected[name]) for name, value in weights(tmp_path / "jobs" / "0").items())


@pytest.mark.parametrize("cause", ["a rank that dies", "SIGTERM"])
def test_all_processes_end_together(tmp_path, cause):
    endless = [*SMALL, "trainer.max_epochs=100000", "trainer=ddp_cpu", "hydra.run.dir=run"]
    program = start([*TRAIN, *endless], tmp_path)
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "run" / "checkpoints" / "last.ckpt").exists():
            assert program.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        ranks = Path(f"/proc/{program.pid}/task/{program.pid}/children").read_text().split()
        ranks = [int(rank) for rank in ranks if b"tautnet.worker" in Path(f"/proc/{rank}/cmdline").read_bytes()]
        assert len(ranks) == 2
        if cause == "SIGTERM":
            program.terminate()
        else:
            os.kill(ranks[1], signal.SIGKILL)
        _, error = program.communicate(timeout=60)
    finally:
        program.kill()
    assert program.returncode == (143 if cause == "SIGTERM" else 1)
    if cause != "SIGTERM":
        assert "error: rank 1 of 2 ended by SIGKILL; the others were stopped" in error
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)
    assert (tmp_path / "run" / "config.yaml").exists()
