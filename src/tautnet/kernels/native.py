"""The linear spline on CPUs: ``linear_spline.cpp``, compiled at its first use and kept.

The library has a plain C interface and is loaded by ctypes: it compiles in about two seconds, where a torch extension
takes a minute, and it does not depend on the version of torch.
"""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor

from tautnet.kernels.layout import dense_like, layout_of

_log = logging.getLogger(__name__)
_SOURCE = Path(__file__).with_name("linear_spline.cpp")
# No contraction into fused operations but those written down: the same bits from every compiler.
_FLAGS = ("-O3", "-march=native", "-std=c++17", "-fopenmp", "-shared", "-fPIC", "-ffp-contract=off")
_NAMES = {torch.float32: "float32", torch.float64: "float64", torch.bfloat16: "bfloat16"}
_PARALLEL_FROM = 32768  # elements; starting threads for fewer takes longer than the work


def available() -> bool:
    """Whether the library is there or could be compiled. The first call compiles it, once for this kind of machine."""
    return _library() is not None


def forward(x: Tensor, coefficients_CK: Tensor, grid_range: float) -> Tensor:
    """Values, in the dtype of ``x`` and with the strides of ``torch.empty_like(x)``."""
    if x.dtype == torch.float16:
        return forward(x.float(), coefficients_CK, grid_range).to(x.dtype)
    y = torch.empty_like(x)
    x = dense_like(x, x)
    if x.numel() > 0:
        coefficients_CK = coefficients_CK.contiguous()
        _call("forward", (x, coefficients_CK, y), x, coefficients_CK, grid_range)
    return y


def backward(
    grad: Tensor, x: Tensor, coefficients_CK: Tensor, grid_range: float, with_coefficients: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of the input and, if asked for, of the coefficients (else an empty tensor)."""
    if x.dtype == torch.float16:
        grad_x, grad_coefficients = backward(grad.float(), x.float(), coefficients_CK, grid_range, with_coefficients)
        return grad_x.to(x.dtype), grad_coefficients
    grad_x = torch.empty_like(x)
    coefficients_CK = coefficients_CK.contiguous()
    grad_coefficients = coefficients_CK.new_empty(coefficients_CK.shape if with_coefficients else 0)
    if x.numel() == 0:
        return grad_x, grad_coefficients.zero_()
    x, grad = dense_like(x, x), dense_like(grad, x)
    tensors = (grad, x, coefficients_CK, grad_x, grad_coefficients)
    _call("backward", tensors, x, coefficients_CK, grid_range)
    return grad_x, grad_coefficients


def _call(direction: str, tensors: tuple[Tensor, ...], x: Tensor, coefficients_CK: Tensor, grid_range: float) -> None:
    num_cells = coefficients_CK.shape[1] - 1
    threads = torch.get_num_threads() if x.numel() >= _PARALLEL_FROM else 1
    _function(direction, x.dtype)(
        *[tensor.data_ptr() for tensor in tensors],  # of an empty tensor this is 0
        *layout_of(x, len(coefficients_CK)),
        num_cells,
        grid_range,
        num_cells / (2 * grid_range),
        threads,
    )


@cache
def _function(direction: str, dtype: torch.dtype) -> ctypes._NamedFuncPointer:
    library = _library()
    assert library is not None
    function = library[f"spline_{direction}_{_NAMES[dtype]}"]
    pointers = 3 if direction == "forward" else 5
    function.argtypes = [ctypes.c_void_p] * pointers + [ctypes.c_int64] * 4 + [ctypes.c_double] * 2 + [ctypes.c_int]
    function.restype = None
    return function


@cache
def _library() -> ctypes.CDLL | None:
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX") or "g++", "c++", "clang++"))), None)
    if compiler is None:
        _log.warning(
            "No C++ compiler: splines run in plain torch, several times slower on a CPU. Install g++ or set CXX."
        )
        return None
    try:
        path = _compiled(compiler)
        try:
            return ctypes.CDLL(str(path))
        except OSError:  # damaged since
            path.unlink()
            return ctypes.CDLL(str(_compiled(compiler)))
    except (OSError, subprocess.CalledProcessError) as error:
        stderr = getattr(error, "stderr", None) or str(error)
        reason = next((line for line in stderr.splitlines() if "error" in line), str(error))
        _log.warning("Splines run in plain torch, several times slower on a CPU: %s failed (%s)", compiler, reason)
        return None


def _compiled(compiler: str) -> Path:
    """The library in the cache, compiled if it is not there."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tautnet-kernels"
    path = folder / f"linear_spline-{_fingerprint(compiler)}.so"
    if path.is_file():
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        half = Path(tempfile.mkdtemp(dir=folder)) / path.name
    except OSError:  # a home that cannot be written
        half = path = Path(tempfile.mkdtemp()) / path.name
    try:
        subprocess.run([compiler, *_FLAGS, str(_SOURCE), "-o", str(half)], check=True, capture_output=True, text=True)
        os.replace(half, path)  # nobody sees half a file
    finally:
        if half != path:
            shutil.rmtree(half.parent)
    return path


def _fingerprint(compiler: str) -> str:
    """Of all that the library depends on; a home may be shared by machines with other processors."""
    version = subprocess.run([compiler, "--version"], check=True, capture_output=True, text=True).stdout
    processor = Path("/proc/cpuinfo")
    features = (
        [line for line in processor.read_text().splitlines() if line.startswith(("flags", "Features"))][:1]
        if processor.is_file()
        else [platform.processor()]
    )
    parts = (_SOURCE.read_text(), " ".join(_FLAGS), compiler, version, platform.machine(), *features)
    return sha256("\0".join(parts).encode()).hexdigest()[:32]
