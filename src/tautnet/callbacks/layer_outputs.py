"""Outputs of a network's layers on a probe, looked at without any effect on the network or on chance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from tautnet import normalizers
from tautnet.activations import AbstractActivation
from tautnet.factories import AbstractLayer, Synchronised

Positions = Literal["sample", "mean"]
_OURS = tuple(
    member
    for member in vars(normalizers).values()
    if isinstance(member, type) and issubclass(member, AbstractLayer) and member is not AbstractLayer
)
OUTPUT_NORMS = (*_OURS, _NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
_SEED = 0  # of dropout masks and drawn positions: the same in every look


def watched_paths(net: nn.Module) -> list[str]:
    """Paths of the output normalizers; without any, of all dense and convolutional layers but the last.

    A normalizer inside another or inside an activation is part of it. A single dense or convolutional layer is watched
    though it is the last.

    Raises:
        ValueError: the network has none of either.
    """
    wholes: list[str] = []  # activations may normalise inside, without running the normalizer's own forward
    paths: list[str] = []
    for path, module in net.named_modules():
        if isinstance(module, (*OUTPUT_NORMS, AbstractActivation)) and not any(
            path.startswith(f"{w}.") for w in wholes
        ):
            wholes.append(path)
            if isinstance(module, OUTPUT_NORMS):
                paths.append(path)
    if paths:
        return paths
    maps = [path for path, module in net.named_modules() if isinstance(module, (nn.Linear, _ConvNd))]
    if not maps:
        raise ValueError("include=None: the network has neither output normalizers nor dense or convolutional layers")
    return maps[:-1] or maps


@torch.no_grad()
def layer_outputs(net: nn.Module, paths: Sequence[str], x: Tensor, positions: Positions) -> dict[str, Tensor]:
    """What the modules at ``paths`` give for ``x``, as vectors (N, C) by path.

    The forward runs in the modes that the modules are in, on copies of the buffers and with a random state of its own,
    the same at every call. Batch statistics are those of ``x``, also where ranks share them in training. What a module
    keeps outside of parameters and buffers it may change.

    Args:
        net: the network.
        paths: of modules inside; of one that runs several times the last output counts.
        x: input, on the network's device.
        positions: which vectors stand for an output (N, C, *) of more than one position: ``sample``, for each sample
            those at one position, drawn with a fixed seed, or ``mean``, the mean over all.

    Raises:
        ValueError: a module that gives no such output.
    """
    found: dict[str, Tensor] = {}
    # Plain tensors in the place of parameters: the tables of splines, kept for parameters, are then made anew.
    tensors = {name: parameter.detach() for name, parameter in net.named_parameters()}
    tensors |= {name: buffer.clone() for name, buffer in net.named_buffers()}
    handles = [net.get_submodule(path).register_forward_hook(_recorder(found, path, positions)) for path in paths]
    try:
        with _own_chance(x.device), _own_statistics(net):
            functional_call(net, tensors, (x,))
    finally:
        for handle in handles:
            handle.remove()
    for path in paths:
        if path not in found:
            raise ValueError(f"include={path}: the network does not run this module")
    return {path: found[path] for path in paths}


def _recorder(found: dict[str, Tensor], path: str, positions: Positions) -> Any:
    def record(module: nn.Module, inputs: Any, output: Any) -> None:
        if not isinstance(output, Tensor) or output.dim() < 2:
            raise ValueError(f"include={path}: its output is not a tensor (N, C, *)")
        found[path] = channel_vectors(output, positions).clone()  # what follows may work in place

    return record


def channel_vectors(output: Tensor, positions: Positions) -> Tensor:
    """One vector of C for each sample of an output (N, C, *), in float32 at least."""
    output_NCS = output.to(torch.promote_types(output.dtype, torch.float32)).flatten(2) if output.dim() > 2 else output
    if output_NCS.dim() == 2:
        return output_NCS
    if positions == "mean":
        return output_NCS.mean(dim=2)
    num_samples, _, num_positions = output_NCS.shape
    drawn_N = torch.randint(num_positions, (num_samples,), generator=torch.Generator().manual_seed(_SEED))
    return output_NCS[torch.arange(num_samples, device=output.device), :, drawn_N.to(output.device)]


@contextmanager
def _own_chance(device: torch.device) -> Iterator[None]:
    """The generators of the CPU and of the device start from a fixed seed, and are put back."""
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        torch.default_generator.manual_seed(_SEED)
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(_SEED)
        yield


@contextmanager
def _own_statistics(net: nn.Module) -> Iterator[None]:
    """Layers do not share their batch statistics with other ranks, which run the same."""
    sharing = [module for module in net.modules() if isinstance(module, Synchronised) and module.synchronised]
    for module in sharing:
        module.synchronised = False
    try:
        yield
    finally:
        for module in sharing:
            module.synchronised = True
