"""Which backend computes, and the computing: no autograd here."""

from __future__ import annotations

import logging
from functools import cache
from importlib.util import find_spec
from typing import Literal, get_args

import torch
from torch import Tensor

from tautnet.kernels import native, reference
from tautnet.kernels.layout import dense_like, layout_of

_log = logging.getLogger(__name__)

Backend = Literal["auto", "reference", "cpu", "triton"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)


def forward(x: Tensor, coefficients_CK: Tensor, grid_range: float, backend: str) -> Tensor:
    """Values; see ``tautnet.kernels.linear_spline``."""
    _check(x, coefficients_CK)
    chosen = _chosen(backend, x.device.type)
    if chosen == "cpu":
        return native.forward(x, coefficients_CK, grid_range)
    if chosen == "triton" and x.dtype != torch.float64:
        return _triton_forward(x, coefficients_CK, grid_range)
    return dense_like(reference.forward(x, coefficients_CK, grid_range), x)


def gradients(
    grad: Tensor, x: Tensor, coefficients_CK: Tensor, grid_range: float, backend: str, with_coefficients: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of ``x`` and of the coefficients; the latter empty unless ``with_coefficients``."""
    chosen = _chosen(backend, x.device.type)
    if chosen == "cpu":
        return native.backward(grad, x, coefficients_CK, grid_range, with_coefficients)
    if chosen == "triton" and x.dtype != torch.float64:
        return _triton_backward(grad, x, coefficients_CK, grid_range, with_coefficients)
    grad_x, grad_coefficients = reference.backward(grad, x, coefficients_CK, grid_range, with_coefficients)
    return dense_like(grad_x, x), grad_coefficients


@cache
def _chosen(backend: str, device: str) -> str:
    """The backend that computes; said once for each request."""
    usable = ["reference"]
    if device == "cpu" and backend != "reference" and native.available():
        usable.insert(0, "cpu")
    if device == "cuda" and _triton_works(device):
        usable.insert(0, "triton")
    if backend != "auto" and backend not in usable:
        raise ValueError(f"backend={backend}: on this {device} one of auto, {', '.join(usable)}")
    chosen = usable[0] if backend == "auto" else backend
    _log.info("Linear splines on the %s run on the backend %s.", device, chosen)
    return chosen


@cache
def _triton_works(device: str) -> bool:
    """Whether Triton is there, compiles the kernels for this device and computes what the reference does."""
    if find_spec("triton") is None:
        return False
    x = torch.linspace(-2.0, 2.0, 4096, device=device).view(2, 4, 512)
    coefficients_CK = torch.linspace(-1.0, 1.0, 4 * 9, device=device).sin().view(4, 9)
    expected = (reference.forward(x, coefficients_CK, 1.0), *reference.backward(x, x, coefficients_CK, 1.0, True))
    try:
        found = (_triton_forward(x, coefficients_CK, 1.0), *_triton_backward(x, x, coefficients_CK, 1.0, True))
        for actual, exact in zip(found, expected, strict=True):
            torch.testing.assert_close(actual, exact, rtol=1e-3, atol=1e-3)
    except Exception as error:  # a compiler and a device that nobody tried together may raise anything
        reason = (str(error).splitlines() or [""])[0]
        _log.warning("Splines run in plain torch, slower: Triton fails here (%s: %s)", type(error).__name__, reason)
        return False
    return True


def _triton_forward(x: Tensor, coefficients_CK: Tensor, grid_range: float) -> Tensor:
    from tautnet.kernels import triton_linear_spline

    x = dense_like(x, x)
    inner = layout_of(x, len(coefficients_CK)).inner
    flat = triton_linear_spline.forward(_flat(x), coefficients_CK.contiguous(), grid_range, inner)
    return flat.as_strided(x.shape, x.stride())


def _triton_backward(
    grad: Tensor, x: Tensor, coefficients_CK: Tensor, grid_range: float, with_coefficients: bool
) -> tuple[Tensor, Tensor]:
    from tautnet.kernels import triton_linear_spline

    x = dense_like(x, x)
    inner = layout_of(x, len(coefficients_CK)).inner
    flat, grad_coefficients = triton_linear_spline.backward(
        _flat(dense_like(grad, x)), _flat(x), coefficients_CK.contiguous(), grid_range, inner, with_coefficients
    )
    return flat.as_strided(x.shape, x.stride()), grad_coefficients


def _flat(x: Tensor) -> Tensor:
    """A dense tensor in the order of its memory."""
    return x.as_strided((x.numel(),), (1,))


def _check(x: Tensor, coefficients_CK: Tensor) -> None:
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    if coefficients_CK.dtype != wide or not x.is_floating_point():
        raise ValueError(f"coefficients of {coefficients_CK.dtype} for inputs of {x.dtype}: {wide}")
    if coefficients_CK.device != x.device:
        raise ValueError(f"coefficients on {coefficients_CK.device} for inputs on {x.device}: the same device")
    if coefficients_CK.dim() != 2 or not 2 <= coefficients_CK.shape[1] <= 2**24:  # float32 counts the cells
        raise ValueError(f"coefficients of shape {tuple(coefficients_CK.shape)}: (curves, knots), 2 to 2^24 knots")
    if len(coefficients_CK) != 1 and (x.dim() < 2 or x.shape[1] != len(coefficients_CK)):
        raise ValueError(f"input of shape {tuple(x.shape)}: (N, {len(coefficients_CK)}, *), a curve for each channel")
