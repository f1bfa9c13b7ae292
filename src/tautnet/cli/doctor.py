"""``python -m tautnet doctor``: what is wrong with this machine or installation, and how it is cured."""

from __future__ import annotations

import io
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Iterator

from tautnet.cli.examine import machine, packages, places, self_test
from tautnet.cli.examine.finding import PROBLEM, Finding

HELP = "look for what is wrong with this machine or installation"
DESCRIPTION = (
    "Prints one line a finding, with its cure: packages, processors, compiler, disk, environment, and a short training "
    "on made-up images. Exit status 0 if nothing is wrong, 1 for a PROBLEM; a note asks for nothing. Takes a few "
    "seconds, the first time longer: the kernels are compiled."
)
EXAMPLE = "tautnet doctor"

Examination = Callable[[], Iterable[Finding]]
_WITHOUT_TORCH: tuple[Examination, ...] = (
    *(packages.versions, packages.malicious, packages.extras),
    *(machine.memory, machine.files, machine.encoding, machine.launcher, places.places),
)
_WITH_TORCH: tuple[Examination, ...] = (
    *(machine.processors, machine.gpus, self_test.kernels, self_test.training, self_test.checkpoint),
)


def add_arguments(parser: ArgumentParser) -> None:
    """There are none."""


def run(arguments: Namespace) -> int:
    """Examine, print, and return 1 if a finding is a problem."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a locale may be among what is wrong
        sys.stdout.reconfigure(errors="backslashreplace")
    problems = 0
    for finding in _findings():
        sys.stdout.write(finding.line() + "\n")
        sys.stdout.flush()
        problems += finding.mark == PROBLEM
    summary = "nothing is wrong" if problems == 0 else f"{problems} problem{'s' if problems > 1 else ''}"
    sys.stdout.write(f"\n{summary}\n")
    return min(problems, 1)


def _findings() -> Iterator[Finding]:
    for examination in _WITHOUT_TORCH:
        yield from _safely(examination)
    torch_works = False
    for finding in _safely(packages.imports):
        torch_works |= finding == packages.TORCH_WORKS
        yield finding
    for examination in _WITH_TORCH if torch_works else ():
        yield from _safely(examination)
    if not torch_works:
        yield Finding(PROBLEM, "self-test", "left out, since torch cannot be imported", "see above")


def _safely(examination: Examination) -> Iterator[Finding]:
    try:
        yield from examination()
    except Exception as error:  # a machine that nobody has seen may raise anything, and the other lines still help
        name = f"{examination.__module__.rpartition('.')[2]}.{examination.__name__}"
        yield Finding(PROBLEM, name, f"{type(error).__name__}: {error}", "please report this line")
