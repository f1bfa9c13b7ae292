"""``trainer=fsdp``: gradients and the optimizer's state shared out among two ranks, the answer that of one process."""

from functools import partial
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from conftest import CONF
from hydra import compose, initialize_config_dir
from ranks import in_ranks
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from tautnet.command_line import register_schema
from tautnet.config import plain
from tautnet.job import execute
from tautnet.layout import with_layout

JOB = (
    *("model.net.widths=[4,5]", "activation.num_knots=7", "norm=unitize", "norm/weight=spectral", "data.batch_size=48"),
    *("optimizer.lr=0.02", "scheduler=none", "trainer.gradient_clip_val=0.5", "trainer.limit_train_batches=4"),
    *("trainer.max_epochs=2", "callbacks=checkpoints", "logger=none", "trainer.enable_progress_bar=false"),
)


def recorded(settings):
    """Do a job; the weights at its end, the metrics of its test, and what a rank had of each between the steps."""
    found = {"shares": []}
    step = pl.Trainer.test

    def watched(trainer, model, *arguments, **options):
        found["shares"] = [
            (tuple(value.shape), value.to_local().numel()) for value in model.parameters() if isinstance(value, DTensor)
        ]
        found["sharded"] = isinstance(model.net, FSDPModule)
        step(trainer, model, *arguments, **options)
        found["metrics"] = {name: float(value) for name, value in trainer.callback_metrics.items()}

    pl.Trainer.test = watched
    execute(settings)
    return found


def settings_of(trainer, world_size, folder):
    register_schema()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        overrides = [f"trainer={trainer}", "trainer.accelerator=cpu", f"run_dir={folder}", *JOB]
        settings = plain(compose("train", overrides=overrides)) | {"overrides": []}
    settings["trainer"] = with_layout(settings["trainer"] | {"devices": world_size, "num_nodes": 1})
    return settings


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of each run and what its ranks ended with, of one process and of two that share."""
    made = []
    for trainer, world_size in (("cpu", 1), ("fsdp", 2)):
        root = tmp_path_factory.mktemp(trainer)
        (root / "run").mkdir()
        made.append(
            (root / "run", in_ranks(recorded, world_size, root, settings_of(trainer, world_size, root / "run")))
        )
    return made


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def test_the_weights_and_metrics_are_those_of_one_process(runs):
    close = partial(torch.testing.assert_close, rtol=2e-4, atol=2e-6)  # float32; float64 is refused by Lightning
    (alone, (one,)), (together, (first, second)) = runs
    expected, found = weights(alone), weights(together)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        close(found[name], value, msg=name)
    assert first["metrics"] == second["metrics"]
    assert first["metrics"] == pytest.approx(one["metrics"], rel=1e-4)


def test_each_rank_keeps_a_part(runs):
    (_, (one,)), (_, (first, second)) = runs
    assert one["shares"] == []
    assert first["sharded"]
    assert second["sharded"]
    for (shape, mine), (other, rest) in zip(first["shares"], second["shares"], strict=True):
        assert shape == other
        assert mine + rest == torch.Size(shape).numel()
    assert sum(rest for _, rest in second["shares"]) > 0.3 * sum(mine for _, mine in first["shares"])
