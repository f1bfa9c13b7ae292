"""What the variance constancy loss costs in a training step: ELU-11, batches of 250, images of 32 x 32.

    python benchmarks/vcl_cost.py [--widen-factor 1] [--batch 250] [--steps 3] [--device cpu]

Forward, backward and SGD step of the same network with and without the loss, by turns, after one step of each that
does not count.
"""

import argparse
from functools import partial
from statistics import median
from time import perf_counter, process_time

import torch
from torch import nn
from torch.nn import functional as F

from tautnet.activations import ELU
from tautnet.backbones import LayerFactory, elu11
from tautnet.normalizers import no_output_norm, no_weight_norm
from tautnet.regularizers.variance import VarianceConstancy


def make(widen_factor: int, device: str) -> nn.Module:
    """The network, always with the same weights."""
    torch.manual_seed(0)
    layers = LayerFactory(ELU, no_output_norm, no_weight_norm)
    return elu11(layers, (3, 32, 32), 10, widen_factor).to(device)


def step(net: nn.Module, penalty: VarianceConstancy | None, optimizer: torch.optim.Optimizer, batch: int) -> float:
    """Seconds of one training step, on a CPU those of all threads together."""
    device = next(net.parameters()).device
    x, targets = torch.randn(batch, 3, 32, 32, device=device), torch.randint(10, (batch,), device=device)
    clock = process_time if device.type == "cpu" else perf_counter  # other programs do not count on a CPU
    synchronise(device)
    start = clock()
    loss = F.cross_entropy(net(x), targets)
    if penalty is not None:
        loss = loss + penalty()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if penalty is not None:
        penalty.project_()
    synchronise(device)
    return clock() - start


def synchronise(device: torch.device) -> None:
    """Wait for the GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    """Print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widen-factor", type=int, default=1)
    parser.add_argument("--batch", type=int, default=250)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    plain, with_loss = (make(arguments.widen_factor, arguments.device) for _ in range(2))
    penalty = VarianceConstancy()
    penalty.attach(with_loss, (3, 32, 32))
    rate = partial(torch.optim.SGD, lr=0.01, momentum=0.9, nesterov=True)
    cases = (
        (plain, None, rate(plain.parameters())),
        (
            with_loss,
            penalty,
            rate([*with_loss.parameters(), *penalty.parameters()]),
        ),
    )
    times: list[list[float]] = [[], []]
    for count in range(arguments.steps + 1):
        for case, seconds in zip(cases, times, strict=True):
            taken = step(*case, arguments.batch)
            if count > 0:
                seconds.append(taken)
    ratio = median(b / a for a, b in zip(*times, strict=True))
    print(f"{penalty.beta.numel()} betas; step without: {median(times[0]):.3f} s, with: {median(times[1]):.3f} s")
    print(f"least without: {min(times[0]):.3f} s, with: {min(times[1]):.3f} s; median ratio of neighbours {ratio:.4f}")


if __name__ == "__main__":
    main()
