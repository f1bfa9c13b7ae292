"""A network as the bounds read it: layers in a row, with branches that are summed or concatenated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tautnet.backbones.blocks import Concatenation, Residual

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

    kind: Literal["sum", "concatenation"]
    chains: tuple[Chain, ...]


Chain = tuple[Leaf | Branches, ...]


def check_exponent(p: float) -> None:
    """Raise ValueError unless ``p``, the exponent of a vector norm, is 1, 2 or inf."""
    if p not in (1, 2, inf):
        raise ValueError(f"p={p}: 1, 2 or inf")


@contextmanager
def eval_mode(net: nn.Module) -> Iterator[None]:
    """Put every submodule in eval mode and restore each one's own flag afterwards."""
    flags = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag


@torch.no_grad()
def read(net: nn.Module, input_shape: Sequence[int]) -> Chain:
    """The network as a chain; nested ``Sequential`` are one chain, an empty chain is the identity.

    Runs the net once, in eval mode, on a sample of zeros, to learn the shapes. Of containers it knows ``Sequential``,
    ``Residual`` and ``Concatenation`` by exact type; all else is a leaf. A module that hooks may change is an unknown
    leaf.

    Args:
        net: the network.
        input_shape: shape of one sample, without the batch.
    """
    parameter = next(net.parameters(), torch.zeros(()))
    x = torch.zeros(1, *input_shape, dtype=parameter.dtype, device=parameter.device)
    with eval_mode(net), parametrize.cached():
        return _read(net, "", x)[0]


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
    if net._forward_hooks or net._forward_pre_hooks or "forward" in vars(net):
        return _leaf(net, path, x, unknown="with hooks")
    if type(net) is nn.Sequential:
        chain: Chain = ()
        for name, child in net._modules.items():  # named_children would pass over a module used a second time
            assert child is not None
            part, x = _read(child, _join(path, name), x)
            chain += part
        return chain, x
    if type(net) is Residual:
        body, y = _read(net.body, _join(path, "body"), x)
        shortcut, z = _read(net.shortcut, _join(path, "shortcut"), x)
        if y.shape != z.shape:  # a sum that broadcasts repeats values, which no constant of a branch accounts for
            return _leaf(net, path, x, unknown="of different shapes")
        return (Branches("sum", (body, shortcut)),), y + z
    if type(net) is Concatenation:
        read_branches = [_read(net.branches[i], _join(path, f"branches.{i}"), x) for i in range(len(net.branches))]
        y = torch.cat([output for _, output in read_branches], dim=1)
        return (Branches("concatenation", tuple(branch for branch, _ in read_branches)),), y
    return _leaf(net, path, x)


def _leaf(net: nn.Module, path: str, x: Tensor, unknown: str = "") -> tuple[Chain, Tensor]:
    y = net(x)
    if not isinstance(y, Tensor):
        y, unknown = y[0], "with several outputs"
    return (Leaf(path, net, tuple(x.shape[1:]), tuple(y.shape[1:]), unknown),), y


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
