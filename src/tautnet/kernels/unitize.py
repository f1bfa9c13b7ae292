"""Unitize with a norm over channels on CPUs: ``unitize.cpp``, compiled at its first use and kept; no autograd here.

All tensors have the dtype of the input, one of ``DTYPES``; inputs come in any strides, results have those of
``torch.empty_like``.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from tautnet.kernels import native
from tautnet.kernels.layout import dense_like, layout_of

DTYPES = {torch.float32: "float32", torch.float64: "float64"}  # and their names in the library
_SOURCE = Path(__file__).with_name("unitize.cpp")
_SIGNATURES = {"forward": (8, 3), "backward": (9, 2)}  # how many pointers and how many doubles come before the layout


def available() -> bool:
    """Whether the library is there or could be compiled. The first call compiles it."""
    return _library() is not None


def forward(
    x: Tensor, vectors: tuple[Tensor, ...], running: tuple[Tensor, Tensor], momentum: float, kappa: float, eps: float
) -> tuple[Tensor, Tensor]:
    """Values, and what ``backward`` has to know; see ``tautnet.functional.pixel_unitize``.

    Args:
        x: (N, C, *), at least one value a channel, with a momentum two.
        vectors: alpha, gamma and beta, contiguous, (C,) or (1,) each.
        running: mean and variance, contiguous, (C,) each.
        momentum: 0 to normalise by ``running``; else these, changed in place, follow the batch's statistics.
        kappa: factor of the squared norm.
        eps: added to it and to the variance.
    """
    num_channels = x.shape[1]
    y, x = torch.empty_like(x), dense_like(x, x)
    state = x.new_empty(x.numel() // num_channels + 3 * num_channels)  # a number each position, three each channel
    _call("forward", (x, *_for_each_channel(vectors, num_channels), *running, y, state), kappa, eps, momentum)
    if momentum:
        increment_version(running)
    return y, state


def backward(
    grad: Tensor, x: Tensor, state: Tensor, vectors: tuple[Tensor, ...], kappa: float, in_batch: bool
) -> list[Tensor]:
    """Gradients of the input and, (C,) each, of alpha, gamma and beta.

    Args:
        grad: of y.
        x: as given to ``forward``.
        state: as found by it.
        vectors: alpha and gamma, contiguous, (C,) or (1,) each.
        kappa: factor of the squared norm.
        in_batch: whether there was a momentum.
    """
    num_channels = x.shape[1]
    grads = [torch.empty_like(x), *[x.new_empty(num_channels) for _ in range(3)]]
    x = dense_like(x, x)
    tensors = (x, dense_like(grad, x), state, *_for_each_channel(vectors, num_channels), *grads)
    _call("backward", tensors, kappa, in_batch)
    return grads


def _for_each_channel(vectors: tuple[Tensor, ...], num_channels: int) -> list[Tensor]:
    return [v if v.numel() == num_channels else v.expand(num_channels).contiguous() for v in vectors]


def _call(what: str, tensors: tuple[Tensor, ...], *numbers: float) -> None:
    x = tensors[0]
    _function(what, x.dtype)(
        *[tensor.data_ptr() for tensor in tensors],
        *numbers,
        *layout_of(x, x.shape[1]),
        native.num_threads(x.numel()),
    )


@cache
def _function(what: str, dtype: torch.dtype) -> ctypes._NamedFuncPointer:
    library = _library()
    assert library is not None
    function = library[f"unitize_{what}_{DTYPES[dtype]}"]
    pointers, doubles = _SIGNATURES[what]
    function.argtypes = (
        [ctypes.c_void_p] * pointers + [ctypes.c_double] * doubles + [ctypes.c_int64] * 3 + [ctypes.c_int]
    )
    function.restype = None
    return function


@cache
def _library() -> ctypes.CDLL | None:
    return native.compiled(_SOURCE, "Unitize on dense outputs", "-fno-math-errno")  # square roots of whole vectors
