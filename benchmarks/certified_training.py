"""Certified training with learned splines beside fixed activations, over seeds: clean, attacked and certified accuracy.

    python benchmarks/certified_training.py [--seeds 5] [--epsilons 0.1 0.05] [--rates 2e-2]
    python benchmarks/certified_training.py --sets fashion --root <folder of Fashion-MNIST> [--seeds 5] [--epsilons 0.1]

Networks 64-100-100-10 on scikit-learn's digits (1200 / 597 images), 40 epochs, and 784-100-100-10 on Fashion-MNIST (the
first 10 000 training and 2000 test images), 20 epochs; pixels in [0, 1], Adam, batches of 50 and 100. Certified: boxes
prove the class on the whole l_inf ball, in float64; attacked: right after projected gradient descent on the margin, 40
steps from 3 starts. Prints Markdown tables, mean ± standard deviation over the seeds, which decide initial weights and
order; data and split stay.
"""

import argparse
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from math import inf
from pathlib import Path
from statistics import mean, stdev

import torch
from torch import Tensor, nn

from tautnet.activations import LeakyReLU, LinearSpline, ReLU
from tautnet.backbones import LayerFactory, mlp
from tautnet.data.formats.idx import read_mnist
from tautnet.lipschitz.attack import attack
from tautnet.losses import AbstractClassificationLoss, CrossEntropy, Interval, SingleProp
from tautnet.normalizers import no_output_norm, no_weight_norm

Loss = Callable[[float], AbstractClassificationLoss]


@dataclass(frozen=True)
class Data:
    """Images in [0, 1] as rows, and classes."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    batch_size: int
    epochs: int


@dataclass(frozen=True)
class Variant:
    """One row of the table."""

    activation: Callable[[int], nn.Module]
    loss: Loss
    frozen: bool = False  # activations stay as they start


SPLINE = partial(LinearSpline, num_knots=13, grid_range=3.0, init="leaky_relu")
VARIANTS = {
    "ReLU, cross entropy": Variant(ReLU, lambda _: CrossEntropy()),
    "ReLU, SingleProp (sound)": Variant(ReLU, SingleProp),
    "learned spline, SingleProp (sound)": Variant(SPLINE, SingleProp),
    "ReLU, interval": Variant(ReLU, Interval),
    "leaky ReLU, interval": Variant(LeakyReLU, Interval),
    "frozen spline, interval": Variant(SPLINE, Interval, frozen=True),
    "learned spline, interval": Variant(SPLINE, Interval),
    "ReLU, interval with elision": Variant(ReLU, partial(Interval, elision=True)),
    "learned spline, interval with elision": Variant(SPLINE, partial(Interval, elision=True)),
}


def digits() -> Data:
    """scikit-learn's digits, stratified."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, classes = load_digits(return_X_y=True)
    parts = train_test_split(images / 16, classes, test_size=597, stratify=classes, random_state=0)
    train_x, test_x, train_y, test_y = (torch.from_numpy(part) for part in parts)
    return Data(train_x.float(), train_y.long(), test_x.float(), test_y.long(), batch_size=50, epochs=40)


def fashion(root: Path) -> Data:
    """The first images of each part."""
    images = read_mnist(root)
    train_x, test_x = (x.flatten(1).float() / 255 for x in (images.train_x[:10_000], images.test_x[:2000]))
    return Data(train_x, images.train_y[:10_000], test_x, images.test_y[:2000], batch_size=100, epochs=20)


def trained(data: Data, variant: Variant, epsilon: float, rate: float, seed: int) -> nn.Module:
    """Train with Adam; the rate falls along a cosine."""
    torch.manual_seed(seed)
    factory = LayerFactory(variant.activation, no_output_norm, no_weight_norm)
    net = mlp(factory, data.train_x.shape[1:], 10, widths=(100, 100))
    if variant.frozen:
        for module in net.modules():
            if isinstance(module, LinearSpline):
                module.requires_grad_(False)
    loss = variant.loss(epsilon)
    loss.attach(net, data.train_x.shape[1:])
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=rate)
    batches = len(data.train_x) // data.batch_size
    steps = data.epochs * batches
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        if step % batches == 0:
            order = torch.randperm(len(data.train_x))
        picked = order[step % batches * data.batch_size :][: data.batch_size]
        x, y = data.train_x[picked], data.train_y[picked]
        optimizer.zero_grad()
        loss(x, net(x), y, step / steps).backward()
        optimizer.step()
        schedule.step()
    return net.eval()


@torch.no_grad()
def certified(net: nn.Module, x: Tensor, y: Tensor, epsilon: float, elision: bool) -> Tensor:
    """Which images are proven: by the boxes of the logits, or with the head merged with the comparison of classes."""
    bounds = Interval(epsilon, elision=elision)
    bounds.attach(net, x.shape[1:])
    return wins(bounds.worst_logits(x, y, epsilon), y)


def others(logits: Tensor, y: Tensor) -> Tensor:
    """The largest logit beside the label's."""
    return logits.scatter(1, y.unsqueeze(1), -inf).amax(1)


def wins(logits: Tensor, y: Tensor) -> Tensor:
    """Whether the label's logit is above all others."""
    return logits.gather(1, y.unsqueeze(1)).squeeze(1) > others(logits, y)


def row(data: Data, variant: Variant, epsilon: float, rate: float, seeds: int) -> str:
    """Cells of one variant. Raises RuntimeError where an attack succeeds on a proven image."""
    shares: list[tuple[float, ...]] = []
    for seed in range(seeds):
        start = time.perf_counter()
        net = trained(data, variant, epsilon, rate, seed)
        seconds = time.perf_counter() - start
        exact, x, y = deepcopy(net).double(), data.test_x.double(), data.test_y
        boxes, merged = (certified(exact, x, y, epsilon, elision) for elision in (False, True))
        damaged = attack(exact, x, y, epsilon, p=inf, num_restarts=3)
        clean, survived = (wins(exact(points).detach(), y) for points in (x, damaged))
        if ((boxes | merged) & ~survived).any() or (survived & ~clean).any():
            raise RuntimeError(f"seed {seed}: an attack succeeds on a certified image")
        shares.append((*(part.double().mean().item() for part in (clean, survived, boxes, merged)), seconds))
    columns = list(zip(*shares, strict=True))
    spread = [f"{mean(column):.3f} ± {stdev(column) if seeds > 1 else 0:.3f}" for column in columns[:-1]]
    return " | ".join([*spread, f"{mean(columns[-1]):.0f}"])


def table(title: str, data: Data, epsilon: float, rate: float, names: list[str], seeds: int) -> None:
    """Run and print."""
    print(f"\n{title}, epsilon {epsilon}, learning rate {rate}, {seeds} seeds\n")
    print("| training | clean | attacked | certified | certified, head merged | seconds |\n|" + " --- |" * 6)
    for name in names:
        print(f"| {name} | {row(data, VARIANTS[name], epsilon, rate, seeds)} |", flush=True)


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epsilons", type=float, nargs="+", default=[0.1, 0.05])
    parser.add_argument("--rates", type=float, nargs="+", default=[2e-2], help="of Adam, for all parameters")
    parser.add_argument("--root", type=Path, help="folder of the four Fashion-MNIST files")
    parser.add_argument("--sets", nargs="+", choices=["digits", "fashion"], default=["digits"])
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for title in asked.sets:
        data = digits() if title == "digits" else fashion(asked.root)
        for epsilon in asked.epsilons:
            for rate in asked.rates:
                table(title, data, epsilon, rate, asked.only, asked.seeds)


if __name__ == "__main__":
    main()
