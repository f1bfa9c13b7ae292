"""Certificates: how far a sample can be moved without changing its predicted class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from math import inf

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from tautnet.lipschitz.enclosure import batches, row_norms
from tautnet.lipschitz.folded import items_of, log_folded
from tautnet.lipschitz.linear_maps import is_linear_map
from tautnet.lipschitz.lmi import log_lmi_folded
from tautnet.lipschitz.local import LocalBound, Reach
from tautnet.lipschitz.product import LeafConstants, log_product, to_float
from tautnet.lipschitz.rules import Unbounded
from tautnet.lipschitz.structure import Chain, Leaf, check_exponent, read

ROUNDING = 1e-9  # of the largest logit: what float64 may have lost in a margin


def margins(logits_NK: Tensor, labels_N: Tensor) -> Tensor:
    """f_y - max over j != y of f_j, (N,): above 0 if and only if the prediction is right, and no tie.

    A single logit z is read as the logits (0, z).
    """
    logits_NK = two_logits(logits_NK)
    own_N1 = logits_NK.gather(1, labels_N.unsqueeze(1))
    others_NK = logits_NK.scatter(1, labels_N.unsqueeze(1), -inf)
    return own_N1[:, 0] - others_NK.amax(1)


def two_logits(logits_NK: Tensor) -> Tensor:
    """(0, z) for a single logit z, others as they are."""
    return F.pad(logits_NK, (1, 0)) if logits_NK.shape[1] == 1 else logits_NK


def certified_radius(logits_NK: Tensor, labels_N: Tensor, constant: float | Tensor, p: float = 2) -> Tensor:
    r"""Radius of the p-ball around each sample in which its prediction cannot change; 0 where it is wrong.

    max(0, margin) 2^(1/p) / (2 L): a step d changes the logits by at most L ||d||_p in the p-norm, and so a difference
    of two of them by at most 2^(1 - 1/p) L ||d||_p. That is margin / (sqrt(2) L) for p = 2, margin / (2 L) for inf,
    margin / L for 1, and |z| / L for a single logit z. Inside the open ball no tie occurs either.

    Source: Tsuzuku, Sato, Sugiyama (2018) for p = 2.

    Args:
        logits_NK: the network's output at the samples, in float64 for a certificate.
        labels_N: true classes, integers from 0; of a single logit 0 and 1.
        constant: L, the network's Lipschitz constant for the p-norm, one or (N,); it may be inf.
        p: 1, 2 or inf.

    Raises:
        ValueError: an argument out of range.
    """
    check_exponent(p)
    _check_labels(labels_N, len(logits_NK))
    constants = torch.as_tensor(constant).to(logits_NK)
    if constants.shape not in ((), (len(logits_NK),)) or not bool((constants >= 0).all()):
        raise ValueError(f"constant={constant}: one number of at least 0, or one a sample")
    radius_N = _share(logits_NK, p) * margins(logits_NK, labels_N).clamp(min=0) / constants
    return torch.where(logits_NK.isfinite().all(1) & ~radius_N.isnan(), radius_N, 0.0)


def _check_labels(labels: Tensor, size: int) -> None:
    """Raise ValueError unless they are classes, one a sample."""
    if labels.shape != (size,) or labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"labels of shape {tuple(labels.shape)}, {labels.dtype}: integers of shape ({size},)")


def _share(logits_NK: Tensor, p: float) -> float:
    return 1.0 if logits_NK.shape[1] == 1 else float(2 ** (1 / p) / 2)


class Certifier:
    r"""Certificates of one network, on a copy in float64.

    A prediction y is certified at eps if every f_y - f_j stays above 0 on the closed p-ball. Lower bounds of it are
    tried, each sound: by the whole network's constant (``certified_radius``); by the features g in front of a dense
    last layer, f_y - f_j - ||w_y - w_j||_q L_g eps with 1/p + 1/q = 1; the same with the local constant of g and with
    the enclosure of its Jacobian; and (w_y - w_j) g over the box of g. See ``LocalBound``. A margin must exceed 1e-9
    times the largest logit, for rounding in float64; the certificate is of the network in real arithmetic.

    Source: Tsuzuku et al. (2018); the pairs of a last layer as in Leino, Wang, Fredrikson (2021).

    Args:
        net: maps (N, *) to logits (N, K), or to the one logit of the second of two classes (N, 1).
        input_shape: of one sample.
        p: exponent of the norm of the perturbation, 1, 2 or inf.

    Raises:
        ValueError: another ``p``, or an output that is not (N, K).
    """

    def __init__(self, net: nn.Module, input_shape: Sequence[int], p: float = 2) -> None:
        check_exponent(p)
        self.p = p
        with torch.inference_mode(False), torch.no_grad():
            self.net = deepcopy(net).double().eval()
            chain = read(self.net, input_shape)
            parameter = next(self.net.parameters(), torch.zeros((), dtype=torch.float64))
            outputs = self.net(parameter.new_zeros(1, *input_shape))
            if outputs.dim() != 2 or len(outputs) != 1:
                raise ValueError(f"net: gives {tuple(outputs.shape)} for one sample, not (1, classes)")
            features, weight_KF, bias_K = _head(chain, outputs.shape[1])
            self._weight_KF, self._bias_K = weight_KF.to(parameter.device), bias_K.to(parameter.device)
            self._features = LocalBound(features, p)
            self._constant, self._features_constant = constant_of(chain, p), constant_of(features, p)

    def radii(self, x: Tensor, labels: Tensor) -> Tensor:
        """Radii from the constants of the whole space, (N,) float64; 0 for wrong predictions."""
        return torch.cat([self._radii(*part) for part in self._parts(x, labels)])

    def certified(self, x: Tensor, labels: Tensor, eps: float) -> Tensor:
        """Whether the prediction is right and cannot change within the closed ball of radius eps, bool (N,).

        Raises:
            ValueError: a negative eps.
        """
        if not 0 <= eps < inf:
            raise ValueError(f"eps={eps}: a finite number of at least 0")
        return torch.cat([self._certified(points, classes, eps) for points, classes in self._parts(x, labels)])

    @staticmethod
    def _parts(x: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, ...]]:
        _check_labels(labels, len(x))
        with torch.inference_mode(False):
            x, labels = x.detach().clone().double(), labels.clone()
        return batches(x, labels)

    @torch.no_grad()
    def _radii(self, x: Tensor, labels: Tensor) -> Tensor:
        with torch.inference_mode(False), parametrize.cached():
            logits = self.net(x.clone())
        margins_NK = self._margins(logits, labels)
        radii = margins_NK.amin(1) * _share(logits, self.p) / (self._constant * (1 + ROUNDING))
        for index, difference_KF, _ in self._pairs(labels):
            scale_K = row_norms(difference_KF, self.p) * self._features_constant * (1 + ROUNDING)
            by_pair_NK = (margins_NK[index] / scale_K).nan_to_num(nan=0.0, posinf=inf)
            by_pair_NK = by_pair_NK.scatter(1, labels[index].unsqueeze(1), inf)
            radii[index] = torch.fmax(radii[index], by_pair_NK.amin(1))
        return torch.where(margins_NK.amin(1) > 0, radii.nan_to_num(nan=0.0, posinf=inf), 0.0)

    @torch.no_grad()
    def _certified(self, x: Tensor, labels: Tensor, eps: float) -> Tensor:
        certified = self._radii(x, labels) > eps
        try:
            with torch.inference_mode(False):
                reach = self._features(x, torch.full_like(labels, eps, dtype=x.dtype))
        except Unbounded:
            return certified
        for index, difference_KF, bias_K in self._pairs(labels):
            certified[index] |= self._above(reach, index, difference_KF, bias_K, labels[index])
        return certified

    def _above(self, reach: Reach, index: Tensor, difference_KF: Tensor, bias_K: Tensor, labels: Tensor) -> Tensor:
        """Whether each f_y - f_j stays above 0 by one of the bounds, for samples of one class."""
        logits = torch.addmm(self._bias_K, reach.centre[index], self._weight_KF.T)
        margins_NK = self._margins(logits, labels)
        lo, hi = reach.lo[index], reach.hi[index]
        loss_N1 = (ROUNDING * logits.abs().amax(1)).unsqueeze(1)
        by_box = bias_K + (lo + hi) / 2 @ difference_KF.T - (hi - lo) / 2 @ difference_KF.abs().T - loss_N1
        constant_N = reach.constant[index].clamp(max=self._features_constant)
        norms_K, eps_N1 = row_norms(difference_KF, self.p), reach.radius[index].unsqueeze(1)
        growths = [constant_N.unsqueeze(1) * norms_K]
        if reach.jacobian is not None:
            rows_NK = row_norms(difference_KF @ reach.jacobian[index], self.p)
            growths.append(reach.base[index].unsqueeze(1) * (rows_NK + norms_K * reach.error[index].unsqueeze(1)))
        bounds = [by_box, *(margins_NK - growth * eps_N1 * (1 + ROUNDING) for growth in growths)]
        best_NK = torch.stack([bound.nan_to_num(nan=-inf, posinf=-inf) for bound in bounds]).amax(0)
        return (best_NK.scatter(1, labels.unsqueeze(1), inf) > 0).all(1) & margins_NK.amin(1).isfinite()

    def _margins(self, logits: Tensor, labels: Tensor) -> Tensor:
        """f_y - f_j less what rounding may have taken, (N, K), inf for j = y; -inf where a logit is not finite."""
        logits = two_logits(logits)
        column_N1 = labels.unsqueeze(1)
        differences = logits.gather(1, column_N1) - logits - ROUNDING * logits.abs().amax(1, keepdim=True)
        differences = torch.where(logits.isfinite().all(1, keepdim=True), differences, -inf)
        return differences.scatter(1, column_N1, inf)

    def _pairs(self, labels: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """For each class y: which samples have it, w_y - w_j and b_y - b_j."""
        for y in sorted(set(labels.tolist())):
            index = (labels == y).nonzero()[:, 0]
            yield index, self._weight_KF[y] - self._weight_KF, self._bias_K[y] - self._bias_K


def constant_of(chain: Chain, p: float) -> float:
    """The smallest of the whole-network bounds, as in ``lipschitz_bound``."""
    with parametrize.cached():
        constants = LeafConstants(p)
        items = items_of(chain, p, constants)
        logs = [log_product(chain, p, constants), log_folded(items, p, constants)]
        return to_float(min([*logs, log_lmi_folded(items, constants)] if p == 2 else logs))


def _head(chain: Chain, num_outputs: int) -> tuple[Chain, Tensor, Tensor]:
    """The features, and weight and bias of the dense layer behind them; the identity where there is no such layer."""
    last = chain[-1] if chain else None
    weight_KF, bias_K = torch.eye(num_outputs, dtype=torch.float64), torch.zeros(num_outputs, dtype=torch.float64)
    if isinstance(last, Leaf) and is_linear_map(last) and isinstance(last.module, nn.Linear):
        chain, weight_KF = chain[:-1], last.module.weight.detach().clone()
        bias_K = weight_KF.new_zeros(num_outputs) if last.module.bias is None else last.module.bias.detach().clone()
    if num_outputs == 1:  # the logits (0, z)
        weight_KF, bias_K = F.pad(weight_KF, (0, 0, 1, 0)), F.pad(bias_K, (1, 0))
    return chain, weight_KF, bias_K


def certified_at(net: nn.Module, x: Tensor, labels: Tensor, eps: float, p: float = 2) -> Tensor:
    """Whether each prediction is right and provably the same within the closed p-ball of radius eps, bool (N,).

    See ``Certifier``, which serves several calls. eps is in the unit of x: put an ``InputScale`` in front of a network
    that was trained on standardised data.

    Args:
        net: maps (N, *) to logits (N, K) or (N, 1).
        x: samples.
        labels: true classes, (N,), integers from 0; of a single logit 0 and 1.
        eps: radius, at least 0.
        p: 1, 2 or inf.

    Raises:
        ValueError: an argument out of range.
    """
    return Certifier(net, x.shape[1:], p).certified(x, labels, eps)
