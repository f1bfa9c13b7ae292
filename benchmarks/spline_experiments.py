"""The two experiments with learned splines beside their baselines, over seeds, through the ordinary command line.

    python benchmarks/spline_experiments.py [number of seeds]

Prints two tables, median [smallest … largest] over seeds. The circle: test accuracy of two hidden neurons, of splines
dense and sparsified. The 1-Lipschitz fit: test MSE, the product bound, the largest slope at the 10,000 test points.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import median

TRAIN = Path(__file__).parents[1] / "train.py"
QUIET = ["trainer=cpu", "trainer.enable_progress_bar=false", "logger=none"]
Columns = Mapping[str, tuple[str, str]]  # heading: logged name, format

CIRCLE_COLUMNS: Columns = {
    "test accuracy": ("test/acc", ".4f"),
    "active knots": ("spline/active_knots", "g"),
    "product bound": ("lipschitz/product_p2", ".4g"),
    "observed": ("lipschitz/lower_p2", ".4g"),
    "seconds": ("time/fit_seconds", ".0f"),
}
SAMPLES = "callbacks.lipschitz.num_steps=0"  # slopes are observed at samples, none is searched for
CIRCLE = {
    "two spline neurons": ["experiment=area_circle", SAMPLES],
    "sparsified by refit": ["experiment=area_circle", SAMPLES, "callbacks=sparsify", "callbacks.sparsify.method=refit"],
    "sparsified by merging": [
        "experiment=area_circle",
        SAMPLES,
        "callbacks=sparsify",
        "callbacks.sparsify.method=merge",
    ],
    "two relu neurons": ["experiment=area_circle", SAMPLES, "activation=relu"],
}
FIT_COLUMNS: Columns = {
    "test MSE": ("test/loss", ".3g"),
    "product bound": ("lipschitz/product_p2", ".6f"),
    "observed": ("lipschitz/lower_p2", ".4f"),
    "seconds": ("time/fit_seconds", ".0f"),
}
LOOK = ["callbacks.lipschitz.num_samples=10000", "callbacks.lipschitz.every_n_epochs=200", SAMPLES]
FIT = {
    "splines": ["experiment=fit_1d", *LOOK, "callbacks.splines.figure_every_n_epochs=200"],
    "absolute value": ["experiment=fit_1d", *LOOK, "activation=absolute"],
    "MaxMin (GroupSort, pairs)": ["experiment=fit_1d", *LOOK, "activation=maxmin"],
    "relu": ["experiment=fit_1d", *LOOK, "activation=relu"],
}


def results(arguments: list[str], seeds: int) -> list[dict[str, float]]:
    """Metrics of one variant, a dict a seed."""
    sweep = "seed=" + ",".join(map(str, range(seeds)))
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(TRAIN), "-m", sweep, *QUIET, *arguments, f"hydra.sweep.dir={folder}"]
        subprocess.run(command, check=True, capture_output=True)
        return [json.loads(path.read_text())["metrics"] for path in sorted(Path(folder).glob("*/result.json"))]


def spread(values: list[float], number: str) -> str:
    """Median and range."""
    middle, *ends = (format(value, number) for value in (median(values), min(values), max(values)))
    return f"{middle} [{' … '.join(ends)}]"


def table(variants: Mapping[str, list[str]], columns: Columns, seeds: int) -> None:
    """Run every variant and print its row."""
    print("| activation |", " | ".join(columns), "|")
    print("| --- |" + " --- |" * len(columns))
    for variant, arguments in variants.items():
        runs = results(arguments, seeds)
        cells = [
            spread([run[name] for run in runs], number) if name in runs[0] else "–" for name, number in columns.values()
        ]
        print(f"| {variant} |", " | ".join(cells), "|", flush=True)


def main() -> None:
    """Both tables."""
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    table(CIRCLE, CIRCLE_COLUMNS, seeds)
    print()
    table(FIT, FIT_COLUMNS, seeds)


if __name__ == "__main__":
    main()
