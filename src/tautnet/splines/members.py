"""Standard functions fitted to the curves of an activation, and which of them is the simplest that will do."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from math import inf

import torch
from torch import Tensor

from tautnet.activations import AbstractActivation, Slaf
from tautnet.functional.bases import is_polynomial
from tautnet.splines.families import Family, families
from tautnet.splines.fit import fit
from tautnet.splines.writing import SPENT, Fitted, Polynomial

Member = Fitted | Polynomial
_CONSTANT_BELOW = 4 * torch.finfo(torch.float32).eps  # of the largest value: rounding of the stored numbers


def fitted_members(
    activation: AbstractActivation,
    curves: Sequence[int],
    x_CS: Tensor,
    y_CS: Tensor,
    names: Sequence[str] | None = None,
) -> list[list[Member]]:
    """For each curve the best member of each family; of a SLAF of polynomials its own one too.

    Args:
        activation: whose curves they are.
        curves: their numbers.
        x_CS: even points, shape (curves, S), S odd.
        y_CS: the values there.
        names: of families, or x for straight lines; None for all.

    Raises:
        ValueError: a name that is not known.
    """
    known: dict[str, Family | None] = {"x": None} | {family.name: family for family in families()}
    if names is not None and not (names and set(names) <= known.keys()):
        raise ValueError(f"names={list(names)}: of {', '.join(known)}")
    constant_C = _is_constant(y_CS)
    every_other_CS = y_CS[:, ::2]  # enough to fit, and in half the time
    centred_CS = every_other_CS - every_other_CS.mean(dim=1, keepdim=True)
    size_C1 = centred_CS.square().mean(dim=1, keepdim=True).sqrt()
    unit_CS = torch.where(constant_C.unsqueeze(1), 0.0, centred_CS / size_C1)
    found: list[list[Member]] = [[] for _ in y_CS]
    for name in known if names is None else dict.fromkeys(names):
        for members, member in zip(found, _best_of(known[name], x_CS, unit_CS), strict=True):
            if member.error < inf:
                members.append(member)
    if names is None and isinstance(activation, Slaf) and _is_polynomial(activation):
        for members, polynomial in zip(found, _own(activation, curves), strict=True):
            members.append(polynomial)
    flat: list[Member] = [Fitted("constant", 1, 0.0)]
    return [flat if constant else members for members, constant in zip(found, constant_C.tolist(), strict=True)]


def relative_error(values_S: Tensor, y_S: Tensor) -> float:
    """Root mean square of the difference over the standard deviation of y; 0 where y is constant."""
    return 0.0 if _is_constant(y_S) else float((values_S - y_S).square().mean().sqrt() / y_S.std(correction=0))


def sorted_out(members: Sequence[Member], tolerance: float) -> tuple[list[Member], list[Member]]:
    """The simplest of those near enough, more than one if they are about as good, and the others by rising error."""
    ordered = sorted(members, key=lambda member: member.error)
    near = [member for member in ordered if member.error <= tolerance]
    if not near:
        return ordered[:1], ordered[1:]
    fewest = min(member.num_constants for member in near)
    best = next(member for member in near if member.num_constants == fewest)
    simplest = [
        member for member in near if member.num_constants == fewest and member.error <= best.error + SPENT * tolerance
    ]
    return simplest, [member for member in ordered if member not in simplest]


def _best_of(family: Family | None, x_CS: Tensor, unit_CS: Tensor) -> list[Fitted]:
    if family is None:  # straight lines
        t_S = torch.linspace(-1, 1, unit_CS.shape[1], dtype=torch.float64)
        slope_C1 = (unit_CS @ t_S / t_S.square().sum()).unsqueeze(1)
        errors = (unit_CS - slope_C1 * t_S).square().mean(dim=1).sqrt().tolist()
        return [Fitted("x", 2, error) for error in errors]
    fits = fit(family, unit_CS)
    middle_C, half_C = x_CS[:, [0, -1]].mean(dim=1), (x_CS[:, -1] - x_CS[:, 0]) / 2
    rows = zip(*(v_C.tolist() for v_C in (fits.a_C, fits.b_C, middle_C, half_C, fits.error_C)), strict=True)
    return [Fitted(family.name, family.num_constants, error, family, *family.placed(*row)) for *row, error in rows]


def _is_constant(y_CS: Tensor) -> Tensor:
    return y_CS.std(dim=-1, correction=0) <= _CONSTANT_BELOW * y_CS.abs().amax(dim=-1)


def _is_polynomial(slaf: Slaf) -> bool:
    return is_polynomial(slaf.basis) and slaf.hybrid == "none"


@torch.no_grad()
def _own(slaf: Slaf, curves: Sequence[int]) -> list[Polynomial]:
    """The polynomials that the curves of a SLAF are."""
    powers_CP = copy.deepcopy(slaf).to("cpu", torch.float64).function().polynomial()
    return [Polynomial(tuple(powers_CP[curve].tolist())) for curve in curves]
