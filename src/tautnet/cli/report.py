"""``report``: one HTML page of a run or a sweep."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from tautnet.cli import a_run

HELP = "one HTML page of a run or a sweep"
DESCRIPTION = "Write a report."
EXAMPLE = "tautnet report outputs/first"


def add_arguments(parser: ArgumentParser) -> None:
    """What is asked for."""
    a_run.add_arguments(parser)


def run(arguments: Namespace) -> int:
    """Do it."""
    raise NotImplementedError
