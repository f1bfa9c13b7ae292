"""Quality of the main job and of the circle experiment over seeds, through the ordinary command line.

    python benchmarks/first_results.py [number of seeds]

Prints a table of test accuracy, Lipschitz bound and observed value, active knots: median [smallest … largest].
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

TRAIN = Path(__file__).parents[1] / "train.py"
COLUMNS = ("test/acc", "lipschitz/bound_p2", "lipschitz/lower_p2", "spline/active_knots")
VARIANTS = {
    "digits, spline unitize (the main job)": [],
    "digits, spline batch": ["norm=batch"],
    "digits, relu unitize": ["activation=relu"],
    "digits, relu batch": ["activation=relu", "norm=batch"],
    "circle, two spline neurons": ["experiment=area_circle"],
    "circle, two relu neurons": ["experiment=area_circle", "activation=relu"],
}


def results(arguments: list[str], seeds: int, folder: Path) -> list[dict[str, float]]:
    """Metrics of one variant, a dict a seed."""
    seed = "seed=" + ",".join(map(str, range(seeds)))
    command = [sys.executable, str(TRAIN), "-m", seed, "trainer.enable_progress_bar=false", f"hydra.sweep.dir={folder}"]
    subprocess.run([*command, *arguments], check=True, capture_output=True)
    return [json.loads(path.read_text())["metrics"] for path in sorted(folder.glob("*/result.json"))]


def spread(values: list[float]) -> str:
    """Median and range."""
    return f"{median(values):.4g} [{min(values):.4g} … {max(values):.4g}]" if values else "–"


def main() -> None:
    """Run every variant and print its row."""
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    print("| variant |", " | ".join(COLUMNS), "|")
    print("| --- |" + " --- |" * len(COLUMNS))
    for name, arguments in VARIANTS.items():
        with tempfile.TemporaryDirectory() as folder:
            runs = results(arguments, seeds, Path(folder))
        cells = (spread([run[column] for run in runs if column in run]) for column in COLUMNS)
        print(f"| {name} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
