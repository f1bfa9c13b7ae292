"""What the variance constancy loss does: the theorem of two Gaussians, and the kurtosis of what enters activations.

    python benchmarks/vcl_experiments.py [--seeds 5] [--only gaussians kurtosis]

gaussians: a linear projection of 10 features trained on the loss alone, new points at every step; the same mixture,
loss and optimizer as experiment=vcl_two_gaussians. Worst seed of |cos| to the direction of linear discriminant
analysis (from 0.2113 on) or largest r / r_max (below); r = between / within variance. Then the prior at which the
loss of that direction equals that of a direction that joins the classes, by bisection over simulated losses.
kurtosis: experiment=vcl_kurtosis, median over all hidden units on the test samples, mean ± standard deviation over
the seeds, which decide the initial weights and the order.
"""

import argparse
from math import sqrt
from statistics import mean, stdev
from time import process_time

import torch
from sweeps import results
from torch import nn

from tautnet.callbacks.discriminant_monitor import discriminant
from tautnet.functional.variance_constancy import subset_variances, variance_constancy
from tautnet.regularizers.variance import VarianceConstancy

PRIORS = (0.5, 0.35, 0.25, 0.15, 0.1, 0.05)
NUM_FEATURES, SEPARATION, BATCH, NUM_STEPS, RATE = 10, 6.0, 2000, 800, 0.05
DEVIATIONS = torch.linspace(1, 2, NUM_FEATURES)
GAP = torch.full((NUM_FEATURES,), SEPARATION / sqrt(NUM_FEATURES))


def trained_projection(prior: float, seed: int) -> tuple[float, float]:
    """|cos| to the LDA direction and r / r_max of the distribution, at the end."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(NUM_FEATURES, 1), nn.ReLU(), nn.Linear(1, 2))
    penalty = VarianceConstancy(1.0, pairs="all", beta_init=1e-3, learn_beta=False, form="population")
    penalty.attach(net, (NUM_FEATURES,))
    optimizer = torch.optim.Adam(net[0].parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, NUM_STEPS)
    for _ in range(NUM_STEPS):
        signs = 0.5 - (torch.rand(BATCH, 1) >= prior).float()
        net(torch.randn(BATCH, NUM_FEATURES) * DEVIATIONS + signs * GAP)
        optimizer.zero_grad()
        penalty().backward()
        optimizer.step()
        schedule.step()
    found = discriminant(net[0].weight.detach()[0], GAP, DEVIATIONS.square().diag())
    return found[0].item(), found[1].item()


def advantage(prior: float, draws: int = 1_000_000, n: int = 5) -> float:
    """Loss of a direction that joins the classes minus that of the LDA direction; same draws for every prior."""
    generator = torch.Generator().manual_seed(0)
    gap = (GAP / DEVIATIONS).norm()  # along the LDA direction, in units of the deviation within classes
    noise = torch.randn(n, draws, generator=generator)
    mixed = noise + gap * (torch.rand(n, draws, generator=generator) < prior).float()
    losses = []
    for x, variance in ((noise, 1.0), (mixed, 1 + prior * (1 - prior) * gap**2)):
        variances = subset_variances(x, n, 1) / variance
        pair = torch.cat([variances, torch.ones_like(variances)])
        losses.append(variance_constancy(pair, torch.zeros(())).double().mean().item())
    return losses[0] - losses[1]


def gaussians(seeds: int) -> None:
    """The table and the switch."""
    start = process_time()
    print("\n| prior | alignment with LDA, least … most | r / r_max, least … most |\n| --- | --- | --- |")
    for prior in PRIORS:
        pairs = [trained_projection(prior, seed) for seed in range(seeds)]
        cells = (f"{min(values):.4f} … {max(values):.4f}" for values in zip(*pairs, strict=True))
        print(f"| {prior} |", " | ".join(cells), "|", flush=True)
    low, high = 0.1, 0.4
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (low, middle) if advantage(middle) > 0 else (middle, high)
    print(f"\nswitch at {high:.4f}; theory {(3 - sqrt(3)) / 6:.4f}; {seeds} seeds, {process_time() - start:.0f} CPU s")


def kurtosis(seeds: int) -> None:
    """Median kurtosis for rising weights."""
    weights = ("0", "0.01", "0.1", "1")
    print("\n| activation |", " | ".join(f"gamma = {weight}" for weight in weights), "| test accuracy, first … last |")
    print("| ---" * (len(weights) + 2), "|")
    for activation in ("relu", "elu"):
        cells, accuracies = [], []
        for weight in weights:
            setting = [f"activation={activation}", f"regularizer.variance.weight={weight}"]
            runs = results(["~callbacks.lipschitz", "experiment=vcl_kurtosis", *setting], seeds)
            cells.append(spread([run["vcl/kurtosis"] for run in runs]))
            accuracies.append(mean(run["test/acc"] for run in runs))
        print("|", " | ".join([activation, *cells]), f"| {accuracies[0]:.3f} … {accuracies[-1]:.3f} |", flush=True)


def spread(values: list[float]) -> str:
    """Mean and standard deviation."""
    return f"{mean(values):.2f} ± {stdev(values):.2f}" if len(values) > 1 else f"{values[0]:.2f}"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=["gaussians", "kurtosis"], default=["gaussians", "kurtosis"])
    arguments = parser.parse_args()
    if "gaussians" in arguments.only:
        gaussians(arguments.seeds)
    if "kurtosis" in arguments.only:
        kurtosis(arguments.seeds)


if __name__ == "__main__":
    main()
