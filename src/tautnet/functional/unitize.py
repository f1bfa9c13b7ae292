"""Unitization of normalised layer outputs."""

from __future__ import annotations

from math import inf, prod
from typing import Literal, get_args

from torch import Tensor

AlphaConstraint = Literal["none", "project", "sigmoid"]
AlphaShape = Literal["channel", "layer"]
NormAxes = Literal["sample", "pixel"]
NormScale = Literal["official", "l2", "per_pixel", "rms"]


def norm_factor(shape: tuple[int, ...], axes: NormAxes, scale: NormScale) -> float:
    """The factor kappa of the squared norm for an input of shape (N, C, *).

    With P the number of positions that the norm runs over (1 for ``pixel``): ``official`` 1/P^2, ``l2`` 1,
    ``per_pixel`` 1/P, ``rms`` 1/(C P).
    """
    positions = prod(shape[2:]) if axes == "sample" else 1
    return {
        "official": 1.0 / positions**2,
        "l2": 1.0,
        "per_pixel": 1.0 / positions,
        "rms": 1.0 / (shape[1] * positions),
    }[scale]


def inverse_norm(x: Tensor, axes: NormAxes, kappa: float, eps: float) -> Tensor:
    """Inverse norm r = (q + eps)^(-1/2), q = kappa * (sum of x^2), broadcastable against ``x`` of shape (N, C, *).

    ``sample`` sums over everything but N, ``pixel`` over the channels at each position.
    """
    summed = tuple(range(1, x.dim())) if axes == "sample" else (1,)
    return (x.square().sum(dim=summed, keepdim=True) * kappa + eps).rsqrt()


def mixed(r: Tensor, alpha: Tensor) -> Tensor:
    """The factor alpha r + 1 - alpha between normalisation and unitization."""
    return 1 + alpha * (r - 1)


def inverse_norm_from_moments(centred_NC: Tensor, var_NC: Tensor, kappa_positions: float, eps: float) -> Tensor:
    """The inverse norm of each sample from its normalised channels' means and variances, shape (N, 1).

    q = kappa S sum_c (var_nc + centred_nc^2), S positions: the mean square of a channel is its variance and the square
    of its mean.

    Args:
        centred_NC: means of the normalised channels.
        var_NC: their variances, divided by S.
        kappa_positions: kappa S.
        eps: added to q.
    """
    return ((var_NC + centred_NC.square()).sum(1, keepdim=True) * kappa_positions + eps).rsqrt()


def factor_and_value(
    centred_NC: Tensor,
    var_NC: Tensor,
    inverse_C: Tensor,
    vectors: tuple[Tensor, ...],
    kappa_positions: float,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Factor and value of the map x -> factor (x - mean_nc) + value that unitizes a sample's channel, shape (N, C).

    Args:
        centred_NC: mean_nc, the channel's mean over the positions, minus the mean normalised with.
        var_NC: the channel's variance, divided by the number of positions.
        inverse_C: 1 / sqrt(var + eps) of the variance normalised with.
        vectors: alpha, gamma and beta, each broadcastable against (C,).
        kappa_positions: kappa times the number of positions.
        eps: added to q.
    """
    alpha, weight, bias = vectors
    r_N1 = inverse_norm_from_moments(centred_NC * inverse_C, var_NC * inverse_C.square(), kappa_positions, eps)
    factor_NC = weight * inverse_C * mixed(r_N1, alpha)
    return factor_NC, factor_NC * centred_NC + bias


def check_alpha(start: float, learned: bool, constraint: AlphaConstraint) -> None:
    """Raise ValueError for a start outside the constraint's set, or a constraint on what is not learned."""
    if not learned and constraint != "none":
        raise ValueError(f"alpha_constraint={constraint}: none where learn_alpha is false, it would have no effect")
    if constraint == "sigmoid" and not 0 < start < 1:
        raise ValueError(f"alpha_init={start}: above 0, below 1 with alpha_constraint=sigmoid")
    if constraint == "project" and not 0 <= start <= 1:
        raise ValueError(f"alpha_init={start}: in 0 to 1 with alpha_constraint=project")
    if not -inf < start < inf:
        raise ValueError(f"alpha_init={start}: finite")


def check_choices(
    norm_axes: NormAxes,
    norm_scale: NormScale,
    norm_divisor: float,
    alpha_shape: AlphaShape,
    constraint: AlphaConstraint,
) -> None:
    """Raise ValueError for a choice that there is not, or a divisor that is not positive and finite."""
    for name, value, choice in (
        ("norm_axes", norm_axes, NormAxes),
        ("norm_scale", norm_scale, NormScale),
        ("alpha_shape", alpha_shape, AlphaShape),
        ("alpha_constraint", constraint, AlphaConstraint),
    ):
        if value not in (accepted := get_args(choice)):
            raise ValueError(f"{name}={value}: one of {', '.join(accepted)}")
    if not 0 < norm_divisor < inf:
        raise ValueError(f"norm_divisor={norm_divisor}: above 0, finite")
