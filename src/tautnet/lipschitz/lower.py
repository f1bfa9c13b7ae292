"""Lower bound of a network's Lipschitz constant, observed on data."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tautnet.lipschitz.bound import eval_mode

NUM_ITERATIONS = 10


def lipschitz_lower(net: nn.Module, x: Tensor, p: float = 2) -> float:
    """Largest spectral norm of the Jacobian of the eval-mode net over a batch: an observation, never a guarantee.

    Costs one backward pass per output; for images as outputs, where those are too many, the norm is approached from
    below by power iteration. Parameters, their gradients, buffers, training flags and random state stay as
    they are. At a kink the Jacobian is one-sided; it is a limit of ratios ||f(x) - f(y)|| / ||x - y|| all the same.

    Args:
        net: maps (N, *) to (N, outputs) or (N, C, H, W), sample by sample in eval mode.
        x: the batch.
        p: exponent of the vector norm; 2 is what is implemented.

    Returns:
        The observed value; NaN if a derivative is not finite.

    Raises:
        ValueError: another ``p``.
    """
    if p != 2:
        raise ValueError(f"p={p}: 2")
    # Lightning evaluates in inference mode, where nothing can be differentiated.
    with torch.inference_mode(False), torch.enable_grad(), eval_mode(net):
        inputs = x.clone().requires_grad_()
        outputs = net(inputs)
        if outputs.dim() > 2:
            return _by_power_iteration(inputs, outputs)
        # Samples do not interact, so the gradient of a sum over the batch holds one row of every Jacobian.
        rows = [torch.autograd.grad(column.sum(), inputs, retain_graph=True)[0] for column in outputs.unbind(1)]
        jacobians_NOD = torch.stack([row.flatten(1) for row in rows], dim=1)
        if not jacobians_NOD.isfinite().all():
            return float("nan")
        return float(torch.linalg.matrix_norm(jacobians_NOD.to("cpu", torch.float64), ord=2).max())


def _by_power_iteration(inputs: Tensor, outputs: Tensor) -> float:
    """|J^T v| for unit vectors v, one a sample, which a power iteration turns towards the largest singular value.

    The product J u comes from differentiating J^T v, which is linear in v, by v.
    """
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(outputs.shape, generator=generator).to(outputs).requires_grad_()
    (pulled_back,) = torch.autograd.grad(outputs, inputs, v, create_graph=True)
    unit = _unit(v.detach())
    for _ in range(NUM_ITERATIONS):
        (u,) = torch.autograd.grad(outputs, inputs, unit, retain_graph=True)
        (pushed_forward,) = torch.autograd.grad(pulled_back, v, u, retain_graph=True)
        unit = _unit(pushed_forward)
    (u,) = torch.autograd.grad(outputs, inputs, unit)
    norms_N = torch.linalg.vector_norm(u.flatten(1).double(), dim=1)
    return float(norms_N.max()) if norms_N.isfinite().all() else float("nan")


def _unit(v: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(v.flatten(1), dim=1).clamp(min=torch.finfo(v.dtype).tiny)
    return v / norm.view(-1, *[1] * (v.dim() - 1))
