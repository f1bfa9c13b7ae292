"""The keys that settings may have, and slips of the keyboard in them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, NamedTuple, Union, get_args, get_origin

from hydra import compose
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from tautnet import config
from tautnet.command_line import explain

CONF = Path(__file__).parents[1] / "conf"
LETTERS = "abcdefghijklmnopqrstuvwxyz_0123456789"
GROUPS = (
    *("activation", "norm", "norm/output", "norm/weight", "model", "loss", "data", "optimizer", "scheduler"),
    *("regularizer", "trainer", "callbacks", "logger", "debug"),
)


def options(group: str) -> list[str]:
    """The options of a group."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def nodes(tree: DictConfig, path: str = "") -> Iterator[tuple[str, DictConfig]]:
    """Every dict below a composed config with its dotted path, the root first."""
    yield path, tree
    for name in tree:
        child = tree._get_node(name)
        if isinstance(child, DictConfig) and not child._is_none() and not child._is_missing():
            yield from nodes(child, f"{path}.{name}".lstrip("."))


def target_of(node: DictConfig) -> str | None:
    """The class that a dict of settings goes to."""
    return node._get_node("_target_")._value() if "_target_" in node else None


def hint_of(node: DictConfig, name: str) -> Any:
    """The annotation of the argument that a key becomes; None for keys that become none."""
    target = target_of(node)
    return None if target is None or name.startswith("_") else _hints(target).get(name)


@cache
def _hints(target: str) -> dict[str, Any]:
    return config._hints(config.locate(target, ""))


def kinds(hint: Any) -> set[Any]:
    """The types in an annotation."""
    if get_origin(hint) in (Union, UnionType):
        return set().union(*map(kinds, get_args(hint)))
    return {hint}


def is_number(value: Any, hint: Any) -> bool:
    """Whether a key takes numbers, by its annotation or by what it has."""
    return bool(kinds(hint) & {int, float}) or (isinstance(value, (int, float)) and not isinstance(value, bool))


@dataclass(frozen=True)
class Key:
    """A key of composed settings.

    Attributes:
        path: with dots.
        target: the class that the dict around it goes to.
        hint: annotation of the argument.
        value: in these settings.
    """

    path: str
    target: str | None
    hint: Any
    value: Any

    @property
    def takes_lists(self) -> bool:
        """Whether its value is a list of numbers."""
        return isinstance(self.value, list) and bool(self.value) and all(is_number(v, None) for v in self.value)


def keys_of(overrides: list[str]) -> Iterator[Key]:
    """The keys that ``--cfg job`` shows, but for dicts."""
    for path, node in nodes(compose("train", overrides=["run_dir=none", *overrides])):
        for name in map(str, node):
            child = node._get_node(name)
            if not isinstance(child, DictConfig):
                value = OmegaConf.to_container(child) if OmegaConf.is_list(child) else child._value()
                yield Key(f"{path}.{name}".lstrip("."), target_of(node), hint_of(node, name), value)


def slips(word: str) -> list[str]:
    """Everything that one character left out, added, replaced, or swapped with its neighbour makes of a word."""
    cuts = [(word[:i], word[i:]) for i in range(len(word) + 1)]
    made = {a + b[1:] for a, b in cuts if b}
    made |= {a + letter + b[1:] for a, b in cuts if b for letter in LETTERS}
    made |= {a + letter + b for a, b in cuts for letter in LETTERS}
    made |= {a + b[1] + b[0] + b[2:] for a, b in cuts if len(b) > 1}
    return sorted(made - {word})


class Siblings(NamedTuple):
    """The keys of a dict in some composed settings.

    Attributes:
        tree: the settings.
        path: of the dict, with dots; nothing for the root.
        names: of the keys.
    """

    tree: DictConfig
    path: str
    names: list[str]


def all_siblings(chosen: list[tuple[str, str]]) -> Iterator[Siblings]:
    """Every dict that the settings have with one of these options, once for each path and set of keys."""
    seen = set()
    for group, option in chosen:
        tree = compose("train", overrides=["run_dir=none", f"{group}={option}"])
        for path, node in nodes(tree):
            names = [str(name) for name in node]
            if (path, frozenset(names)) not in seen:
                seen.add((path, frozenset(names)))
                yield Siblings(tree, path, names)


_PARSER = OverridesParser.create()


def misspelt(siblings: Siblings, name: str, slip: str) -> tuple[str, str]:
    """What becomes of a slip in a key: ``refused``, ``no key``, ``another key`` or ``fault``, and the words for it.

    The last step of Hydra's composition alone, on settings that are composed already: it leaves them as they are if it
    refuses.
    """
    if slip in siblings.names:
        return "another key", ""
    path = f"{siblings.path}.{slip}".removeprefix(".")
    try:
        ConfigLoaderImpl._apply_overrides_to_config(_PARSER.parse_overrides([f"{path}=1"]), siblings.tree)
    except HydraException as error:
        line = explain(error)
    else:
        return "fault", f"{path}: taken for {name}"
    readable = slip != "" and not slip[0].isdigit()  # else it is no key for Hydra, whatever the settings
    expected = f"{path}: no such key; did you mean " if readable else path
    meant = line.partition("did you mean ")[2].partition("?")[0].split(" or ")
    wrong = not line.startswith(expected) or (readable and name not in meant) or "\n" in line
    return ("fault", line) if wrong else ("refused" if readable else "no key", line)
