"""Polynomials and standardized polynomials on CPUs: ``polynomial.cpp``, a library for each degree; no autograd here.

Compiled and kept as the splines' library is. Tensors are float32 or float64, of one dtype; points come in any strides
and results have those of ``torch.empty_like``.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from tautnet.kernels import native
from tautnet.kernels.layout import dense_like, layout_of

_SOURCE = Path(__file__).with_name("polynomial.cpp")
_MAX_DEGREE = 16  # the sums of 2 * degree powers are to stay in registers
_NAMES = {torch.float32: "float32", torch.float64: "float64"}
# How many pointers and how many doubles come before the layout.
_SIGNATURES = {"standardize": (7, 1), "standardize_backward": (7, 0), "forward": (3, 0), "backward": (5, 0)}


class Standardized(NamedTuple):
    """What ``standardize`` gives."""

    y: Tensor
    mean_CK: Tensor  # of z^j, j = 1..K
    variance_CK: Tensor  # of z^j, divided by the number of elements
    state_CS: Tensor  # for the backward pass, float64, S = 2 K + 3


def available(degree: int) -> bool:
    """Whether the library of a degree is there or could be compiled. Its first call compiles it."""
    return degree <= _MAX_DEGREE and _library(degree) is not None


def standardize(z: Tensor, coefficients_CK: Tensor, bias_C: Tensor, eps: float) -> Standardized:
    """Values and statistics; see ``tautnet.functional.standardized_polynomial``."""
    y, z = torch.empty_like(z), dense_like(z, z)
    num_curves, degree = coefficients_CK.shape
    statistics = Standardized(
        y,
        torch.empty_like(coefficients_CK, memory_format=torch.contiguous_format),
        torch.empty_like(coefficients_CK, memory_format=torch.contiguous_format),
        coefficients_CK.new_empty(num_curves, 2 * degree + 3, dtype=torch.float64),
    )
    _call(
        "standardize", degree, z, num_curves, (z, coefficients_CK.contiguous(), bias_C.contiguous(), *statistics), eps
    )
    return statistics


def standardize_backward(
    grad: Tensor, z: Tensor, coefficients_CK: Tensor, state_CS: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the points, of the coefficients and of the bias."""
    grad_z, z = torch.empty_like(z), dense_like(z, z)
    coefficients_CK = coefficients_CK.contiguous()
    grads = (grad_z, torch.empty_like(coefficients_CK), coefficients_CK.new_empty(len(coefficients_CK)))
    tensors = (dense_like(grad, z), z, coefficients_CK, state_CS, *grads)
    _call("standardize_backward", coefficients_CK.shape[1], z, len(coefficients_CK), tensors)
    return grads


def forward(z: Tensor, coefficients_CK: Tensor) -> Tensor:
    """Values of polynomials whose coefficients are given from the constant on."""
    y, z = torch.empty_like(z), dense_like(z, z)
    if z.numel() > 0:
        _call("forward", coefficients_CK.shape[1] - 1, z, len(coefficients_CK), (z, coefficients_CK.contiguous(), y))
    return y


def backward(grad: Tensor, z: Tensor, coefficients_CK: Tensor, with_coefficients: bool) -> tuple[Tensor, Tensor]:
    """Gradients of the points and, if asked for, of the coefficients (else an empty tensor)."""
    grad_z, z = torch.empty_like(z), dense_like(z, z)
    coefficients_CK = coefficients_CK.contiguous()
    grad_coefficients = coefficients_CK.new_zeros(coefficients_CK.shape if with_coefficients else 0)
    if z.numel() > 0:
        tensors = (dense_like(grad, z), z, coefficients_CK, grad_z, grad_coefficients)
        _call("backward", coefficients_CK.shape[1] - 1, z, len(coefficients_CK), tensors)
    return grad_z, grad_coefficients


def _call(what: str, degree: int, z: Tensor, num_curves: int, tensors: tuple[Tensor, ...], *numbers: float) -> None:
    _function(what, degree, z.dtype)(
        *[tensor.data_ptr() for tensor in tensors],  # of an empty tensor this is 0
        *numbers,
        *layout_of(z, num_curves),
        native.num_threads(z.numel()),
    )


@cache
def _function(what: str, degree: int, dtype: torch.dtype) -> ctypes._NamedFuncPointer:
    library = _library(degree)
    assert library is not None
    function = library[f"polynomial_{what}_{_NAMES[dtype]}"]
    pointers, doubles = _SIGNATURES[what]
    function.argtypes = (
        [ctypes.c_void_p] * pointers + [ctypes.c_double] * doubles + [ctypes.c_int64] * 3 + [ctypes.c_int]
    )
    function.restype = None
    return function


@cache
def _library(degree: int) -> ctypes.CDLL | None:
    return native.compiled(_SOURCE, f"polynomials of degree {degree}", f"-DTAUTNET_DEGREE={degree}")
