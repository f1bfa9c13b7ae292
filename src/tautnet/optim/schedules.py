"""Learning-rate schedules over a known number of steps; each scales the rates of all roles alike."""

from __future__ import annotations

from collections.abc import Sequence
from math import cos, pi

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def constant(optimizer: Optimizer, total_steps: int) -> LambdaLR:
    """The learning rates as configured."""
    del total_steps
    return LambdaLR(optimizer, lambda step: 1.0)


def cosine(optimizer: Optimizer, total_steps: int, final_factor: float = 0.0) -> LambdaLR:
    """Half a cosine from the configured rate to ``final_factor`` times it at the last step.

    Raises:
        ValueError: ``final_factor`` outside [0, 1].
    """
    if not 0 <= final_factor <= 1:
        raise ValueError(f"final_factor={final_factor}: from 0 to 1")

    def factor(step: int) -> float:
        done = min(step / max(total_steps, 1), 1.0)
        return final_factor + (1 - final_factor) * (1 + cos(pi * done)) / 2

    return LambdaLR(optimizer, factor)


def multistep(
    optimizer: Optimizer, total_steps: int, milestones: Sequence[float] = (0.5, 0.75, 0.875), factor: float = 0.1
) -> LambdaLR:
    """The rate times ``factor`` at each milestone, a fraction of all steps.

    The default fractions are the ResNet-32 schedule of Bohra et al. (2020): epochs 150, 225 and 262 of 300.

    Raises:
        ValueError: a milestone outside (0, 1), or ``factor`` outside (0, 1].
    """
    if any(not 0 < milestone < 1 for milestone in milestones):
        raise ValueError(f"milestones={list(milestones)}: fractions between 0 and 1")
    if not 0 < factor <= 1:
        raise ValueError(f"factor={factor}: above 0, at most 1")

    def power(step: int) -> float:
        return factor ** sum(step >= milestone * total_steps for milestone in milestones)

    return LambdaLR(optimizer, power)
