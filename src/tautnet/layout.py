"""How many processes a job has, and which of them this one is.

Imports neither torch nor Lightning before they are needed: ``--help`` stays fast.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tautnet.config import ConfigError

CPU_PROCESSES = 2  # that devices=auto means on CPUs
MOST_PROCESSES = 64  # that are started here, or as many as there are cores


@dataclass(frozen=True)
class World:
    """The processes that a launcher has started, seen from one of them.

    Attributes:
        launcher: its name, for messages.
        rank: number of this process.
        size: number of processes.
        local_size: of those, the ones on each node.
    """

    launcher: str
    rank: int
    size: int
    local_size: int


def launched() -> World | None:
    """The processes that torchrun or srun has started, if there are several."""
    env = os.environ
    if "TORCHELASTIC_RUN_ID" in env:
        world = World("torchrun", int(env["RANK"]), int(env["WORLD_SIZE"]), int(env["LOCAL_WORLD_SIZE"]))
    elif "SLURM_STEP_NUM_TASKS" in env:  # of srun alone: a batch script itself is one process, whatever it asked for
        size, nodes = int(env["SLURM_STEP_NUM_TASKS"]), int(env.get("SLURM_STEP_NUM_NODES", 1))
        world = World("srun", int(env["SLURM_PROCID"]), size, size // nodes)
    else:
        return None
    return world if world.size > 1 else None


def with_layout(trainer: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the trainer with numbers for ``devices=auto`` and ``num_nodes=auto``.

    ``auto`` is what torchrun or srun has started; without them one node, and on it all GPUs, or on CPUs 2 processes.

    Raises:
        ConfigError: numbers that are none, or not those of the launcher.
    """
    world = launched()
    devices, nodes = trainer["devices"], trainer["num_nodes"]
    if devices == "auto":
        devices = world.local_size if world else _num_devices(trainer.get("accelerator"))
    if nodes == "auto":
        nodes = world.size // world.local_size if world else 1
    if not (_is_list_of_gpus(devices) or _is_count(devices)):
        raise ConfigError(f"trainer.devices={devices}: auto, an integer of at least 1, or a list of GPUs")
    most = max(MOST_PROCESSES, os.cpu_count() or 1)
    if world is None and _is_count(devices) and devices > most:
        raise ConfigError(f"trainer.devices={devices}: at most {most} processes are started on one node")
    if not _is_count(nodes):
        raise ConfigError(f"trainer.num_nodes={nodes}: auto, or an integer of at least 1")
    found = dict(trainer) | {"devices": devices, "num_nodes": nodes}
    count = num_processes(found)
    if world is not None and (count, count * nodes) != (world.local_size, world.size):
        started = f"{world.launcher} has started {world.local_size} on each of {world.size // world.local_size} nodes"
        raise ConfigError(f"trainer.devices={devices} trainer.num_nodes={nodes}: auto; {started}")
    if world is None and nodes > 1:
        raise ConfigError(f"trainer.num_nodes={nodes}: 1, or start the processes by torchrun or srun")
    if shards(found):
        found["strategy"] = dict(found["strategy"]) | {"data_parallel_size": count * nodes}
    elif _strategy(found) == "DDPStrategy" and world is None and count == 1:
        found["strategy"] = "auto"  # with nobody to share gradients with
    return found


def shards(trainer: Mapping[str, Any]) -> bool:
    """Whether no process has all of the weights between the steps."""
    return _strategy(trainer) == "ModelParallelStrategy"


def _strategy(trainer: Mapping[str, Any]) -> str | None:
    """Name of the class of a strategy with settings of its own."""
    strategy = trainer.get("strategy")
    return str(strategy.get("_target_")).rpartition(".")[2] if isinstance(strategy, dict) else None


def num_processes(trainer: Mapping[str, Any]) -> int:
    """Processes on each node, of settings that have their layout."""
    devices = trainer["devices"]
    return len(devices) if isinstance(devices, list) else int(devices)


def num_ranks(trainer: Mapping[str, Any]) -> int:
    """Processes on all nodes, likewise."""
    return num_processes(trainer) * int(trainer["num_nodes"])


def _num_devices(accelerator: Any) -> int:
    import torch

    gpus = 0 if accelerator == "cpu" else torch.cuda.device_count()
    return gpus or (CPU_PROCESSES if accelerator == "cpu" else 1)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_list_of_gpus(devices: Any) -> bool:
    return isinstance(devices, list) and len(devices) > 0 and all(isinstance(device, int) for device in devices)
