"""What functions with a derivative written by hand share: when autograd's own has to take over, and how it does."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def watched(x: Tensor) -> bool:
    """Whether anything but autograd looks at what is done to x: torch.compile, torch.func, a trace, the meta device."""
    transformed = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    return transformed or torch._C._get_tracing_state() is not None or x.device.type == "meta"


def differentiated_again(grad: Tensor) -> bool:
    """Whether a backward pass is recorded, or runs for several gradients at once."""
    functorch = torch._C._functorch
    return torch.is_grad_enabled() or functorch.is_batchedtensor(grad) or functorch.is_legacy_batchedtensor(grad)


def plain_gradients(
    formula: Callable[..., Tensor], inputs: tuple[Tensor, ...], grad: Tensor, needed: tuple[bool, ...]
) -> list[Tensor | None]:
    """Gradients by autograd, recorded where the present mode records; None where not needed.

    Args:
        formula: of the inputs, in operations that autograd knows.
        inputs: as saved for the backward pass.
        grad: of the formula's value.
        needed: which inputs need one.
    """
    wanted = [t for t, needs in zip(inputs, needed, strict=True) if needs]
    recorded = torch.is_grad_enabled()
    with torch.enable_grad():
        y = formula(*inputs)
    found = iter(torch.autograd.grad(y, wanted, grad, create_graph=recorded, materialize_grads=True))
    return [next(found) if needs else None for needs in needed]
