"""The same seed gives the same bytes in interpreters that hash differently: 1 rank without, 2 with data workers."""

import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
import ranks
import torch
from conftest import CONF
from forked import PRELOADED
from hub_files import write_shards
from hydra import compose, initialize_config_dir
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

from tautnet.command_line import register_schema
from tautnet.config import plain
from tautnet.job import execute

pytest.importorskip("datasets")
TESTS = Path(__file__).parents[1]
QUICK = (
    *("data=stream", "data.image_size=4", "data.num_train=24", "data.batch_size=8", "data.shuffle_buffer=4"),
    *("data.augmentation.crop=1", "data.augmentation.mixup=0.2", "trainer.enable_progress_bar=false"),
    *("model.net.widths=[4]", "activation.num_knots=7", "trainer.max_epochs=2"),
    *("callbacks=[ics,ema]", "callbacks.ics.every_n_steps=2", "callbacks.ics.num_samples=4"),
    *("callbacks.ics.num_projections=2", "callbacks.lipschitz.num_samples=4", "callbacks.lipschitz.num_steps=1"),
)
JOBS = {  # by number of ranks
    1: ("trainer=cpu", "data.num_workers=0"),
    2: ("trainer=ddp_cpu", "data.num_workers=2"),
}


def work(root: str, shards: str) -> None:
    """In a fresh interpreter: all jobs, each in processes that are forked from it."""
    for module in (*PRELOADED, "datasets", "torch.utils.tensorboard", "torch._dynamo"):
        import_module(module)  # once, for all of them
    ranks.forking = multiprocessing.get_context("fork")
    register_schema()
    for world_size, overrides in JOBS.items():
        results, run = Path(root, f"ranks{world_size}"), Path(root, f"run{world_size}")
        results.mkdir()
        run.mkdir()
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose("train", [*QUICK, *overrides, f"run_dir='{run}'", f"data.path='{shards}'"])
        settings = plain(config) | {"overrides": []}
        settings["trainer"] |= {"devices": world_size, "num_nodes": 1}
        ranks.in_ranks(job, world_size, results, settings)


def job(settings: dict) -> float | None:
    """``execute`` in a process that may have children: the ranks of tests are daemons, which may not."""
    multiprocessing.current_process()._config["daemon"] = False
    return execute(settings)


@pytest.fixture(scope="module")
def twice(tmp_path_factory) -> list[Path]:
    """The folders of two interpreters, which run side by side."""
    shards = tmp_path_factory.mktemp("shards")
    write_shards(shards, "train", [8, 8, 8, 8])
    write_shards(shards, "validation", [6, 4], start=100)
    roots = [tmp_path_factory.mktemp(f"hash{seed}") for seed in (1, 2)]
    code = "import sys, test_determinism; test_determinism.work(*sys.argv[1:])"
    processes = []
    for seed, root in enumerate(roots, 1):
        paths = {"PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS / 'integration'}", "HF_DATASETS_CACHE": str(root / "cache")}
        environment = os.environ | paths | {"PYTHONHASHSEED": str(seed)}
        with (root / "err").open("w") as err:
            processes.append(subprocess.Popen([sys.executable, "-c", code, root, shards], env=environment, stderr=err))
    statuses = [process.wait(200) for process in processes]
    assert statuses == [0, 0], "".join((root / "err").read_text() for root in roots)
    return roots


def entries(value: object, path: str = "") -> Iterator[tuple[str, bytes]]:
    """Every tensor and scalar below ``value``, as bytes."""
    if isinstance(value, torch.Tensor):
        yield path, value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() + str(value.dtype).encode()
    elif isinstance(value, (dict, list, tuple)):
        for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
            yield from entries(entry, f"{path}.{key}")
    else:
        yield path, repr(value).encode()


def scalars(run: Path) -> list[tuple[str, int, bytes]]:
    """Tag, step and value of all that was logged, in its order."""
    found = []
    for file in sorted(run.rglob("events.*")):
        for event in LegacyEventFileLoader(str(file)).Load():
            for value in event.summary.value:
                if value.WhichOneof("value") == "simple_value" and "seconds" not in value.tag:
                    found.append((value.tag, event.step, str(value.simple_value).encode()))
    return found


@pytest.mark.parametrize("world_size", JOBS)
def test_the_same_seed_gives_the_same_bytes(world_size, twice):
    runs = [root / f"run{world_size}" for root in twice]
    checkpoints = [torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in runs]
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        first, second = (list(entries(checkpoint[part])) for checkpoint in checkpoints)
        assert len(first) > 2
        assert first == second, part
    logged = [scalars(run) for run in runs]
    assert {"train/loss", "val/acc", "test/acc"} <= {tag for tag, _, _ in logged[0]}
    assert logged[0] == logged[1]
    metrics = [json.loads((run / "result.json").read_text())["metrics"] for run in runs]
    for measured in metrics:
        del measured["time/fit_seconds"]
    assert metrics[0] == metrics[1]


@pytest.mark.parametrize("world_size", JOBS)
def test_pictures_and_settings_are_the_same_bytes_too(world_size, twice):
    here, afresh = (root / f"run{world_size}" for root in twice)
    names = sorted(path.relative_to(here) for path in here.rglob("*.png"))
    assert names == sorted(path.relative_to(afresh) for path in afresh.rglob("*.png"))
    assert names
    for name in names:
        assert (here / name).read_bytes() == (afresh / name).read_bytes(), name
    assert (here / "config.yaml").read_text().replace(str(here), str(afresh)) == (afresh / "config.yaml").read_text()


def test_two_ranks_with_workers_were_something_else(twice):
    weights = [torch.load(twice[0] / f"run{n}/checkpoints/last.ckpt", weights_only=True)["state_dict"] for n in JOBS]
    assert any(not torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert (twice[1] / "ranks2" / "1.pt").exists()
