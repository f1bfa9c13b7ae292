"""``certify``: certified and attacked accuracy over the perturbation."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

from tautnet.cli import a_run
from tautnet.cli.evaluate import add_data, batches
from tautnet.errors import ConfigError

if TYPE_CHECKING:
    from tautnet.evaluation.certificates import Row

HELP = "certified and attacked accuracy over the perturbation"
DESCRIPTION = """\
Which share of the samples is right, stays right under attack, and provably stays right however the input is
moved by at most eps: a sample is certified by the network's Lipschitz constants and attacked by projected
gradient descent. eps is in raw units: pixels count from 0 to 1, columns in their own units. The same as
callbacks=certify does in training, of the same samples."""
EXAMPLE = "tautnet certify outputs/first --norm l2 --eps 36/255,72/255,108/255 --output outputs/first/certificates"
EPSILONS = {"l2": [0.05, 0.1, 0.2, 0.5], "linf": [0.01, 0.03, 0.1]}  # as in conf/callbacks/certify.yaml
LARGEST = 10_000  # of steps and restarts


def add_arguments(parser: ArgumentParser) -> None:
    """What is asked for."""
    a_run.add_arguments(parser)
    add_data(parser)
    parser.add_argument("--norm", choices=["l2", "linf"], help="of the perturbation; default: both")
    parser.add_argument(
        "--eps", metavar="EPS,...", help="radii such as 0.1,0.5 or 8/255, for each norm; default: as callbacks=certify"
    )
    parser.add_argument("--samples", type=int, default=128, help="evenly spread over the data; default: 128")
    parser.add_argument("--steps", type=int, default=40, help=f"of each attack, 1 to {LARGEST}; default: 40")
    parser.add_argument("--restarts", type=int, default=2, help=f"starts of each attack, 1 to {LARGEST}; default: 2")
    parser.add_argument("--seed", type=int, help="of the other starts than the first; default: that of the run")
    parser.add_argument("--output", type=Path, metavar="DIR", help="write certificates.csv, .json and .png")
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")


def run(arguments: Namespace) -> int:
    """Select samples, certify, attack, print, write."""
    epsilons = _epsilons(arguments)
    _check(arguments)
    from tautnet.evaluation.certificates import Effort, examine
    from tautnet.evaluation.curves import write_certificates
    from tautnet.evaluation.selection import selected
    from tautnet.evaluation.writing import pipe_may_close, progress

    trained = a_run.opened(arguments)
    if trained.model.task != "classification":
        raise ConfigError(f"{trained.checkpoint}: for {trained.model.task}; predicted classes are certified")
    inputs, labels = selected(batches(arguments, trained), arguments.samples)
    seed = trained.settings["seed"] if arguments.seed is None else arguments.seed
    effort = Effort(arguments.steps, arguments.restarts, seed)
    net, scale_C = trained.model.net.to(inputs.device), trained.preparation.units()
    with progress("certify and attack", sum(map(len, epsilons.values()))) as tell:
        rows, radii = examine(net, scale_C, inputs, labels, epsilons, effort, tell)
    if arguments.output is not None:
        write_certificates(arguments.output, rows, radii)
    with pipe_may_close():
        sys.stdout.write(_text(rows, len(labels)))
        sys.stdout.flush()
    return 0


def _epsilons(arguments: Namespace) -> dict[str, list[float]]:
    """Rising radii of each norm."""
    norms = [arguments.norm] if arguments.norm else list(EPSILONS)
    if arguments.eps is None:
        return {norm: EPSILONS[norm] for norm in norms}
    return {norm: radii(arguments.eps) for norm in norms}


def radii(text: str) -> list[float]:
    """The numbers that ``0.1,36/255`` means, rising.

    Raises:
        ConfigError: another text, or a number below 0.
    """
    return sorted({_number(part) for part in text.split(",")})


def _number(text: str) -> float:
    try:
        above, _, below = text.partition("/")
        value = float(above) / float(below or 1)
    except (ValueError, ZeroDivisionError):
        value = -1.0
    if not 0 <= value < inf:
        raise ConfigError(f"--eps {text}: a finite number of at least 0, or a fraction such as 36/255")
    return value


def _check(arguments: Namespace) -> None:
    """What can be checked before anything is opened."""
    from tautnet.evaluation.writing import check_free

    for name, most in (("samples", inf), ("steps", LARGEST), ("restarts", LARGEST)):
        value = getattr(arguments, name)
        if not 1 <= value <= most:
            raise ConfigError(
                f"--{name} {value}: an integer of at least 1" + (f", at most {most}" if most < inf else "")
            )
    if arguments.seed is not None and not 0 <= arguments.seed < 2**32:
        raise ConfigError(f"--seed {arguments.seed}: an integer from 0 to {2**32 - 1}")
    folder: Path | None = arguments.output
    if folder is None:
        return
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--output {folder}: a file; a folder is needed")
    if not folder.parent.is_dir():
        raise ConfigError(f"--output {folder}: no such folder as {folder.parent}")
    for suffix in ("csv", "json", "png") if folder.is_dir() else ():
        check_free(folder / f"certificates.{suffix}", arguments.overwrite)


def _text(rows: Sequence[Row], num_samples: int) -> str:
    from tautnet.evaluation.writing import table

    lines = [[r.norm, f"{r.eps:.6g}", f"{r.certified:.4f}", f"{r.attacked:.4f}", f"{r.clean:.4f}"] for r in rows]
    heading = ["norm", "eps", "certified", "attacked", "clean"]
    return f"{num_samples} samples, eps in raw units\n\n{table([heading, *lines])}"
