"""``grid_range="auto"``: the half-width of a spline's grid, from data.

A spline waits, on a grid of half-width 4, for its first batch in training mode. It takes the largest |x| of that batch
for its range and starts ``init`` anew, once. The range is then part of its state: checkpoints hold it, and a spline
that still waits takes it from one. Copies made before would wait on their own, processes would each see a batch of
their own, and a compiler cannot look: ``calibrate_grids_`` is for before all that.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tautnet.activations.linear_spline import LinearSpline


@torch.no_grad()
def calibrate_grids_(net: nn.Module, x: Tensor) -> None:
    """Set every range that is waiting, by one forward pass in training mode that leaves no other trace.

    Layer after layer, each spline sees what those before it, on their new grids, give it. Buffers (running statistics),
    training flags and random state are as before. The result depends on the weights and on ``x`` alone: processes that
    call it with the same batch get the same ranges.

    Args:
        net: the network, before it is copied, compiled or wrapped.
        x: a batch of inputs, on the network's device.

    Raises:
        ValueError: a batch from which a spline gets no range.
    """
    if not any(isinstance(module, LinearSpline) and module.awaits_range for module in net.modules()):
        return
    flags = [(module, module.training) for module in net.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in net.buffers()]
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        net.train()(x)
    for buffer, before in buffers:
        buffer.copy_(before)
    for module, flag in flags:
        module.training = flag
