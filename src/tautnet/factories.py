"""What the parts of a network are to each other: factories, layers of our own, roles of parameters.

Shape letters used in tensor names throughout: N batch, C channels, K knots, H W space, S positions, I O features in and
out, D flattened features; ``*`` stands for any further dimensions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, final

import torch
import torch.distributed as dist
from torch import Tensor, nn

ActivationFactory = Callable[[int], nn.Module]  # num_channels -> module acting on (N, C, *)
OutputNormFactory = Callable[[int], nn.Module]  # num_channels -> module normalising (N, C, *)
WeightNorm = Callable[[nn.Module], nn.Module]  # a layer -> the same layer, its weight parametrised

Task = Literal["classification", "regression", "denoising"]  # of a data set and of the model that fits it

Role = Literal["weight", "bias", "norm", "activation", "regularizer"]
ROLES: tuple[Role, ...] = ("weight", "bias", "norm", "activation", "regularizer")


class DataError(ValueError):
    """A sample that cannot be used, found when it was read; the message names its source."""


class RoleOwner:
    """A module that states the role of each of its own parameters (not of its children's)."""

    parameter_roles: ClassVar[Mapping[str, Role]] = {}


class AbstractLayer(nn.Module, RoleOwner, ABC):
    """A layer of our own: it states its parameters' roles and bounds what it does to distances and boxes."""

    @abstractmethod
    def lipschitz_constant(self, p: float) -> Tensor:
        """Upper bound of the Lipschitz constant of the eval-mode layer for the vector p-norm, p in {1, 2, inf}.

        A scalar in float64 on the CPU: float32 could round a guarantee down. inf where there is none. Differentiable in
        the parameters.
        """

    @abstractmethod
    def interval(self, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        """A box that contains the image of the box [lo, hi] under the eval-mode layer.

        Differentiable in the parameters and the box; shapes (N, C, *).
        """

    def slope_range(self) -> tuple[Tensor, Tensor] | None:
        """Infimum and supremum of each channel's derivative; None if the layer mixes elements.

        For a layer that applies a scalar function of its own to every element of a channel in eval mode. Shapes (C,),
        or (1,) for one function in all channels, float64 on the CPU; may be infinite. Equal ends: multiplication.
        """
        return None

    def local_lipschitz_constant(self, lo: Tensor, hi: Tensor, p: float) -> Tensor:
        """Upper bound of the eval-mode layer's Lipschitz constant on each of the boxes [lo, hi], shape (N,)."""
        return self.lipschitz_constant(p).to(lo).expand(len(lo))


class Projected(ABC):
    """A module whose parameters are put back on their constraint set after every optimizer step."""

    @abstractmethod
    def project_(self) -> None:
        """Project the parameters in place."""


class Synchronised(ABC):
    """A layer whose batch statistics become those of all ranks, when ``synchronised`` is set."""

    synchronised: bool = False
    batch_norm: nn.BatchNorm1d | None

    def ranks(self) -> dist.ProcessGroup | None:
        """The processes that share the statistics; None outside a process group or if they are not to be shared."""
        batch_norm = self.batch_norm
        converted = isinstance(batch_norm, nn.SyncBatchNorm)
        shared = batch_norm is not None and (self.synchronised or converted)
        if not (shared and dist.is_available() and dist.is_initialized()):
            return None
        group: dist.ProcessGroup | None = dist.group.WORLD
        if isinstance(batch_norm, nn.SyncBatchNorm):
            group = batch_norm.process_group or group
        return group if dist.get_world_size(group) > 1 else None


def synchronise_(net: nn.Module) -> None:
    """Have all layers with batch statistics below ``net`` share them between processes, in training.

    What conversion to SyncBatchNorm does, but also for CPUs, where DistributedDataParallel refuses SyncBatchNorm.
    Every process has to call the layers equally often.
    """
    for module in net.modules():
        if isinstance(module, Synchronised):
            module.synchronised = True


@final
class Observed:
    """What entered the layers of a network during its latest training forward.

    It hangs on the whole network, as a forward pre-hook and as a forward hook, and tells the observers of its layers
    when a forward runs that is in training mode and has gradients. What calls a layer on its own, or recomputes it in
    the backward pass, stays out.

    Attributes:
        inputs: first argument of each observed layer by path; who reads them takes them away.
        running: whether such a forward is under way.
    """

    def __init__(self) -> None:
        self.inputs: dict[str, Tensor] = {}
        self.running = False

    def __call__(self, net: nn.Module, inputs: Any, output: Any = None) -> None:
        """Begin with no inputs, or end."""
        self.running = output is None and net.training and torch.is_grad_enabled()
        if self.running:
            self.inputs = {}

    def __getstate__(self) -> dict[str, Any]:
        """Copies have seen nothing: the inputs belong to a graph that cannot be copied."""
        return {"inputs": {}, "running": False}


@final
class Observer:
    """A forward pre-hook of a layer that only looks: it notes the layer's input and changes nothing.

    Layers with this hook keep their Lipschitz constants. Those with any other have none, so this class stays closed.

    Args:
        observed: takes the inputs.
        path: of the layer.
    """

    def __init__(self, observed: Observed, path: str) -> None:
        self.observed, self.path = observed, path

    def __call__(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Note the input."""
        if self.observed.running and layer.training:
            self.observed.inputs[self.path] = inputs[0]


def may_be_changed_by_hooks(module: nn.Module) -> bool:
    """Whether a module has forward hooks other than those that only look, by exact type."""
    hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    return any(type(hook) not in (Observed, Observer) for hook in hooks)
