"""Paths on the command line as a shell hands them over: Hydra's grammar would need many of them quoted once more."""

from __future__ import annotations

import os
import re

# The settings that are paths. Values of others are in Hydra's grammar, where a comma or a bracket means something.
PATHS = ("ckpt", "resume", "data.path", "data.root", "data.test_root", "hydra.run.dir", "hydra.sweep.dir")
_SWEPT = re.compile(r".*,|[a-z]+\(", re.DOTALL)  # several values: a, b or range(1, 3) or glob(*)
_READABLE = re.compile(r"[A-Za-z0-9_/.+$%*@?|: -]*")  # by Hydra, without quotes, as it stands


def quoted(argument: str, multirun: bool) -> str:
    """An argument ``key=value`` with quotes around a path that Hydra could not read; any other as it is.

    A value that begins with a quote or has an interpolation ``${...}`` was written for Hydra, and so was one that
    lists several values in a multirun, unless there is a file of that name. ``~/`` is the home, as in a shell.

    Args:
        argument: as the shell hands it over.
        multirun: whether commas separate the values of a sweep.
    """
    key, _, value = argument.partition("=")
    if key.lstrip("+") not in PATHS or value.startswith(("'", '"')) or "${" in value or _READABLE.fullmatch(value):
        return argument
    if multirun and not key.startswith("hydra.") and _SWEPT.match(value) and not os.path.exists(value):
        return argument
    if value.startswith("~/"):
        value = os.path.expanduser(value)
    return f"{key}={quote(value)}"


def quote(text: str) -> str:
    """A text as Hydra's grammar has it in quotes; there a backslash is one, unless a quote follows."""
    return "'" + re.sub(r"(\\*)('|$)", lambda found: 2 * found[1] + ("\\'" if found[2] else ""), text) + "'"


def unquote(value: str) -> str:
    """The text of a value in quotes of either kind; any other value as it is."""
    if len(value) < 2 or value[0] != value[-1] or value[0] not in "'\"":
        return value
    return re.sub(rf"(\\+)({value[0]}|$)", lambda found: found[1][: len(found[1]) // 2] + found[2], value[1:-1])
