"""What a rule for a layer is, and how it says that there is no constant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tautnet.lipschitz.structure import Leaf

# (the leaf's module, the leaf, p) -> upper bound of its constant; inf, or Unbounded with a reason, where there is none
Rule = Callable[[Any, Leaf, float], float]

# Relative allowance for the float64 arithmetic of a rule.
ROUNDING = 1 + 1e-10


class Unbounded(Exception):
    """A layer has no finite constant, or none that is known; the message is the reason."""


def exact(tensor: Tensor) -> Tensor:
    """As float64 on the CPU, without a graph.

    Raises:
        Unbounded: complex values, of which a cast would drop a part.
    """
    if tensor.is_complex():
        raise Unbounded("complex weights")
    return tensor.detach().to("cpu", torch.float64)
