"""A long training with every callback on: does memory, the number of open files, or anything else grow?

    python benchmarks/soak.py [--steps 100000] [--folder <kept run directory>] [override ...]

A tiny network on digits, in this process. Twenty times, at the end of an epoch: resident memory, Python objects and
what containers hold, live tensors, open files, bytes of the event file, files of the run. Everything before a fifth of
the steps is warm-up; growth is the median of the last fifth against that of the second. Ends with what the event file
consists of, what an epoch and a step add to it, and exit status 1 if memory grew by 1 % or more, or open files or the
files of the run became more.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import sys
import tempfile
import time
from collections import Counter
from dataclasses import astuple, dataclass, fields
from math import ceil
from pathlib import Path
from statistics import median
from typing import Any

import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir

from tautnet.command_line import register_schema
from tautnet.config import plain
from tautnet.job import execute

CONF = Path(__file__).parents[1] / "conf"
BATCH = 10
STEPS_PER_EPOCH = 1258 // BATCH  # digits to train on
SAMPLED = 20  # times
MOST_GROWTH = 0.01  # of resident memory
EVERYTHING = [
    *("trainer=cpu", "trainer.enable_progress_bar=false", "trainer.log_every_n_steps=10", f"data.batch_size={BATCH}"),
    *("model.net.widths=[4,4]", "activation.num_knots=11", "logger=[tensorboard,csv]"),
    "callbacks=[recalibrate,sparsify,ics,spectrum,certify,variance,alternate,ema]",
    *("callbacks.lipschitz.num_steps=2", "callbacks.ics.num_samples=16", "callbacks.ics.num_projections=8"),
    *("callbacks.certify.num_samples=4", "callbacks.certify.num_steps=2"),
]


@dataclass(frozen=True)
class Sample:
    """What there is at the end of an epoch."""

    step: int
    epoch: int
    seconds: float
    memory: float  # MiB, resident
    objects: int  # that the garbage collector knows, made since the start
    held: int  # entries of all lists, dicts and sets
    tensors: int
    open_files: int
    events: int  # bytes
    files: int  # below the run directory


class Probe(pl.Callback):
    """Takes samples.

    Args:
        folder: of the run.
        every_n_epochs: from one to the next.
    """

    def __init__(self, folder: Path, every_n_epochs: int) -> None:
        self.folder, self.every_n_epochs = folder, every_n_epochs
        self.samples: list[Sample] = []
        self._start = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count, once the garbage is gone."""
        if (trainer.current_epoch + 1) % self.every_n_epochs:
            return
        gc.collect()
        known = [thing for thing in gc.get_objects() if thing is not self.samples]
        sample = Sample(
            trainer.global_step,
            trainer.current_epoch + 1,
            time.perf_counter() - self._start,
            resident(),
            len(known),
            sum(len(thing) for thing in known if type(thing) in (list, dict, set)),
            sum(issubclass(type(thing), torch.Tensor) for thing in known),
            len(os.listdir("/proc/self/fd")),
            sum(path.stat().st_size for path in self.folder.rglob("events.*")),
            sum(1 for _ in self.folder.rglob("*")),
        )
        self.samples.append(sample)


def resident() -> float:
    """MiB of memory that this process occupies."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / 2**20


def soak(folder: Path, epochs: int, overrides: list[str], watcher: pl.Callback | None = None) -> list[Sample]:
    """Train and return what was seen.

    Args:
        folder: for the run.
        epochs: of training.
        overrides: of ``conf/train.yaml``.
        watcher: a further callback.
    """
    probe = Probe(folder, max(1, epochs // SAMPLED))
    register_schema()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        settings = plain(compose("train", [f"run_dir={folder}", f"trainer.max_epochs={epochs}", *overrides]))
    fit = pl.Trainer.fit

    def watched(trainer: pl.Trainer, *arguments: Any, **options: Any) -> None:
        callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        callbacks += [watcher, probe] if watcher else [probe]
        fit(trainer, *arguments, **options)

    pl.Trainer.fit = watched  # type: ignore[method-assign]
    gc.collect()
    gc.freeze()  # what is there already is left out of all counts, which so take little time
    try:
        execute(settings | {"overrides": []})
    finally:
        gc.unfreeze()
        pl.Trainer.fit = fit  # type: ignore[method-assign]
    return probe.samples


def growth(samples: list[Sample], name: str) -> float:
    """Median of the last fifth less that of the second."""
    fifth = max(1, len(samples) // 5)
    values = [getattr(sample, name) for sample in samples]
    return median(values[-fifth:]) - median(values[fifth : 2 * fifth])


def event_bytes(folder: Path) -> Counter[str]:
    """Bytes in the event files by kind and first part of the tag, and the number of records under ``records``."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event

    sizes: Counter[str] = Counter()
    for path in folder.rglob("events.*"):
        for record in RawEventFileLoader(str(path)).Load():
            event = Event.FromString(record)
            kind = event.WhichOneof("what")
            if kind == "summary" and event.summary.value:
                value = event.summary.value[0]
                kind = f"{value.WhichOneof('value')} {value.tag.partition('/')[0]}/"
            sizes[str(kind)] += len(record) + 16  # length and checksums
            sizes["records"] += 1
    return sizes


def verdict(samples: list[Sample]) -> list[str]:
    """What grew that may not."""
    fifth = max(1, len(samples) // 5)
    before = median(sample.memory for sample in samples[fifth : 2 * fifth])
    grown = [f"{name} +{growth(samples, name):g}" for name in ("open_files", "files") if growth(samples, name) > 0]
    if growth(samples, "memory") >= MOST_GROWTH * before:
        grown.append(f"memory +{100 * growth(samples, 'memory') / before:.2f} %")
    return grown


def row(*cells: object) -> None:
    """Print a row of a table."""
    print("|", " | ".join(f"{cell:.1f}" if isinstance(cell, float) else str(cell) for cell in cells), "|", flush=True)


def report(samples: list[Sample], folder: Path) -> None:
    """Print the samples, the growth, and what the event file consists of."""
    row(*(field.name for field in fields(Sample)))
    row(*["---:"] * len(fields(Sample)))
    for sample in samples:
        row(*astuple(sample))
    first, last = samples[0], samples[-1]
    print()
    row("grew after warm-up", "by", "a 100,000 steps")
    row("---", "---:", "---:")
    fifth = max(1, len(samples) // 5)
    span = (samples[-1].step - samples[fifth].step) * 0.75  # between the middles of the two fifths
    for name in ("memory", "objects", "held", "tensors", "open_files", "files"):
        row(name, f"{growth(samples, name):.2f}", f"{growth(samples, name) / span * 1e5:.1f}")
    print()
    row("in the event file", "KiB", "share", "KiB an epoch")
    row("---", "---:", "---:", "---:")
    sizes = event_bytes(folder)
    records = sizes.pop("records")
    for kind, size in sizes.most_common():
        row(kind, size / 1024, f"{size / sizes.total():.1%}", f"{size / 1024 / last.epoch:.2f}")
    slope = (last.events - first.events) / (last.step - first.step)
    print(f"\n{records} records; {slope:.1f} bytes a step, {slope * 1e6 / 2**20:.0f} MiB in 1,000,000 steps")


def main() -> None:
    """Soak and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary, "run")
        folder.mkdir(parents=True)
        samples = soak(folder, ceil(given.steps / STEPS_PER_EPOCH), [*EVERYTHING, *given.overrides])
        print(f"python {platform.python_version()}, torch {torch.__version__}, {torch.get_num_threads()} threads\n")
        report(samples, folder)
        grown = verdict(samples)
    print("grew: " + ", ".join(grown) if grown else "nothing grew that may not")
    sys.exit(bool(grown))


if __name__ == "__main__":
    main()
