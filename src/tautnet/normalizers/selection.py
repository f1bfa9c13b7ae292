"""Which layers of a network a normalizer or a penalty of weights acts on."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.utils import parametrize

from tautnet.factories import WeightNorm
from tautnet.normalizers.weight import LAYERS

LAST = "last"


def matching(paths: Sequence[str], include: Sequence[str | int], exclude: Sequence[str | int]) -> list[str]:
    """The paths that a pattern of ``include`` matches and none of ``exclude``, in their order.

    Args:
        paths: of modules, as ``named_modules`` gives them.
        include: shell patterns (``*``, ``?``, ``[...]``) of whole paths; the word ``last`` is the last of ``paths``;
            integers are paths too, as in a ``Sequential``.
        exclude: likewise.

    Raises:
        ValueError: no pattern, one that matches no path, or nothing is left.
    """
    if not include:
        raise ValueError("include=[]: at least one pattern")
    chosen = _matched("include", include, paths) - _matched("exclude", exclude, paths)
    if not chosen:
        raise ValueError(f"exclude={list(exclude)}: leaves none of the layers {', '.join(paths) or '(there are none)'}")
    return [path for path in paths if path in chosen]


def _matched(argument: str, patterns: Sequence[str | int], paths: Sequence[str]) -> set[str]:
    if isinstance(patterns, str):
        raise ValueError(f"{argument}={patterns}: a list of patterns")
    found: set[str] = set()
    for pattern in map(str, patterns):
        hits = {path for path in paths if fnmatchcase(path, pattern)} | set(paths[-1:] if pattern == LAST else ())
        if not hits:
            raise ValueError(
                f"{argument}={pattern}: matches none of the layers {', '.join(paths) or '(there are none)'}"
            )
        found |= hits
    return found


def select_layers(
    net: nn.Module, include: Sequence[str | int] = ("*",), exclude: Sequence[str | int] = ()
) -> dict[str, nn.Module]:
    """The dense and convolutional layers of a network by path, parametrised ones too, chosen as by ``matching``.

    By exact type: ``nn.Linear``, ``nn.Conv1d``, ``nn.Conv2d``, ``nn.Conv3d``.

    Raises:
        ValueError: a pattern that matches no layer, or no layer is left.
    """
    layers = {
        path: module
        for path, module in net.named_modules()
        if parametrize.type_before_parametrizations(module) in LAYERS
    }
    return {path: layers[path] for path in matching(list(layers), include, exclude)}


def normalize_weights_(
    net: nn.Module, weight_norm: WeightNorm, include: Sequence[str | int] = ("*",), exclude: Sequence[str | int] = ()
) -> None:
    """Parametrise the weights of a network's dense and convolutional layers, in place.

    Args:
        net: any network.
        weight_norm: such as ``Aon()``, called with each layer.
        include: patterns of the paths of the layers, see ``matching``.
        exclude: patterns of layers that are left alone.

    Raises:
        ValueError: a pattern that matches no layer, no layer is left, or one that ``weight_norm`` refuses.
    """
    for layer in select_layers(net, include, exclude).values():
        weight_norm(layer)
