"""Four hundred steps with every callback: nothing grows. benchmarks/soak.py is the long version."""

import sys

import pytorch_lightning as pl
from conftest import ROOT

from tautnet.callbacks import layer_history

sys.path.insert(0, str(ROOT / "benchmarks"))
import soak

EPOCHS, STEPS = 20, 20
QUICK = (
    *(f"trainer.limit_train_batches={STEPS}", "trainer.limit_val_batches=2", "logger=tensorboard"),
    *("callbacks.lipschitz.num_samples=4", "callbacks.lipschitz.num_steps=0"),
    *(f"callbacks.{name}.figure_every_n_epochs=99" for name in ("lipschitz", "splines", "ics", "spectrum")),  # slow
)


class Leak(pl.Callback):
    """Keeps what it sees, and a file open, every epoch."""

    def __init__(self) -> None:
        self.kept = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.kept.append([outputs["loss"]])

    def on_train_epoch_end(self, trainer, pl_module):
        self.kept.append(open("/dev/null"))  # noqa: SIM115


def test_nothing_grows(tmp_path, monkeypatch):
    monkeypatch.setattr(layer_history, "_MOST_COLUMNS", 4)  # it fills in the warm-up
    monkeypatch.setattr(soak, "SAMPLED", 10)
    samples = soak.soak(tmp_path, EPOCHS, [*soak.EVERYTHING, *QUICK])
    assert samples[-1].step == EPOCHS * STEPS
    grown = {name: soak.growth(samples, name) for name in ("objects", "held", "tensors")}
    assert max(grown.values()) < EPOCHS / 2, grown  # less than one an epoch: histories of layers fill up and halve
    assert soak.growth(samples, "open_files") == soak.growth(samples, "files") == 0


def test_a_leak_is_seen(tmp_path):
    leak = Leak()
    few = ["trainer.limit_train_batches=5", "callbacks=none", "logger=none"]
    samples = soak.soak(tmp_path, 20, [*soak.EVERYTHING[:6], *QUICK[:2], *few], leak)
    for thing in leak.kept:
        if not isinstance(thing, list):
            thing.close()
    assert soak.growth(samples, "open_files") > 0
    assert soak.growth(samples, "tensors") > 0
    assert any("open_files" in grown for grown in soak.verdict(samples))
