"""A run's directory: whether it holds a run that was cut off, by which overrides that began, who is at work in it.

Imports neither torch nor Lightning: the command line looks here before Hydra composes.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml

from tautnet.errors import ConfigError
from tautnet.quoting import quote, unquote
from tautnet.resume import carried_over, override_name, replaced

try:
    import fcntl
except ImportError:  # Windows: two runs in one directory go unnoticed there
    fcntl = None  # type: ignore[assignment]

SETTINGS = "config.yaml"  # in the run directory, from the moment on when nothing has refused them
RESULT = "result.json"  # likewise, when the run is finished
OUTPUTS = Path("outputs")  # where runs go that name no directory, see conf/train.yaml

# Of the other groups an override is taken from a file if its value is a plain one, and not a path.
_PLAIN = re.compile(r"[+~]{0,2}(callbacks|logger|metric|objective|compile|run)(\.[\w.]+)?(=[\w.,+\- \[\]]*)?")
_NAMES_A_FILE = re.compile(r"\b(folder|dirpath|filename|path|save_dir|log_dir|root_dir|name|version|sub_dir|prefix)=")


def with_run(arguments: list[str]) -> list[str]:
    """The command line with the directory of the run that it goes on with, and in front the overrides that began it.

    ``resume=<directory>`` names one; ``resume=auto`` means the newest that this command has begun and not finished, if
    there is one; without either a run goes on where ``hydra.run.dir`` names the directory of one that was cut off.

    Raises:
        ConfigError: no such run.
    """
    options = [argument for argument in arguments if argument.startswith("-")]
    if {"-m", "--multirun"} & set(options):
        return arguments
    named = {name: unquote(value) for name, _, value in (argument.partition("=") for argument in arguments)}
    resume, place = named.get("resume"), named.get("hydra.run.dir")
    rest = [argument for argument in arguments if not argument.startswith("resume=")]
    overrides = [argument for argument in rest if _is_override(argument)]
    directory: Path | None
    if resume not in (None, "null", "auto"):
        directory = Path(str(resume))
        if not is_cut_off(directory):
            what = "holds a finished run" if (directory / RESULT).exists() else "holds no run"
            raise ConfigError(f"resume={resume}: {what}; auto, or the directory of a run that was cut off")
    elif place is not None:
        directory = Path(place) if is_cut_off(Path(place)) else None
    else:
        directory = newest_cut_off(overrides) if resume == "auto" else None
    if directory is None:
        return rest
    rest = [argument for argument in rest if not argument.startswith("hydra.run.dir=")]
    first = next((n for n, argument in enumerate(rest) if _is_override(argument)), len(rest))
    return [*rest[:first], *overrides_of(directory, overrides), *rest[first:], f"hydra.run.dir={quote(str(directory))}"]


def _is_override(argument: str) -> bool:
    """Whether an argument sets or leaves out a key of the application; options of Hydra's have values of their own."""
    return argument.startswith("~") or ("=" in argument and not argument.startswith(("-", "hydra.", "hydra/")))


def is_cut_off(directory: Path) -> bool:
    """Whether a run has begun in a directory and has not finished."""
    return (directory / SETTINGS).exists() and not (directory / RESULT).exists()


def overrides_of(directory: Path, named: Sequence[str]) -> list[str]:
    """The overrides by which the run in a directory began, but for those that the command line replaces.

    Args:
        directory: of a run that was cut off.
        named: overrides of this command line.

    Raises:
        ConfigError: the file cannot be read, or has an override that is not taken from a file.
    """
    keys = {override_name(override) for override in named}
    missing = [override for override in _saved_overrides(directory) if not replaced(override_name(override), keys)]
    for override in missing:
        plain = _PLAIN.fullmatch(override) and not _NAMES_A_FILE.search(override) and "_target_" not in override
        if not (plain or carried_over(override)):
            raise ConfigError(f"{directory / SETTINGS}: began by {override}, which is not taken from a file; repeat it")
    return missing


def newest_cut_off(overrides: Sequence[str]) -> Path | None:
    """The directory below ``outputs`` in which a run by the same overrides was begun last, if it was cut off."""
    found = [path for path in OUTPUTS.glob("*") if is_cut_off(path) and not _busy(path)]
    same = [path for path in found if _began_by(path, overrides)]
    return max(same, key=lambda path: (path / SETTINGS).stat().st_mtime, default=None)


def _began_by(directory: Path, overrides: Sequence[str]) -> bool:
    try:
        return set(_saved_overrides(directory)) == set(overrides)
    except ConfigError:  # somebody else's file of this name
        return False


def _saved_overrides(directory: Path) -> list[str]:
    try:
        content = yaml.safe_load((directory / SETTINGS).read_text())
        overrides = content["overrides"]
        if not all(isinstance(override, str) for override in overrides):
            raise TypeError("overrides of another kind")
    except (UnicodeDecodeError, yaml.YAMLError, LookupError, TypeError) as error:
        raise ConfigError(f"{directory / SETTINGS}: not the settings of a run, or cut off") from error
    return list(overrides)


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """Keep other runs out of a directory.

    Raises:
        ConfigError: another run is at work in it.
    """
    lock = _locked(directory)
    if lock is None:
        raise ConfigError(f"{directory}: another run is at work in it; wait for its end or name another directory")
    try:
        yield
    finally:
        if lock >= 0:
            os.close(lock)


def _busy(directory: Path) -> bool:
    lock = _locked(directory)
    if lock is not None and lock >= 0:
        os.close(lock)
    return lock is None


def _locked(directory: Path) -> int | None:
    """A handle that locks a directory while it is open, -1 where nothing can be locked; None if another one does."""
    if fcntl is None:
        return -1
    handle = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:  # EWOULDBLOCK: taken; others: a file system without locks
        os.close(handle)
        return None if error.errno == errno.EWOULDBLOCK else -1
    return handle
