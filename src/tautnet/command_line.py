"""The command line: the typed top level of the settings, and one line for what cannot be used.

Imports neither torch nor Lightning: ``--help``, ``--cfg`` and tab completion go through this module and stay fast.
"""

from __future__ import annotations

import inspect
import io
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import MISSING, DictConfig
from omegaconf.errors import OmegaConfBaseException

from tautnet import distributed, guard
from tautnet.config import ConfigError
from tautnet.layout import launched
from tautnet.quoting import quoted, unquote
from tautnet.run_directory import with_run
from tautnet.spelling import suggest

TRACEBACK_SWITCH = "HYDRA_FULL_ERROR"
GROUPS_BELOW_KEYS = ("norm/output", "norm/weight", "loss", "experiment", "debug", "hydra/sweeper")  # have no key


@dataclass
class Settings:
    """Types of the top level of ``conf/train.yaml``; the groups are free below their names."""

    seed: int = MISSING
    run: list[str] = MISSING
    ckpt: str | None = MISSING
    resume: str | None = MISSING
    allow: list[str] = MISSING
    compile: bool = MISSING
    metric: str = MISSING
    objective: str = MISSING
    run_dir: str = MISSING
    activation: Any = MISSING
    norm: Any = MISSING
    model: Any = MISSING
    data: Any = MISSING
    optimizer: Any = MISSING
    scheduler: Any = MISSING
    trainer: Any = MISSING
    callbacks: Any = field(default_factory=dict)
    logger: Any = field(default_factory=dict)
    regularizer: Any = field(default_factory=dict)


def register_schema() -> None:
    """Make the types of the top level known to Hydra, as ``schema`` in the defaults list."""
    ConfigStore.instance().store(name="schema", node=Settings)


def command_line(main: Callable[[], Any]) -> int:
    """Run a Hydra main function; bad settings end in one line on stderr and exit status 2.

    Of several processes that torchrun or srun has started, the first alone runs it; the others do the jobs with it.
    The environment variable HYDRA_FULL_ERROR=1 shows the traceback instead.
    """
    for stream in (sys.stdout, sys.stderr):  # a locale may lack characters of the progress bar; they become "?"
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    world = launched()
    if world is None:
        return _status_of(main)
    if world.rank > 0:
        from tautnet.worker import follow  # torch

        return follow()
    try:
        return _status_of(main)
    finally:
        distributed.dismiss()


def _status_of(main: Callable[[], Any]) -> int:
    register_schema()
    guard.install()
    multirun = bool({"-m", "--multirun"} & set(sys.argv))
    sys.argv[1:] = [quoted(argument, multirun) for argument in sys.argv[1:]]
    if os.environ.get(TRACEBACK_SWITCH) == "1":
        _check_options(sys.argv[1:])
        sys.argv[1:] = _with_checkpoint(with_run(sys.argv[1:]))
        main()
        return 0
    os.environ[TRACEBACK_SWITCH] = "1"  # Hydra hands exceptions on only under its own switch
    try:
        _check_options(sys.argv[1:])
        sys.argv[1:] = _with_checkpoint(with_run(sys.argv[1:]))
        main()
    except KeyboardInterrupt as error:
        sys.stderr.write(f"interrupted{f'; {error}' if str(error) else ''}\n")
        return 130
    except OSError as error:
        if isinstance(error, HydraException) or error.filename is None:
            sys.stderr.write(f"error: {explain(error)}\n")
        else:
            sys.stderr.write(f"error: {error.filename}: {error.strerror}\n")
        return 2
    except distributed.WorkerError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except Exception as error:
        if not isinstance(error, (ConfigError, HydraException, OmegaConfBaseException)) and not _from_hydra(error):
            raise
        sys.stderr.write(f"error: {explain(error)}\n")
        return 2
    return 0


def _check_options(arguments: Sequence[str]) -> None:
    """Hydra would answer an option that it does not have with its whole usage."""
    known = [option for action in get_args_parser()._actions for option in action.option_strings]
    for name in (argument.partition("=")[0] for argument in arguments):
        if name.startswith("--") and not any(option.startswith(name) for option in known):  # --multi is enough
            raise ConfigError(f"{name}: no such option{suggest(name, [each for each in known if each[:2] == '--'])}")


def _with_checkpoint(arguments: list[str]) -> list[str]:
    """In front of the overrides those of the checkpoint that ``ckpt`` names: the others may be keys of its groups."""
    named = [unquote(argument.partition("=")[2]) for argument in arguments if argument.startswith("ckpt=")]
    if len(named) != 1 or named[0] == "null" or {"-m", "--multirun"} & set(arguments):
        return arguments
    from tautnet.resume import saved_overrides  # imports torch

    # The first override: the value of an option, a folder for example, has no =.
    first = next(i for i, each in enumerate(arguments) if each.startswith("~") or ("=" in each and each[0] != "-"))
    return [*arguments[:first], *saved_overrides(named[0], arguments[first:]), *arguments[first:]]


def _from_hydra(error: Exception) -> bool:
    """Whether Hydra itself raised an error of a general kind: it does so for some malformed overrides."""
    innermost = inspect.getinnerframes(error.__traceback__)[-1] if error.__traceback__ else None
    return innermost is not None and innermost.frame.f_globals.get("__name__", "").startswith(("hydra.", "omegaconf."))


def explain(error: Exception) -> str:
    """One line for an error in the settings: the key, the value, what is accepted."""
    if isinstance(error, ConfigError):
        return " ".join(str(error).split())
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        return f"{group}={option}: no such option{suggest(option, error.options)}"
    if isinstance(error, OverrideParseException):
        return f"{error.override}: not of the form key=value: {_reason(error)}"
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    if isinstance(cause, OmegaConfBaseException) and cause.full_key:
        parent = cause.parent_node
        if isinstance(parent, DictConfig) and _has_keys(parent) and cause.key not in parent:
            return f"{cause.full_key}: no such key{_siblings(parent, str(cause.key))}"
        return f"{cause.full_key}: {str(cause).splitlines()[0]}"
    return " ".join(line.strip() for line in str(error).splitlines() if line.strip())


def _reason(error: OverrideParseException) -> str:
    """What the grammar says, without the argument, a pointer into it and a link."""
    said = [line.strip() for line in str(error).splitlines()]
    told = [line for line in said if line.strip("^") and error.override not in line and "https://" not in line]
    return " ".join(told) or "it cannot be read"


def _has_keys(node: DictConfig) -> bool:
    return not node._is_none() and not node._is_missing()


def _siblings(parent: DictConfig, name: str) -> str:
    """What stands beside a key that does not exist."""
    keys = [str(key) for key in parent]
    hidden = [key for key in keys if key.startswith("_")]
    groups = () if parent._get_parent() is not None else GROUPS_BELOW_KEYS
    return suggest(name, [*(key for key in keys if key not in hidden), *groups], hidden)
