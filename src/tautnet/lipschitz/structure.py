"""A network as the bounds read it: layers in a row, with branches that are summed or concatenated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import isfunction
from math import inf
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks
from torch.nn.utils import parametrize

from tautnet.backbones.blocks import Concatenation, Residual
from tautnet.factories import AbstractLayer, may_be_changed_by_hooks

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Leaf:
    """One layer in its place.

    Attributes:
        path: dotted path in the network, empty for the network itself.
        module: the layer.
        input_shape: shape of one sample that enters, without the batch.
        output_shape: shape of one sample that leaves.
        unknown: why nothing can be said of it, whatever its type; empty for a layer that is what its type says.
    """

    path: str
    module: nn.Module
    input_shape: Shape
    output_shape: Shape
    unknown: str = ""

    @property
    def kind(self) -> str:
        """Class name, that of the layer itself if a weight is parametrised."""
        return parametrize.type_before_parametrizations(self.module).__name__

    @property
    def name(self) -> str:
        """Path and kind, as messages name the layer."""
        return f"{self.path or '(net)'} ({self.kind})"


@dataclass(frozen=True)
class Branches:
    """Several chains that read the same input.

    Attributes:
        kind: whether their outputs are summed or concatenated along the channels.
        chains: the branches.
    """

    kind: Kind
    chains: tuple[Chain, ...]


Kind = Literal["sum", "concatenation"]
Chain = tuple[Leaf | Branches, ...]


def check_exponent(p: float) -> None:
    """Raise ValueError unless ``p``, the exponent of a vector norm, is 1, 2 or inf."""
    if isinstance(p, bool) or not isinstance(p, (int, float)) or p not in (1, 2, inf):
        raise ValueError(f"p={p!r}: 1, 2 or inf")


@contextmanager
def eval_mode(net: nn.Module) -> Iterator[None]:
    """Put every submodule in eval mode and restore each one's own mode afterwards."""
    flags = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, flag in flags:  # from the outside in; by train(), in which a module may do more than note the flag
            if module.training != flag:
                module.train(flag)


def read(net: nn.Module, input_shape: Sequence[int]) -> Chain:
    """The network as a chain; nested ``Sequential`` are one chain, an empty chain is the identity.

    Runs the net once, in eval mode, on a sample of zeros, to learn the shapes. Of containers it knows ``Sequential``,
    ``Residual`` and ``Concatenation`` by exact type; all else is a leaf. A module is an unknown leaf if hooks other
    than our own observers or patched methods may change it, and so are branches of which one writes into their common
    input.

    Args:
        net: the network.
        input_shape: shape of one sample, without the batch.

    Raises:
        ValueError: a layer that does not run on such a sample, by its path.
    """
    tensors = (t for t in (*net.parameters(), *net.buffers()) if t.is_floating_point() or t.is_complex())
    like = next(tensors, torch.zeros(()))
    # Outside of inference mode, whose tensors do not count how often they were written into.
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        torch.random.fork_rng(devices=[]),
        eval_mode(net),
        parametrize.cached(),
    ):
        return _read(net, "", torch.zeros(1, *input_shape, dtype=like.dtype, device=like.device))[0]


def leaves(chain: Chain) -> Iterator[Leaf]:
    """Every leaf in order of evaluation."""
    for part in chain:
        if isinstance(part, Leaf):
            yield part
        else:
            for branch in part.chains:
                yield from leaves(branch)


def _read(net: nn.Module, path: str, x: Tensor) -> tuple[Chain, Tensor]:
    """The chain of a module and its output for ``x``, whose shape the next layer needs."""
    if _is_changed(net):
        return _leaf(net, path, x, unknown="with hooks or patched methods")
    if type(net) is nn.Sequential:
        chain: Chain = ()
        for name, child in net._modules.items():  # named_children would pass over a module used a second time
            assert child is not None
            part, x = _read(child, _join(path, name), x)
            chain += part
        return chain, x
    if type(net) is Residual:
        branches = {"body": net.body, "shortcut": net.shortcut}
        return _read_branches(net, path, x, "sum", branches)
    if type(net) is Concatenation:
        branches = {f"branches.{index}": net.branches[index] for index in range(len(net.branches))}
        return _read_branches(net, path, x, "concatenation", branches)
    return _leaf(net, path, x)


def _read_branches(
    net: nn.Module, path: str, x: Tensor, kind: Kind, branches: dict[str, nn.Module]
) -> tuple[Chain, Tensor]:
    version = x._version
    found = [_read(branch, _join(path, name), x) for name, branch in branches.items()]
    outputs = [output for _, output in found]
    if x._version != version:  # the next branch reads something else
        return _leaf(net, path, x, unknown="a branch writes into the input of both")
    if kind == "sum" and len({output.shape for output in outputs}) > 1:
        # A sum that broadcasts repeats values, which no constant of a branch accounts for.
        return _leaf(net, path, x, unknown="of different shapes")
    y = torch.cat(outputs, dim=1) if kind == "concatenation" else torch.stack(outputs).sum(0)
    return (Branches(kind, tuple(chain for chain, _ in found)),), y


def _is_changed(net: nn.Module) -> bool:
    """Whether a module, or in a leaf a module inside it, may do something else than its class says."""
    inner = [net] if type(net) in (nn.Sequential, Residual, Concatenation) else list(net.modules())
    hooked = any(may_be_changed_by_hooks(module) for module in inner)
    patched = any(isfunction(getattr(type(module), name, None)) for module in inner for name in vars(module))
    return hooked or patched or bool(_global_forward_hooks) or bool(_global_forward_pre_hooks)


def _answers_for_itself(layer: AbstractLayer) -> bool:
    """Whether the class that states the constant is the one that computes, or below it."""
    classes = type(layer).__mro__
    forward = next(cls for cls in classes if "forward" in vars(cls))
    stated = next(cls for cls in classes if {"lipschitz_constant", "slope_range"} & vars(cls).keys())
    return classes.index(stated) <= classes.index(forward)


def _leaf(net: nn.Module, path: str, x: Tensor, unknown: str = "") -> tuple[Chain, Tensor]:
    try:
        y = net(x)
    except (RuntimeError, ValueError, TypeError) as error:
        shape, reason = tuple(x.shape), str(error).partition("\n")[0]
        raise ValueError(
            f"{path or '(net)'} ({type(net).__name__}) does not run on zeros of shape {shape}: {reason}"
        ) from error
    if not isinstance(y, Tensor):
        y, unknown = next(iter(y.values() if isinstance(y, dict) else y)), "with several outputs"
    if isinstance(net, AbstractLayer) and not _answers_for_itself(net):
        unknown = "a subclass with another forward than its constant is for"
    return (Leaf(path, net, tuple(x.shape[1:]), tuple(y.shape[1:]), unknown),), y


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
