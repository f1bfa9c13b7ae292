r"""The code of the linear spline that runs on the device, in Triton; ``triton_linear_spline`` says how it works.

Scalars may be 64 bits wide: Triton passes an integer in as many bits as it needs.
"""

# mypy: disable-error-code="import-untyped,import-not-found,untyped-decorator"
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _locate(
    x: tl.tensor, table: tl.tensor, num_knots: tl.tensor, grid_range: tl.tensor, inv_step: tl.tensor
) -> tuple[tl.tensor, ...]:
    """Cell, fraction, value at the left knot and rise to the right one."""
    position = (x + grid_range) * inv_step
    # Of NaN and a number tl.maximum gives the number: NaN goes to the first cell.
    cell = tl.minimum(tl.maximum(position, 0.0), (num_knots - 2).to(tl.float32)).to(tl.int32)
    left = tl.load(table + cell, eviction_policy="evict_last")
    right = tl.load(table + cell + 1, eviction_policy="evict_last")
    return cell, position - cell.to(tl.float32), left, right - left


@triton.jit
def _columns(
    curve: tl.tensor, point: tl.tensor, row: tl.tensor, rest: tl.tensor, num_curves: tl.tensor, inner: tl.tensor
) -> tuple[tl.tensor, tl.tensor]:
    """Start of a row of all curves, and the offsets of (curves, points) from it; ``rest`` points lie before."""
    local = rest + point
    down = local // inner
    offset = down * (num_curves * inner) + curve * inner + (local - down * inner)
    return row * num_curves * inner, offset


@triton.jit
def forward_stretches(
    x_ptr: tl.tensor,
    table_ptr: tl.tensor,
    y_ptr: tl.tensor,
    numel: tl.tensor,
    num_curves: tl.tensor,
    num_knots: tl.tensor,
    inner: tl.tensor,
    grid_range: tl.tensor,
    inv_step: tl.tensor,
    BLOCK: tl.constexpr,
    ALIGNED: tl.constexpr,
) -> None:
    """One block of elements; with ``inner >= BLOCK`` at most two curves share it."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    row = start // inner
    point = tl.arange(0, BLOCK)
    this = (row % num_curves) * num_knots
    following = ((row + 1) % num_curves) * num_knots
    border = ((row + 1) * inner - start).to(tl.int32)
    inside = point < tl.multiple_of(tl.minimum(numel - start, BLOCK).to(tl.int32), ALIGNED)
    x = tl.load(x_ptr + start + point, inside, 0.0, eviction_policy="evict_first").to(tl.float32)
    table = table_ptr + tl.where(point < border, this, following)
    _, fraction, left, rise = _locate(x, table, num_knots, grid_range, inv_step)
    tl.store(y_ptr + start + point, (left + rise * fraction).to(y_ptr.dtype.element_ty), inside)


@triton.jit
def forward_columns(
    x_ptr: tl.tensor,
    table_ptr: tl.tensor,
    y_ptr: tl.tensor,
    per_curve: tl.tensor,
    num_curves: tl.tensor,
    num_knots: tl.tensor,
    inner: tl.tensor,
    grid_range: tl.tensor,
    inv_step: tl.tensor,
    CURVES: tl.constexpr,
    POINTS: tl.constexpr,
) -> None:
    """A tile of CURVES neighbouring curves and POINTS of their elements."""
    curve_blocks = tl.cdiv(num_curves, CURVES)
    start = (tl.program_id(0) // curve_blocks).to(tl.int64) * POINTS
    curve = (tl.program_id(0) % curve_blocks) * CURVES + tl.arange(0, CURVES)[:, None]
    point = tl.arange(0, POINTS)[None, :]
    row = start // inner
    base, offset = _columns(curve, point, row, (start - row * inner).to(tl.int32), num_curves, inner)
    inside = (curve < num_curves) & (point < tl.minimum(per_curve - start, POINTS).to(tl.int32))
    x = tl.load(x_ptr + base + offset, inside, 0.0).to(tl.float32)
    table = table_ptr + tl.minimum(curve, num_curves - 1) * num_knots
    _, fraction, left, rise = _locate(x, table, num_knots, grid_range, inv_step)
    tl.store(y_ptr + base + offset, (left + rise * fraction).to(y_ptr.dtype.element_ty), inside)


@triton.jit
def _add_by_cell(
    sums: tl.tensor,
    cell: tl.tensor,
    left: tl.tensor,
    right: tl.tensor,
    tile: tl.tensor,
    HIGH: tl.constexpr,
    LOW: tl.constexpr,
) -> tl.tensor:
    """Add the two weights of each element to the sums (groups, HIGH, LOW * 2) of its cell."""
    groups: tl.constexpr = cell.shape[0]
    points: tl.constexpr = cell.shape[1]
    high = (cell // LOW)[:, None, :] - tile * HIGH == tl.arange(0, HIGH)[None, :, None]
    low = (cell % LOW)[:, :, None, None] == tl.arange(0, LOW)[None, None, :, None]
    weights = tl.where(low, tl.join(left, right)[:, :, None, :], 0.0).reshape(groups, points, 2 * LOW)
    # To the nearest number of TF32's 11 bits, then the rest, which has hardly more bits than that.
    upper = ((weights.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    step = tl.dot(high.to(tl.float32), upper, input_precision="tf32")
    step = tl.dot(high.to(tl.float32), weights - upper, step, input_precision="tf32")
    return sums + step  # outside the tensor cores, whose long sums are truncated and drift


@triton.jit
def _store_sums(
    sums: tl.tensor,
    partial_ptr: tl.tensor,
    part: tl.tensor,
    curve: tl.tensor,
    num_curves: tl.tensor,
    STRETCHES: tl.constexpr,
) -> None:
    """Write the sums (groups, HIGH, LOW * 2) to (parts, C, tiles, HIGH, LOW * 2), added over groups of one curve."""
    high: tl.constexpr = sums.shape[1]
    columns: tl.constexpr = sums.shape[2]
    place = tl.arange(0, high)[:, None] * columns + tl.arange(0, columns)[None, :]
    place += tl.program_id(2) * (high * columns)
    width = tl.num_programs(2) * (high * columns)
    if STRETCHES:
        tl.store(partial_ptr + (part * num_curves + tl.program_id(0)) * width + place, tl.sum(sums, 0))
    else:
        target = ((part * num_curves + curve) * width)[:, :, None] + place[None, :, :]
        tl.store(partial_ptr + target, sums, (curve < num_curves)[:, :, None])


@triton.jit
def backward(
    grad_ptr: tl.tensor,
    x_ptr: tl.tensor,
    table_ptr: tl.tensor,
    grad_x_ptr: tl.tensor,
    partial_ptr: tl.tensor,
    per_curve: tl.tensor,
    num_curves: tl.tensor,
    num_knots: tl.tensor,
    inner: tl.tensor,
    jump: tl.tensor,
    steps: tl.tensor,
    grid_range: tl.tensor,
    inv_step: tl.tensor,
    GROUPS: tl.constexpr,
    POINTS: tl.constexpr,
    HIGH: tl.constexpr,
    LOW: tl.constexpr,
    STRETCHES: tl.constexpr,
    ALIGNED: tl.constexpr,
    WITH_COEFFICIENTS: tl.constexpr,
) -> None:
    """Several steps of (GROUPS, POINTS): stretches of one curve, or one curve a group."""
    part, tile = tl.program_id(1).to(tl.int64), tl.program_id(2)
    group = tl.arange(0, GROUPS)[:, None]
    point = tl.arange(0, POINTS)[None, :]
    size: tl.constexpr = GROUPS * POINTS if STRETCHES else POINTS
    if STRETCHES:
        curve = tl.program_id(0) + 0 * group
        point += group * POINTS
    else:
        curve = tl.program_id(0) * GROUPS + group
    start = part * steps * size
    row = start // inner
    rest = (start - row * inner).to(tl.int32)
    table = table_ptr + tl.minimum(curve, num_curves - 1) * num_knots
    sums = tl.zeros([GROUPS, HIGH, 2 * LOW], tl.float32)
    for _ in range(steps):
        remaining = tl.multiple_of(tl.minimum(per_curve - start, size).to(tl.int32), ALIGNED)
        inside = (curve < num_curves) & (point < remaining)
        if STRETCHES:  # no longer than a row: one row's end at most lies inside
            offset = rest + point + tl.where(rest + point >= inner, jump, 0)
            offset = tl.max_contiguous(tl.multiple_of(offset, [1, ALIGNED]), [1, ALIGNED])
            base = (row * num_curves + tl.program_id(0)) * inner
        else:
            base, offset = _columns(curve, point, row, rest, num_curves, inner)
        x = tl.load(x_ptr + base + offset, inside, 0.0).to(tl.float32)
        g = tl.load(grad_ptr + base + offset, inside, 0.0).to(tl.float32)
        cell, fraction, _, rise = _locate(x, table, num_knots, grid_range, inv_step)
        if tile == 0:
            grad_x = (g * (rise * inv_step)).to(grad_x_ptr.dtype.element_ty)
            tl.store(grad_x_ptr + base + offset, grad_x, inside)
        if WITH_COEFFICIENTS:
            sums = _add_by_cell(sums, cell, g * (1.0 - fraction), g * fraction, tile, HIGH, LOW)
        start += size
        rest += size
        row += rest // inner
        rest = rest % inner
    if WITH_COEFFICIENTS:
        _store_sums(sums, partial_ptr, part, curve, num_curves, STRETCHES)


@triton.jit
def sum_parts(
    partial_ptr: tl.tensor,
    total_ptr: tl.tensor,
    parts: tl.tensor,
    num_curves: tl.tensor,
    num_knots: tl.tensor,
    width: tl.tensor,
    ROWS: tl.constexpr,
    KNOTS: tl.constexpr,
) -> None:
    """Gradients of KNOTS coefficients of a curve: what the cells on both sides of the knot hold, over all parts."""
    curve = tl.program_id(0)
    knot = tl.program_id(1) * KNOTS + tl.arange(0, KNOTS)[None, :]
    sums = tl.zeros([ROWS, KNOTS], tl.float32)
    for first in range(0, parts, ROWS):
        part = first + tl.arange(0, ROWS)[:, None]
        start = partial_ptr + (part.to(tl.int64) * num_curves + curve) * width + 2 * knot
        sums += tl.load(start, (part < parts) & (knot < num_knots - 1), 0.0)
        sums += tl.load(start - 1, (part < parts) & (knot > 0) & (knot < num_knots), 0.0)
    target = total_ptr + curve.to(tl.int64) * num_knots + tl.program_id(1) * KNOTS + tl.arange(0, KNOTS)
    tl.store(target, tl.sum(sums, 0), tl.program_id(1) * KNOTS + tl.arange(0, KNOTS) < num_knots)
