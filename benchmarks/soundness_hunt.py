"""Random networks of every layer type attacked by gradient ascent: does anything exceed its Lipschitz bound?

    python benchmarks/soundness_hunt.py [networks, default 100000] [first seed]

Draws the networks of tests/architectures.py, p in {1, 2, inf}, three in four in float64 and one in float32, in as many
processes as there are cores. Prints every violation with its seed as it is met, and a table at the end; the exit status
is the number of violations, at most 100.
"""

import math
import os
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported; every core has a process of its own
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import torch
from architectures import hunt

MARGINS = {torch.float64: 1e-9, torch.float32: 1e-4}
CHUNK = 100
FIRST = 1_000_000  # other networks than those of the tests


def chunk(first: int) -> tuple[Counter[str], list[float], float, list[str]]:
    """Counts, ratios observed / bound, the largest excess in float32, and violations of some networks in a row."""
    torch.set_num_threads(1)
    counts: Counter[str] = Counter()
    ratios: list[float] = []
    excess, violations = 0.0, []
    for seed in range(first, first + CHUNK):
        dtype = torch.float32 if seed % 4 == 0 else torch.float64
        report, observed, net = hunt(seed, dtype)
        counts["networks"] += 1
        counts["unbounded"] += report.total == math.inf
        for name in ("log_product", "log_folded", "log_lmi"):
            bound = math.exp(min(getattr(report, name), 700))
            if observed > bound * (1 + MARGINS[dtype]):
                violations.append(f"{name}: observed {observed}, bound {bound}: {net}")
        if 0 < report.total < math.inf:
            ratios.append(observed / report.total)
            excess = max(excess, ratios[-1] - 1) if dtype == torch.float32 else excess
        counts["folded below product"] += report.log_folded < report.log_product - 1e-6
        counts["inequalities below folded"] += report.log_lmi < report.log_folded - 1e-6
    return counts, ratios, excess, violations


def main() -> int:
    """Hunt, print."""
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    first = int(sys.argv[2]) if len(sys.argv) > 2 else FIRST
    counts: Counter[str] = Counter()
    ratios: list[float] = []
    excess, violations = 0.0, list[str]()
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for found in pool.map(chunk, range(first, first + number, CHUNK)):
            counts += found[0]
            ratios += found[1]
            excess = max(excess, found[2])
            violations += found[3]
            for violation in found[3]:
                print(violation, flush=True)
            if counts["networks"] % 10_000 == 0:
                print(f"{counts['networks']} networks, {len(violations)} violations", file=sys.stderr, flush=True)
    print(f"| networks | violations | {' | '.join(key for key in counts if key != 'networks')} | observed / bound |")
    print("| --- " * (len(counts) + 2) + "|")
    cells = [counts["networks"], len(violations), *(counts[key] for key in counts if key != "networks")]
    ratio = f"median {median(ratios):.2f}, largest {max(ratios):.9f}, in float32 {excess:+.1e} beyond 1"
    print(f"| {' | '.join(map(str, cells))} | {ratio} |")
    return min(len(violations), 100)


if __name__ == "__main__":
    sys.exit(main())
