"""Settings that cannot be meant, and settings drawn at random: does each train, or end in one line that says why?

    python benchmarks/config_fuzz.py spelling                   every slip of one character in every key
    python benchmarks/config_fuzz.py values                     values out of range or of another kind for every key
    python benchmarks/config_fuzz.py compositions [number, default 10000] [first seed]

Slips are tried on composed settings in this process. Values and compositions are jobs of two batches, each in a process
of its own with little memory and two minutes of a core; half as many at a time as there are cores. Every finished job
is a line of outputs/config_fuzz_<what>.jsonl, and the same command goes on where it was stopped. Prints every fault
when it is met and a table at the end; the exit status is the number of faults, at most 100.
"""

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported; every job has a process of its own
os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from config_cases import bad_values, composition
from config_keys import GROUPS, all_siblings, misspelt, options, slips
from config_runs import fault, run
from hydra import initialize_config_dir

from tautnet.command_line import register_schema

ROOT = Path(__file__).parents[1]

Case = tuple[str, list[str], tuple[str, ...]]  # name, overrides, words that a refusal has to hold


def value_cases(files: Path) -> Iterator[Case]:
    """Every bad value of every key."""
    every = [(group, option) for group in GROUPS for option in options(group)]
    for key, value, arguments in bad_values(files, [("activation", "spline"), *every]):
        yield f"{key.target} {key.path}={value}", arguments, (key.path.rpartition(".")[2],)


def compositions(files: Path, number: int, first: int) -> Iterator[Case]:
    """Jobs drawn at random."""
    for seed in range(first, first + number):
        groups, values = composition(seed, files)
        yield str(seed), [*groups, *values], ()


def run_all(cases: Iterator[Case], log: Path, folder: Path) -> Counter[str]:
    """Do what is not in the log yet; counts of how all have ended."""
    log.parent.mkdir(parents=True, exist_ok=True)
    done = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    names = {entry["name"] for entry in done}
    counts = Counter(entry["end"] for entry in done)
    left = (case for case in cases if case[0] not in names)

    def one(numbered: tuple[int, Case]) -> dict[str, object]:
        number, (name, arguments, named) = numbered
        ended = run(arguments, folder / str(number))
        found = fault(ended, named)
        end = "fault" if found else "ran" if ended.status == 0 else "refused"
        said = found or (ended.error[-1] if ended.status else "")
        return {"name": name, "end": end, "said": said, "seconds": round(ended.seconds, 2), "arguments": arguments}

    workers = max(1, (os.cpu_count() or 2) // 2)
    numbered = enumerate(left)
    with log.open("a") as lines, ThreadPoolExecutor(workers) as pool:
        while chunk := list(islice(numbered, 20 * workers)):
            for entry in pool.map(one, chunk):
                lines.write(json.dumps(entry) + "\n")
                lines.flush()
                counts[str(entry["end"])] += 1
                if entry["end"] == "fault":
                    print(f"{entry['name']}: {entry['said']}\n    {' '.join(entry['arguments'])}", flush=True)
    return counts


def spelling() -> Counter[str]:
    """Try all slips in all keys."""
    counts: Counter[str] = Counter()
    chosen = [(group, option) for group in (*GROUPS, "experiment") for option in options(group)]
    for siblings in all_siblings(chosen):
        for name in siblings.names:
            counts["keys"] += 1
            for slip in slips(name):
                end, said = misspelt(siblings, name, slip)
                counts[end] += 1
                if end == "fault":
                    print(said, flush=True)
    return counts


def main() -> int:
    """Try, print."""
    what, *rest = sys.argv[1:]
    log = ROOT / "outputs" / f"config_fuzz_{what}.jsonl"
    register_schema()
    with TemporaryDirectory() as folder, initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        files = Path(folder, "files")
        if what == "spelling":
            counts = spelling()
        elif what == "values":
            counts = run_all(value_cases(files), log, Path(folder))
        else:
            number = int(rest[0]) if rest else 10_000
            counts = run_all(compositions(files, number, int(rest[1]) if len(rest) > 1 else 0), log, Path(folder))
    print(f"| {' | '.join(counts)} |\n|{' --- |' * len(counts)}\n| {' | '.join(map(str, counts.values()))} |")
    return min(counts["fault"], 100)


if __name__ == "__main__":
    sys.exit(main())
