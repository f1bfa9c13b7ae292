"""Learning curves of Fashion-MNIST and CIFAR-10 through the ordinary command line.

    python benchmarks/learning_curves.py <folder of Fashion-MNIST> <folder of CIFAR-10> [further settings ...]

Prints validation accuracy after every epoch and test accuracy of the final weights, both in percent, one seed each.
"""

import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path

TRAIN = Path(__file__).parents[1] / "train.py"
FASHION = ["data=fashion_mnist", "model=convnet", "trainer.max_epochs=8"]
CIFAR = ["data=cifar10", "model=resnet20", "norm=batch", "optimizer=sgd", "scheduler=onecycle"]
VARIANTS = {
    "Fashion-MNIST, convnet, spline, unitize": [*FASHION, "activation=spline", "norm=unitize"],
    "CIFAR-10, ResNet-20, relu, batch": [*CIFAR, "activation=relu", "trainer.max_epochs=4"],
    "CIFAR-10, ResNet-20, spline, batch": [*CIFAR, "activation=spline", "trainer.max_epochs=3"],
}


def curve(run: Path) -> tuple[list[float], float]:
    """Validation accuracies by epoch, and the test accuracy."""
    with next((run / "csv").rglob("metrics.csv")).open() as file:
        values = [float(row["val/acc"]) for row in csv.DictReader(file) if row["val/acc"]]
    return values, json.loads((run / "result.json").read_text())["metrics"]["test/acc"]


def main() -> None:
    """Train every variant and print its row."""
    roots = {"data=fashion_mnist": sys.argv[1], "data=cifar10": sys.argv[2]}
    print("| variant | validation accuracy after each epoch | test accuracy |\n| --- | --- | --- |")
    for name, settings in VARIANTS.items():
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / "run"
            fixed = ["logger=csv", "trainer.enable_progress_bar=false", f"hydra.run.dir={run}"]
            command = [sys.executable, str(TRAIN), *settings, f"data.root={roots[settings[0]]}", *fixed, *sys.argv[3:]]
            subprocess.run(command, check=True, capture_output=True)
            values, test = curve(run)
        print(f"| {name} |", " ".join(f"{100 * v:.1f}" for v in values), f"| {100 * test:.1f} |", flush=True)


if __name__ == "__main__":
    main()
