"""Attacks: perturbations of bounded size that try to change predictions, the other side of certificates."""

from __future__ import annotations

from math import inf

import torch
from torch import Tensor, nn

from tautnet.lipschitz.certify import margins
from tautnet.lipschitz.enclosure import column
from tautnet.lipschitz.structure import eval_mode

STEP = 2.5  # times radius / num_steps: enough to cross the ball


def attack(
    net: nn.Module,
    x: Tensor,
    labels: Tensor,
    radius: float | Tensor,
    p: float = 2,
    num_steps: int = 40,
    num_restarts: int = 2,
    seed: int = 0,
    valid: tuple[float, float] | None = None,
) -> Tensor:
    r"""The most damaging points found in the p-balls around the samples, by projected gradient descent on the margin.

    Steps of 2.5 radius / num_steps along -grad / ||grad|| (p = 2) or -sign(grad) (p = inf) of f_y - max_{j != y} f_j,
    each projected back onto the ball. The first start is the sample itself, others are random in the ball. Of all
    points visited that of the smallest margin counts; a sample that is never changed for the worse comes back as it is.
    Parameters, gradients, training flags and random states stay as they are.

    Source: Madry et al. (2018); the margin as objective as in Carlini, Wagner (2017).

    Args:
        net: maps (N, *) to logits (N, K) or (N, 1), sample by sample in eval mode.
        x: samples; float64 if the points are to be held against a certificate.
        labels: true classes, (N,).
        radius: of the balls, one or (N,), finite and at least 0.
        p: 2 or inf.
        num_steps: of each start, at least 1.
        num_restarts: starts, at least 1.
        seed: of the random starts.
        valid: range that the points are kept in, of the values of x; None for none.

    Raises:
        ValueError: an argument out of range.
    """
    radii = torch.as_tensor(radius, dtype=x.dtype, device=x.device)
    if p not in (2, inf):
        raise ValueError(f"p={p}: 2 or inf")
    if not bool(((radii >= 0) & radii.isfinite()).all()):
        raise ValueError(f"radius={radius}: finite numbers of at least 0")
    for name, value in (("num_steps", num_steps), ("num_restarts", num_restarts)):
        if value < 1:
            raise ValueError(f"{name}={value}: at least 1")
    generator = torch.Generator().manual_seed(seed)
    with torch.inference_mode(False), torch.enable_grad(), eval_mode(net):
        x, labels, radii = x.detach().clone(), labels.clone(), column(radii.clone().expand(len(x)), x)
        best, least = x, _margins_and_slopes(net, x, labels)[0]
        for restart in range(num_restarts):
            noise = torch.rand(x.shape, generator=generator, dtype=x.dtype).to(x.device) * 2 - 1
            point = x if restart == 0 else _projected(x + radii * noise, x, radii, p, valid)
            for step in range(num_steps + 1):
                margin, slope = _margins_and_slopes(net, point, labels)
                better = margin < least
                least = torch.where(better, margin, least)
                best = torch.where(column(better, x), point, best)
                if step < num_steps:
                    moved = point - STEP / num_steps * radii * _direction(slope, p)
                    point = _projected(moved, x, radii, p, valid)
    return best


def _margins_and_slopes(net: nn.Module, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Margins and, each sample being on its own, their gradients."""
    x = x.clone().requires_grad_()
    margin = margins(net(x.clone()), labels)  # a clone: a layer may work in place
    if not margin.requires_grad:  # a network without a path from its input
        return margin, torch.zeros_like(x)
    (slope,) = torch.autograd.grad(margin.sum(), x)
    return margin.detach(), slope


def _direction(slope: Tensor, p: float) -> Tensor:
    if p == inf:
        return slope.sign()
    norm = torch.linalg.vector_norm(slope.flatten(1), dim=1)
    return slope / column(norm.clamp(min=torch.finfo(slope.dtype).tiny), slope)


def _projected(point: Tensor, x: Tensor, radii: Tensor, p: float, valid: tuple[float, float] | None) -> Tensor:
    """The nearest point of the ball; of ball and valid range, where moving into the range keeps it in the ball."""
    step = point - x
    if p == inf:
        step = torch.minimum(torch.maximum(step, -radii), radii)
    else:
        norm = column(torch.linalg.vector_norm(step.flatten(1), dim=1), x)
        step = step * (radii / norm.clamp(min=torch.finfo(x.dtype).tiny)).clamp(max=1)
    return x + step if valid is None else (x + step).clamp(*valid)
