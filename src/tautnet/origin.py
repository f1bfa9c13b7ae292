"""What the command line alone may say: a file may have been written by somebody else.

Imports neither torch nor Lightning.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from os.path import normpath
from pathlib import Path
from typing import Any

from tautnet.errors import ConfigError

_WRITERS = ("callbacks", "logger", "trainer")  # the groups whose parts write files
_PLACES = ("dirpath", "folder", "log_dir", "path", "root_dir", "save_dir")  # arguments that are paths in any case
_LEADS_AWAY = re.compile(r"[/\\~]|.*(://|(^|[/\\])\.\.($|[/\\]))", re.DOTALL)  # absolute, a URL, or upwards
_PREFIX = re.compile(r"[A-Za-z]\w*(\.\w+)*", re.ASCII)


def check_places(settings: Mapping[str, Any], run_dir: str, overrides: Sequence[str]) -> None:
    """See to it that a run writes in its directory, or where the command line says.

    Args:
        settings: plain and resolved.
        run_dir: as Hydra has made it.
        overrides: of the command line.

    Raises:
        ConfigError: a place elsewhere that a file has named.
    """
    if settings["run_dir"] != run_dir and not on_command_line("run_dir", overrides):
        raise ConfigError(f"run_dir={settings['run_dir']}: name the directory by hydra.run.dir=…")
    for group in _WRITERS:
        for key, value in leaves(settings[group], group):
            if not isinstance(value, str) or on_command_line(key, overrides):
                continue
            is_place = key.rpartition(".")[2] in _PLACES or leads_away(value)
            if is_place and not Path(normpath(value)).is_relative_to(normpath(run_dir)):
                raise ConfigError(
                    f"{key}={value}: outside of the run's directory, which the command line alone may say"
                )


def leads_away(value: str) -> bool:
    """Whether a text, taken as a path, leads out of the directory that it starts from."""
    return _LEADS_AWAY.match(value) is not None


def on_command_line(key: str, overrides: Sequence[str]) -> bool:
    """Whether an override sets this very key, or a dict below its group that holds it; choosing an option does not."""
    names = [override.partition("=")[0].lstrip("+~") for override in overrides]
    return any(name == key or ("." in name and key.startswith(f"{name}.")) for name in names)


def leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Dotted key and value of all that nested dicts and lists hold."""
    if isinstance(value, dict):
        for name, entry in value.items():
            yield from leaves(entry, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            yield from leaves(entry, f"{key}.{index}")
    else:
        yield key, value


def named_prefixes(allow: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """The packages whose targets a run accepts beside those of ``tautnet.targets``.

    Args:
        allow: the setting ``allow``.
        overrides: of the command line; those that a checkpoint or a run's directory brings along are none.

    Raises:
        ConfigError: a file has set them, or one is no name of a package or module.
    """
    if allow and not any(re.fullmatch(r"\+{0,2}allow=[^()]*", override, re.DOTALL) for override in overrides):
        raise ConfigError(f"allow={list(allow)}: in a file; the command line alone may name packages")
    for prefix in allow:
        if not _PREFIX.fullmatch(prefix):
            raise ConfigError(f"allow={prefix}: names of packages or modules, as [my_package,other.module]")
    return list(allow)
