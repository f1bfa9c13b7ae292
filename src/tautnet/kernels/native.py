"""The linear spline on CPUs: ``linear_spline.cpp``, compiled at its first use and kept; ``compiled`` serves others too.

A library has a plain C interface and is loaded by ctypes: it compiles in seconds, without torch's headers, and does
not depend on the version of torch.
"""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from functools import cache
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor, nn

from tautnet.kernels.layout import dense_like, layout_of

_log = logging.getLogger(__name__)
_SOURCE = Path(__file__).with_name("linear_spline.cpp")
# No contraction into fused operations but those written down: the same bits from every compiler.
_FLAGS = (
    *("-O3", "-march=native", "-std=c++17", "-fopenmp", "-shared", "-fPIC"),
    *("-ffp-contract=off", "-fno-strict-aliasing"),  # pairs of floats are moved as doubles
)
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
    _function(direction, x.dtype)(
        *[tensor.data_ptr() for tensor in tensors],  # of an empty tensor this is 0
        *layout_of(x, len(coefficients_CK)),
        num_cells,
        grid_range,
        num_cells / (2 * grid_range),
        num_threads(x.numel()),
    )


def readable(*tensors: Tensor) -> bool:
    """Whether the memory of a CPU holds the tensors' values as they are, and nothing looks at what is done to them."""
    if torch._C._len_torch_dispatch_stack() > 0:
        return False
    return all(t.device.type == "cpu" and type(t) in (Tensor, nn.Parameter) and not t.is_neg() for t in tensors)


def num_threads(num_elements: int) -> int:
    """How many threads work on so many elements."""
    return torch.get_num_threads() if num_elements >= _PARALLEL_FROM else 1


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
    return compiled(_SOURCE, "splines")


def compiled(source: Path, what: str, *flags: str) -> ctypes.CDLL | None:
    """The library of a C++ file, from the cache or compiled now; where that fails None, and a line in the log.

    Args:
        source: the file.
        what: is slower without it; said in the log.
        flags: of the compiler, beside the usual ones.
    """
    command = _compiler()
    if command is None:
        _log.warning(
            "No C++ compiler: %s run in plain torch, several times slower on a CPU. Install g++ or set CXX.", what
        )
        return None
    try:
        return _loaded([*command, *flags], source)
    except (OSError, subprocess.CalledProcessError) as error:
        output = getattr(error, "stderr", None) or str(error)
        reason = next((line for line in output.splitlines() if "error" in line), str(error))
        _log.warning(
            "%s run in plain torch, several times slower on a CPU: %s failed (%s)",
            *(what.capitalize(), command[0], reason),
        )
        return None


def _compiler() -> list[str] | None:
    """The command and its first arguments: ``$CXX``, or the first usual one that is there."""
    wishes = [shlex.split(os.environ.get("CXX", "")), ["g++"], ["c++"], ["clang++"]]
    return next((wish for wish in wishes if wish and shutil.which(wish[0])), None)


def _loaded(command: list[str], source: Path) -> ctypes.CDLL:
    """From the cache, if what lies there is what was once compiled; else compiled."""
    folder = _cache_folder()
    path = folder / f"{source.stem}-{_fingerprint(command, source)}.so"
    note = path.with_suffix(".sha256")  # a torn library would end the process when it is used
    own = not any(_may_be_forged(place) for place in (folder, path, note))
    if not own:
        _log.warning("%s: another user may have written it; the kernels are compiled for this process alone", folder)
    elif path.is_file() and note.is_file() and note.read_text() == sha256(path.read_bytes()).hexdigest():
        return ctypes.CDLL(str(path))
    with tempfile.TemporaryDirectory() as away:
        if not own:
            return ctypes.CDLL(str(_compile(command, source, Path(away) / path.name)))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            half = Path(tempfile.mkdtemp(dir=folder)) / path.name
        except OSError as error:
            _log.warning(
                "%s: not writable (%s); the kernels are compiled for this process alone", folder, error.strerror
            )
            return ctypes.CDLL(
                str(_compile(command, source, Path(away) / path.name))
            )  # loaded, it needs its file no more
        try:
            _compile(command, source, half)
            note_half = half.with_suffix(".sha256")
            note_half.write_text(sha256(half.read_bytes()).hexdigest())
            os.replace(half, path)  # nobody sees half a file
            os.replace(note_half, note)
        finally:
            shutil.rmtree(half.parent)
    return ctypes.CDLL(str(path))


def _may_be_forged(path: Path) -> bool:
    """Whether something exists that another user owns, or that everyone may write: loading it would run it."""
    if os.name != "posix" or not os.path.lexists(path):
        return False
    found = (path.lstat(), path.stat()) if path.exists() else (path.lstat(),)
    return any(status.st_uid not in (os.getuid(), 0) for status in found) or bool(found[-1].st_mode & 0o002)


def _compile(command: list[str], source: Path, target: Path) -> Path:
    _output_of([*command, *_FLAGS, str(source), "-o", str(target)])
    return target


def _output_of(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, errors="replace").stdout


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if base.startswith("~"):  # a user without a home; below this nothing can be made
        base = os.devnull
    return Path(base).absolute() / "tautnet-kernels"


def _fingerprint(command: list[str], source: Path | None = None) -> str:
    """Of all that the library depends on; a home may be shared by machines with other processors."""
    processor = Path("/proc/cpuinfo")
    lines = processor.read_text().splitlines() if processor.is_file() else [platform.processor()]
    features = next((line for line in lines if line.startswith(("flags", "Features"))), lines[0])
    text = (source or _SOURCE).read_text()
    parts = (text, *_FLAGS, *command, _output_of([*command, "--version"]), platform.machine(), features)
    return sha256("\0".join(parts).encode()).hexdigest()[:32]
