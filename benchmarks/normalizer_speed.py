"""What normalizers, weight parametrizations and the meter of covariate shift cost beside their baselines, in one run.

    python benchmarks/normalizer_speed.py [--parts outputs weights step meter] [--rounds 15] [--device cuda] [--compile]
    python benchmarks/normalizer_speed.py --quick        # does it run: small shapes, two rounds

The candidates take turns. A time is the median over the rounds, a ratio the median over the rounds of the ratio of two
times of one round. Float32, training mode; learned factors start where they work (alpha = 0.3).

outputs  a normalizer's forward without autograd, and forward + backward, in times of torch's BatchNorm; and how many
         numbers autograd keeps for the backward pass, in inputs.
weights  the effective weight of a dense layer and its backward pass, in times of the matrix products that AON of order
         1 cannot avoid: A A^T and G A, and three for their gradient.
step     a training step of ResNet-20 on 128 images of 32 x 32, in times of norm=batch.
meter    seconds of a short training of the program on embedded digits with callbacks=ics, in times of the default.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

from tautnet import logkeys
from tautnet.activations import ReLU
from tautnet.backbones import LayerFactory, cifar_resnet
from tautnet.normalizers import (
    Aon,
    BatchNorm,
    Bjorck,
    GroupNorm,
    Orthogonal,
    RmsNorm,
    Spectral,
    Unitize,
    WeightNormalization,
    WeightStandardization,
    instance_norm,
    layer_norm,
    no_weight_norm,
)
from tautnet.normalizers.weight import parametrised_layers, weights_at_once
from tautnet.regularizers import OrthonormalityPenalty

Run = Callable[[], object]
Times = dict[str, list[float]]
TRAIN = Path(__file__).parents[1] / "train.py"
SHAPES = [(64, 64, 32, 32), (128, 16, 32, 32), (256, 512)]
LARGE = (64, 256, 56, 56)
MATRICES = [(64, 576), (512, 4608), (512, 512)]
EVERY_N_STEPS = (50, 10, 1)


def seconds(run: Run, repeats: int, device: str) -> float:
    """Mean time of a run."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats


def interleaved(runs: dict[str, Run], rounds: int, device: str, least_seconds: float = 0.02) -> Times:
    """Times of each, taking turns; short ones are repeated within a round, those above ten seconds run once."""
    repeats = {}
    times: Times = {name: [] for name in runs}
    for name, run in runs.items():
        first = seconds(run, 1, device)
        if first > 10:
            times[name].append(first)
            continue
        repeats[name] = max(1, min(200, int(least_seconds / max(seconds(run, 1, device), 1e-7))))
    for _ in range(rounds):
        for name, run in runs.items():
            if name in repeats:
                times[name].append(seconds(run, repeats[name], device))
    return times


def ratio(times: Times, name: str, reference: str) -> float:
    """Median over the rounds that both took part in, the first ones."""
    return median(a / b for a, b in zip(times[name], times[reference], strict=False))


def table(*header: str) -> None:
    """Print the head of a table."""
    print("\n" + " | ".join(["", *header, ""]).strip())
    print(" | ".join(["", *["---"] * len(header), ""]).strip(), flush=True)


def row(*cells: object) -> None:
    """Print a row."""
    print(" | ".join(["", *(f"{c:.2f}" if isinstance(c, float) else str(c) for c in cells), ""]).strip(), flush=True)


# --- outputs ----------------------------------------------------------------------------------------------------------


def output_norms(shape: tuple[int, ...], device: str) -> dict[str, nn.Module]:
    """By name; torch's BatchNorm first."""
    channels, image = shape[1], len(shape) > 2
    unitize = {
        "unitize": partial(Unitize, alpha_init=0.3),
        "unitize, one alpha": partial(Unitize, alpha_init=0.3, alpha_shape="layer"),
        "unitize, pixel": partial(Unitize, alpha_init=0.3, norm_axes="pixel"),
    }
    made = {
        "torch BatchNorm": nn.BatchNorm2d if image else nn.BatchNorm1d,
        "batch": BatchNorm,
        **unitize,
        "group, 8 groups": partial(GroupNorm, num_groups=8),
        "layer": layer_norm,
        **({"instance": instance_norm} if image else {}),
        "rms": RmsNorm,
    }
    return {name: make(channels).to(device) for name, make in made.items()}


def kept(function: nn.Module, x: Tensor) -> float:
    """Numbers that autograd keeps for the backward pass, in inputs; of a tensor kept twice once."""
    storages = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function(x.requires_grad_())
    return sum(storages.values()) / x.untyped_storage().nbytes()


def forward_only(function: nn.Module, x: Tensor) -> Run:
    """Without autograd."""

    def run() -> None:
        with torch.no_grad():
            function(x)

    return run


def forward_and_backward(function: nn.Module, x: Tensor, grad: Tensor) -> Run:
    """With the gradients of the input and of the parameters."""
    x = x.clone().requires_grad_()
    wanted = [x, *function.parameters()]
    return lambda: torch.autograd.grad(function(x), wanted, grad)


def compare_outputs(shapes: list[tuple[int, ...]], rounds: int, device: str, compiled: bool) -> None:
    """One table, ratios to torch's BatchNorm."""
    table("shape", "normalizer", "forward", "forward + backward", "ms", "kept, inputs")
    for shape in shapes:
        torch.manual_seed(0)
        x, grad = torch.randn(shape, device=device), torch.randn(shape, device=device)
        norms = output_norms(shape, device)
        functions = {name: torch.compile(norm) if compiled else norm for name, norm in norms.items()}
        forward = interleaved({name: forward_only(f, x) for name, f in functions.items()}, rounds, device)
        both = interleaved({name: forward_and_backward(f, x, grad) for name, f in functions.items()}, rounds, device)
        for name, function in functions.items():
            ratios = (ratio(times, name, "torch BatchNorm") for times in (forward, both))
            row("x".join(map(str, shape)), name, *ratios, 1e3 * median(both[name]), kept(function, x.clone()))


# --- weights ----------------------------------------------------------------------------------------------------------


def products(rows: int, columns: int, device: str) -> Run:
    """What order 1 cannot avoid: H = (3 I - A A^T) A / 2 has two products, its gradient three."""
    a, grad = torch.randn(rows, columns, device=device), torch.randn(rows, columns, device=device)
    if rows > columns:
        a, grad = a.T.contiguous(), grad.T.contiguous()

    def run() -> None:
        gram = a @ a.T
        gram @ a
        of_gram = grad @ a.T
        gram @ grad
        of_gram @ a  # of_gram + of_gram^T in truth, an addition of the smaller matrix

    return run


def weight_norms() -> dict[str, Callable[[nn.Module], nn.Module]]:
    """By name."""
    return {
        **{f"aon, order {order}": Aon(taylor_order=order) for order in (1, 2, 4)},
        "bjorck, 15 iterations": Bjorck(),
        "orthogonal": Orthogonal(),
        "torch orthogonal": parametrizations.orthogonal,
        "spectral": Spectral(),
        "torch spectral_norm": parametrizations.spectral_norm,
        "weight normalization": WeightNormalization(),
        "weight standardization": WeightStandardization(),
    }


def effective_weight(layer: nn.Module, grad: Tensor) -> Run:
    """The weight in force and the gradients of what it is made of, after a step of the optimizer."""
    wanted = [parameter for name, parameter in layer.named_parameters() if name != "bias"]
    first = wanted[0]

    def run() -> None:
        with torch.no_grad():
            first.add_(0.0)  # an update: what is cached for a weight is no longer valid
        weight = layer.weight
        assert isinstance(weight, Tensor)
        torch.autograd.grad(weight, wanted, grad)

    return run


def compare_weights(matrices: list[tuple[int, int]], rounds: int, device: str) -> None:
    """One table, ratios to the products."""
    table("weight", "parametrization", "/ products", "/ torch orthogonal", "ms")
    for rows, columns in matrices:
        torch.manual_seed(0)
        grad = torch.randn(rows, columns, device=device)
        runs: dict[str, Run] = {"products": products(rows, columns, device)}
        for name, make in weight_norms().items():
            layer = make(nn.Linear(columns, rows, bias=False).to(device)).to(device)
            assert parametrize.is_parametrized(layer)
            runs[name] = effective_weight(layer, grad)
        times = interleaved(runs, rounds, device)
        for name in runs:
            ratios = (ratio(times, name, reference) for reference in ("products", "torch orthogonal"))
            row(f"{rows}x{columns}", name, *ratios, 1e3 * median(times[name]))


# --- a training step --------------------------------------------------------------------------------------------------


def training_step(output: str, weight: str, depth: int, batch: int, device: str) -> Run:
    """Of a ResNet on images of 32 x 32."""
    torch.manual_seed(0)
    outputs = {"batch": BatchNorm, "unitize": Unitize, "group": partial(GroupNorm, num_groups=8)}
    weight_norm = Aon(taylor_order=1) if weight == "aon" else no_weight_norm
    factory = LayerFactory(ReLU, outputs[output], weight_norm)
    net = cifar_resnet(factory, input_shape=(3, 32, 32), num_outputs=10, depth=depth).to(device)
    penalty = OrthonormalityPenalty(weight=1e-3) if weight == "penalty" else None
    if penalty is not None:
        penalty.attach(net, (3, 32, 32))
    optimizer, layers = torch.optim.SGD(net.parameters(), lr=0.01), parametrised_layers(net)
    x, targets = torch.randn(batch, 3, 32, 32, device=device), torch.randint(10, (batch,), device=device)

    def step() -> None:
        optimizer.zero_grad()
        with weights_at_once(layers):  # as in the application
            loss = F.cross_entropy(net(x), targets)
        (loss if penalty is None else loss + penalty()).backward()
        optimizer.step()

    return step


def compare_steps(depth: int, batch: int, rounds: int, device: str) -> None:
    """One table, ratios to batch normalisation alone."""
    variants = [("batch", "none"), ("batch", "aon"), ("batch", "penalty"), ("unitize", "none"), ("group", "none")]
    runs = {f"{output}, {weight}": training_step(output, weight, depth, batch, device) for output, weight in variants}
    times = interleaved(runs, rounds, device)
    table(f"ResNet-{depth}, {batch} images: norm/output, norm/weight", "step / plain", "ms")
    for name in runs:
        row(name, f"{ratio(times, name, 'batch, none'):.3f}", 1e3 * median(times[name]))


# --- the meter --------------------------------------------------------------------------------------------------------


def seconds_of_training(settings: list[str]) -> float:
    """As the program reports them."""
    with tempfile.TemporaryDirectory() as folder:
        fixed = [f"hydra.run.dir={folder}", "trainer.enable_progress_bar=false", "run=[fit]", "seed=0"]
        subprocess.run([sys.executable, TRAIN, *fixed, *settings], check=True, capture_output=True)
        result = json.loads(Path(folder, "result.json").read_text())
    return float(result["metrics"][logkeys.FIT_SECONDS])


def compare_meters(epochs: int, rounds: int, device: str) -> None:
    """One table, ratios to the default callbacks."""
    common = [f"trainer={'gpu' if device == 'cuda' else 'cpu'}", f"trainer.max_epochs={epochs}"]
    variants = {"default": ["callbacks=default"]}
    for every in EVERY_N_STEPS:
        variants[f"ics, every {every} steps"] = ["callbacks=ics", f"callbacks.ics.every_n_steps={every}"]
    times: Times = {name: [] for name in variants}
    for _ in range(rounds):
        for name, settings in variants.items():
            times[name].append(seconds_of_training([*common, *settings]))
    table(f"callbacks, {epochs} epochs of digits", "/ default", "s")
    for name in variants:
        row(name, ratio(times, name, "default"), median(times[name]))


def main() -> None:
    """Print the tables that were asked for."""
    parts = ["outputs", "weights", "step", "meter"]
    parser = argparse.ArgumentParser(description="What normalizers cost beside their baselines.")
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="compile the output normalizers")
    parser.add_argument("--large", action="store_true", help=f"outputs of shape {LARGE} too")
    parser.add_argument("--quick", action="store_true", help="small shapes and two rounds: does it run")
    asked = parser.parse_args()
    rounds, device, quick = 2 if asked.quick else asked.rounds, asked.device, asked.quick
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    print(f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, {rounds} rounds")
    if "outputs" in asked.parts:
        shapes = [(4, 8, 5, 5), (8, 16)] if quick else [*SHAPES, *([LARGE] if asked.large else [])]
        compare_outputs(shapes, rounds, device, asked.compile)
    if "weights" in asked.parts:
        compare_weights([(8, 12), (12, 8)] if quick else MATRICES, rounds, device)
    if "step" in asked.parts:
        compare_steps(8 if quick else 20, 4 if quick else 128, rounds, device)
    if "meter" in asked.parts and not quick:
        compare_meters(4, max(2, rounds // 5), device)


if __name__ == "__main__":
    main()
