"""From composed settings to objects: plain containers, and ``build`` with its allowed targets.

Imports neither torch nor Lightning.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from textwrap import shorten
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf

from tautnet import targets
from tautnet.errors import ConfigError as ConfigError
from tautnet.origin import check_places
from tautnet.spelling import nearest, suggest

STAGES = (["fit"], ["test"], ["fit", "test"])
GROUPS = (
    "activation",
    "norm",
    "model",
    "data",
    "optimizer",
    "scheduler",
    "trainer",
    "callbacks",
    "logger",
    "regularizer",
)
PARTS = ("activation", "norm.output", "norm.weight", "model", "model.net", "data", "optimizer", "scheduler", "trainer")
NAMED_PARTS = ("callbacks", "logger", "regularizer")
KEYS = {"norm": ("include", "exclude", "output", "weight"), "model": ("_target_", "net", "loss", "activation_at")}
LARGEST_INTEGER = 2**63 - 1


def plain(config: DictConfig | ListConfig) -> dict[str, Any]:
    """Resolve into plain dicts and lists, which checkpoints can hold, and check the top level.

    Raises:
        ConfigError: keys or stages that do not exist, a seed out of range, a group that is no group, or a place outside
            of the run's directory that does not stand on the command line.
    """
    container = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(container, dict)
    settings = {str(key): value for key, value in container.items()}
    schema = OmegaConf.get_type(config)
    _check_keys("", settings, [field.name for field in fields(schema)] if is_dataclass(schema) else [*settings])
    if settings["run"] not in STAGES:
        raise ConfigError(f"run={settings['run']}: one of [fit], [test], [fit,test]")
    if not 0 <= settings["seed"] < 2**32:
        raise ConfigError(f"seed={settings['seed']}: an integer from 0 to 4294967295")
    _check_groups(settings)
    if HydraConfig.initialized():  # else the caller composed what he wanted
        running = HydraConfig.get()
        check_places(settings, running.runtime.output_dir, list(running.overrides.task))
    return settings


def _check_groups(settings: Mapping[str, Any]) -> None:
    for key in (*GROUPS, "norm.output", "norm.weight", "model.net", "model.loss"):
        if not isinstance(_at(settings, key), dict):
            raise ConfigError(f"{key}={_at(settings, key)}: one of the options in conf/, or keys below it")
    for key, accepted in KEYS.items():
        _check_keys(f"{key}.", settings[key], accepted)
    for key in PARTS:
        if "_target_" not in _at(settings, key):
            raise ConfigError(f"{key}._target_: a value is needed, the class that it stands for")
    for key in NAMED_PARTS:
        for name, part in settings[key].items():
            if not isinstance(part, dict) or "_target_" not in part:
                raise ConfigError(f"{key}.{name}={part}: keys with a _target_; ~{key}.{name} leaves it out")


def _at(settings: Any, key: str) -> Any:
    for name in key.split("."):
        settings = settings.get(name)
    return settings


def _check_keys(prefix: str, settings: Mapping[Any, Any], accepted: Sequence[str]) -> None:
    for name in settings:
        if name not in accepted:
            raise ConfigError(f"{prefix}{name}: no such key{suggest(str(name), accepted)}")


def build(config: Any, key: str, /, **arguments: Any) -> Any:
    """Turn a plain configuration into objects.

    A dict with ``_target_`` becomes a call of that target with the other entries as arguments, or with
    ``_partial_: true`` a factory that makes the call later; other dicts and lists are built entry by entry.

    Args:
        config: plain dicts, lists and scalars.
        key: where ``config`` stands in the settings, for messages.
        **arguments: further arguments of the outermost target; they win over configured ones.

    Raises:
        ConfigError: a target that cannot be named, an unknown or missing argument, a value of the wrong type, or
            one that the target refuses.
    """
    if isinstance(config, list):
        return [build(item, f"{key}.{index}") for index, item in enumerate(config)]
    if not isinstance(config, dict):
        return config
    for name in arguments.keys() & config.keys():
        raise ConfigError(f"{key}.{name}={config[name]}: set by the application, not by a setting")
    target = locate(config["_target_"], key) if "_target_" in config else None  # before anything inside is built
    entries = {name: build(value, f"{key}.{name}") for name, value in config.items() if name not in _RESERVED}
    if target is None:
        return entries
    call = partial(_call, target, key, entries | arguments)
    return call if config.get("_partial_", False) else call()


_RESERVED = ("_target_", "_partial_")


def locate(path: object, key: str) -> Callable[..., Any]:
    """The class or function that ``path`` names, see ``tautnet.targets``.

    Raises:
        ConfigError: there is none, or none that a configuration can name.
    """
    target = targets.find(path)
    if target is None:
        below = ", ".join(targets.accepted())
        raise ConfigError(f"{key}._target_={path}: not a class or function below {below} that a setting can name")
    return target


def _call(target: Callable[..., Any], key: str, entries: Mapping[str, Any], /, *args: Any) -> Any:
    _check_arguments(target, key, entries, args)
    try:
        return target(*args, **entries)
    except ConfigError:
        raise
    except (ValueError, TypeError, IndexError, OverflowError, RuntimeError, MemoryError, ImportError) as error:
        if str(error).partition("=")[0] in entries:  # our own messages begin with "argument=value: "
            raise ConfigError(f"{key}.{error}") from error
        told = "more memory than there is" if "allocate memory" in str(error) else str(error) or type(error).__name__
        given = ", ".join(f"{name}={v}" for name, v in entries.items() if isinstance(v, (int, float, str, list)))
        raise ConfigError(f"{key}: {told}{f'; with {shorten(given, 300)}' if given else ''}") from error


def _check_arguments(target: Callable[..., Any], key: str, entries: Mapping[str, Any], args: Sequence[Any]) -> None:
    """Compare names and types with the target's signature, which Python itself does not do for types."""
    parameters = inspect.signature(target).parameters
    names = [name for name, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    hints = _hints(target)
    for name, value in entries.items():
        if name not in names and not open_ended:
            raise ConfigError(f"{key}.{name}: no such key{suggest(name, names[len(args) :])}")
        if isinstance(value, int) and abs(value) > LARGEST_INTEGER:
            raise ConfigError(f"{key}.{name}={value}: beyond the largest integer, {LARGEST_INTEGER}")
        if name in hints and not _matches(value, hints[name]):
            raise ConfigError(f"{key}.{name}={value}: {_describe(hints[name])} is needed{_meant(value, hints[name])}")
    for name in names[len(args) :]:
        if name not in entries and parameters[name].default is inspect.Parameter.empty:
            raise ConfigError(f"{key}.{name}: a value is needed")


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except NameError:  # annotations that exist for type checkers only
        return {}


def _matches(value: Any, hint: Any) -> bool:
    """Whether a value fits an annotation; annotations beyond scalars, unions, literals and sequences fit anything."""
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return any(_matches(value, option) for option in get_args(hint))
    if origin is Literal:
        return any(value == option and type(value) is type(option) for option in get_args(hint))
    if origin in (list, tuple, Sequence):
        return isinstance(value, (list, tuple)) and all(_matches(item, get_args(hint)[0]) for item in value)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if isinstance(hint, type):
        return isinstance(value, hint)
    return True


def _meant(value: Any, hint: Any) -> str:
    """The word of a ``Literal`` that was probably meant."""
    hints = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    words = [word for option in hints if get_origin(option) is Literal for word in get_args(option)]
    close = nearest(value, [word for word in words if isinstance(word, str)]) if isinstance(value, str) else []
    return f"; did you mean {' or '.join(close)}?" if close else ""


def _describe(hint: Any) -> str:
    origin, options = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(_describe(option) for option in options)
    if origin is Literal:
        return f"one of {', '.join(map(str, options))}"
    if origin in (list, tuple, Sequence):
        return f"a list of {_describe(options[0])}"
    words: dict[Any, str] = {
        int: "an integer",
        float: "a number",
        bool: "true or false",
        str: "a text",
        NoneType: "null",
    }
    return words.get(hint, getattr(hint, "__name__", str(hint)))


def key_of(error: Exception, settings: Mapping[str, Any], part: str) -> str:
    """``part.`` if the message of an error begins with one of that part's arguments, else nothing."""
    return f"{part}." if str(error).partition("=")[0] in settings[part] else ""
