"""``compare``: several runs or a sweep side by side."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tautnet.report.comparison import Comparison

HELP = "several runs or a sweep side by side"
DESCRIPTION = """\
Groups runs that differ in the seed alone and prints, for each group, the mean and the
standard deviation over its seeds, and how it differs from the first group: the mean
difference between runs of the same seed, its 95 % interval (Student) and the p of the exact
sign-flip permutation test. Says so where the seeds are too few to tell. With --output also
comparison.md, comparison.csv and pictures, which replace those of the same name."""
EXAMPLE = "tautnet compare outputs/sweep --metric test/acc --baseline activation=relu --output comparison"


def add_arguments(parser: ArgumentParser) -> None:
    """The runs, what they are compared by and against, and where the files go."""
    parser.add_argument(
        "runs",
        type=Path,
        nargs="+",
        metavar="run",
        help="directory of a run, or one with runs in it, such as a sweep's",
    )
    parser.add_argument(
        "--metric",
        action="append",
        default=[],
        metavar="NAME",
        help="a final metric, as in result.json; may be repeated; default: those that a run ends with",
    )
    parser.add_argument(
        "--baseline",
        metavar="KEY=VALUE",
        help="the group that the others are held against, by what it alone has; several by commas; default: the first",
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder of the files, made when needed")


def run(arguments: Namespace) -> int:
    """Print the tables, write the files."""
    from tautnet.errors import ConfigError
    from tautnet.report.comparison import compare
    from tautnet.report.records import read_records

    if arguments.output is not None and arguments.output.exists() and not arguments.output.is_dir():
        raise ConfigError(f"--output {arguments.output}: a file; a folder is accepted")
    comparison = compare(read_records(arguments.runs), arguments.metric, arguments.baseline)
    _print(comparison)
    if arguments.output is not None:
        _write(comparison, arguments.output)
    return 0


def _print(comparison: Comparison) -> None:
    from rich.console import Console
    from rich.table import Table

    from tautnet.report.comparison import CAPTION, difference_rows, mean_rows

    console = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:  # a file has no width
        console.width = 1000
    against = f"against {comparison.baseline.label}, runs of the same seed; p: permutation test"
    for title, rows in ((CAPTION, mean_rows(comparison)), (against, difference_rows(comparison))):
        if rows:
            table = Table(title=title, title_justify="left")
            for heading in rows[0]:
                table.add_column(heading, overflow="fold")
            for row in rows[1:]:
                table.add_row(*row)
            console.print(table)
    for note in comparison.notes:
        console.print(note)


def _write(comparison: Comparison, folder: Path) -> None:
    from tautnet.report import look
    from tautnet.report.comparison import as_csv, as_markdown
    from tautnet.report.comparison_figures import comparison_figures
    from tautnet.report.writing import write

    folder.mkdir(parents=True, exist_ok=True)
    write(as_markdown(comparison), folder / "comparison.md")
    write(as_csv(comparison), folder / "comparison.csv")
    names = ["comparison.md", "comparison.csv"]
    with look.style():
        for name, _, figure in comparison_figures(comparison):
            names += [file.name for file in look.save(figure, folder, name)]
    sys.stdout.write(f"{len(names)} files in {folder}: {', '.join(names)}\n")
