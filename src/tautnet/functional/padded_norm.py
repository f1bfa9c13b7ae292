"""Spectral norms of convolutions whose padding repeats pixels, certified by a banded Cholesky factor."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod, sqrt

import torch
import torch.nn.functional as F
from torch import Tensor

# Beyond so many operations a certificate costs seconds; beyond so many numbers the matrices take 256 MiB.
_MOST_OPERATIONS = 5e10
_MOST_NUMBERS = 2**25
_MOST_DECOMPOSED = 256  # size of the matrices that are decomposed whole
# Lines are eliminated in blocks of at least so many numbers, and one pair of taps costs as much as so many operations.
_LEAST_BLOCK = 64
_OPERATIONS_A_PAIR = 5e4
_NUM_LANCZOS_STEPS = 60
_NOTHING_NEW = 1e-10  # share of a vector that may be rounding alone
_FACTORS = (1.001, 1.005, 1.02, 1.1, 1.3)

_Pair = tuple[int, int]


@dataclass(frozen=True)
class _Cut:
    """A convolution A cut into lines across one axis: B^T B, with B either A or A^T, is banded by lines.

    Attributes:
        axis: that the lines are counted along.
        transposed: whether B is A^T.
        num_lines: of B's columns.
        reads: of every line of B's rows: the pairs (line of columns, tap) that it is made of.
        length: numbers in a line of columns.
        height: numbers in a line of rows.
    """

    axis: int
    transposed: bool
    num_lines: int
    reads: tuple[tuple[_Pair, ...], ...]
    length: int
    height: int

    @property
    def reach(self) -> int:
        """Largest distance of two lines of columns that meet in B^T B."""
        return max((max(read)[0] - min(read)[0] for read in self.reads if read), default=0)

    def is_affordable(self, groups: int, num_taps: int) -> bool:
        """In time and memory."""
        numbers = groups * num_taps * self.length * max(num_taps * self.length, self.height)
        return self.num_operations(groups) <= _MOST_OPERATIONS and numbers <= _MOST_NUMBERS

    def num_operations(self, groups: int) -> float:
        """Of one certificate."""
        pairs = sum(len(read) ** 2 for read in self.reads)
        lines = self.num_lines * (1 / 3 + self.reach + 2 * self.reach**2)
        return _OPERATIONS_A_PAIR * pairs + groups * lines * self.length**3

    def rounding(self, num_taps: int) -> float:
        """Allowance for float64, relative to the squared known bound; see ``padded_spectral_norm``."""
        band = (self.reach + 1) * max(self.length, _LEAST_BLOCK)
        return 4 * torch.finfo(torch.float64).eps * (2 * band + 1) * (band + self.height + num_taps**2) * num_taps


def padded_spectral_norm(
    kernel: Tensor,
    input_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int],
    groups: int,
    padding_mode: str,
    known: float,
) -> float:
    r"""Upper bound of the spectral norm of an n-d convolution of a padded image, within 1 % where that is affordable.

    The map is A = sum_t P_t (x) M_t over the taps t of one axis: P_t picks the line of pixels that tap t reads, which
    holds the padding of that axis; M_t maps lines to lines and holds that of the others. The norm is at most g exactly
    if g^2 I - A^T A, or the same with A A^T, is positive semi-definite. These matrices are banded by lines, so that a
    Cholesky factorisation of the band, line by line, decides it; the cheapest of axes and products is taken. g comes
    from a Lanczos iteration, which is no bound, and is raised until the factorisation succeeds.

    Rounding (unit u): the Cholesky factor is that of a matrix within b u g^2 in every entry, as the diagonal is at most
    g^2, b the width of the band (Higham 2002, theorem 10.3). The entries of the product are sums of L terms and within
    L u m^2 (Cauchy-Schwarz), m the largest norm of a row or column of A before taps cancel in a pixel: of F taps in
    all, m^2 <= F ``known``^2. With 2 b + 1 entries in a row both make (2 b + 1)(b + L) F u ``known``^2.

    Source: elementary; the test for definiteness by Cholesky's factorisation is standard.

    Args:
        kernel: float64 on the CPU, finite, shape (O, I / groups, \*k) with n sides k.
        input_size: n sides of the image before padding.
        stride: n steps, each at least 1.
        padding: n pairs (before, after), each at least 0.
        dilation: n spacings of the kernel's taps, each at least 1.
        groups: channel groups; the norm is the largest of the groups'.
        padding_mode: ``circular``, ``reflect`` or ``replicate``.
        known: an upper bound: the norm of the convolution that takes every copy of a pixel for a pixel of its own,
            times the square root of the number of copies.

    Returns:
        The bound; ``known`` where a certificate would cost too much.
    """
    kernel_GOI = kernel.view(groups, -1, *kernel.shape[1:])
    num_taps = kernel.shape[2:]
    settings = zip(num_taps, input_size, stride, padding, dilation, strict=True)
    axes = [_sources(*setting, padding_mode) for setting in settings]
    cuts = [cut for cut in _cuts(kernel_GOI, axes, input_size) if cut.is_affordable(groups, num_taps[cut.axis])]
    if not cuts:
        return known
    cut = min(cuts, key=lambda cut: cut.num_operations(groups))
    matrices_TGRC = _line_matrices(kernel_GOI, axes, input_size, cut)
    blocks = _blocks(matrices_TGRC, cut)
    allowance = cut.rounding(prod(num_taps)) * known**2
    if cut.num_lines * cut.length <= _MOST_DECOMPOSED:
        whole_GNN = _rows(blocks, range(cut.num_lines), cut.num_lines)
        squared = float(torch.linalg.eigvalsh(whole_GNN, UPLO="U").max())
        return min(known, sqrt(max(0.0, squared) + allowance))
    estimate = _estimate(matrices_TGRC, cut)
    for factor in _FACTORS:
        limit = (factor * estimate) ** 2 + allowance
        if limit + allowance >= known**2:
            break
        if _is_below(blocks, cut, limit):
            return sqrt(limit + allowance)
    return known


def _sources(size: int, image: int, stride: int, padding: tuple[int, int], dilation: int, mode: str) -> Tensor:
    """Which pixel of a line each output reads through each tap, (outputs, taps)."""
    line = torch.arange(image, dtype=torch.float64).view(1, 1, -1)
    padded = F.pad(line, padding, mode=mode).long().flatten()
    return padded.unfold(0, dilation * (size - 1) + 1, stride)[:, ::dilation]


def _cuts(kernel_GOI: Tensor, axes: Sequence[Tensor], input_size: Sequence[int]) -> Iterator[_Cut]:
    """All axes, columns of pixels or of outputs."""
    outputs, inputs = kernel_GOI.shape[1:3]
    num_outputs, num_pixels = prod(len(sources) for sources in axes) * outputs, prod(input_size) * inputs
    for axis, sources in enumerate(axes):
        if sources.numel() * _OPERATIONS_A_PAIR > _MOST_OPERATIONS:
            continue
        by_output = tuple(tuple((line, tap) for tap, line in enumerate(row)) for row in sources.tolist())
        by_pixel: list[list[_Pair]] = [[] for _ in range(input_size[axis])]
        for output, row in enumerate(by_output):
            for line, tap in row:
                by_pixel[line].append((output, tap))
        lengths = num_pixels // input_size[axis], num_outputs // len(sources)
        yield _Cut(axis, False, input_size[axis], by_output, *lengths)
        yield _Cut(axis, True, len(sources), tuple(map(tuple, by_pixel)), *reversed(lengths))


def _line_matrices(kernel_GOI: Tensor, axes: Sequence[Tensor], input_size: Sequence[int], cut: _Cut) -> Tensor:
    """What each tap of the axis does to a line, (taps, groups, height, length)."""
    matrices = kernel_GOI.movedim(3 + cut.axis, 0)  # (T, G, O, I, taps of the other axes)
    for axis in reversed([axis for axis in range(len(axes)) if axis != cut.axis]):
        picked_OTI = F.one_hot(axes[axis], input_size[axis]).to(matrices)
        matrices = torch.einsum("...u,xuy->...xy", matrices, picked_OTI)
        matrices = matrices.movedim((-2, -1), (3, 5)).flatten(4, 5).flatten(2, 3)
    return matrices.mT if cut.transposed else matrices


def _blocks(matrices_TGRC: Tensor, cut: _Cut) -> dict[_Pair, Tensor]:
    """The blocks (line, line + distance) of B^T B, distance >= 0; equal ones are one tensor."""
    counts: defaultdict[_Pair, Counter[_Pair]] = defaultdict(Counter)
    for read in cut.reads:
        for first, tap in read:
            for second, other in read:
                if first <= second:
                    counts[first, second - first][tap, other] += 1
    products_TTGCC = matrices_TGRC.mT[:, None] @ matrices_TGRC
    sums = {place: frozenset(pairs.items()) for place, pairs in counts.items()}
    made = {
        key: torch.stack([count * products_TTGCC[pair] for pair, count in key]).sum(0) for key in set(sums.values())
    }
    return {place: made[key] for place, key in sums.items()}


def _rows(blocks: dict[_Pair, Tensor], lines: range, end: int) -> Tensor:
    """Upper triangle of the rows of B^T B that belong to some lines, from the first of these up to line ``end``."""
    some_GCC = next(iter(blocks.values()))
    groups, length, _ = some_GCC.shape
    rows = some_GCC.new_zeros(groups, len(lines), length, end - lines.start, length)
    for row, line in enumerate(lines):
        for column in range(row, end - lines.start):
            if (line, column - row) in blocks:
                rows[:, row, :, column] = blocks[line, column - row]
    return rows.flatten(3, 4).flatten(1, 2)


def _is_below(blocks: dict[_Pair, Tensor], cut: _Cut, limit: float) -> bool:
    """Whether limit I - B^T B has a Cholesky factor, found block by block of lines."""
    step = -(-_LEAST_BLOCK // cut.length)
    carried_GBB = next(iter(blocks.values())).new_zeros(1, 0, 0)
    for start in range(0, cut.num_lines, step):
        lines = range(start, min(start + step, cut.num_lines))
        rows = -_rows(blocks, lines, min(lines.stop + cut.reach, cut.num_lines))
        size = rows.shape[1]
        rows.diagonal(dim1=1, dim2=2).add_(limit)
        rows[:, : carried_GBB.shape[1], : carried_GBB.shape[2]] -= carried_GBB[:, :size]
        # Of the blocks on the diagonal only the upper triangles are read: below them, rows holds nothing of B^T B.
        factor, info = torch.linalg.cholesky_ex(rows[:, :, :size], upper=True)
        if info.any():
            return False
        solved = torch.linalg.solve_triangular(factor.mT, rows[:, :, size:], upper=False)
        rest_GBB = carried_GBB[:, size:, size:]
        carried_GBB = solved.mT @ solved
        carried_GBB[:, : rest_GBB.shape[1], : rest_GBB.shape[2]] += rest_GBB
    return True


def _estimate(matrices_TGRC: Tensor, cut: _Cut) -> float:
    """Of the largest singular value of B, from below."""
    num_taps, groups, height, length = matrices_TGRC.shape
    reads = torch.tensor([(row, *read) for row, pairs in enumerate(cut.reads) for read in pairs])
    by_tap = [reads[reads[:, 2] == tap].unbind(1) for tap in range(num_taps)]

    def square(x_N: Tensor) -> Tensor:
        x_GLC = x_N.view(groups, cut.num_lines, length)
        y_GLR = x_GLC.new_zeros(groups, len(cut.reads), height)
        for matrix_GRC, (row, line, _) in zip(matrices_TGRC, by_tap, strict=True):
            y_GLR.index_add_(1, row, x_GLC[:, line] @ matrix_GRC.mT)
        z_GLC = torch.zeros_like(x_GLC)
        for matrix_GRC, (row, line, _) in zip(matrices_TGRC, by_tap, strict=True):
            z_GLC.index_add_(1, line, y_GLR[:, row] @ matrix_GRC)
        return z_GLC.flatten()

    return sqrt(max(0.0, _lanczos(square, groups * cut.num_lines * length)))


def _lanczos(square: Callable[[Tensor], Tensor], size: int) -> float:
    """An estimate, from below, of the largest eigenvalue of a symmetric map of vectors."""
    v_N = torch.randn(size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    basis_SN = v_N.new_zeros(0, size)
    images = []
    for _ in range(min(_NUM_LANCZOS_STEPS, size)):
        before = v_N.norm()
        for _ in range(2):  # once leaves rounding behind
            v_N = v_N - basis_SN.mT @ (basis_SN @ v_N)
        if v_N.norm() <= _NOTHING_NEW * before:
            break
        basis_SN = torch.cat([basis_SN, v_N[None] / v_N.norm()])
        v_N = square(basis_SN[-1])
        images.append(v_N)
    return float(torch.linalg.eigvalsh(basis_SN @ torch.stack(images).mT)[-1])
