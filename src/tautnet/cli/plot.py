"""``plot``: pictures of what a run has learned."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from itertools import chain
from pathlib import Path

from tautnet.cli import a_run

HELP = "pictures of what a run has learned"
DESCRIPTION = """\
Draws, as PNG and as SVG: each learned activation before training, after it and after
sparsification, and a table of formulas; the singular values of the weights; the Lipschitz constant of each layer;
and what was logged over time: losses, accuracy, Lipschitz bound against what is observed,
knots, TV(2), covariate shift (callbacks=ics), variance constancy (callbacks=variance).
Of an unfinished run it draws what there is. Pictures of the same name are replaced."""
EXAMPLE = "tautnet plot outputs/first --output pictures"


def add_arguments(parser: ArgumentParser) -> None:
    """The run, and where the pictures go."""
    a_run.add_arguments(parser, checkpoint="last")  # the sparse weights are drawn beside it
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="folder of the pictures, made when needed; default: plots in the run"
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=0.01,
        metavar="SHARE",
        help="largest error of a formula, relative to its curve's spread; above 0, at most 1; default: %(default)s",
    )


def run(arguments: Namespace) -> int:
    """Draw, and print what was drawn."""
    from tautnet.errors import ConfigError
    from tautnet.report import figures, look
    from tautnet.report.curve_formulas import write_formulas
    from tautnet.report.learned import has_checkpoints, open_learned
    from tautnet.report.records import is_run, read_record

    if not 0 < arguments.tolerance <= 1:
        raise ConfigError(f"--tolerance {arguments.tolerance:g}: above 0, at most 1")
    directory = arguments.run if arguments.run.is_dir() else arguments.run.parent.parent
    record = read_record(directory) if is_run(directory) else None
    folder = arguments.output or directory / "plots"
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--output {folder}: a file; a folder is accepted")
    if record is None and arguments.run.is_file() and arguments.output is None:
        raise ConfigError(f"{arguments.run}: lies in no run's directory; say --output DIR")
    opens = record is None or arguments.run.is_file() or arguments.checkpoint != "last" or has_checkpoints(directory)
    learned = open_learned(arguments.run, arguments.checkpoint, arguments.allow) if opens else None
    written = []
    with look.style():
        of_weights = figures.of_weights(learned) if learned is not None else ()
        logged = chain(figures.of_curves(record), figures.of_certificates(record)) if record is not None else ()
        for name, what, figure in chain(of_weights, logged):  # one at a time: a large network has many
            written.append((what, look.save(figure, folder, name)))
    table = write_formulas(learned, folder, arguments.tolerance) if learned is not None else ""
    notes = learned.notes if learned is not None else ["there is no checkpoint: nothing of the weights is drawn"]
    for note in [*notes, *(record.problems if record is not None else ())]:
        sys.stderr.write(f"note: {note}\n")
    if not written:
        raise ConfigError(f"{directory}: nothing to draw, it has neither checkpoints nor logs")
    for what, files in written:
        sys.stdout.write(f"{', '.join(file.name for file in files)}: {what}\n")
    if table:
        sys.stdout.write(f"{table}\n")
    sys.stdout.write(f"{len(written)} pictures, each as PNG and SVG, in {folder}\n")
    return 0
