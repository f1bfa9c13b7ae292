"""``plot``: pictures of what a run has learned."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from tautnet.cli import a_run

HELP = "pictures of what a run has learned"
DESCRIPTION = "Draw what a run has learned."
EXAMPLE = "tautnet plot outputs/first"


def add_arguments(parser: ArgumentParser) -> None:
    """What is asked for."""
    a_run.add_arguments(parser)


def run(arguments: Namespace) -> int:
    """Do it."""
    raise NotImplementedError
