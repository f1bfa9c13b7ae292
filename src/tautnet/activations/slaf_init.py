"""What a SLAF starts from: its arguments, checked, and the coefficients of its initial function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import inf
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from tautnet.activations.spline_init import Sharing
from tautnet.functional.bases import Basis, elements, is_polynomial

Normalize = Literal["basis", "input", "maxabs", "none"]
Init = Literal["official", "identity", "fit"]
Hybrid = Literal["none", "relu"]
FitTo = Literal[
    "relu", "leaky_relu", "elu", "gelu", "silu", "selu", "mish", "hardswish", "softplus", "sigmoid", "tanh", "softsign",
    "absolute",
]  # fmt: skip
MOMENTUM, EPS = 0.1, 1e-5
LARGEST_DEGREE = 16
LARGEST_INPUT = 4.0  # what the running maximum starts with, about the largest of 10^4 values of N(0, 1)

_TARGETS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "gelu": F.gelu,
    "silu": F.silu,
    "selu": F.selu,
    "mish": F.mish,
    "hardswish": F.hardswish,
    "softplus": F.softplus,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softsign": F.softsign,
    "absolute": torch.abs,
}


def check_arguments(
    degree: int,
    basis: Basis,
    normalize: Normalize,
    sharing: Sharing,
    spatial_shape: Sequence[int],
    init: Init,
    fit_to: FitTo | None,
    hybrid: Hybrid,
    momentum: float,
    eps: float,
) -> None:
    """Refuse what no SLAF can be made of.

    Raises:
        ValueError: an argument out of range or without effect.
    """
    if isinstance(degree, bool) or not isinstance(degree, int) or not 1 <= degree <= LARGEST_DEGREE:
        raise ValueError(f"degree={degree}: an integer from 1 to {LARGEST_DEGREE}")
    for name, value, accepted in (
        ("basis", basis, get_args(Basis)),
        ("normalize", normalize, get_args(Normalize)),
        ("sharing", sharing, get_args(Sharing)),
        ("init", init, get_args(Init)),
        ("fit_to", fit_to, (None, *get_args(FitTo))),
        ("hybrid", hybrid, get_args(Hybrid)),
    ):
        if value not in accepted:
            raise ValueError(f"{name}={value}: one of {', '.join(map(str, accepted))}")
    if spatial_shape and sharing != "neuron":
        raise ValueError(f"spatial_shape={tuple(spatial_shape)}: has an effect with sharing=neuron only")
    if any(size < 1 for size in spatial_shape):
        raise ValueError(f"spatial_shape={tuple(spatial_shape)}: integers of at least 1")
    if fit_to is not None and init != "fit":
        raise ValueError(f"fit_to={fit_to}: has an effect with init=fit only")
    if init == "identity" and (hybrid != "none" or not is_polynomial(basis)):
        raise ValueError("init=identity: with a polynomial basis and hybrid=none; else init=fit")
    if not 0 < eps < inf:
        raise ValueError(f"eps={eps}: above 0, finite")
    if not 0 < momentum <= 1:
        raise ValueError(f"momentum={momentum}: above 0, at most 1")
    for name, number, default in (("momentum", momentum, MOMENTUM), ("eps", eps, EPS)):
        if normalize == "none" and number != default:
            raise ValueError(f"{name}={number}: has no effect with normalize=none")


def _target(fit_to: FitTo | None, hybrid: Hybrid) -> Callable[[Tensor], Tensor]:
    """What the sum has to fit: the activation, without the ReLU that a hybrid adds."""
    function = _TARGETS[fit_to or "relu"]
    return (lambda z: function(z) - F.relu(z)) if hybrid == "relu" else function


def gaussian_moments(basis: Basis, degree: int) -> tuple[Tensor, Tensor]:
    """Mean and variance of every basis element under N(0, 1), each (K,), float64."""
    z_S, weights_S = _gaussian_points()
    values_KS = torch.stack(elements(z_S, basis, degree))
    mean_K = values_KS @ weights_S
    return mean_K, (values_KS - mean_K.unsqueeze(1)).square() @ weights_S


def weights_for(
    init: Init,
    fit_to: FitTo | None,
    basis: Basis,
    degree: int,
    normalize: Normalize,
    eps: float,
    hybrid: Hybrid,
    bias: bool,
) -> tuple[Tensor, float]:
    """Weights (K,), float64, and the constant for ``identity`` or ``fit``, in eval mode at the start.

    The fit minimises E (b + sum_j w_j e_j(z) - f(z))^2 under N(0, 1), the e_j as normalised; without bias b = 0.
    """
    z_S, density_S = _gaussian_points()
    factor = {"input": (1 + eps) ** -0.5, "maxabs": 1 / (2 * LARGEST_INPUT + eps)}.get(normalize, 1.0)
    columns_KS = torch.stack(elements(factor * z_S, basis, degree))
    if normalize == "basis":
        mean_K, var_K = gaussian_moments(basis, degree)
        columns_KS = (columns_KS - mean_K.unsqueeze(1)) * (var_K + eps).rsqrt().unsqueeze(1)
    if init == "identity":  # the first element is linear
        weights_K = torch.zeros_like(columns_KS[:, 0])
        weights_K[0] = 1 / factor if normalize != "basis" else (1 + eps) ** 0.5
        return weights_K, 0.0
    design_KS = torch.cat([columns_KS, torch.full_like(columns_KS[:1], float(bias))]) * density_S.sqrt()
    scale_K = design_KS.norm(dim=1).clamp(min=1e-300)
    wanted_S = _target(fit_to, hybrid)(z_S) * density_S.sqrt()
    design_SK = (design_KS / scale_K.unsqueeze(1)).T
    solution_K = torch.linalg.lstsq(design_SK, wanted_S.unsqueeze(1), driver="gelsd").solution[:, 0] / scale_K
    return solution_K[:-1], float(solution_K[-1]) if bias else 0.0


def _gaussian_points() -> tuple[Tensor, Tensor]:
    """Points and weights for means under N(0, 1): the trapezoid rule.

    For polynomials times a Gaussian exact up to rounding; a kink at a point costs less than 1e-7.
    """
    z_S = torch.linspace(-14, 14, 28001, dtype=torch.float64, device="cpu")
    weights_S = torch.exp(-z_S.square() / 2)
    return z_S, weights_S / weights_S.sum()
