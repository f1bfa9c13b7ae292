"""``certify``: certified and attacked accuracy over the perturbation."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from tautnet.cli import a_run

HELP = "certified and attacked accuracy over the perturbation"
DESCRIPTION = "Certify and attack a trained classifier."
EXAMPLE = "tautnet certify outputs/first"


def add_arguments(parser: ArgumentParser) -> None:
    """What is asked for."""
    a_run.add_arguments(parser)


def run(arguments: Namespace) -> int:
    """Do it."""
    raise NotImplementedError
