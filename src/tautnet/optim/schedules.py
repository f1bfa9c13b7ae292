"""Learning-rate schedules over a known number of steps; each scales the rates of all roles alike."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, cos, pi
from typing import Literal

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
    _check_factor("final_factor", final_factor)

    def factor(step: int) -> float:
        return _between(1.0, final_factor, min(step / max(total_steps, 1), 1.0))

    return LambdaLR(optimizer, factor)


def warmup(
    optimizer: Optimizer, total_steps: int, warmup_fraction: float = 0.05, final_factor: float = 0.0
) -> LambdaLR:
    """Up in equal steps to the configured rate, then half a cosine down to ``final_factor`` times it.

    With w = ceil(warmup_fraction total_steps) steps of warm-up, fewer if no step would be left at the full rate, the
    factor of step k = 0, 1, … is (k + 1) / (w + 1) for k < w; step w has the full rate, and ``final_factor`` is reached
    when the last step is done.

    Source: Goyal et al. (2017) for the gradual warm-up, recalled; theirs begins at the rate of a single worker, and
    what follows it is a step schedule. The cosine is that of ``cosine``.

    Args:
        optimizer: whose rates are scaled.
        total_steps: of the whole training.
        warmup_fraction: part of all steps, above 0, below 1.
        final_factor: last rate / full rate, 0 to 1.

    Raises:
        ValueError: an argument out of range.
    """
    _check_factor("final_factor", final_factor)
    peak = _peak(total_steps, warmup_fraction)

    def factor(step: int) -> float:
        if step < peak:
            return (step + 1) / (peak + 1)
        return _between(1.0, final_factor, _after(step, peak, total_steps))

    return LambdaLR(optimizer, factor)


def onecycle(
    optimizer: Optimizer,
    total_steps: int,
    warmup_fraction: float = 0.3,
    start_factor: float = 0.04,
    final_factor: float = 1e-4,
    anneal: Literal["cosine", "linear"] = "cosine",
) -> LambdaLR:
    """Up from ``start_factor`` to 1 times the configured rate, then down to ``final_factor`` times it.

    The first step has ``start_factor``, step ceil(warmup_fraction total_steps) the full rate, and ``final_factor`` is
    reached when the last step is done. A training of one step has the full rate.

    Source: Smith and Topin (2018), the idea of one rise and one fall, recalled. Deviations: the momentum is not cycled,
    the rise may be shorter than the fall, the fall goes to ``final_factor`` at once instead of back to the start and
    then below it, and both are half a cosine unless ``anneal`` is "linear".

    Args:
        optimizer: whose rates are scaled; the configured rate is the peak.
        total_steps: of the whole training.
        warmup_fraction: part of all steps that the rate rises, above 0, below 1.
        start_factor: first rate / peak, 0 to 1.
        final_factor: last rate / peak, 0 to 1.
        anneal: "cosine" or "linear", the shape of rise and fall.

    Raises:
        ValueError: an argument out of range.
    """
    _check_factor("start_factor", start_factor)
    _check_factor("final_factor", final_factor)
    if anneal not in ("cosine", "linear"):
        raise ValueError(f"anneal={anneal}: cosine or linear")
    peak = _peak(total_steps, warmup_fraction)

    def factor(step: int) -> float:
        if step < peak:
            return _between(start_factor, 1.0, step / peak, anneal)
        return _between(1.0, final_factor, _after(step, peak, total_steps), anneal)

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


def _check_factor(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name}={value}: from 0 to 1")


def _peak(total_steps: int, warmup_fraction: float) -> int:
    """The first step at the full rate; one is always left."""
    if not 0 < warmup_fraction < 1:
        raise ValueError(f"warmup_fraction={warmup_fraction}: above 0, below 1")
    exact = round(warmup_fraction * total_steps, 6)  # 0.07 * 100 is a little more than 7
    return max(0, min(ceil(exact), total_steps - 1))


def _after(step: int, peak: int, total_steps: int) -> float:
    """Which part of the steps from the peak on is done."""
    return min((step - peak) / max(total_steps - peak, 1), 1.0)


def _between(start: float, end: float, done: float, shape: str = "cosine") -> float:
    """From start to end, straight or along half a cosine."""
    left = 1 - done if shape == "linear" else (1 + cos(pi * done)) / 2
    return end + (start - end) * left
