"""What enters the activations of a network."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from tautnet.activations import AbstractActivation, GroupSort

_RECTIFIERS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.Threshold, nn.Hardtanh)
_SMOOTH = (nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Softplus)
_SATURATED = (nn.Sigmoid, nn.Hardsigmoid, nn.LogSigmoid, nn.Tanh, nn.Softsign)
_SHRINKING = (nn.Tanhshrink, nn.Softshrink, nn.Hardshrink)
ACTIVATIONS = (AbstractActivation, GroupSort, *_RECTIFIERS, *_SMOOTH, *_SATURATED, *_SHRINKING)


@dataclass
class LayerInput:
    """What enters a layer in one forward.

    Attributes:
        x: the input, in the last run.
        version: how often it had been written into when it entered.
        num_runs: of the layer in this forward.
    """

    x: Tensor
    version: int
    num_runs: int

    @property
    def overwritten(self) -> bool:
        """Whether the layer or one behind it has written into the input."""
        return self.x._version != self.version


@torch.no_grad()
def activation_inputs(net: nn.Module, x: Tensor) -> dict[str, LayerInput]:
    """What enters each activation that runs, but for one whose output is the network's, by path.

    An activation inside another is part of it. The forward runs in the modes that the modules are in, on copies of the
    buffers and of the random state.

    Args:
        net: the network.
        x: input, on the network's device.
    """
    inputs: dict[str, LayerInput] = {}
    outputs: dict[str, Tensor] = {}
    tensors = {name: parameter.detach() for name, parameter in net.named_parameters()}
    tensors |= {name: buffer.clone() for name, buffer in net.named_buffers()}
    handles = []
    for path in _activation_paths(net):

        def enter(layer: nn.Module, arguments: tuple[Tensor], path: str = path) -> None:
            runs = inputs[path].num_runs if path in inputs else 0
            inputs[path] = LayerInput(arguments[0], arguments[0]._version, runs + 1)

        def leave(layer: nn.Module, arguments: tuple[Tensor], output: Tensor, path: str = path) -> None:
            outputs[path] = output

        layer = net.get_submodule(path)
        handles += [layer.register_forward_pre_hook(enter), layer.register_forward_hook(leave)]
    try:
        with torch.inference_mode(False), torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
            last = functional_call(net, tensors, (x,)).untyped_storage().data_ptr()
    finally:
        for handle in handles:
            handle.remove()
    return {path: entered for path, entered in inputs.items() if outputs[path].untyped_storage().data_ptr() != last}


def _activation_paths(net: nn.Module) -> list[str]:
    paths: list[str] = []
    for path, module in net.named_modules():
        if isinstance(module, ACTIVATIONS) and not any(path.startswith(f"{outer}.") for outer in paths):
            paths.append(path)
    return paths
