"""Lower bound of a network's Lipschitz constant, observed on data."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tautnet.lipschitz.bound import eval_mode


def lipschitz_lower(net: nn.Module, x: Tensor, p: float = 2) -> float:
    """Largest spectral norm of the Jacobian of the eval-mode net over a batch: an observation, never a guarantee.

    Costs one backward pass per output. Parameters, their gradients, buffers, training flags and random state stay as
    they are. At a kink the Jacobian is one-sided; it is a limit of ratios ||f(x) - f(y)|| / ||x - y|| all the same.

    Args:
        net: maps (N, *) to (N, outputs), sample by sample in eval mode.
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
        # Samples do not interact, so the gradient of a sum over the batch holds one row of every Jacobian.
        rows = [torch.autograd.grad(column.sum(), inputs, retain_graph=True)[0] for column in outputs.unbind(1)]
        jacobians_NOD = torch.stack([row.flatten(1) for row in rows], dim=1)
        if not jacobians_NOD.isfinite().all():
            return float("nan")
        return float(torch.linalg.matrix_norm(jacobians_NOD.to("cpu", torch.float64), ord=2).max())
