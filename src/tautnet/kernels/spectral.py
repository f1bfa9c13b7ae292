"""Scaling by the largest singular value on CPUs: ``spectral.cpp``, compiled and kept as the splines' library is.

Small matrices take their time in the calls of operations, not in their work; here a call does the work of twenty.
Matrices are (O, I), vectors (O,) and (I,), contiguous and of one dtype, float32 or float64; no autograd here.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from tautnet.kernels import native

_SOURCE = Path(__file__).with_name("spectral.cpp")
_NAMES = {torch.float32: "float", torch.float64: "double"}
# How many pointers come first, what follows the sizes, and the result.
_SIGNATURES: dict[str, tuple[int, list[type], type | None]] = {
    "follow": (7, [ctypes.c_int64], None),
    "divide": (4, [ctypes.c_double], ctypes.c_double),
    "divide_backward": (5, [ctypes.c_double, ctypes.c_double, ctypes.c_int], None),
}


def serves(*tensors: Tensor) -> bool:
    """Whether the library is there and takes these tensors."""
    dtype = tensors[0].dtype
    if dtype not in _NAMES or not native.readable(*tensors):
        return False
    return all(t.dtype == dtype and t.is_contiguous() and t.numel() > 0 for t in tensors) and _library() is not None


def follow_(
    matrix_OI: Tensor, probe_I: Tensor, seen_O: Tensor, u_O: Tensor, v_I: Tensor, iterations: int
) -> tuple[Tensor, Tensor]:
    """Power iterations on u and v if A times the probe is not what was seen; copies of u and v at length 1."""
    unit_O, unit_I = torch.empty_like(u_O), torch.empty_like(v_I)
    _call("follow", matrix_OI, (matrix_OI, probe_I, seen_O, u_O, v_I, unit_O, unit_I), iterations)
    increment_version((seen_O, u_O, v_I))
    return unit_O, unit_I


def divide(matrix_OI: Tensor, u_O: Tensor, v_I: Tensor, eps: float) -> tuple[Tensor, float]:
    """A / |u^T A v|, or A where that is at most eps; and u^T A v."""
    result = torch.empty_like(matrix_OI)
    value = _call("divide", matrix_OI, (matrix_OI, u_O, v_I, result), eps)
    return result, value


def divide_backward(
    grad_OI: Tensor, quotient_OI: Tensor, u_O: Tensor, v_I: Tensor, value: float, eps: float, constant: bool
) -> Tensor:
    """The gradient of A from that of ``divide``'s quotient, whose divisor may be taken for constant."""
    result = torch.empty_like(grad_OI)
    _call("divide_backward", grad_OI, (grad_OI, quotient_OI, u_O, v_I, result), value, eps, constant)
    return result


def _call(what: str, matrix_OI: Tensor, tensors: tuple[Tensor, ...], *numbers: float) -> float:
    pointers = [tensor.data_ptr() for tensor in tensors]
    threads = native.num_threads(matrix_OI.numel() // 8)  # less work an element than a spline has
    returned: float = _function(what, matrix_OI.dtype)(*pointers, *matrix_OI.shape, threads, *numbers)
    return returned


@cache
def _function(what: str, dtype: torch.dtype) -> ctypes._NamedFuncPointer:
    library = _library()
    assert library is not None
    function = library[f"spectral_{what}_{_NAMES[dtype]}"]
    pointers, numbers, function.restype = _SIGNATURES[what]
    function.argtypes = [ctypes.c_void_p] * pointers + [ctypes.c_int64] * 2 + [ctypes.c_int, *numbers]
    return function


@cache
def _library() -> ctypes.CDLL | None:
    return native.compiled(_SOURCE, "spectral norms")
