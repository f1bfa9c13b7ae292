"""Certified training: losses of the worst logits that boxes around the inputs allow."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from math import inf
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _NormBase

from tautnet.activations import AbstractActivation, ReLU
from tautnet.lipschitz.boxes import propagate
from tautnet.lipschitz.rules import Unbounded
from tautnet.lipschitz.structure import Chain, Leaf, leaves, read
from tautnet.losses.base import AbstractClassificationLoss

Rule = Literal["sound", "paper"]


class AbstractCertifiedLoss(AbstractClassificationLoss):
    r"""kappa CE(logits) + (1 - kappa) CE(worst logits), the worst over the l_inf ball of a radius around each input.

    The radius rises linearly from 0 to ``epsilon``, and kappa falls from 1 to ``clean_share``, while the progress of
    training goes from ``ramp_start`` to ``ramp_end``; in evaluation both have their last values.

    Args:
        epsilon: radius in units of the network's input, above 0. Data sets standardise: a radius in raw units is
            divided by their deviation.
        clean_share: last kappa, at least 0, below 1.
        ramp_start: progress at which the ramps start, at least 0.
        ramp_end: progress at which they end, above ``ramp_start``, at most 1.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(self, epsilon: float, clean_share: float, ramp_start: float, ramp_end: float) -> None:
        super().__init__()
        if not 0 < epsilon < inf:
            raise ValueError(f"epsilon={epsilon}: a finite number above 0")
        if not 0 <= clean_share < 1:
            raise ValueError(f"clean_share={clean_share}: from 0 to below 1")
        if not 0 <= ramp_start < 1:
            raise ValueError(f"ramp_start={ramp_start}: from 0 to below 1")
        if not ramp_start < ramp_end <= 1:
            raise ValueError(f"ramp_end={ramp_end}: above ramp_start={ramp_start}, at most 1")
        self.epsilon, self.clean_share = epsilon, clean_share
        self.ramp_start, self.ramp_end = ramp_start, ramp_end
        self.chain: Chain = ()  # of the network, whose modules stay the network's

    def ramp(self, progress: float) -> float:
        """Share of the way from plain to certified training, 0 to 1."""
        return min(1.0, max(0.0, (progress - self.ramp_start) / (self.ramp_end - self.ramp_start)))

    @torch.no_grad()
    def attach(self, net: nn.Module, input_shape: Sequence[int]) -> None:
        """Read the network's structure.

        Raises:
            ValueError: a layer that uses statistics of the batch in training, or one through which no box goes.
        """
        for path, module in net.named_modules():
            if isinstance(module, _NormBase):
                raise ValueError(
                    f"{path} uses statistics of the batch in training, its boxes those of evaluation; choose norm=none"
                    " and with activation=slaf activation.normalize=none"
                )
        self.chain = read(net, input_shape)
        sample = next(net.parameters(), torch.zeros(())).new_zeros(1, *input_shape)
        try:
            propagate(self.chain, sample, sample)
        except Unbounded as unbounded:
            raise ValueError(f"no box goes through {unbounded}") from unbounded

    def forward(self, x: Tensor, logits: Tensor, targets: Tensor, progress: float) -> Tensor:
        """Mean over the batch."""
        clean, ramp = F.cross_entropy(logits, targets), self.ramp(progress)
        if ramp == 0:
            return clean
        worst = F.cross_entropy(self.worst_logits(x, targets, ramp * self.epsilon), targets)
        return clean + ramp * (1 - self.clean_share) * (worst - clean)

    @abstractmethod
    def worst_logits(self, x: Tensor, targets: Tensor, epsilon: float) -> Tensor:
        """Logits (N, K) that for every class j have f_j - f_y at least as large as any input of the ball gives."""


def worst_of(lo: Tensor, hi: Tensor, targets: Tensor) -> Tensor:
    """Lower end for the label, upper end for every other class; a single output z stands for the logits (0, z)."""
    if lo.shape[1] == 1:
        lo, hi = F.pad(lo, (1, 0)), F.pad(hi, (1, 0))
    return torch.where(F.one_hot(targets, lo.shape[1]).bool(), lo, hi)


class Interval(AbstractCertifiedLoss):
    r"""Interval-bound training: the worst logits of boxes propagated layer by layer, see ``lipschitz.boxes``.

    With ``elision`` the dense head is merged with the comparison of classes: f_j - f_y is bounded with the weights
    w_j - w_y at once, (w_j - w_y) c + b_j - b_y + |w_j - w_y| r for the centre c and radius r of the last features,
    which is never looser than bounding the two logits apart.

    Source: Gowal et al. (2018); they count kappa from 1 to 1/2, and elide. Learned splines take part by their exact
    images of boxes.

    Args:
        epsilon: see ``AbstractCertifiedLoss``.
        clean_share: the same.
        ramp_start: the same.
        ramp_end: the same.
        elision: merge the head with the comparison of classes.

    Raises:
        ValueError: an argument out of range, or ``attach`` with ``elision`` to a network without a dense head of two
            outputs or more.
    """

    def __init__(
        self,
        epsilon: float,
        clean_share: float = 0.5,
        ramp_start: float = 0.125,
        ramp_end: float = 0.5,
        elision: bool = False,
    ) -> None:
        super().__init__(epsilon, clean_share, ramp_start, ramp_end)
        self.elision = elision

    def attach(self, net: nn.Module, input_shape: Sequence[int]) -> None:
        """Read the network's structure."""
        super().attach(net, input_shape)
        if self.elision and _dense_head(self.chain) is None:
            raise ValueError("elision=True: the network does not end in a dense layer of two outputs or more")

    def worst_logits(self, x: Tensor, targets: Tensor, epsilon: float) -> Tensor:
        """From boxes; with ``elision`` differences to the label's logit."""
        head = _dense_head(self.chain) if self.elision else None
        if head is None:
            return worst_of(*propagate(self.chain, x - epsilon, x + epsilon), targets)
        lo, hi = propagate(self.chain[:-1], x - epsilon, x + epsilon)
        return worst_differences(lo, hi, head, targets)


def _dense_head(chain: Chain) -> nn.Linear | None:
    last = chain[-1] if chain else None
    if not isinstance(last, Leaf) or not isinstance(last.module, nn.Linear) or last.module.out_features < 2:
        return None
    return last.module


def worst_differences(lo: Tensor, hi: Tensor, head: nn.Linear, targets: Tensor) -> Tensor:
    """Largest f_j - f_y over the box [lo, hi] of the head's inputs, shape (N, K), exact; 0 at the label."""
    centre_NI, radius_NI = (lo + hi) / 2, (hi - lo) / 2
    logits_NK = head(centre_NI)
    spread_NKI = (head.weight.unsqueeze(0) - head.weight[targets].unsqueeze(1)).abs()
    return logits_NK - logits_NK.gather(1, targets.unsqueeze(1)) + (spread_NKI @ radius_NI.unsqueeze(2)).squeeze(2)


class SingleProp(AbstractCertifiedLoss):
    r"""Training with one tensor of radii v beside the activations z of the clean input, v = epsilon at the input.

    Linear layers: v <- |W| v. Activations, ``rule=sound``: v <- v * (largest |slope| on [z - v, z + v]), which bounds
    the change by the mean value theorem, for learned splines too. ``rule=paper``, for ReLU alone: v where z >= v, 0
    where z <= -v, else (z + v) / 2, which is *no* bound: the true change reaches v. Other layers: the larger distance
    of z from the ends of the image of [z - v, z + v]. Branches add or concatenate. The worst logits are z_y - v_y and
    z_j + v_j.

    Source: Boopathy et al. (2021), read in the authors' code; their other rule, for CIFAR, is not there. ``sound`` is
    ours.

    Args:
        epsilon: see ``AbstractCertifiedLoss``.
        clean_share: the same.
        ramp_start: the same.
        ramp_end: the same.
        rule: ``sound`` or ``paper``.

    Raises:
        ValueError: an argument out of range, or ``attach`` with ``rule=paper`` to activations other than ReLU.
    """

    def __init__(
        self,
        epsilon: float,
        clean_share: float = 0.5,
        ramp_start: float = 0.125,
        ramp_end: float = 0.5,
        rule: Rule = "sound",
    ) -> None:
        super().__init__(epsilon, clean_share, ramp_start, ramp_end)
        if rule not in get_args(Rule):
            raise ValueError(f"rule={rule}: one of {', '.join(get_args(Rule))}")
        self.rule = rule

    def attach(self, net: nn.Module, input_shape: Sequence[int]) -> None:
        """Read the network's structure."""
        super().attach(net, input_shape)
        for leaf in leaves(self.chain) if self.rule == "paper" else ():
            if isinstance(leaf.module, AbstractActivation) and not isinstance(leaf.module, ReLU):
                raise ValueError(f"rule=paper: for ReLU alone, not {leaf.name}; choose rule=sound")

    def worst_logits(self, x: Tensor, targets: Tensor, epsilon: float) -> Tensor:
        """From centres and radii."""
        z, v = self._walk(self.chain, x, torch.full_like(x, epsilon))
        return worst_of(z - v, z + v, targets)

    def _walk(self, chain: Chain, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        for part in chain:
            if isinstance(part, Leaf):
                z, v = self._step(part, z, v)
                continue
            centres, radii = zip(*(self._walk(branch, z, v) for branch in part.chains), strict=True)
            z, v = (
                torch.cat(e, 1) if part.kind == "concatenation" else torch.stack(e).sum(0) for e in (centres, radii)
            )
        return z, v

    def _step(self, leaf: Leaf, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        after = leaf.module(z)
        if isinstance(leaf.module, AbstractActivation):
            if self.rule == "paper":
                return after, torch.where(z >= v, v, F.relu(z + v) / 2)
            return after, v * leaf.module.local_gain(z - v, z + v)
        lo, hi = propagate((leaf,), z - v, z + v)
        return after, torch.maximum(hi - after, after - lo)
