"""The product bound after slopes and diagonal factors are multiplied into neighbouring weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, prod

import torch
from torch import Tensor, nn

from tautnet.lipschitz.elementwise import slope_range
from tautnet.lipschitz.linear_maps import is_linear_map, linear_constant
from tautnet.lipschitz.product import LeafConstants, log_joined, log_of, log_times
from tautnet.lipschitz.structure import Chain, Leaf

# Layers that treat all channels alike and each by itself: f(d x) = d f(x) for a factor d_c >= 0 of each channel. With
# their number of dimensions: given fewer, torch takes the channels for one of them.
_CHANNELWISE: dict[type[nn.Module], int] = {
    **dict.fromkeys([nn.MaxPool1d, nn.AvgPool1d, nn.AdaptiveMaxPool1d, nn.AdaptiveAvgPool1d, nn.ZeroPad1d], 1),
    **dict.fromkeys([nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool2d, nn.ZeroPad2d], 2),
    **dict.fromkeys([nn.MaxPool3d, nn.AvgPool3d, nn.AdaptiveMaxPool3d, nn.AdaptiveAvgPool3d, nn.ZeroPad3d], 3),
}
_SHARES = (1.0, 0.0, 0.5)  # of a gain that goes into the map in front; the rest goes into the one behind


@dataclass(frozen=True)
class Gain:
    """Elementwise layers in a row: the range of products of their slopes, (C,) or (1,), float64."""

    lo: Tensor
    hi: Tensor

    def times(self, other: Gain) -> Gain:
        """The range of products of one slope of each."""
        products = torch.stack([a * b for a in (self.lo, self.hi) for b in (other.lo, other.hi)])
        return Gain(products.amin(0), products.amax(0))

    @property
    def largest(self) -> Tensor:
        """Largest |slope| of each channel."""
        return torch.maximum(self.lo.abs(), self.hi.abs())


@dataclass(frozen=True)
class Fixed:
    """What takes part by the logarithm of its constant alone."""

    log_constant: float


Item = Leaf | Gain | Fixed  # a leaf here is a linear map or channelwise


def items_of(chain: Chain, p: float, constants: LeafConstants) -> list[Item]:
    """The chain with elementwise layers merged, and everything that cannot be folded reduced to its constant."""
    items: list[Item] = []
    for part in chain:
        if not isinstance(part, Leaf):
            logs = [log_folded(items_of(branch, p, constants), p, constants) for branch in part.chains]
            items.append(Fixed(log_joined(part.kind, logs, p)))
            continue
        slopes = None if part.unknown else slope_range(part)
        if slopes is not None:
            gain = Gain(*slopes)
            items[-1:] = [last.times(gain)] if items and isinstance(last := items[-1], Gain) else [*items[-1:], gain]
        elif is_linear_map(part) or _passes_factors(part):
            items.append(part)
        else:
            items.append(Fixed(log_of(constants(part))))
    return items


def _passes_factors(leaf: Leaf) -> bool:
    """Whether a factor of each channel passes the leaf; through ``Flatten`` forwards, spread over the features."""
    return type(leaf.module) is nn.Flatten or len(leaf.input_shape) - 1 == _CHANNELWISE.get(type(leaf.module))


def log_folded(items: Sequence[Item], p: float, constants: LeafConstants) -> float:
    r"""Log of a bound that is tighter than the product where slopes or factors differ over channels.

    Elementwise layers have Jacobians diag(d), |d_c| <= g_c. With g = g^s g^(1-s) the layers W_1, diag(d), W_2 have
    together at most ||diag(g^s) W_1|| ||W_2 diag(g^(1-s))||: the rest, diag(d / g), has norm at most 1 for every p. A
    factor passes channelwise layers such as pooling. In dense nets s = 1, 0 and 1/2 are tried, for all layers alike,
    and the smallest bound counts; in others s = 1, which also makes a convolution and its batch normalisation one map.

    Args:
        items: see ``items_of``.
        p: exponent of the vector norm.
        constants: of leaves by themselves.
    """
    dense = all(len(item.input_shape) == 1 for item in items if isinstance(item, Leaf) and is_linear_map(item))
    return min(_log_with_share(items, p, constants, share) for share in (_SHARES if dense else _SHARES[:1]))


def _log_with_share(items: Sequence[Item], p: float, constants: LeafConstants, share: float) -> float:
    rows: dict[int, Tensor] = {}
    columns: dict[int, Tensor] = {}
    total = 0.0
    for index, item in enumerate(items):
        if not isinstance(item, Gain):
            continue
        largest = float(item.largest.max())
        if not largest < inf:  # NaN too
            return inf
        total = log_times(total, log_of(largest))
        gain = item.largest / largest if largest > 0 else item.largest
        if (gain == 1).all():
            continue  # nothing differs over the channels
        front, (behind, carried) = _map_in_front(items, index, gain), _map_behind(items, index, gain)
        own_share = share if None not in (front, behind) else float(front is not None)
        if front is not None and own_share > 0:
            rows[front] = rows.get(front, torch.ones_like(gain)) * gain**own_share
        if behind is not None and own_share < 1:
            columns[behind] = columns.get(behind, torch.ones_like(carried)) * carried ** (1 - own_share)
    for index, item in enumerate(items):
        if isinstance(item, Fixed):
            total = log_times(total, item.log_constant)
        elif isinstance(item, Leaf):
            scaled = index in rows or index in columns
            value = linear_constant(item, p, rows.get(index), columns.get(index)) if scaled else constants(item)
            total = log_times(total, log_of(value))
    return total


def _map_in_front(items: Sequence[Item], index: int, gain: Tensor) -> int | None:
    """Index of the linear map whose output channels the factor can be multiplied into."""
    for i in range(index - 1, -1, -1):
        item = items[i]
        if isinstance(item, Leaf) and is_linear_map(item):
            return i if item.output_shape[0] == len(gain) else None
        if isinstance(item, Fixed) or (isinstance(item, Leaf) and type(item.module) is nn.Flatten):
            return None
    return None


def _map_behind(items: Sequence[Item], index: int, gain: Tensor) -> tuple[int | None, Tensor]:
    """Index of the linear map whose input channels it can be multiplied into, and the factor as it arrives there."""
    for i in range(index + 1, len(items)):
        item = items[i]
        if isinstance(item, Fixed):
            break
        if isinstance(item, Gain):
            continue
        if item.input_shape[0] != len(gain):
            break
        if is_linear_map(item):
            return i, gain
        if type(item.module) is nn.Flatten:
            if item.output_shape != (prod(item.input_shape),):
                break
            gain = gain.repeat_interleave(prod(item.input_shape[1:]))
    return None, gain
