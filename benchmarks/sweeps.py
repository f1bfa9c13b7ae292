"""What the experiments share: a sweep over seeds through the ordinary command line."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

TRAIN = Path(__file__).parents[1] / "train.py"


def results(arguments: list[str], seeds: int) -> list[dict[str, float]]:
    """Metrics of one variant on the CPU, a dict a seed."""
    common = [
        "seed=" + ",".join(map(str, range(seeds))),
        "trainer=cpu",
        "trainer.enable_progress_bar=false",
        "logger=none",
    ]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(TRAIN), "-m", *common, *arguments, f"hydra.sweep.dir={folder}"]
        subprocess.run(command, check=True, capture_output=True)
        return [json.loads(path.read_text())["metrics"] for path in sorted(Path(folder).glob("*/result.json"))]
