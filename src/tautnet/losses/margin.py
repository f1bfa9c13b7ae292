"""Losses that ask for margins: what a network of bounded Lipschitz constant certifies is its margin."""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor
from torch.nn import functional as F

from tautnet.losses.base import AbstractClassificationLoss, check_positive


def class_margins(logits_NK: Tensor, targets_N: Tensor) -> Tensor:
    """f_y - f_j of each sample against each other class j, shape (N, K - 1)."""
    others_NK = torch.ones_like(logits_NK, dtype=torch.bool).scatter_(1, targets_N.unsqueeze(1), False)
    label_N1 = logits_NK.gather(1, targets_N.unsqueeze(1))
    return (label_N1 - logits_NK)[others_NK].view(len(logits_NK), -1)


class MarginCrossEntropy(AbstractClassificationLoss):
    r"""temperature * CE((f - margin * onehot(y)) / temperature): cross entropy that is content at a margin only.

    The label's logit is lowered by ``margin`` before the softmax, and a small temperature lets samples whose margin is
    reached go almost without gradient; the factor in front keeps the gradient's size. Cross entropy itself, on the
    bounded logits of a 1-Lipschitz net, never lets go of easy samples.

    Source: Prach, Lampert (2022), as recalled: margin sqrt(2), which certifies a radius of 1 at Lipschitz constant 1,
    and temperature 1/4, inputs in [0, 1].

    Args:
        margin: the offset, unit of the logits, above 0; sqrt(2) L eps for an l2 radius eps and Lipschitz constant L.
        temperature: unit of the logits, above 0.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(self, margin: float = sqrt(2), temperature: float = 0.25) -> None:
        super().__init__()
        check_positive("margin", margin)
        check_positive("temperature", temperature)
        self.margin, self.temperature = margin, temperature

    def forward(self, x: Tensor, logits: Tensor, targets: Tensor, progress: float) -> Tensor:
        """Mean over the batch."""
        offset_NK = self.margin * F.one_hot(targets, logits.shape[1]).to(logits)
        return self.temperature * F.cross_entropy((logits - offset_NK) / self.temperature, targets)


class Hinge(AbstractClassificationLoss):
    """Mean of sum over j != y of max(0, margin - (f_y - f_j)): exactly 0 once all margins are reached.

    Source: the multi-class hinge of Weston, Watkins (1999), as recalled, with a free margin.

    Args:
        margin: unit of the logits, above 0.

    Raises:
        ValueError: ``margin`` out of range.
    """

    def __init__(self, margin: float = 1.0) -> None:
        super().__init__()
        check_positive("margin", margin)
        self.margin = margin

    def forward(self, x: Tensor, logits: Tensor, targets: Tensor, progress: float) -> Tensor:
        """Mean over the batch."""
        return F.relu(self.margin - class_margins(logits, targets)).sum(1).mean()


def kantorovich_rubinstein(logits_NK: Tensor, targets_N: Tensor) -> Tensor:
    """Mean over the classes k of (mean of f_k over the samples of k) - (mean of f_k over the others).

    Of a 1-Lipschitz f_k the difference is a lower bound of the Wasserstein-1 distance of the two groups. A class of
    which the batch holds no sample, or nothing else, has no such difference and is left out; 0 if that is all of them.
    """
    inside_NK = F.one_hot(targets_N, logits_NK.shape[1]).to(logits_NK)
    counts_K = inside_NK.sum(0)
    others_K = len(logits_NK) - counts_K
    inside_K = (inside_NK * logits_NK).sum(0) / counts_K.clamp(min=1)
    outside_K = ((1 - inside_NK) * logits_NK).sum(0) / others_K.clamp(min=1)
    present_K = (counts_K > 0) & (others_K > 0)
    return ((inside_K - outside_K) * present_K).sum() / present_K.sum().clamp(min=1)


class HingeKantorovichRubinstein(AbstractClassificationLoss):
    r"""alpha * hinge - KR: margins, and as much room between the classes as a 1-Lipschitz net can make.

    Each logit is a one-against-all classifier. Hinge: max(0, margin / 2 - f_y) + mean over j != y of
    max(0, margin / 2 + f_j), the mean over the batch. KR: see ``kantorovich_rubinstein``. KR alone is unbounded
    without a Lipschitz constraint: for networks of Lipschitz constant 1 (``experiment=lipschitz_1``).

    Source: Serrurier et al. (2021) for two classes; the form for several is that of the authors' library,
    deel-torchlip, as recalled, with the weight of the hinge in front of it and 1 in front of KR.

    Args:
        alpha: weight of the hinge, above 0.
        margin: unit of the logits, above 0; each logit keeps half of it from 0.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(self, alpha: float = 10.0, margin: float = 1.0) -> None:
        super().__init__()
        check_positive("alpha", alpha)
        check_positive("margin", margin)
        self.alpha, self.margin = alpha, margin

    def forward(self, x: Tensor, logits: Tensor, targets: Tensor, progress: float) -> Tensor:
        """Mean over the batch."""
        inside_NK = F.one_hot(targets, logits.shape[1]).to(logits)
        weights_NK = inside_NK + (1 - inside_NK) / (logits.shape[1] - 1)
        misses_NK = F.relu(self.margin / 2 - (2 * inside_NK - 1) * logits)
        hinge = (weights_NK * misses_NK).sum(1).mean()
        return self.alpha * hinge - kantorovich_rubinstein(logits, targets)
