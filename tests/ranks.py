"""Running a function in several processes that torchrun might have started."""

import os
import socket
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from forked import forking

_SECONDS = 120  # that a test waits for its ranks


def in_ranks(function: Callable[..., Any], world_size: int, folder: Path, *arguments: Any) -> list[Any]:
    """What ``function(*arguments)`` returns in each of ``world_size`` ranks, with the environment that torchrun makes.

    Args:
        function: of a module; its results can be pickled.
        world_size: number of ranks.
        folder: for the results, an empty one.
        *arguments: can be pickled too.
    """
    port = _free_port()
    processes = [
        forking.Process(target=_work, args=(function, rank, world_size, port, str(folder), arguments), daemon=True)
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(_SECONDS)
    hung = [rank for rank, process in enumerate(processes) if process.is_alive()]
    for rank in hung:
        processes[rank].kill()
    errors = [path.read_text() for path in sorted(folder.glob("*.error"))]
    assert not errors, "\n".join(errors)
    assert not hung, f"ranks {hung} hang"
    assert [process.exitcode for process in processes] == [0] * world_size
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world_size)]


def grouped(function: Callable[..., Any], *arguments: Any) -> Any:
    """For ``in_ranks``: the function inside a process group of gloo."""
    dist.init_process_group("gloo", timeout=timedelta(seconds=_SECONDS))
    try:
        found = function(*arguments)
        dist.barrier()  # nobody leaves while the other still talks to it
        return found
    finally:
        dist.destroy_process_group()


def _work(
    function: Callable[..., Any], rank: int, world_size: int, port: int, folder: str, arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    if world_size > 1:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world_size),
            "LOCAL_WORLD_SIZE": str(world_size),
            "GROUP_RANK": "0",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "TORCHELASTIC_RUN_ID": "none",
        }
    try:
        torch.save(function(*arguments), f"{folder}/{rank}.pt")
    except BaseException:
        Path(folder, f"{rank}.error").write_text(f"rank {rank}: {traceback.format_exc()}")
        raise


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
