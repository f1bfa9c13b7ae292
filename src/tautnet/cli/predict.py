"""``predict``: classes, probabilities and certified radii of files."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from tautnet.cli import a_run

HELP = "classes, probabilities and certified radii of files"
DESCRIPTION = "Predict what is in files."
EXAMPLE = "tautnet predict outputs/first"


def add_arguments(parser: ArgumentParser) -> None:
    """What is asked for."""
    a_run.add_arguments(parser)


def run(arguments: Namespace) -> int:
    """Do it."""
    raise NotImplementedError
