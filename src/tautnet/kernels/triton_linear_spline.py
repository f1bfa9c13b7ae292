r"""The linear spline on CUDA devices, in Triton.

With ``position = (x + grid_range) / step``, ``cell = floor(clamp(position, 0, K - 2))`` and
``fraction = position - cell``, all in float32:

    y  = c[cell] + (c[cell+1] - c[cell]) fraction,    dy/dx = (c[cell+1] - c[cell]) / step,
    grad c[cell] += g (1 - fraction),    grad c[cell+1] += g fraction.

Elements lie in the order (outer, C, inner): curve ``(i // inner) % C`` takes element i. A program takes stretches of
one curve where ``inner`` is large, and a tile of neighbouring curves where it is small (channels-last, dense layers).

The sum over cells is a product of one-hot matrices on the tensor cores. With ``cell = L h + l``, S[h, (l, w)] =
sum_i [h_i = h] [l_i = l] w_i for the two weights w of an element; w is split into two TF32 numbers, so that a product
loses about what a rounding to float32 does, and the sums of the steps are added up in ordinary float32. A program
writes its sums to a place of its own and a second kernel adds them in a fixed order: no atomics, so that two runs give
the same bits.

Estimated costs. NOTHING HERE WAS TIMED: the code was compiled for compute capability 9.0 (Triton 3.6 and 3.9) and run
in Triton's interpreter. b = bytes of an element; instructions are a warp's for each of its elements, as compiled.

* Memory: forward 2b (x, y), backward 3b (x, g, gx) an element, as for ReLU; the partial sums add 2-5 % to that.
* Forward: 15 lane operations and two look-ups in the first-level cache an element, 35 with its share of the addresses.
  The memory time of an element leaves 79 (float32) or 39 (16-bit numbers) at 132 multiprocessors, 1.75 GHz and 3 TB/s.
  A backward without coefficient gradients: 56 of 118 or 59.
* Backward: 7-8 instructions with Triton 3.9, 11 with 3.6, and 250 bytes through shared memory an element. That is 0.5
  (0.35) elements a clock and multiprocessor: 2 (3) times the memory time of float32, 4 (6) times that of 16 bits.
* Knots: forward is flat. Backward is flat up to 65 and costs twice that up to 257; above, every 256 cells read x and g
  once more.

Sums private to a thread in shared memory would be bound by memory and flat in K; Triton cannot index shared memory.
"""

# mypy: disable-error-code="import-untyped,import-not-found"
from __future__ import annotations

from math import gcd

import torch
import triton
from torch import Tensor

from tautnet.kernels import triton_device as device

_MIN_STRETCH = 512  # elements; also what a warp takes of a forward block: two 16-byte accesses of 16-bit numbers a lane
_MAX_INNER = 1 << 30  # offsets within a row are 32 bits wide
_MAX_PROGRAMS = 4096
_MAX_PARTS = 2048  # the second kernel adds them one after the other


def _longest_inner(numel: int, num_curves: int, inner: int) -> int:
    """``inner``; which row an element lies in is of no consequence with a single curve, so that has one as it suits."""
    return min(numel, _MAX_INNER) if num_curves == 1 else inner


def forward(x: Tensor, coefficients_CK: Tensor, grid_range: float, inner: int) -> Tensor:
    """Values of the splines, of the dtype of x.

    Args:
        x: points, flat and contiguous, float32, bfloat16 or float16; curve ``(i // inner) % C`` takes ``x[i]``.
        coefficients_CK: values at the knots, float32, contiguous.
        grid_range: half-width of the knot interval, in the unit of x.
        inner: neighbours in memory that share a curve, at least 1; ``C * inner`` divides the number of elements.
    """
    y = torch.empty_like(x)
    (num_curves, num_knots), numel = coefficients_CK.shape, x.numel()
    inner, inv_step = _longest_inner(numel, num_curves, inner), (num_knots - 1) / (2.0 * grid_range)
    if numel == 0:
        return y
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        if inner >= _MIN_STRETCH or num_curves == 1:
            warps = 4 if inner >= 4 * _MIN_STRETCH else 2 if inner >= 2 * _MIN_STRETCH else 1
            block = warps * _MIN_STRETCH
            device.forward_stretches[(triton.cdiv(numel, block),)](
                x, coefficients_CK, y, numel, num_curves, num_knots, inner, grid_range, inv_step,
                BLOCK=block, ALIGNED=gcd(numel, 8), num_warps=warps, enable_fp_fusion=True,
            )  # fmt: skip
        else:
            curves = min(triton.next_power_of_2(num_curves), 64 if inner == 1 else 16)
            per_curve, points = numel // num_curves, 1024 // curves
            device.forward_columns[(triton.cdiv(num_curves, curves) * triton.cdiv(per_curve, points),)](
                x, coefficients_CK, y, per_curve, num_curves, num_knots, inner, grid_range, inv_step,
                CURVES=curves, POINTS=points, enable_fp_fusion=True,
            )  # fmt: skip
    return y


def backward(
    grad: Tensor, x: Tensor, coefficients_CK: Tensor, grid_range: float, inner: int, with_coefficients: bool
) -> tuple[Tensor, Tensor]:
    """Gradients for x, of its dtype, and for the coefficients, (C, K) in float32.

    A NaN or an infinity in x or ``grad`` makes all coefficient gradients of its curve NaN.

    Args:
        grad: gradient for the values, like x.
        x: see ``forward``, as for the other arguments.
        coefficients_CK: values at the knots.
        grid_range: half-width of the knot interval.
        inner: neighbours in memory that share a curve.
        with_coefficients: False leaves the second result empty, shape (0,), and costs less.
    """
    grad_x, (num_curves, num_knots), numel = torch.empty_like(x), coefficients_CK.shape, x.numel()
    total_CK = coefficients_CK.new_zeros((num_curves, num_knots) if with_coefficients else 0)
    if numel == 0:
        return grad_x, total_CK
    inner, per_curve = _longest_inner(numel, num_curves, inner), numel // num_curves
    step, high, low = (256, 16, 4) if num_knots <= 65 else (128, 32, 8)
    tiles = triton.cdiv(num_knots - 1, high * low) if with_coefficients else 1
    stretches = inner >= _MIN_STRETCH or num_curves == 1
    groups = 4 if stretches else min(max(triton.next_power_of_2(num_curves), 4), step // 16)
    size, blocks = (step, num_curves) if stretches else (step // groups, triton.cdiv(num_curves, groups))
    most = max(1, min(_MAX_PARTS, _MAX_PROGRAMS // blocks, triton.cdiv(per_curve, 32 * high * low)))
    steps = triton.cdiv(per_curve, most * size)
    parts, width = triton.cdiv(per_curve, steps * size), 2 * tiles * high * low
    partial = x.new_empty(parts * num_curves * width if with_coefficients else 0, dtype=torch.float32)
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        device.backward[(blocks, parts, tiles)](
            grad, x, coefficients_CK, grad_x, partial, per_curve, num_curves, num_knots, inner,
            (num_curves - 1) * inner, steps, grid_range, (num_knots - 1) / (2.0 * grid_range),
            GROUPS=groups, POINTS=step // groups, HIGH=high, LOW=low, STRETCHES=stretches,
            ALIGNED=gcd(inner, per_curve, 8) if stretches else 1, WITH_COEFFICIENTS=with_coefficients,
            enable_fp_fusion=True,
        )  # fmt: skip
        if with_coefficients:
            device.sum_parts[(num_curves, triton.cdiv(num_knots, 32))](
                partial, total_CK, parts, num_curves, num_knots, width, ROWS=128, KNOTS=32, enable_fp_fusion=True
            )
    return grad_x, total_CK
