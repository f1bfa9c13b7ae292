"""``export``: files that run elsewhere: pt2, ONNX, safetensors, spline tables."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from tautnet.cli import a_run

HELP = "files that run elsewhere: pt2, ONNX, safetensors, spline tables"
DESCRIPTION = "Export a trained model."
EXAMPLE = "tautnet export outputs/first"


def add_arguments(parser: ArgumentParser) -> None:
    """What is asked for."""
    a_run.add_arguments(parser)


def run(arguments: Namespace) -> int:
    """Do it."""
    raise NotImplementedError
