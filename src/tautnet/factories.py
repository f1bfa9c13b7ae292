"""What the parts of a network are to each other: factories, layers of our own, roles of parameters.

Shape letters used in tensor names throughout: N batch, C channels, K knots, H W space, S positions, I O features in and
out, D flattened features; ``*`` stands for any further dimensions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar, Literal

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
