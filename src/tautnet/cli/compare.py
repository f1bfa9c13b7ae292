"""``compare``: several runs or a sweep side by side."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from tautnet.cli import a_run

HELP = "several runs or a sweep side by side"
DESCRIPTION = "Compare runs."
EXAMPLE = "tautnet compare outputs/first"


def add_arguments(parser: ArgumentParser) -> None:
    """What is asked for."""
    a_run.add_arguments(parser)


def run(arguments: Namespace) -> int:
    """Do it."""
    raise NotImplementedError
