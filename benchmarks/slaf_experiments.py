"""What self-learnable activations (SLAF) do, over seeds, through the ordinary command line.

    python benchmarks/slaf_experiments.py [--seeds 5] [--only polynomials spirals]

polynomials: experiment=slaf_polynomials, normalised error 1 - r2 of SLAF of degree 2 and of ReLU and tanh behind batch
normalisation, at two learning rates each and otherwise the same settings; then how many times SLAF's test error the
others' is, each at its rate of smaller validation error. spirals: experiment=slaf_spirals, accuracy of SLAF with two
hidden layers of 20 and of batch normalisation and ReLU with two of 40, both at the rate that the authors gave to SLAF
and at the one they gave to ReLU. Mean ± standard deviation over the seeds, and the spread; they decide the initial
weights and the order, the data stay the same.
"""

import argparse
from statistics import mean, stdev

from sweeps import results

RATES = ("1e-2", "3e-2")
POLYNOMIALS = {
    "SLAF, degree 2": [],
    "batch norm, ReLU": ["activation=relu", "norm=batch"],
    "batch norm, tanh": ["activation=tanh", "norm=batch"],
}
WIDE = ["activation=relu", "norm=batch", "model.net.widths=[40,40]"]
SPIRALS = {
    "SLAF, degree 7, 20-20, rate 1e-2 (authors')": ["optimizer.lr=1e-2"],
    "SLAF, degree 7, 20-20, rate 1e-3": ["optimizer.lr=1e-3"],
    "batch norm, ReLU, 40-40, rate 1e-3 (authors')": [*WIDE, "optimizer.lr=1e-3"],
    "batch norm, ReLU, 40-40, rate 1e-2": [*WIDE, "optimizer.lr=1e-2"],
}


def spread(values: list[float], digits: int) -> str:
    """Mean, standard deviation, smallest and largest."""
    deviation = stdev(values) if len(values) > 1 else 0.0
    ends = f"{min(values):.{digits}f} … {max(values):.{digits}f}"
    return f"{mean(values):.{digits}f} ± {deviation:.{digits}f} | {ends}"


def polynomials(seeds: int) -> None:
    """Normalised errors, and their ratios."""
    print(f"\nsparse polynomials, {seeds} seeds\n\n| net 64-64 | rate | validation 1 - r2 | test 1 - r2 | spread |")
    print("| --- | --- | --- | --- | --- |")
    chosen = {}
    for name, arguments in POLYNOMIALS.items():
        found = []
        for rate in RATES:
            runs = results(["callbacks=none", "experiment=slaf_polynomials", f"optimizer.lr={rate}", *arguments], seeds)
            validation, test = ([1 - run[f"{stage}/r2"] for run in runs] for stage in ("val", "test"))
            found.append((mean(validation), test))
            print(f"| {name} | {rate} | {mean(validation):.4f} | {spread(test, 4)} |", flush=True)
        chosen[name] = min(found)[1]
    ours, *others = chosen
    for name in others:
        smallest = min(theirs / own for theirs, own in zip(chosen[name], chosen[ours], strict=True))
        print(f"\n{name} / {ours}: {mean(chosen[name]) / mean(chosen[ours]):.0f} times, at least {smallest:.0f}")


def spirals(seeds: int) -> None:
    """Accuracies at both learning rates."""
    print(f"\ntwo spirals, {seeds} seeds\n\n| net | test accuracy | spread |\n| --- | --- | --- |")
    for name, arguments in SPIRALS.items():
        runs = results(["callbacks=none", "experiment=slaf_spirals", *arguments], seeds)
        print(f"| {name} | {spread([run['test/acc'] for run in runs], 3)} |", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=["polynomials", "spirals"], default=["polynomials", "spirals"])
    arguments = parser.parse_args()
    for table in (polynomials, spirals):
        if table.__name__ in arguments.only:
            table(arguments.seeds)


if __name__ == "__main__":
    main()
