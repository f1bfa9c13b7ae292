"""The processes of a job: what launchers say about them, numbers for auto, how settings reach all of them."""

import json
import threading

import pytest

from tautnet import distributed, layout
from tautnet.config import ConfigError

TORCHRUN = {"TORCHELASTIC_RUN_ID": "a", "RANK": "3", "WORLD_SIZE": "6", "LOCAL_WORLD_SIZE": "2"}
SRUN = {"SLURM_STEP_NUM_TASKS": "6", "SLURM_STEP_NUM_NODES": "3", "SLURM_PROCID": "3"}
DDP = {"_target_": "pytorch_lightning.strategies.DDPStrategy"}


@pytest.fixture
def launcher(monkeypatch):
    """Set the environment of a launcher, or of none."""

    def set_environment(values):
        for name in (*TORCHRUN, *SRUN, "SLURM_NTASKS"):
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    set_environment({})
    return set_environment


@pytest.mark.parametrize(("name", "environment"), [("torchrun", TORCHRUN), ("srun", SRUN)])
def test_a_launcher_says_who_takes_part(launcher, name, environment):
    launcher(environment)
    assert layout.launched() == layout.World(name, rank=3, size=6, local_size=2)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        TORCHRUN | {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"},
        SRUN | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NUM_NODES": "1", "SLURM_PROCID": "0"},
        {"SLURM_NTASKS": "8", "SLURM_PROCID": "0"},  # a batch script outside srun
    ],
)
def test_one_process_is_no_launch(launcher, environment):
    launcher(environment)
    assert layout.launched() is None


def laid_out(accelerator="cpu", devices="auto", num_nodes="auto", **others):
    found = layout.with_layout(
        {"accelerator": accelerator, "devices": devices, "num_nodes": num_nodes, "strategy": DDP} | others
    )
    return found["devices"], found["num_nodes"], found["strategy"]


def test_auto_is_what_the_launcher_has_started(launcher):
    launcher(TORCHRUN)
    assert laid_out() == (2, 3, DDP)
    assert laid_out(devices=2, num_nodes=3) == (2, 3, DDP)


def test_auto_is_otherwise_one_node_with_all_gpus_or_two_processes_of_a_cpu(launcher, monkeypatch):
    assert laid_out() == (2, 1, DDP)
    for count in (1, 4):
        monkeypatch.setattr("torch.cuda.device_count", lambda count=count: count)
        assert laid_out("gpu")[:2] == laid_out("auto")[:2] == (count, 1)
    assert laid_out("cpu")[0] == 2  # the GPUs are not asked


def test_one_device_alone_has_nobody_to_share_gradients_with(launcher):
    assert laid_out(devices=1) == (1, 1, "auto")
    own = {"_target_": "pytorch_lightning.strategies.DeepSpeedStrategy"}
    assert laid_out(devices=1, strategy=own) == (1, 1, own)


def test_shards_are_as_many_as_processes(launcher):
    sharded = {"_target_": "pytorch_lightning.strategies.ModelParallelStrategy", "tensor_parallel_size": 1}
    assert laid_out(devices=1, strategy=sharded)[2] == sharded | {"data_parallel_size": 1}
    launcher(TORCHRUN)
    assert laid_out(strategy=sharded)[2] == sharded | {"data_parallel_size": 6}


def test_named_gpus_stay_named(launcher):
    assert laid_out("gpu", devices=[0, 2]) == ([0, 2], 1, DDP)
    assert layout.num_processes({"devices": [0, 2]}) == 2


@pytest.mark.parametrize("devices", [0, -1, "all", [], 1.5, True, None, ["a"]])
def test_devices_that_are_no_number_are_refused(launcher, devices):
    with pytest.raises(ConfigError, match=r"^trainer\.devices=.*: auto, an integer of at least 1, or a list of GPUs"):
        laid_out(devices=devices)


@pytest.mark.parametrize("num_nodes", [0, "two"])
def test_nodes_that_are_no_number_are_refused(launcher, num_nodes):
    with pytest.raises(ConfigError, match=rf"^trainer\.num_nodes={num_nodes}: auto, or an integer of at least 1"):
        laid_out(num_nodes=num_nodes)


def test_several_nodes_need_a_launcher(launcher):
    with pytest.raises(ConfigError, match=r"^trainer\.num_nodes=2: .*torchrun or srun"):
        laid_out(num_nodes=2)


@pytest.mark.parametrize("asked", [{"devices": 1}, {"devices": 3, "num_nodes": 2}, {"num_nodes": 1}])
def test_other_numbers_than_the_launchers_are_refused(launcher, asked):
    launcher(SRUN)
    with pytest.raises(ConfigError, match=r"auto; srun has started 2 on each of 3 nodes"):
        laid_out(**asked)


def test_settings_reach_the_other_processes_in_order_until_they_are_dismissed(launcher, monkeypatch):
    from torch.distributed import HashStore

    launcher(TORCHRUN)
    for name in ("MASTER_PORT", "TORCHELASTIC_USE_AGENT_STORE"):  # announcing changes them
        monkeypatch.setenv(name, "1")
    store = HashStore()
    monkeypatch.setattr(distributed, "_store", lambda: store)
    received, ports = [], []

    def follow():
        for settings in distributed.announced():
            received.append(settings)

    other = threading.Thread(target=follow)
    other.start()
    jobs = [{"seed": 1, "p": float("inf")}, {"seed": 2, "p": 2}]
    for job in jobs:
        distributed.announce(job)
        ports.append(json.loads(store.get(f"tautnet/0/job {len(ports) + 1}"))["port"])
    distributed.dismiss()
    other.join(timeout=60)
    assert not other.is_alive()
    assert received == jobs
    assert all(port > 0 for port in ports)


def test_processes_that_are_started_again_do_not_hear_of_old_jobs(launcher, monkeypatch):
    assert distributed._key("jobs") == "tautnet/0/jobs"
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert distributed._key("jobs") == "tautnet/1/jobs"


def test_nodes_of_one_process_each_share_gradients(launcher):
    launcher(TORCHRUN | {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"})
    assert laid_out() == (1, 2, DDP)


def test_auto_under_a_launcher_is_no_guess(launcher, monkeypatch):
    launcher(TORCHRUN | {"LOCAL_WORLD_SIZE": "3"})
    assert laid_out() == (3, 2, DDP)
    launcher({})
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert laid_out("auto") == (1, 1, "auto")  # no GPU here: one process, as trainer=auto has


@pytest.mark.parametrize(("devices", "num_nodes", "ranks"), [(2, 3, 6), ([0, 2], 2, 4), (1, 1, 1)])
def test_ranks_are_those_of_all_nodes(devices, num_nodes, ranks):
    assert layout.num_ranks({"devices": devices, "num_nodes": num_nodes}) == ranks
