"""Variance constancy (VCL) against batch normalisation and none: test accuracy on ten UCI tables and Fashion-MNIST.

    python benchmarks/vcl_table.py --data <folder of csv files, last column target> [--fashion <folder of idx files>]
    python benchmarks/vcl_table.py --data <folder> --rates [--tables pendigits letter yeast]

For every data set, activation and method the same training: Adam, RATE with a cosine down to 0, 500 batches of 64.
The loss has the settings of its authors' code: weight 0.01, one pair of subsets of n = 5, beta learned from 1; they are
the defaults of regularizer=variance. Their dense net for tables is not known: here four hidden layers of 64, that of
experiment=vcl_kurtosis. Fashion-MNIST: convolutions of 8, 16 and 32 channels, 5000 of the training images, 300
batches, all test images. A seed decides the split (of Fashion-MNIST the training images), the initial weights and the
order, and is the same for the three methods. Splines have their penalty and optimizer with every method.

No test sample has a say: there is no early stopping, the final weights are tested once, and the rate is the one of
RATES with the best validation accuracy, averaged over the methods and activations, on tables that are not among the
ten, which --rates prints; Fashion-MNIST takes it over. Metrics: accuracy in percent, mean ± standard deviation over
the seeds. Summary: mean rank of the methods; VCL's difference, mean ± standard error over the data sets; wins / ties /
losses (w / t / l), where a tie is a mean difference of not more than the standard error of the paired difference over
the seeds, and again of not more than the 95 % limit of Student's t.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from itertools import count, islice, product
from math import sqrt
from pathlib import Path
from statistics import mean, stdev
from time import process_time
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from scipy.stats import rankdata, t
from tables import TABLES

from tautnet.command_line import register_schema
from tautnet.config import build, plain
from tautnet.data.base import Splits
from tautnet.data.loader import AbstractSamples, Batch, TensorLoader, TensorSamples
from tautnet.factories import Projected
from tautnet.models import Classifier
from tautnet.optim.joint import JointOptimizer
from tautnet.optim.roles import parameters_by_role
from tautnet.optim.settings import make_optimizer, role_settings

CONF = Path(__file__).parents[1] / "conf"
METHODS = {"none": ["norm=none"], "batch": ["norm=batch"], "VCL": ["norm=none", "regularizer=variance"]}
ACTIVATIONS = ("relu", "leaky_relu", "elu", "spline")
DENSE = ("model=mlp", "model.net.widths=[64,64,64,64]")
CONVOLUTIONAL = ("model=convnet", "model.net.widths=[8,16,32]")
STEPS, IMAGE_STEPS, BATCH, RATE, NUM_IMAGES = 500, 300, 64, 1e-2, 5000
RATES, OUTSIDE = (1e-3, 3e-3, 1e-2, 3e-2), ("pendigits", "letter", "yeast")

Rows = dict[str, list[float]]  # method -> accuracies in percent, one a seed


@cache
def settings(*overrides: str) -> dict[str, Any]:
    """The application's settings as plain containers."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return plain(compose("train", overrides=["run_dir=none", *overrides]))


def table(path: Path, seed: int) -> Splits:
    """A table, split by the seed."""
    chosen = settings("data=table", f"data.path={path}", "data.target=target")["data"] | {"split_seed": seed}
    return build(chosen, "data").splits


def fashion(folder: Path, seed: int) -> Splits:
    """Some of the training images of the split of this seed, the first in its order, which is random."""
    chosen = settings("data=fashion_mnist", f"data.root={folder}")["data"] | {"split_seed": seed}
    splits = build(chosen, "data").splits
    images, classes = next(batches(splits.train, NUM_IMAGES))
    return Splits(TensorSamples(images, classes), splits.val, splits.test)


def parts(load: Callable[[Path, int], Splits], path: Path, seeds: int) -> list[Splits]:
    """The splits of each seed."""
    return [load(path, seed) for seed in range(seeds)]


def batches(samples: AbstractSamples, size: int, seed: int | None = None) -> Iterator[Batch]:
    """Without a seed all of them once, in their order; with one, whole batches without end, shuffled."""
    loader = TensorLoader(samples, size, seed=seed or 0, shuffle=seed is not None, drop_last=seed is not None)
    for epoch in count() if seed is not None else range(1):
        loader.sampler.set_epoch(epoch)
        yield from loader


def trained(chosen: Mapping[str, Any], train: AbstractSamples, seed: int, steps: int) -> Classifier:
    """What train.py does with these settings, without Lightning's part of each step."""
    torch.manual_seed(seed)
    num_outputs = max(int(classes.max()) for _, classes in batches(train, 10_000)) + 1
    model = Classifier({**chosen, "input_shape": list(train.sample_shape), "num_outputs": num_outputs})
    roles = role_settings(chosen["optimizer"])
    members = [make_optimizer(group, role, *roles[role]) for role, group in parameters_by_role(model).items()]
    optimizer = JointOptimizer(members)
    schedule = build(chosen["scheduler"], "scheduler", optimizer=optimizer, total_steps=steps)
    projected = [module for module in model.modules() if isinstance(module, Projected)]
    for x, classes in islice(batches(train, BATCH, seed), steps):
        loss = model.loss(x, model.net(x), classes, 1.0)
        for regularizer in model.regularizers.values():
            loss = loss + regularizer()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for module in projected:
            module.project_()
        schedule.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: Classifier, samples: AbstractSamples) -> float:
    """In percent."""
    right = sum(int((model.net(x).argmax(1) == classes).sum()) for x, classes in batches(samples, 1000))
    return 100 * right / len(samples)


def model_settings(net: Iterable[str], activation: str, method: str, rate: float) -> dict[str, Any]:
    """Of one variant; the fused Adam computes the same, faster."""
    chosen = (*net, f"activation={activation}", *METHODS[method], "optimizer=adam", f"optimizer.lr={rate}")
    return settings(*chosen, "+optimizer.fused=true", "+optimizer.roles.activation.fused=true")


def spread(values: list[float]) -> str:
    """Mean and standard deviation."""
    return f"{mean(values):.2f} ± {stdev(values):.2f}"


def compare(name: str, net: Iterable[str], sets: list[Splits], steps: int) -> dict[str, Rows]:
    """Print a row an activation; the accuracies by activation."""
    found: dict[str, Rows] = {}
    for activation in ACTIVATIONS:
        rows: Rows = {method: [] for method in METHODS}
        for method, (seed, splits) in product(METHODS, enumerate(sets)):
            model = trained(model_settings(net, activation, method, RATE), splits.train, seed, steps)
            rows[method].append(accuracy(model, splits.test))
        print("|", " | ".join([name, activation, *map(spread, rows.values())]), "|", flush=True)
        found[activation] = rows
    return found


def verdict(first: list[float], second: list[float], limit: float) -> str:
    """Of the first: win, tie or loss, where a tie is a mean difference within ``limit`` standard errors."""
    differences = [a - b for a, b in zip(first, second, strict=True)]
    border = limit * stdev(differences) / sqrt(len(differences))
    return "tie" if abs(mean(differences)) <= border else "win" if mean(differences) > 0 else "loss"


def against(other: str, sets: list[list[Rows]]) -> str:
    """Cells: VCL's mean difference to another method over data sets, each with its activations, and two counts."""
    differences = [mean(mean(rows["VCL"]) - mean(rows[other]) for rows in variants) for variants in sets]
    error = f" ± {stdev(differences) / sqrt(len(sets)):.2f}" if len(sets) > 1 else ""
    cells = [f"{mean(differences):+.2f}{error}"]
    for limit in (1.0, float(t.ppf(0.975, len(sets[0][0]["VCL"]) - 1))):
        counts = Counter(verdict(rows["VCL"], rows[other], limit) for variants in sets for rows in variants)
        cells.append(" / ".join(str(counts[word]) for word in ("win", "tie", "loss")))
    return " | ".join(cells)


def summarise(found: list[dict[str, Rows]]) -> None:
    """Ranks and counts, by activation and for all of them."""
    heads = (f"VCL - {other} | w / t / l, 1 s.e. | w / t / l, 95 %" for other in ("none", "batch"))
    print("\n| activation |", " | ".join(f"mean rank, {method}" for method in METHODS), "|", " | ".join(heads), "|")
    print("| --- " * 10 + "|")
    groups = {activation: [[rows[activation]] for rows in found] for activation in ACTIVATIONS}
    groups["all"] = [list(rows.values()) for rows in found]
    for name, sets in groups.items():
        negative = [[-round(mean(rows[method]), 6) for method in METHODS] for variants in sets for rows in variants]
        cells = [f"{rank:.2f}" for rank in rankdata(negative, axis=1).mean(0)]
        print("|", " | ".join([name, *cells, against("none", sets), against("batch", sets)]), "|", flush=True)


def rates(names: Iterable[str], folder: Path, seeds: int, steps: int) -> None:
    """Validation accuracy for each rate, mean over tables, activations and seeds."""
    print("| learning rate |", " | ".join(METHODS), "| mean |\n" + "| --- " * 5 + "|")
    sets = [pair for name in names for pair in enumerate(parts(table, folder / f"{name}.csv", seeds))]
    for rate in RATES:
        means = []
        for method in METHODS:
            values = []
            for activation, (seed, splits) in product(ACTIVATIONS, sets):
                model = trained(model_settings(DENSE, activation, method, rate), splits.train, seed, steps)
                values.append(accuracy(model, splits.val))
            means.append(mean(values))
        print(f"| {rate:g} |", " | ".join(f"{value:.2f}" for value in [*means, mean(means)]), "|", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5, help="at least 2 without --rates")
    parser.add_argument("--tables", nargs="+", help="names of csv files")
    parser.add_argument("--fashion", type=Path, help="folder of Fashion-MNIST; without it, tables alone")
    parser.add_argument("--rates", action="store_true", help="compare learning rates on other tables, and no more")
    parser.add_argument("--quick", action="store_true", help="two seeds, two tables, few steps: does it run?")
    arguments = parser.parse_args()
    if arguments.seeds < 2 and not arguments.rates:
        parser.error(f"--seeds {arguments.seeds}: at least 2")
    register_schema()
    torch.set_num_threads(1)  # the nets are small
    start, seeds, steps = process_time(), arguments.seeds, STEPS
    names = arguments.tables or (OUTSIDE if arguments.rates else TABLES)
    if arguments.quick:
        seeds, steps, names = 2, 50, names[:2]
    if arguments.rates:
        rates(names, arguments.data, seeds, steps)
    else:
        print("| data | activation |", " | ".join(METHODS), "|\n" + "| --- " * 5 + "|", flush=True)
        found = [compare(name, DENSE, parts(table, arguments.data / f"{name}.csv", seeds), steps) for name in names]
        if arguments.fashion:
            images = parts(fashion, arguments.fashion, seeds)
            found.append(compare("Fashion-MNIST", CONVOLUTIONAL, images, min(steps, IMAGE_STEPS)))
        summarise(found)
    print(f"\n{seeds} seed(s), {process_time() - start:.0f} CPU s")


if __name__ == "__main__":
    main()
