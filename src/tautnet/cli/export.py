"""``export``: files that run elsewhere: pt2, ONNX, safetensors, spline tables."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tautnet.cli import a_run
from tautnet.errors import ConfigError

if TYPE_CHECKING:
    from tautnet.export import Written

HELP = "files that run elsewhere: pt2, ONNX, safetensors, spline tables"
DESCRIPTION = (
    "Writes a trained network into files, each with its Lipschitz bound and its input normalisation: model.onnx, of "
    "standard operators alone; model.pt2, which torch.export.load of torch alone takes; model.safetensors with "
    "config.json, which tautnet.load takes; the learned splines as splines.json and splines.npz. The first two have "
    "their weights baked and are compared with the network: exit status 1, and no file, if an output differs by more "
    "than 1e-5 of the largest one and than ten times the network's own rounding."
)
EXAMPLE = "tautnet export outputs/first"
_ALL = "all"
_FORMATS = ("onnx", "pt2", "safetensors", "splines")


def add_arguments(parser: ArgumentParser) -> None:
    """What is asked for."""
    a_run.add_arguments(parser)
    parser.add_argument(
        "--format",
        nargs="+",
        choices=(*_FORMATS, _ALL),
        default=[_ALL],
        help="what to write; default: all, splines if there are any",
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="where to; default: the run's folder export")
    parser.add_argument(
        "--raw", action="store_true", help="onnx and pt2 take raw values (images: 0 to 1) and standardise them"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the files of an earlier export")


def run(arguments: Namespace) -> int:
    """Write the files and say how large and how exact they are."""
    if arguments.raw and not {"onnx", "pt2", _ALL} & set(arguments.format):
        raise ConfigError(f"--raw: has no effect on {' '.join(arguments.format)}, only on onnx and pt2")
    trained = a_run.opened(arguments)
    from tautnet.export import DiffersError, export, has_splines

    folder = arguments.output or (trained.run / "export" if trained.run else None)
    if folder is None:
        raise ConfigError(f"--output: where to? {trained.checkpoint} lies in no run's directory")
    formats = list(dict.fromkeys(arguments.format))
    if _ALL in formats:
        formats = [name for name in _FORMATS if name != "splines" or has_splines(trained.model.net)]
    try:
        written, about = export(trained, folder, formats, arguments.raw, arguments.overwrite)
    except DiffersError as error:
        sys.stderr.write(f"error: {error}; nothing was written\n")
        return 1
    sys.stdout.write(_told(written, about))
    return 0


def _told(written: Sequence[Written], about: dict[str, Any]) -> str:
    lines = []
    for file in written:
        exact = "" if file.error is None else f", outputs equal up to {file.error:.1g} of the largest"
        lines.append(f"{file.path}: {file.size:,} bytes{exact}")
    bound, log_bound = about["lipschitz_bound_p2"], about["lipschitz_log_bound_p2"]
    told = f"{bound:.6g}" if bound is not None else "none" if log_bound is None else f"exp({log_bound:.6g})"
    lines.append(f"Lipschitz bound (p=2, {about['lipschitz_units']} inputs): {told}")
    return "".join(f"{line}\n" for line in lines)
