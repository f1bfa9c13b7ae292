"""Ten UCI tables against what one would try first: a linear model and a random forest, on the same split.

    python benchmarks/tables.py <folder of csv files, last column target> [number of seeds]

Prints test accuracy of the final weights in percent, median [smallest … largest] over seeds; the forest has the same
seeds, logistic regression has none. Features are standardised by the training part for all of them.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import numpy as np
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression

from tautnet.data.loader import TensorSamples
from tautnet.data.table import Table

TRAIN = Path(__file__).parents[1] / "train.py"
TABLES = (
    *("banknote_authentication", "ionosphere", "optdigits", "phoneme", "satimage"),
    *("segmentation", "spambase", "vehicle", "vowel", "waveform_40"),
)
SETTINGS = [
    *("data=table", "data.target=target", "model=mlp", "model.net.widths=[128,128]", "trainer.max_epochs=40"),
    *("trainer=cpu", "trainer.enable_progress_bar=false", "callbacks=none", "logger=none"),
]
NETS = {"spline, unitize": [], "relu, batch": ["activation=relu", "norm=batch"]}


def arrays(samples: TensorSamples) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and classes."""
    return samples.inputs.numpy(), samples.targets.numpy()


def net_accuracies(path: Path, settings: list[str], seeds: int) -> list[float]:
    """Test accuracy through the ordinary command line, a number a seed."""
    with tempfile.TemporaryDirectory() as folder:
        sweep = ["seed=" + ",".join(map(str, range(seeds))), f"hydra.sweep.dir={folder}", f"data.path={path}"]
        subprocess.run([sys.executable, TRAIN, "-m", *SETTINGS, *settings, *sweep], check=True, capture_output=True)
        results = [json.loads(file.read_text()) for file in sorted(Path(folder).glob("*/result.json"))]
    return [result["metrics"]["test/acc"] for result in results]


def baselines(path: Path, seeds: int) -> tuple[list[float], list[float]]:
    """Test accuracies of logistic regression and of random forests."""
    splits = Table(str(path), "target").splits
    assert isinstance(splits.train, TensorSamples)
    assert isinstance(splits.test, TensorSamples)
    train, test = arrays(splits.train), arrays(splits.test)
    linear = LogisticRegression(max_iter=5000).fit(*train).score(*test)
    forests = [RandomForestClassifier(300, random_state=seed).fit(*train).score(*test) for seed in range(seeds)]
    return [linear], forests


def spread(values: list[float]) -> str:
    """Median and range in percent."""
    if len(values) == 1:
        return f"{100 * values[0]:.1f}"
    return f"{100 * median(values):.1f} [{100 * min(values):.1f} … {100 * max(values):.1f}]"


def main() -> None:
    """One row a table."""
    folder, seeds = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 3
    columns = ["table", *NETS, "logistic regression", "random forest, 300 trees"]
    print("|", " | ".join(columns), "|")
    print("| --- |" + " --- |" * (len(columns) - 1))
    for name in TABLES:
        path = folder / f"{name}.csv"
        cells = [spread(net_accuracies(path, settings, seeds)) for settings in NETS.values()]
        cells += [spread(values) for values in baselines(path, seeds)]
        print("|", " | ".join([name, *cells]), "|", flush=True)


if __name__ == "__main__":
    main()
