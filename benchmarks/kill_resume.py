"""Does a run that is killed at a random moment end, given again, with the same bits as one that was not?

    python benchmarks/kill_resume.py [--kills 100] [--jobs spline slaf lipschitz images ranks] [--seed 0]

Each job is done once without interruption. Then, again and again, it is begun, killed by SIGKILL after a random part of
its processor time, from the writing of its settings to its end, and the same command is given again. Compared bit by
bit are all checkpoints (weights, optimizer, schedule, random states, callbacks), all final metrics and all scalars in
TensorBoard; not compared are seconds of the clock. The jobs, in tests/killing.py, have checkpoints every 3 steps and
between them every activation, normalizer and callback with a state of its own. `ranks` has two processes.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from killing import JOBS, arguments_of, difference, finished, killed, left_in, uninterrupted


def moment(file: str) -> str:
    """What a killed run was at, by the file that it had written last."""
    if file.endswith(".part"):
        return "writing a checkpoint"
    if file.endswith((".png", ".md")) or file in ("sparse.ckpt", "recalibrated.ckpt"):
        return "after training"
    return {"": "before its settings", "config.yaml": "before a checkpoint", "result.json": "finished"}.get(
        file, "behind a checkpoint" if file.endswith(".ckpt") else "training"
    )


def main() -> None:
    """Kill, go on, compare, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="of all jobs together")
    parser.add_argument("--jobs", nargs="+", choices=list(JOBS), default=list(JOBS))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng, found = random.Random(options.seed), 0
    print("| job | killed | same bits | when |\n| --- | --- | --- | --- |")
    for number, job in enumerate(options.jobs):
        kills = len(range(number, options.kills, len(options.jobs)))
        same, moments, arguments = 0, Counter[str](), arguments_of(job)
        with tempfile.TemporaryDirectory() as name:
            base = Path(name)
            (base / "whole").mkdir()
            seconds = uninterrupted(base / "whole", *arguments)
            expected = left_in(base / "whole")
            for kill in range(kills):
                folder = base / str(kill)
                folder.mkdir()
                moments[moment(killed(folder, rng.uniform(*seconds), *arguments))] += 1
                finished(folder, *arguments)
                where = difference(expected, left_in(folder))
                same += where is None
                if where is not None:
                    sys.stderr.write(f"{job}, kill {kill}: {where[:300]}\n")
        found += same
        times = ", ".join(f"{name} {count}" for name, count in moments.most_common())
        print(f"| {job} | {kills} | {same} | {times} |", flush=True)
    print(f"\n{found} of {options.kills} ended with the same bits")
    sys.exit(found != options.kills)


if __name__ == "__main__":
    main()
