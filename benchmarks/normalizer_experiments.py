"""What the normalizers do, over seeds, through the ordinary command line.

    python benchmarks/normalizer_experiments.py [--seeds 5] [--only aon ics] [--fashion <folder of Fashion-MNIST>]

aon: test accuracy, and largest over median singular value of the effective weights (mean over the hidden layers), of
spectral normalisation, AON and the orthonormality penalty over its grid, `experiment=aon_spectrum` on digits, with
--fashion also on Fashion-MNIST (3 epochs). ics: mean earth-mover distance of an update and its bounds for fixed and
learned alpha of Unitize, `experiment=ics_alpha` on digits. Mean ± standard deviation over the seeds, which decide the
initial weights, the order and the split.
"""

import argparse
from statistics import mean, stdev

from sweeps import results

NO_NORM = ["norm=none"]
HIDDEN = "norm.exclude=[last]"
WEIGHTS = {
    "none": NO_NORM,
    "spectral": ["norm=spectral", HIDDEN],
    "weight normalisation": [*NO_NORM, "norm/weight=weight_norm", HIDDEN],
    "orthogonal (torch)": [*NO_NORM, "norm/weight=orthogonal", HIDDEN],
    **{f"AON, order {order}": [f"norm.weight.taylor_order={order}"] for order in (1, 2, 4, 8)},
    **{
        f"penalty, weight {weight}": [
            *NO_NORM,
            "regularizer=orthonormality",
            f"regularizer.orthonormality.weight={weight}",
        ]
        for weight in ("1e-4", "1e-3", "1e-2", "1e-1")
    },
}
ALPHAS = {
    **{f"alpha = {alpha}, fixed": [f"norm.output.alpha_init={alpha}"] for alpha in ("0", "0.5", "1")},
    "alpha from 0, learned": ["norm.output.alpha_init=0", "norm.output.learn_alpha=true"],
}


def layer_mean(run: dict[str, float], prefix: str) -> float:
    """Mean of a quantity over the layers, which stand behind the prefix."""
    return mean(value for key, value in run.items() if key.rpartition("/")[0] == prefix)


def spread(values: list[float], digits: int = 3) -> str:
    """Mean and standard deviation."""
    return f"{mean(values):.{digits}f} ± {stdev(values):.{digits}f}" if len(values) > 1 else f"{values[0]:.{digits}f}"


def weights(seeds: int, data: list[str], title: str) -> None:
    """Spectrum and accuracy for every treatment of the weights."""
    print(
        f"\n{title}, {seeds} seeds\n\n| weights | test accuracy | largest / median singular value |"
        "\n| --- | --- | --- |"
    )
    for name, arguments in WEIGHTS.items():
        runs = results(["experiment=aon_spectrum", *data, *arguments], seeds)
        ratio = spread([layer_mean(run, "spectrum") for run in runs], 2)
        print(f"| {name} | {spread([run['test/acc'] for run in runs])} | {ratio} |", flush=True)


ICS = {"W1": "ics", "lower bound": "ics/lower", "upper bound": "ics/upper", "W1 / mean norm": "ics/relative"}


def shift(seeds: int) -> None:
    """Internal covariate shift for fixed and learned alpha."""
    print(
        f"\ndigits, {seeds} seeds\n\n| Unitize | test accuracy |",
        " | ".join(ICS),
        "|\n| --- | ---" + " | ---" * len(ICS),
        "|",
    )
    for name, arguments in ALPHAS.items():
        runs = results(["experiment=ics_alpha", *arguments], seeds)
        cells = (spread([layer_mean(run, prefix) for run in runs]) for prefix in ICS.values())
        print(f"| {name} | {spread([run['test/acc'] for run in runs])} |", " | ".join(cells), "|", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=["aon", "ics"], default=["aon", "ics"])
    parser.add_argument("--fashion", metavar="FOLDER")
    arguments = parser.parse_args()
    if "ics" in arguments.only:
        shift(arguments.seeds)
    if "aon" in arguments.only:
        weights(arguments.seeds, [], "digits")
        if arguments.fashion:
            fashion = [
                "data=fashion_mnist",
                f"data.root={arguments.fashion}",
                "trainer.max_epochs=3",
                "data.batch_size=256",
            ]
            weights(arguments.seeds, fashion, "Fashion-MNIST, 3 epochs")


if __name__ == "__main__":
    main()
