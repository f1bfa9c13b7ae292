"""Fits of c f(a x + b) + d to many curves at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tautnet.splines.families import Family

_MOST_STEPS = 40
_ENOUGH = 1e-3  # a step that takes a smaller share of the error is the last one
_MOST_DAMPING = 100.0
_CANCELS = 10.0  # largest mean of c f, in standard deviations of the curve: more is an extremum blown up


@dataclass(frozen=True)
class Fits:
    """The best members of a family.

    Attributes:
        a_C: see ``Family``, on the interval [-1, 1].
        b_C: likewise.
        error_C: root mean square of what is left of a curve of mean 0 and standard deviation 1.
    """

    a_C: Tensor
    b_C: Tensor
    error_C: Tensor


def fit(family: Family, curves_CS: Tensor) -> Fits:
    """The best a and b of each curve: the best start, then steps of Levenberg and Marquardt for what c and d leave.

    Args:
        family: of functions.
        curves_CS: values at S even points of [-1, 1], of mean 0 and standard deviation 1, float64.
    """
    t_S = torch.linspace(-1, 1, curves_CS.shape[1], dtype=torch.float64)
    starts_G2 = family.starts()
    members_GS, usable_G = _standardised(family(t_S, *(column_G.unsqueeze(1) for column_G in starts_G2.unbind(1))))
    alike_CG = (curves_CS @ members_GS.t()).abs()
    best_C = torch.where(usable_G, alike_CG, -1.0).argmax(dim=1)
    state = _state(family, t_S, curves_CS, *starts_G2[best_C].unbind(1))
    a_C, b_C, error_C = (state[name].clone() for name in ("a", "b", "error"))
    open_ = torch.arange(len(curves_CS))
    damping = torch.full_like(a_C, 1e-2)
    for _ in range(_MOST_STEPS if family.name != "sign" else 0):
        trial = _state(family, t_S, curves_CS[open_], *_step(family, state, damping))
        better = trial["error"] < state["error"]
        gain = torch.where(better, 1 - trial["error"] / state["error"].clamp(min=1e-300), 0.0)
        state = {name: torch.where(_beside(better, new), new, state[name]) for name, new in trial.items()}
        damping = torch.where(better, damping / 5, damping * 5)
        for result_C, name in ((a_C, "a"), (b_C, "b"), (error_C, "error")):
            result_C[open_] = state[name]
        going = (better & (gain > _ENOUGH) & (state["error"] > 1e-12)) | (~better & (damping < _MOST_DAMPING))
        if not going.any():
            break
        open_, damping = open_[going], damping[going]
        state = {name: value[going] for name, value in state.items()}
    return Fits(a_C, b_C, error_C)


def _beside(mask_C: Tensor, value: Tensor) -> Tensor:
    return mask_C.unsqueeze(1) if value.dim() > 1 else mask_C


def _standardised(values_GS: Tensor) -> tuple[Tensor, Tensor]:
    """Mean 0 and length 1; and where that can be had."""
    centred_GS = values_GS - values_GS.mean(dim=1, keepdim=True)
    length_G1 = centred_GS.norm(dim=1, keepdim=True)
    level_G = values_GS.mean(dim=1).abs() * values_GS.shape[1] ** 0.5
    usable_G = centred_GS.isfinite().all(dim=1) & (length_G1[:, 0] > 0) & (level_G <= _CANCELS * length_G1[:, 0])
    return torch.where(usable_G.unsqueeze(1), centred_GS / length_G1, 0.0), usable_G


@torch.enable_grad()
def _state(family: Family, t_S: Tensor, curves_CS: Tensor, a_C: Tensor, b_C: Tensor) -> dict[str, Tensor]:
    """At a and b: what is left of the curves, its derivatives in a and b, c and d always being the best."""
    a_CS, b_CS = (p_C.unsqueeze(1).repeat(1, len(t_S)).requires_grad_() for p_C in (a_C, b_C))
    values_CS = family(t_S, a_CS, b_CS)
    slopes = torch.autograd.grad(values_CS.sum(), (a_CS, b_CS), allow_unused=True)
    with torch.no_grad():
        unit_CS, usable_C = _standardised(values_CS.detach())
        length_C1 = (values_CS - values_CS.mean(dim=1, keepdim=True)).norm(dim=1, keepdim=True)
        share_C1 = (curves_CS * unit_CS).sum(dim=1, keepdim=True)
        rest_CS = curves_CS - share_C1 * unit_CS
        usable_C = usable_C & family.allows(a_C, b_C)
        error_C = torch.where(usable_C, rest_CS.square().mean(dim=1).sqrt(), torch.inf)
        state = {"a": a_C, "b": b_C, "error": error_C, "rest": rest_CS}
        for name, slope_CS, free in zip(("by_a", "by_b"), slopes, family.free, strict=True):
            if slope_CS is None or not free:
                state[name] = torch.zeros_like(rest_CS)
                continue
            across_CS = slope_CS - slope_CS.mean(dim=1, keepdim=True)
            across_CS = across_CS - (across_CS * unit_CS).sum(dim=1, keepdim=True) * unit_CS
            state[name] = share_C1 / length_C1 * across_CS  # c of the best fit times the derivative of f
        return {name: value.nan_to_num(0.0, torch.inf, 0.0) for name, value in state.items()}


def _step(family: Family, state: dict[str, Tensor], damping_C: Tensor) -> tuple[Tensor, Tensor]:
    """The next a and b."""
    by_a_CS, by_b_CS, rest_CS = state["by_a"], state["by_b"], state["rest"]
    aa_C, ab_C, bb_C = ((p * q).sum(1) for p, q in ((by_a_CS, by_a_CS), (by_a_CS, by_b_CS), (by_b_CS, by_b_CS)))
    to_a_C, to_b_C = (by_a_CS * rest_CS).sum(1), (by_b_CS * rest_CS).sum(1)
    least_C = 1e-9 * torch.maximum(aa_C, bb_C) + 1e-300  # along a direction that changes nothing nothing is changed
    aa_C, bb_C = ((1 + damping_C) * p + least_C for p in (aa_C, bb_C))
    determinant_C = aa_C * bb_C - ab_C.square()
    step_a_C = (bb_C * to_a_C - ab_C * to_b_C) / determinant_C
    step_b_C = (aa_C * to_b_C - ab_C * to_a_C) / determinant_C
    return state["a"] + step_a_C.nan_to_num(0, 0, 0), state["b"] + step_b_C.nan_to_num(0, 0, 0)
