"""``report``: one HTML page of a run or a sweep."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from tautnet.cli import a_run

HELP = "one HTML page of a run or a sweep"
DESCRIPTION = """\
Writes one HTML file that needs nothing beside it, no network and no script: headline
numbers, settings, curves, learned activations before and after training, the Lipschitz
bound against what is observed, certificates, the command to train it again. Of a sweep:
its variants side by side, how sure their differences are, and every run. A report that is
there already is written anew; any other file is left alone."""
EXAMPLE = "tautnet report outputs/first --output first.html"
REPORT = "report.html"


def add_arguments(parser: ArgumentParser) -> None:
    """The run or sweep, and where the page goes."""
    parser.add_argument("run", type=Path, help="directory of a run, or of a sweep")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help=f"the page; default: {REPORT} in the run's or sweep's directory"
    )
    parser.add_argument(
        "--checkpoint", metavar="NAME", help="of a run: last, best, ..., whose weights are drawn; default: last"
    )
    a_run.add_allow(parser)


def run(arguments: Namespace) -> int:
    """Write the page, and say where it is."""
    from tautnet.errors import ConfigError
    from tautnet.report.comparison import compare
    from tautnet.report.records import is_run, read_record, read_records
    from tautnet.report.run_page import run_page
    from tautnet.report.sweep_page import sweep_page
    from tautnet.report.writing import page_file, write

    if not arguments.run.is_dir():
        raise ConfigError(f"{arguments.run}: no such directory; a run's or a sweep's is accepted")
    file = page_file(arguments.output or arguments.run / REPORT)
    if is_run(arguments.run):
        text = run_page(read_record(arguments.run), arguments.checkpoint or "last", arguments.allow)
    elif arguments.checkpoint is not None or arguments.allow:
        raise ConfigError(f"{arguments.run}: of several runs no weights are drawn; --checkpoint, --allow are for one")
    else:
        runs = read_records([arguments.run])
        text = sweep_page(arguments.run.resolve().name, runs, compare(runs))
    write(text, file)
    sys.stdout.write(f"{file}: {len(text.encode()) / 1000:.0f} kB; open it in a browser\n")
    return 0
