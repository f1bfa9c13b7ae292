"""How tight the Lipschitz bounds are, beside what others state, and what they cost.

    python benchmarks/lipschitz_tightness.py [number of seeds]

Three tables: bound / true norm of single layers, beside the norm that torch's spectral_norm divides by and the row norm
of the published formula; seconds of a report of a ResNet-32 on one core; the bounds of trained networks. True norms
come from 500 power iterations on the operator itself in float64, which approach them from below.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the cost is that of one core

import torch
from torch import Tensor, nn

from tautnet.activations import ReLU
from tautnet.backbones import LayerFactory, cifar_resnet
from tautnet.lipschitz import lipschitz_bound
from tautnet.normalizers import BatchNorm, no_weight_norm

TRAIN = Path(__file__).parents[1] / "train.py"
QUIET = ["trainer=cpu", "trainer.enable_progress_bar=false", "logger=none"]


def layers() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    """Random layers, torch's default initialisation."""
    image = (32, 32)
    return {
        "dense 64 x 64": (nn.Linear(64, 64), (64,)),
        "dense 1024 x 784": (nn.Linear(784, 1024), (784,)),
        "conv 3 -> 16, 3 x 3": (nn.Conv2d(3, 16, 3, padding=1), (3, *image)),
        "conv 16 -> 16, 3 x 3": (nn.Conv2d(16, 16, 3, padding=1), (16, *image)),
        "conv 16 -> 32, 3 x 3, stride 2": (nn.Conv2d(16, 32, 3, stride=2, padding=1), (16, *image)),
        "conv 64 -> 64, 3 x 3": (nn.Conv2d(64, 64, 3, padding=1), (64, *image)),
        "conv 32 -> 32, 5 x 5": (nn.Conv2d(32, 32, 5, padding=2), (32, *image)),
        "conv 32 -> 32, 3 x 3, dilation 2": (nn.Conv2d(32, 32, 3, padding=2, dilation=2), (32, *image)),
        "conv 32 -> 32, 3 x 3, 4 groups": (nn.Conv2d(32, 32, 3, padding=1, groups=4), (32, *image)),
        "conv 32 -> 64, 1 x 1, stride 2": (nn.Conv2d(32, 64, 1, stride=2), (32, *image)),
        "transposed 32 -> 16, 4 x 4, stride 2": (nn.ConvTranspose2d(32, 16, 4, stride=2, padding=1), (32, 16, 16)),
        "conv 16 -> 16, 3 x 3, circular": (nn.Conv2d(16, 16, 3, padding=1, padding_mode="circular"), (16, *image)),
        "conv 16 -> 16, 3 x 3, reflect": (nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect"), (16, *image)),
        "conv 16 -> 16, 3 x 3, replicate": (nn.Conv2d(16, 16, 3, padding=1, padding_mode="replicate"), (16, *image)),
        "all ones 1 -> 1, 3 x 3": (ones(nn.Conv2d(1, 1, 3, padding=1)), (1, *image)),
    }


def ones(layer: nn.Conv2d) -> nn.Conv2d:
    """With a kernel of ones."""
    nn.init.ones_(layer.weight)
    return layer


def true_norm(layer: nn.Module, shape: tuple[int, ...], iterations: int = 500) -> float:
    """By power iteration on the layer without its bias."""
    layer = layer.double()
    layer.bias = None
    x = torch.randn(1, *shape, dtype=torch.float64)
    for _ in range(iterations):
        unit = (x / x.norm()).detach().requires_grad_()
        (x,) = torch.autograd.grad(layer(unit).square().sum() / 2, unit)  # W^T W unit
    with torch.no_grad():
        return float(layer(x / x.norm()).norm())


def reshaped_norm(weight: Tensor) -> float:
    """What torch.nn.utils.parametrizations.spectral_norm divides by: of the weight as C_out x rest."""
    return float(torch.linalg.matrix_norm(weight.detach().double().flatten(1), ord=2))


def single_layers() -> None:
    """The first table."""
    torch.manual_seed(0)
    print("| layer | bound / true | torch's divisor / true | published formula, p = 2 / true |")
    print("| --- | --- | --- | --- |")
    for name, (layer, shape) in layers().items():
        bound, weight = lipschitz_bound(layer, shape).total, layer.weight
        divisor, row = reshaped_norm(weight), float(weight.detach().double().flatten(1).norm(dim=1).max())
        truth = true_norm(layer, shape)
        print(f"| {name} | {bound / truth:.4f} | {divisor / truth:.3f} | {row / truth:.3f} |", flush=True)


NETS = {
    "digits, convnet, spline, unitize (main job)": [],
    "digits, convnet, spline, batch": ["norm=batch"],
    "digits, mlp, relu, none": ["model=mlp", "activation=relu", "norm=none"],
    "digits, mlp, spline, none": ["model=mlp", "norm=none"],
    "digits, mlp, relu, batch": ["model=mlp", "activation=relu", "norm=batch"],
    "digits, mlp, spline, batch": ["model=mlp", "norm=batch"],
    "circle, two spline neurons": ["experiment=area_circle"],
    "digits, experiment=lipschitz_1": ["experiment=lipschitz_1"],
}
COLUMNS = ("paper", "product", "folded", "lmi", "lower", "tightness")


def trained_nets(seeds: int) -> None:
    """The second table: medians over seeds of what the monitor logged at the test."""
    print("| trained network |", " | ".join(COLUMNS), "|")
    print("| --- " * (len(COLUMNS) + 1) + "|")
    for name, arguments in NETS.items():
        with tempfile.TemporaryDirectory() as folder:
            sweep = "seed=" + ",".join(map(str, range(seeds)))
            command = [sys.executable, str(TRAIN), "-m", sweep, *QUIET, *arguments, f"hydra.sweep.dir={folder}"]
            subprocess.run(command, check=True, capture_output=True)
            runs = [json.loads(path.read_text())["metrics"] for path in Path(folder).glob("*/result.json")]
        keys = [f"lipschitz/{column}_p2" for column in COLUMNS]
        cells = [f"{median(run[key] for run in runs):.4g}" if key in runs[0] else "–" for key in keys]
        print(f"| {name} |", " | ".join(cells), "|", flush=True)


def cost() -> None:
    """The third table."""
    torch.set_num_threads(1)
    net = cifar_resnet(LayerFactory(ReLU, BatchNorm, no_weight_norm), (3, 32, 32), 10, depth=32)
    print("| report of a ResNet-32, 32 x 32, one core | seconds, median of 5 |")
    print("| --- | --- |")
    for p in (1, 2, float("inf")):
        seconds = []
        for _ in range(5):
            start = time.process_time()
            lipschitz_bound(net, (3, 32, 32), p=p)
            seconds.append(time.process_time() - start)
        print(f"| p = {p:g} | {median(seconds):.2f} |", flush=True)


def main() -> None:
    """All tables."""
    single_layers()
    print()
    cost()
    print()
    trained_nets(int(sys.argv[1]) if len(sys.argv) > 1 else 3)


if __name__ == "__main__":
    main()
