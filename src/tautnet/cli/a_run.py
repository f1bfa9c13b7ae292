"""The arguments by which a command gets at what was trained."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tautnet.trained import Trained


def add_arguments(parser: ArgumentParser, checkpoint: str = "tested") -> None:
    """Of one run: where it is, which of its checkpoints, by default ``checkpoint``, what its settings may name."""
    parser.add_argument("run", type=Path, help="directory of a run, or one of its checkpoints")
    parser.add_argument(
        "--checkpoint",
        default=checkpoint,
        metavar="NAME",
        help="of a run's directory: tested (what the run's own test had), last (the end of training), best, sparse, "
        f"recalibrated; default: {checkpoint}",
    )
    add_allow(parser)


def add_allow(parser: ArgumentParser) -> None:
    """What settings may name beside tautnet's own."""
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="a package or module of your own that the run's settings may name; may be repeated",
    )


def opened(arguments: Namespace) -> Trained:
    """The model of these arguments.

    Raises:
        ConfigError: a run that cannot be used.
    """
    from tautnet.trained import open_trained  # torch, Lightning

    return open_trained(arguments.run, arguments.checkpoint, arguments.allow)
