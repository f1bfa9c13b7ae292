"""Real jobs of two processes: started by the program itself, by torchrun on two nodes, by srun; and how they end."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import forked
import pytest
import torch
from networks import two_nodes

from tautnet import distributed

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
    with two_nodes() as nodes:
        meeting = ["--rdzv-backend=c10d", f"--rdzv-endpoint={nodes[0].address}:{port}", "--rdzv-id=nodes"]
        agents = []
        for rank, node in enumerate(nodes):
            (tmp_path / str(rank)).mkdir()
            own = [f"--node-rank={rank}", f"--local-addr={node.address}", f"--rdzv-conf=is_host={1 - rank}"]
            agent = [*node.within, *TORCHRUN, "--nnodes=2", "--nproc-per-node=1", *meeting, *own, TRAIN[1]]
            job = [*agent, "trainer=ddp_cpu", *SMALL, "hydra.run.dir=run"]
            agents.append(start(job, tmp_path / str(rank), **node.environment))
        ended(*agents)
    first, other = (tmp_path / str(rank) for rank in range(2))
    if not (first / "run").exists():  # which node comes first is torchrun's matter
        first, other = other, first
    assert {path.name for path in (first / "run").iterdir()} - {"train.log"} == FILES
    assert list(other.iterdir()) == []
    expected = weights(sweep / "1")
    assert all(torch.equal(value, expected[name]) for name, value in weights(first / "run").items())
    assert metrics(first / "run") == metrics(sweep / "1")


SRUN = {
    **{"SLURM_JOB_NAME": "train", "SLURM_NODEID": "0", "SLURM_NODELIST": "127.0.0.1", "MASTER_ADDR": "127.0.0.1"},
    **{"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "1", "SLURM_NNODES": "1"},
}


def tell(rank: int, job_id: int) -> list[dict]:
    """What a task of srun hears of the jobs that the first one announces, and where both then meet."""
    os.environ |= SRUN | {"SLURM_JOB_ID": str(job_id), "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}
    if rank > 0:
        return [settings | {"port": os.environ["MASTER_PORT"]} for settings in distributed.announced()]
    ports = []
    for seed in range(2):
        distributed.announce({"seed": seed})
        ports.append({"seed": seed, "port": os.environ["MASTER_PORT"]})
    distributed.dismiss()
    time.sleep(2)  # the store is this process's
    return ports


def test_under_srun_the_first_task_tells_the_other(tmp_path):
    folders = [tmp_path / str(rank) for rank in range(2)]
    heard = []
    tasks = []
    for rank, folder in enumerate(folders):
        folder.mkdir()
        tasks.append(forked.start(told, rank, 10_000 + os.getpid() % 10_000, folder=folder))
    for task, folder in zip(tasks, folders, strict=True):
        done = forked.finish(task, folder)
        assert done.returncode == 0, done.stderr
        heard.append(json.loads((folder / "heard.json").read_text()))
    assert heard[0] == heard[1]
    assert [job["seed"] for job in heard[0]] == [0, 1]
    assert heard[0][0]["port"] != heard[0][1]["port"]


def told(rank: int, job_id: int) -> None:
    """``tell``, its result in a file."""
    Path("heard.json").write_text(json.dumps(tell(rank, job_id)))


def test_when_a_rank_dies_all_processes_end(tmp_path):
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
        os.kill(ranks[1], signal.SIGKILL)
        _, error = program.communicate(timeout=60)
    finally:
        program.kill()
    assert program.returncode == 1
    assert "error: rank 1 of 2 ended by SIGKILL; the others were stopped" in error
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)
    assert (tmp_path / "run" / "config.yaml").exists()
