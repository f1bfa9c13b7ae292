"""What a learned spline costs beside ReLU and PReLU, and a SLAF beside BatchNorm and ReLU, in one run.

    python benchmarks/activation_speed.py

Forward (without autograd) and forward + backward, float32, by shape and number of knots. The candidates take turns; a
time is the best of its rounds, and every figure is a ratio of such times. "gather" is the same operator with 51 knots
in the form in which it was published (Bohra et al. 2020, authors' code): int64 indices and fractions are saved, and two
scatters sum the gradients of the coefficients. A SLAF, which standardizes as BatchNorm does, is compared in training;
"plain" is its formula in operations of torch. At the end a whole training step of ResNet-20, spline against ReLU.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tautnet.activations import LinearSpline, ReLU, Slaf
from tautnet.backbones import LayerFactory, cifar_resnet
from tautnet.functional.standardized_polynomial import standardized_formula
from tautnet.normalizers import BatchNorm, no_weight_norm

SHAPES = [(64, 64, 32, 32), (128, 16, 32, 32), (256, 512), (64, 256, 56, 56)]
KNOTS = [3, 15, 51, 201]
GRID_RANGE = 4.0
DEGREES = [2, 4, 7]


class GatherSpline(torch.autograd.Function):
    """One spline a channel by plain indexing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, coefficients: Tensor, first: Tensor, step: float) -> Tensor:
        """Values."""
        num_knots = coefficients.numel() // first.numel()
        half = (num_knots - 1) // 2
        clamped = x.clamp(-half * step, (half - 1) * step)
        cell = torch.floor(clamped / step)
        fraction = x / step - cell
        index = (first + half + cell).long()
        ctx.save_for_backward(fraction, index, coefficients)
        ctx.step = step
        return coefficients[index + 1] * fraction + coefficients[index] * (1 - fraction)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients."""
        fraction, index, coefficients = ctx.saved_tensors
        grad_x = (coefficients[index + 1] - coefficients[index]) / ctx.step * grad
        sums = torch.zeros_like(coefficients)
        sums.scatter_add_(0, index.flatten() + 1, (fraction * grad).flatten())
        sums.scatter_add_(0, index.flatten(), ((1 - fraction) * grad).flatten())
        return grad_x, sums, None, None


def gather_spline(num_channels: int, num_knots: int, dim: int, device: str) -> Callable[[Tensor], Tensor]:
    """The published form, one spline a channel."""
    coefficients = torch.randn(num_channels * num_knots, device=device, requires_grad=True)
    first = (torch.arange(num_channels, device=device) * num_knots).view(1, -1, *[1] * (dim - 2))
    return lambda x: GatherSpline.apply(x, coefficients, first, 2 * GRID_RANGE / (num_knots - 1))


def spline(num_channels: int, num_knots: int, device: str) -> nn.Module:
    """Ours, at random."""
    module = LinearSpline(num_channels, num_knots, GRID_RANGE).to(device)
    nn.init.normal_(module.coefficients)
    return module


def seconds(run: Callable[[], None], repeats: int, device: str) -> float:
    """Mean time of a run."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats


def best(runs: dict[str, Callable[[], None]], rounds: int, repeats: int, device: str) -> dict[str, float]:
    """Best time of each, taking turns."""
    times = {name: float("inf") for name in runs}
    for run in runs.values():
        run()
    for _ in range(rounds):
        for name, run in runs.items():
            times[name] = min(times[name], seconds(run, repeats, device))
    return times


def forward_only(function: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], None]:
    """Without autograd."""

    def run() -> None:
        with torch.no_grad():
            function(x)

    return run


def forward_and_backward(function: Callable[[Tensor], Tensor], x: Tensor, grad: Tensor) -> Callable[[], None]:
    """With the gradients of the input and of the parameters."""
    x = x.clone().requires_grad_()
    parameters = list(function.parameters()) if isinstance(function, nn.Module) else []
    return lambda: torch.autograd.grad(function(x), [x, *parameters], grad) and None


def compare(shape: tuple[int, ...], rounds: int, device: str) -> None:
    """Print the rows of one shape."""
    x, grad = torch.randn(shape, device=device), torch.randn(shape, device=device)
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "relu": nn.ReLU(),
        "prelu": nn.PReLU(shape[1], device=device),
        "gather": gather_spline(shape[1], 51, x.dim(), device),
        **{f"spline {k}": spline(shape[1], k, device) for k in KNOTS},
    }
    repeats = max(1, min(50, int(2e7) // x.numel()))
    copy = torch.empty_like(x)
    for title, make in (
        ("forward", lambda f: forward_only(f, x)),
        ("forward + backward", lambda f: forward_and_backward(f, x, grad)),
    ):
        runs = {name: make(function) for name, function in functions.items()}
        if device == "cuda" and title == "forward":
            runs["copy"] = lambda: copy.copy_(x) and None
        t = best(runs, rounds, repeats, device)
        for knots in KNOTS:
            mine = t[f"spline {knots}"]
            ratios = [
                mine / t["relu"],
                mine / t["prelu"],
                t["gather"] / mine if knots == 51 else None,
                mine / t["spline 15"],
            ]
            cells = " | ".join("" if ratio is None else f"{ratio:.2f}" for ratio in ratios)
            bandwidth = f" | {t['copy'] / mine:.0%}" if "copy" in t else ""
            print(f"| {'x'.join(map(str, shape))} | {title} | {knots} | {cells}{bandwidth} |", flush=True)


def compare_slaf(shape: tuple[int, ...], rounds: int, device: str) -> None:
    """Print the rows of one shape: SLAF, channels in the order of the shape and last, against BatchNorm and ReLU."""
    for title, layout in (("", torch.contiguous_format), (", channels last", torch.channels_last)):
        if title and len(shape) != 4:
            continue
        x, grad = (torch.randn(shape, device=device).contiguous(memory_format=layout) for _ in range(2))
        modules = {str(degree): Slaf(shape[1], degree).to(device) for degree in DEGREES}
        batch_norm = nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d
        modules["usual"] = nn.Sequential(batch_norm(shape[1]), nn.ReLU()).to(device)
        runs = {name: forward_and_backward(module, x, grad) for name, module in modules.items()}
        for degree in DEGREES:
            w, b = modules[str(degree)].coefficients, modules[str(degree)].bias
            plain = lambda z, w=w, b=b: standardized_formula(z, w, b, 1e-5)[0]  # noqa: E731
            runs[f"plain {degree}"] = forward_and_backward(plain, x, grad)
        t = best(runs, rounds, max(1, min(50, int(2e6) // x.numel())), device)
        for degree in DEGREES:
            mine, plain_time = t[str(degree)], t[f"plain {degree}"]
            name = "x".join(map(str, shape)) + title
            print(f"| {name} | {degree} | {mine / t['usual']:.2f} | {plain_time / mine:.1f} |", flush=True)


def training_step(activation: Callable[[int], nn.Module], device: str) -> Callable[[], None]:
    """Of ResNet-20 on 128 images of 32 x 32."""
    torch.manual_seed(0)
    layers = LayerFactory(activation, BatchNorm, no_weight_norm)
    net = cifar_resnet(layers, input_shape=(3, 32, 32), num_outputs=10, depth=20).to(device)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    x, targets = torch.randn(128, 3, 32, 32, device=device), torch.randint(10, (128,), device=device)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(net(x), targets).backward()
        optimizer.step()

    return step


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description="What a learned spline costs beside ReLU and PReLU.")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    settings = parser.parse_args()
    name = torch.cuda.get_device_name() if settings.device == "cuda" else platform.processor() or platform.machine()
    print(f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print("| shape | what | knots | / ReLU | / PReLU | gather / this | / 15 knots |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for shape in SHAPES:
        torch.manual_seed(0)
        compare(
            shape, settings.rounds if torch.Size(shape).numel() < 1e7 else max(3, settings.rounds // 3), settings.device
        )
    print("\n| shape | SLAF of degree | / (BatchNorm + ReLU), forward + backward | plain / this |")
    print("| --- | --- | --- | --- |")
    for shape in SHAPES:
        compare_slaf(shape, max(3, settings.rounds // 3), settings.device)
    steps = {
        "relu": training_step(ReLU, settings.device),
        "spline": training_step(LinearSpline, settings.device),
    }
    t = best(steps, settings.rounds, 1, settings.device)
    print(f"\nResNet-20, 128 images, one training step: spline / relu {t['spline'] / t['relu']:.2f}")


if __name__ == "__main__":
    main()
