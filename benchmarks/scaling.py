"""How time and traffic grow: with depth, width, knots and batch, with ranks, and with the runs of a sweep.

    python benchmarks/scaling.py [--parts steps ranks overhead bytes sweep decode resnet50] [--rounds 5]
    python benchmarks/scaling.py --quick        # does it run: two values of everything, one round, no `ranks`

Candidates take turns. A time is the median over the rounds, a ratio the median over the rounds of the ratio of two
times of one round. One thread a process. `steps` and `decode` count processor seconds, so that other programs matter
little; `ranks` and `overhead` are times of the clock and need a quiet machine with a core for each rank.

steps     processor time of a training step (forward, backward, SGD) of nets with splines and norm=unitize, against one
          size at a time; the slope of log time against log size, by least squares over all values, and of the last two
ranks     seconds of training, one process against two with the same global batch; efficiency T1 / (2 T2).
overhead  seconds of training with a callback or a regularizer, in times of the same job without, by number of ranks.
bytes     what the collectives of one rank carry in a training step, a validation and the rest of an epoch: counted at
          torch's dispatcher, through which DDP's reducer goes too. The counter is first compared with a case by hand.
sweep     what a run of a sweep costs beside its training: start, set-up, disk, and the summary of many runs.
decode    JPEG photographs that one core brings to 224 x 224 in a second.
resnet50  parameters of the ImageNet network; processor seconds of its Lipschitz bound; processor seconds and memory an
          image of the forward pass that a job tries before it starts.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from tautnet import logkeys
from tautnet.activations import LinearSpline
from tautnet.backbones import LayerFactory, cifar_resnet, convnet, imagenet_resnet, mlp
from tautnet.lipschitz import lipschitz_bound
from tautnet.normalizers import BatchNorm, Unitize, no_weight_norm

Run = Callable[[], object]
ROOT = Path(__file__).parents[1]
TRAIN = str(ROOT / "train.py")
PARTS = ["steps", "ranks", "overhead", "bytes", "sweep", "decode", "resnet50"]
QUIET = ["trainer.enable_progress_bar=false", "run=[fit]"]
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}


def table(*header: str) -> None:
    """Print the head of a table."""
    print("\n" + " | ".join(["", *header, ""]).strip())
    print(" | ".join(["", *["---"] * len(header), ""]).strip(), flush=True)


def row(*cells: object) -> None:
    """Print a row."""
    print(" | ".join(["", *(f"{c:.2f}" if isinstance(c, float) else str(c) for c in cells), ""]).strip(), flush=True)


@contextmanager
def named(candidate: str) -> Iterator[None]:
    """Say which candidate failed."""
    try:
        yield
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"{candidate}: exit status {error.returncode}\n{error.stderr[-3000:]}") from None
    except Exception as error:
        raise SystemExit(f"{candidate}: {error!r}") from error


# --- a training step --------------------------------------------------------------------------------------------------

# net: what it starts from, and the values of each size
SIZES: dict[str, tuple[dict[str, int], dict[str, list[int]]]] = {
    "ResNet, 16x16": (
        {"depth": 14, "width": 16, "knots": 51, "batch": 32},
        {
            "depth": [8, 14, 20, 32, 44],
            "width": [8, 16, 32, 64],
            "knots": [5, 21, 51, 201, 801],
            "batch": [8, 16, 32, 64, 128],
        },
    ),
    "convnet, 32x32": (
        {"depth": 3, "width": 32, "knots": 51, "batch": 64},
        {"width": [16, 32, 64, 128], "knots": [5, 21, 51, 201, 801], "batch": [16, 32, 64, 128]},
    ),
    "mlp, 64 inputs": (
        {"depth": 4, "width": 128, "knots": 51, "batch": 128},
        {
            "depth": [2, 4, 8, 16],
            "width": [64, 128, 256, 512, 1024],
            "knots": [5, 21, 51, 201, 801],
            "batch": [32, 64, 128, 256, 512],
        },
    ),
}


def net_of(name: str, size: dict[str, int]) -> tuple[nn.Module, tuple[int, ...]]:
    """A net of splines and Unitize, and the shape of its input."""
    layers = LayerFactory(partial(LinearSpline, num_knots=size["knots"]), Unitize, no_weight_norm)
    depth, width = size["depth"], size["width"]
    if name.startswith("ResNet"):
        return cifar_resnet(layers, (3, 16, 16), 10, depth=depth, width=width), (3, 16, 16)
    if name.startswith("convnet"):
        return convnet(layers, (3, 32, 32), 10, widths=[width] * depth), (3, 32, 32)
    return mlp(layers, (64,), 10, widths=[width] * depth), (64,)


def training_step(name: str, size: dict[str, int]) -> Run:
    """Forward, backward, optimizer."""
    torch.manual_seed(0)
    net, shape = net_of(name, size)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    x, targets = torch.randn(size["batch"], *shape), torch.randint(10, (size["batch"],))

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(net(x), targets).backward()
        optimizer.step()

    return step


def processor_seconds(run: Run, repeats: int) -> float:
    """Mean time of a run, other programs left out."""
    start = time.process_time()
    for _ in range(repeats):
        run()
    return (time.process_time() - start) / repeats


def interleaved(runs: dict[str, Run], rounds: int) -> dict[str, float]:
    """Median of each, taking turns; short ones are repeated within a round."""
    repeats = {}
    for name, run in runs.items():
        with named(name):
            run()
            repeats[name] = max(1, min(50, int(0.05 / max(processor_seconds(run, 1), 1e-6))))
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(processor_seconds(run, repeats[name]))
    return {name: median(values) for name, values in times.items()}


def slope(values: Sequence[float], times: Sequence[float]) -> float:
    """Least squares of log time against log value."""
    return float(np.polyfit(np.log(values), np.log(times), 1)[0])


def compare_steps(rounds: int, quick: bool) -> None:
    """One table: a row for each net and size."""
    table("net", "varied", "range", "ms", "slope", "slope of the last two", "beside")
    for name, (start, sizes) in SIZES.items():
        for varied, values in sizes.items():
            values = values[:2] if quick else values
            runs = {f"{name}, {varied}={v}": training_step(name, start | {varied: v}) for v in values}
            times = list(interleaved(runs, rounds).values())
            milliseconds = ", ".join(f"{1e3 * t:.3g}" for t in times)
            rest = ", ".join(f"{key} {value}" for key, value in start.items() if key != varied)
            spans = f"{values[0]} … {values[-1]}"
            row(name, varied, spans, milliseconds, slope(values, times), slope(values[-2:], times[-2:]), rest)


# --- the program ------------------------------------------------------------------------------------------------------


def sweep(arguments: list[str], seeds: int, ranks: int = 1) -> dict[tuple[str, ...], list[float]]:
    """Seconds of training of each combination of overrides, an entry a seed; in one launch, the seeds outermost.

    The first seed is not counted: it pays for what a process does once.
    """
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    with tempfile.TemporaryDirectory() as folder, named(" ".join(arguments)):
        jobs = ["-m", f"seed=range({seeds + 1})", *arguments, *QUIET, "logger=none", f"hydra.sweep.dir={folder}"]
        subprocess.run(
            [sys.executable, *launcher, TRAIN, *jobs], check=True, capture_output=True, text=True, env=ONE_THREAD
        )
        results = [json.loads(path.read_text()) for path in Path(folder).glob("*/result.json")]
    found: dict[tuple[str, ...], dict[int, float]] = {}
    for result in results:
        key = tuple(override for override in result["overrides"] if not override.startswith("seed="))
        found.setdefault(key, {})[result["seed"]] = float(result["metrics"][logkeys.FIT_SECONDS])
    return {key: [seconds for seed, seconds in sorted(of.items()) if seed > 0] for key, of in found.items()}


JOBS = {
    "ResNet-20 of width 32, digits, 128": ["model=resnet20", "model.net.width=32", "data.batch_size=128", "epochs=4"],
    "the same, relu, batch": [
        *("model=resnet20", "model.net.width=32", "data.batch_size=128", "epochs=4", "activation=relu", "norm=batch"),
    ],
    "main job's convnet, digits, 64": ["epochs=6"],
    "mlp of 64-64, digits, 64": ["model=mlp", "epochs=10"],
    "mlp of 64-64, iris, 20": ["data=iris", "data.batch_size=20", "model=mlp", "epochs=60"],
}


def compare_ranks(rounds: int) -> None:
    """One table: a row a job."""
    table("job, global batch", "1 process, s", "2 processes, s", "speed-up", "efficiency")
    for name, settings in JOBS.items():
        job = [setting.replace("epochs=", "trainer.max_epochs=") for setting in settings]
        times = sweep(["trainer=cpu,ddp_cpu", "callbacks=none", *job], rounds)
        one, two = (next(of for key, of in times.items() if f"trainer={which}" in key) for which in ("cpu", "ddp_cpu"))
        gain = median(a / b for a, b in zip(one, two, strict=True))
        row(name, median(one), median(two), gain, f"{gain / 2:.0%}")


# what is varied: fixed settings, the key, the one that the others are compared with, the others
OVERHEADS: list[tuple[list[str], str, str, list[str]]] = [
    ([], "callbacks", "none", ["checkpoints", "default"]),
    ([], "callbacks", "default", ["ics", "sparsify", "spectrum"]),
    (["norm=none", "optimizer.lr=1e-3"], "callbacks", "default", ["variance"]),
    (["callbacks=none"], "regularizer", "none", ["lipschitz", "orthonormality"]),
    (["callbacks=none"], "~regularizer.tv2", "without", ["with"]),  # of two launches, as a grid cannot leave it out
]


def compare_overheads(rounds: int, ranks: list[int], quick: bool) -> None:
    """One table: a row a candidate, a column a number of ranks."""
    counts = [f"{n} rank{'s' * (n > 1)}" for n in ranks]
    table("digits, convnet, 4 epochs", "/ the same with", *counts, *(f"{count}, s" for count in counts))
    for fixed, key, reference, others in OVERHEADS[:1] if quick else OVERHEADS:
        ratios: dict[str, list[float]] = {other: [] for other in others}
        seconds: dict[str, list[float]] = {other: [] for other in others}
        for count in ranks:
            by_value = times_by_value(fixed, key, [reference, *others], rounds, count)
            for other in others:
                pairs = zip(by_value[other], by_value[reference], strict=True)
                ratios[other].append(median(a / b for a, b in pairs))
                seconds[other].append(median(by_value[other]))
        for other in others:
            row(f"{' '.join([*fixed, ''])}{key.strip('~')}={other}", reference, *ratios[other], *seconds[other])


def times_by_value(fixed: list[str], key: str, values: list[str], rounds: int, ranks: int) -> dict[str, list[float]]:
    """Seconds of training with each value of a key; of a key to leave out, those without and with."""
    job = [f"trainer={'cpu' if ranks == 1 else 'ddp_cpu'}", "trainer.max_epochs=4", *fixed]
    if key.startswith("~"):
        (without,), (whole,) = (sweep([*job, *left_out], rounds, ranks).values() for left_out in ([key], []))
        return {"without": without, "with": whole}
    times = sweep([*job, f"{key}={','.join(values)}"], rounds, ranks)
    return {value: next(of for overrides, of in times.items() if f"{key}={value}" in overrides) for value in values}


# --- bytes ------------------------------------------------------------------------------------------------------------


class Traffic(TorchDispatchMode):
    """Calls and bytes of the collectives of this rank, by stage.

    Bytes of a reduction or broadcast are the tensor's, those of a gather what this rank gives.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stage = "start"
        self.calls: Counter[tuple[str, str]] = Counter()
        self.bytes: Counter[tuple[str, str]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            self._count(func._schema.name.removeprefix("c10d::"), args)
        return func(*args, **(kwargs or {}))

    def forget(self, *stages: str) -> None:
        """Begin these anew."""
        for counter in (self.calls, self.bytes):
            for stage, kind in list(counter):
                if stage in stages:
                    del counter[stage, kind]

    def _count(self, name: str, args: tuple[Any, ...]) -> None:
        kind = next((kind for kind in ("reduce", "broadcast", "gather", "barrier") if kind in name), name)
        sent = args[1] if kind == "gather" else args[0]
        size = 0 if kind == "barrier" else sum(t.nbytes for t in (sent if isinstance(sent, (list, tuple)) else [sent]))
        self.calls[self.stage, kind] += 1
        self.bytes[self.stage, kind] += size


def by_hand() -> None:
    """Compare the counter with a step of DDP whose bytes can be told: 8 parameters, and a buffer of 5."""
    dist.init_process_group("gloo")
    net = nn.Linear(3, 2)
    net.register_buffer("five", torch.zeros(5))
    copies = DistributedDataParallel(net)
    for traffic in (Traffic(), Traffic(), Traffic()):  # in its first steps DDP also agrees on its buckets
        with traffic:
            copies(torch.ones(4, 3)).sum().backward()
            dist.all_reduce(torch.ones(10, dtype=torch.float64))
            dist.all_gather([torch.empty(7) for _ in range(2)], torch.ones(7))
    dist.destroy_process_group()
    counted = {kind: traffic.bytes["start", kind] for kind in ("reduce", "broadcast", "gather")}
    by_hand = {"reduce": 4 * 8 + 8 * 10, "broadcast": 4 * 5, "gather": 4 * 7}
    if counted != by_hand:
        raise ValueError(f"counted {counted}, by hand {by_hand}")


def counted(settings: dict[str, Any]) -> dict[Any, Any]:
    """Do a job and return this rank's traffic in the last step, the last validation and the rest of the last epoch."""
    import pytorch_lightning as pl

    from tautnet.job import execute

    traffic, found = Traffic(), {}

    class Stages(pl.Callback):
        def on_train_epoch_start(self, trainer: pl.Trainer, model: pl.LightningModule) -> None:
            traffic.forget("validation", "rest")
            found["parameters"] = sum(p.numel() for p in model.parameters())

        def on_train_batch_start(self, *_: Any) -> None:
            traffic.forget("step")
            traffic.stage = "step"

        def on_train_batch_end(self, *_: Any) -> None:
            traffic.stage = "rest"

        def on_validation_start(self, *_: Any) -> None:
            traffic.stage = "validation"

        def on_validation_end(self, *_: Any) -> None:
            traffic.stage = "rest"

    fit = pl.Trainer.fit

    def watched(trainer: pl.Trainer, *arguments: Any, **options: Any) -> None:
        trainer.callbacks.append(Stages())  # the last: what other callbacks do in a hook counts with it
        with traffic:
            fit(trainer, *arguments, **options)

    pl.Trainer.fit = watched
    execute(settings)
    return found | {key: (traffic.calls[key], size) for key, size in traffic.bytes.items()}


def in_ranks(function: Callable[..., Any], *arguments: Any) -> Any:
    """What the function returns in the first of two processes, with the environment that torchrun makes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tautnet.job", "tautnet.callbacks", "tautnet.results", "sklearn.model_selection"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    answers = context.SimpleQueue()
    processes = [
        context.Process(target=_rank, args=(function, rank, port, answers, arguments), daemon=True) for rank in range(2)
    ]
    for process in processes:
        process.start()
    results = dict(answers.get() for _ in processes)
    for process in processes:
        process.join()
    errors = [str(result) for result in results.values() if isinstance(result, str)]
    if errors:
        raise RuntimeError("\n".join(errors))
    return results[0]


def _rank(function: Callable[..., Any], rank: int, port: int, answers: Any, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    here = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "GROUP_RANK": 0}
    there = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "none"}
    os.environ |= {name: str(value) for name, value in (here | there).items()}
    with open(os.devnull, "w") as nowhere:  # what the program prints; what went wrong is an answer
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    try:
        answers.put((rank, function(*arguments)))
    except BaseException:
        answers.put((rank, f"rank {rank}: {traceback.format_exc()}"))


SMALL = ["callbacks=none", "activation=relu"]
LARGE = ["callbacks=none", "model=resnet50", "data=npz", "data.batch_size=8", "data.val_fraction=0.5"]
TRAFFIC = {
    "convnet, relu, none": [*SMALL, "norm=none"],
    "convnet, relu, group": [*SMALL, "norm=group"],
    "convnet, relu, batch": [*SMALL, "norm=batch"],
    "convnet, relu, unitize": [*SMALL, "norm=unitize"],
    "convnet, spline, unitize": ["callbacks=none"],
    "convnet, slaf, unitize": ["callbacks=none", "activation=slaf"],
    "main job: with callbacks=default": [],
    "callbacks=variance, relu, none": ["callbacks=variance", "activation=relu", "norm=none", "optimizer.lr=1e-3"],
    "ResNet-20, spline, unitize": ["callbacks=none", "model=resnet20"],
    "ResNet-50, 1000 classes, relu, group": [*LARGE, "activation=relu", "norm=group"],
    "ResNet-50, 1000 classes, relu, batch": [*LARGE, "activation=relu", "norm=batch"],
    "ResNet-50, 1000 classes, spline, unitize": LARGE,
}


def composed(overrides: list[str]) -> Any:
    """The settings that the program would compose."""
    from hydra import compose, initialize_config_dir

    from tautnet.command_line import register_schema

    register_schema()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("train", overrides=overrides)


def compare_traffic(quick: bool) -> None:
    """Two tables, of a step and of an epoch: a row a case."""
    from tautnet.config import plain

    with named("the counter, a case by hand"):
        in_ranks(by_hand)
    print("\nThe counter agrees with the case by hand.")
    found = {}
    for name, job in list(TRAFFIC.items())[:2] if quick else TRAFFIC.items():
        with tempfile.TemporaryDirectory() as folder, named(name):
            job = [*job, *([f"data.root={many_classes(Path(folder))}"] if "data=npz" in job else [])]
            fixed = [*QUIET, "logger=none", "trainer.max_epochs=2", "trainer.limit_train_batches=3"]
            config = composed(["trainer=ddp_cpu", f"run_dir={folder}", *fixed, *job])
            settings = plain(config) | {"overrides": []}
            settings["trainer"] |= {"devices": 2, "num_nodes": 1}
            found[name] = in_ranks(counted, settings)
    table("one step; bytes, (calls)", "4 x parameters", "all-reduced", "more than the gradients", *KINDS[1:])
    for name, of in found.items():
        gradients, (_, size) = 4 * of["parameters"], of["step", "reduce"]
        cells = [_cell(of, "step", kind) for kind in KINDS]
        row(name, f"{gradients:,}", cells[0], f"{size - gradients:,}", *cells[1:])
    stages = ("validation", "rest")
    table("one epoch; bytes, (calls)", *(f"{stage}: {kind}" for stage in stages for kind in KINDS))
    for name, of in found.items():
        row(name, *(_cell(of, stage, kind) for stage in stages for kind in KINDS))


KINDS = ("reduce", "broadcast", "gather")


def _cell(found: dict[Any, Any], stage: str, kind: str) -> str:
    calls, size = found.get((stage, kind), (0, 0))
    return f"{size:,} ({calls})"


def many_classes(folder: Path) -> Path:
    """Noise of a thousand classes."""
    rng = np.random.default_rng(0)
    parts = {}
    for part, copies in (("train", 2), ("test", 1)):
        parts[f"x_{part}"] = rng.integers(0, 256, (1000 * copies, 32, 32, 3), dtype=np.uint8)
        parts[f"y_{part}"] = np.tile(np.arange(1000), copies)
    path = folder / "noise.npz"
    np.savez(path, **parts)
    return path


# --- the runs of a sweep ----------------------------------------------------------------------------------------------


def cost(arguments: list[str]) -> tuple[float, float]:
    """Seconds of the clock and of all processors of a command."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with named(" ".join(arguments)):
        subprocess.run([sys.executable, TRAIN, *arguments], check=True, capture_output=True, text=True, env=ONE_THREAD)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - start, used


def compare_starts(rounds: int, more: int) -> None:
    """One table: a row for one process, and one for two, which are started anew for each job."""
    tiny = ["data=iris", "data.batch_size=20", "model=mlp", "trainer.max_epochs=1", *QUIET]
    table("tiny job (mlp, iris, 1 epoch, default callbacks)", "first job: clock, processor s", "each further one")
    for trainer in ("cpu", "ddp_cpu"):
        first, further = [], []
        for _ in range(rounds):
            costs = []
            for count in (1, 1 + more):
                with tempfile.TemporaryDirectory() as folder:
                    costs.append(cost(["-m", f"seed=range({count})", f"trainer={trainer}", *tiny, _into(folder)]))
            first.append(costs[0])
            further.append(tuple((b - a) / more for a, b in zip(*costs, strict=True)))
        row(
            f"trainer={trainer}",
            *(", ".join(f"{median(c):.1f}" for c in zip(*of, strict=True)) for of in (first, further)),
        )


def sum_up(runs: int) -> None:
    """Three lines: composing, the disk of a run, and the seconds of a sweep that has nothing left to do."""
    seconds = median(processor_seconds(lambda: composed(["trainer=cpu", "run_dir=x"]), 1) for _ in range(5))
    print(f"\nComposing the settings of a run: {seconds:.2f} s.")
    with tempfile.TemporaryDirectory() as folder:
        cost(["-m", "seed=0", "trainer=cpu", "trainer.max_epochs=1", *QUIET, _into(folder)])
        job = Path(folder, "0")
        files = [path for path in job.rglob("*") if path.is_file()]
        size, saved = (sum(p.stat().st_size for p in files if which in str(p)) for which in ("", "checkpoints"))
        print(f"The main job's directory: {size:,} bytes in {len(files)} files, {saved:,} in checkpoints.")
        for number in range(1, runs):
            _another(job, number)
        seconds, used = cost(
            ["-m", f"seed=range({runs})", "trainer=cpu", "trainer.max_epochs=1", *QUIET, _into(folder)]
        )
        if Path(folder, str(runs - 1), "checkpoints").exists():
            raise SystemExit("sweep: the copies of a finished run were not taken for finished")
        print(f"The same command with {runs} runs finished (skips, sums up): {seconds:.1f} s, processor {used:.1f} s.")


def _into(folder: str) -> str:
    return f"hydra.sweep.dir={folder}"


def _another(job: Path, number: int) -> None:
    """A copy of a finished run that passes for the one of another seed."""
    folder = job.parent / str(number)
    folder.mkdir()
    shutil.copy(job / "config.yaml", folder)
    text = (job / "result.json").read_text()
    (folder / "result.json").write_text(
        text.replace('"seed=0"', f'"seed={number}"').replace('"seed": 0', f'"seed": {number}')
    )


# --- decoding ---------------------------------------------------------------------------------------------------------


def compare_decoding(rounds: int) -> None:
    """One line."""
    import sklearn.datasets

    from tautnet.data.hub_access import decoded

    photographs = [p.read_bytes() for p in sorted((Path(sklearn.datasets.__file__).parent / "images").glob("*.jpg"))]
    count = len(photographs) * 16
    start = lambda: decoded(photographs * 16, "scikit-learn", 224, 3)  # noqa: E731
    with named("decode"):
        seconds = median(processor_seconds(start, 1) for _ in range(1 + rounds)) / count
    kilobytes = mean(len(photograph) for photograph in photographs) / 1e3
    print(f"\nJPEG of 640 x 427, {kilobytes:.0f} kB: {1 / seconds:.0f} a second of one core, to 224 x 224.")


# --- a large network --------------------------------------------------------------------------------------------------


def resnet50(norm: type[nn.Module]) -> nn.Module:
    """With splines, for ImageNet."""
    return imagenet_resnet(LayerFactory(LinearSpline, norm, no_weight_norm), (3, 224, 224), 1000, depth=50)


def tried(images: int) -> tuple[float, float]:
    """Processor seconds and MB an image of a training forward without gradients, in a process that did nothing else."""
    torch.set_num_threads(1)
    net, peaks, seconds = resnet50(Unitize).train(), [], 0.0
    with torch.no_grad():
        for count in (images, 2 * images):
            x = torch.randn(count, 3, 224, 224)
            seconds = processor_seconds(lambda x=x: net(x), 1) / count
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)
    return seconds, (peaks[1] - peaks[0]) / images


def large_network(quick: bool) -> None:
    """Three lines."""
    with torch.device("meta"):
        net = resnet50(Unitize)
    parameters, buffers = sum(p.numel() for p in net.parameters()), sum(b.nbytes for b in net.buffers())
    print(f"\nResNet-50, splines, unitize: {parameters:,} parameters, {buffers:,} bytes of buffers.")
    with named("resnet50, forward"), multiprocessing.get_context("spawn").Pool(1) as pool:
        seconds, megabytes = pool.apply(tried, (2 if quick else 16,))
    print(f"Forward in training mode without gradients: {seconds:.2f} s and {megabytes:.0f} MB an image.")
    net, side = resnet50(BatchNorm).eval(), 32 if quick else 224
    with named("resnet50, bound"):
        seconds = processor_seconds(lambda: lipschitz_bound(net, (3, side, side), 2), 1)
    print(f"Its Lipschitz bound, with batch norms, for {side} x {side}: {seconds:.0f} s.")


def main() -> None:
    """Print the tables that were asked for."""
    parser = argparse.ArgumentParser(description="How time and traffic grow.")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--runs", type=int, default=1000, help="finished runs that the part sweep sums up")
    parser.add_argument("--quick", action="store_true", help="two values, one round: does it run")
    asked = parser.parse_args()
    quick, rounds = asked.quick, 1 if asked.quick else asked.rounds
    torch.set_num_threads(1)
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, load {load}"
    )
    if "steps" in asked.parts:
        compare_steps(rounds, quick)
    if "ranks" in asked.parts and not quick:
        compare_ranks(rounds)
    if "overhead" in asked.parts:
        compare_overheads(rounds, [1] if quick else [1, 2], quick)
    if "bytes" in asked.parts:
        compare_traffic(quick)
    if "sweep" in asked.parts:
        compare_starts(1 if quick else max(1, rounds // 2), 2 if quick else 4)
        sum_up(10 if quick else asked.runs)
    if "decode" in asked.parts:
        compare_decoding(rounds)
    if "resnet50" in asked.parts:
        large_network(quick)


if __name__ == "__main__":
    main()
