"""Certified and attacked accuracy of a classifier over the radius of the perturbation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor, nn

from tautnet.lipschitz.attack import attack
from tautnet.lipschitz.certify import Certifier, margins
from tautnet.lipschitz.input_scale import InputScale

NORMS = {"l2": 2.0, "linf": inf}
AT_ONCE = 128  # samples: the gradients of many would not fit in memory


@dataclass(frozen=True)
class Row:
    """Shares of the samples that are right: clean, under attack, and provably whatever the perturbation."""

    norm: str
    eps: float
    clean: float
    attacked: float
    certified: float


@dataclass(frozen=True)
class Effort:
    """How hard an attack tries.

    Attributes:
        num_steps: of each start.
        num_restarts: starts.
        seed: of the starts.
    """

    num_steps: int = 40
    num_restarts: int = 2
    seed: int = 0


def in_raw_units(net: nn.Module, scale_C: Tensor) -> nn.Module:
    """A copy in float64 and eval mode that takes (raw - offset) instead of (raw - offset) / scale."""
    return nn.Sequential(InputScale(scale_C), deepcopy(net)).double().eval()


def examine(
    net: nn.Module,
    scale_C: Tensor,
    inputs: Tensor,
    labels: Tensor,
    epsilons: Mapping[str, Sequence[float]],
    effort: Effort,
    tell: Callable[[], None] = lambda: None,
) -> tuple[list[Row], dict[str, list[float]]]:
    """Certify predictions and attack them; certified <= attacked <= clean.

    All on a copy in float64, with the input in raw units; perturbations are not confined to the range of valid pixels,
    by certificates and attacks alike.

    Args:
        net: maps (N, C, *) to logits (N, K) or (N, 1).
        scale_C: what a unit of the net's input is in raw units, above 0.
        inputs: of the net, (N, C, *).
        labels: classes, (N,).
        epsilons: radii of each norm of ``NORMS``, rising, at least 0, in raw units.
        effort: of the attacks.
        tell: is called once for every radius of every norm, when it is done.

    Returns:
        A row for each radius, and for each norm the certified radius of every sample, as far as it is known.

    Raises:
        RuntimeError: an attack flips a certified prediction, which disproves the certificate.
    """
    with torch.inference_mode(False):  # Lightning tests in it, and nothing can be differentiated there
        scale_C = scale_C.to(inputs.device)
        raw_net = in_raw_units(net, scale_C)
        x = inputs.double() * scale_C.double().view(-1, *[1] * (inputs.dim() - 2))
        found = {
            norm: _examine(raw_net, x, labels, norm, values, effort, tell)
            for norm, values in epsilons.items()
            if values
        }
    return [row for rows, _ in found.values() for row in rows], {norm: radii for norm, (_, radii) in found.items()}


def _examine(
    net: nn.Module,
    x: Tensor,
    labels: Tensor,
    norm: str,
    epsilons: Sequence[float],
    effort: Effort,
    tell: Callable[[], None],
) -> tuple[list[Row], list[float]]:
    """The shares at every eps, and the radii."""
    certifier = Certifier(net, x.shape[1:], NORMS[norm])
    radii, clean = certifier.radii(x, labels), _right(net, x, labels)
    certified = [certifier.certified(x, labels, eps) for eps in epsilons]
    surviving, rows = clean, []
    for i, eps in enumerate(epsilons):
        proved = torch.stack(certified[i:]).any(0)  # a larger ball holds the smaller one
        radii = torch.where(proved, radii.clamp(min=eps), radii)
        surviving = surviving & _right(net, _attacked(net, x, labels, eps, norm, effort), labels)
        broken = (proved & ~surviving).nonzero().flatten().tolist()
        if broken:
            raise RuntimeError(
                f"an attack at {norm} eps={eps} flips the certified predictions of the samples {broken}, as kept "
                "for certification: the certificate is wrong, please report this"
            )
        shares = (float(right.double().mean()) for right in (clean, surviving, proved))
        rows.append(Row(norm, eps, *shares))
        tell()
    return rows, radii.tolist()


def _attacked(net: nn.Module, x: Tensor, labels: Tensor, eps: float, norm: str, effort: Effort) -> Tensor:
    settings = (NORMS[norm], effort.num_steps, effort.num_restarts, effort.seed)
    return torch.cat([attack(net, points, classes, eps, *settings) for points, classes in _pieces(x, labels)])


@torch.no_grad()
def _right(net: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    """Which predictions are right; a tie is not."""
    return torch.cat([margins(net(points.clone()), classes) > 0 for points, classes in _pieces(x, labels)])


def _pieces(x: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(torch.split(x, AT_ONCE), torch.split(labels, AT_ONCE), strict=True)
