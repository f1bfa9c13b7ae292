"""``evaluate``: metrics of a trained model on any data."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from tautnet.cli import a_run

HELP = "metrics of a trained model on any data"
DESCRIPTION = "Evaluate a trained model."
EXAMPLE = "tautnet evaluate outputs/first"


def add_arguments(parser: ArgumentParser) -> None:
    """What is asked for."""
    a_run.add_arguments(parser)


def run(arguments: Namespace) -> int:
    """Do it."""
    raise NotImplementedError
