"""How constant the variance of a unit is over small random subsets of a batch."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Form = Literal["two_sample", "population"]


def subset_variances(x: Tensor, sample_size: int, num_subsets: int, pool_positions: bool = False) -> Tensor:
    """Unbiased variances of consecutive disjoint subsets of a batch, in float32 at least.

    Args:
        x: shape (N, C, *), N at least ``sample_size`` * ``num_subsets``; later samples do not enter.
        sample_size: n, samples a subset, at least 2.
        num_subsets: K, at least 1.
        pool_positions: one variance a channel, over samples and positions, instead of one a position.

    Returns:
        Shape (K, C, *), or (K, C) with ``pool_positions``.

    Raises:
        ValueError: an argument out of range.
    """
    if sample_size < 2:
        raise ValueError(f"sample_size={sample_size}: at least 2")
    if num_subsets < 1 or len(x) < sample_size * num_subsets:
        raise ValueError(f"num_subsets={num_subsets}: at least 1, and {sample_size} samples each of {len(x)}")
    subsets = x[: sample_size * num_subsets].to(torch.promote_types(x.dtype, torch.float32))
    subsets = subsets.reshape(num_subsets, sample_size, *x.shape[1:])
    if pool_positions and x.dim() > 2:  # (K, n, C, *) to (K, n * positions, C)
        subsets = subsets.flatten(3).transpose(2, 3).flatten(1, 2)
    deviations = subsets - subsets.mean(dim=1, keepdim=True)  # many times faster than torch.var on a CPU
    return deviations.square().sum(dim=1) / (subsets.shape[1] - 1)


def variance_constancy(
    variances_KU: Tensor, beta_U: Tensor, form: Form = "two_sample", detach_denominator: bool = False
) -> Tensor:
    """Mean over subsets of (1 - s^2 / (reference + beta))^2 for each unit, its variance constancy loss.

    ``two_sample``: s^2 are those of the subsets 0, 2, ..., the reference of each that of the next subset, 1, 3, ...
    ``population``: s^2 are those of all subsets, the reference of all is their mean.

    With a reference fixed at the unit's variance sigma^2 and beta = 0 the expectation is
    Var(s^2) / sigma^4 = (kurtosis - (n - 3) / (n - 1)) / n: the loss asks for a low kurtosis. For two samples of a
    Gaussian, beta = 0 and n <= 5 the expectation is infinite.

    Source: Littwin, Wolf (2018), the authors' code, for ``two_sample`` with one pair. ``population`` is the
    ideal loss as recalled, with the mean over the subsets in the place of sigma^2; beta in it is ours.

    Args:
        variances_KU: of K subsets, K even for ``two_sample``, and units of any shape U.
        beta_U: at least 0, broadcast with U; NaN where it and all variances are 0.
        form: ``two_sample`` or ``population``.
        detach_denominator: no gradient through the reference; that through beta remains.

    Shape:
        (K, U) and (U) to (U).
    """
    if form == "two_sample":
        variances_KU, references_KU = variances_KU[0::2], variances_KU[1::2]
    else:
        references_KU = variances_KU.mean(dim=0, keepdim=True)
    if detach_denominator:
        references_KU = references_KU.detach()
    return (1 - variances_KU / (references_KU + beta_U)).square().mean(dim=0)
