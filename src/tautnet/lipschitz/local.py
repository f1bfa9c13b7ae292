"""Lipschitz constants on balls: what a network does near a sample."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from math import inf, prod

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrize import type_before_parametrizations

from tautnet.factories import AbstractLayer
from tautnet.lipschitz.bound import lipschitz_bound
from tautnet.lipschitz.boxes import propagate
from tautnet.lipschitz.enclosure import (
    ROUNDING,
    as_activation,
    batches,
    channel_norms,
    column,
    inf_for_nan,
    matrix_norm,
    row_norms,
    slopes_on_box,
)
from tautnet.lipschitz.linear_maps import is_linear_map
from tautnet.lipschitz.product import LeafConstants
from tautnet.lipschitz.rules import Unbounded
from tautnet.lipschitz.structure import Branches, Chain, Leaf, check_exponent, read

LARGEST_DENSE = 256  # width up to which Jacobians are enclosed by matrices, at a cost of width^3 a sample and layer
_RESHAPING = (nn.Flatten, nn.Identity, nn.Dropout)


@dataclass(frozen=True)
class Reach:
    """What is known, behind a layer, of the p-ball of radius ``radius`` around each sample.

    The values f(a), f(b) of any two of its points lie in the box, and ||f(a) - f(b)|| <= constant ||a - b||. Moreover
    f(a) - f(b) = (M + E) (h(a) - h(b)) with ||E|| <= error, h the network up to where the enclosure began, its constant
    ``base``; without an M only the rest is known.

    Attributes:
        centre: value at the sample, (N, *).
        lo: lower ends of the box, (N, *).
        hi: upper ends.
        radius: (N,).
        constant: (N,).
        base: (N,); the same object for all enclosures that began in the same place.
        jacobian: M, (N, O, D), or None.
        error: (N,).
    """

    centre: Tensor
    lo: Tensor
    hi: Tensor
    radius: Tensor
    constant: Tensor
    base: Tensor
    jacobian: Tensor | None
    error: Tensor

    def distance(self, p: float) -> Tensor:
        """How far each value can be from its centre, (N, *)."""
        far = column(self.constant * self.radius, self.centre).expand_as(self.centre)
        if self.jacobian is None:
            return inf_for_nan(far)
        rows_NO = row_norms(self.jacobian, p) + self.error.unsqueeze(1)
        by_row_NO = rows_NO * (self.base * self.radius).unsqueeze(1)
        return torch.minimum(inf_for_nan(far), inf_for_nan(by_row_NO).view_as(far))

    def cut(self, distance: Tensor) -> Reach:
        """The box without what is farther from the centre."""
        # fmax and fmin: the image of an unbounded box may be NaN, and the distance alone bounds too
        lo, hi = torch.fmax(self.lo, self.centre - distance), torch.fmin(self.hi, self.centre + distance)
        return replace(self, lo=lo, hi=hi)


class LocalBound:
    r"""Carries balls around samples through a network.

    Each layer multiplies the constant by its own constant on the present box: of own layers and some stock activations
    the local one, of others the global one. The box behind it is the image of the box, cut by how far the ball reaches.

    Where values (N, D) with D <= 256 go through dense and elementwise layers, the Jacobian from there on is enclosed
    itself, J = M + E, ||E|| <= e, and multiplies the constant up to there. A dense layer makes it W M, ||W|| e. An
    elementwise one whose slopes on the box lie in [m - r, m + r], with gains g = |m| + r, makes it diag(m) M with the
    error ||diag(r) M|| + max(g) e, because diag(s) (M + E) = diag(m) M + diag(s - m) M + diag(s) E. Then ||M|| + e
    counts where it is smaller, and so does ||diag(g) M|| + max(g) e. Slopes are those of chords: nothing needs to be
    differentiable. For a radius that tends to 0 around a sample off the kinks r and e tend to 0, and the bound to the
    norm of the Jacobian.

    Source: products of local constants as in Weng et al. (2018); the enclosure is ours.

    Args:
        chain: the network, in float64 and in eval mode.
        p: exponent of the vector norm, 1, 2 or inf.
    """

    def __init__(self, chain: Chain, p: float) -> None:
        check_exponent(p)
        self.chain, self.p = chain, p
        self.constants = LeafConstants(p)

    @torch.no_grad()
    def __call__(self, x: Tensor, radius: Tensor) -> Reach:
        """The balls of radius (N,) around x (N, *), at the network's output.

        Raises:
            Unbounded: a layer that mixes the samples of a batch.
        """
        one, half = torch.ones_like(radius), column(radius, x)
        with parametrize.cached():
            return self._through(self.chain, Reach(x, x - half, x + half, radius, one, one, None, 0 * radius))

    def _through(self, chain: Chain, reach: Reach) -> Reach:
        for part in chain:
            reach = _begun(reach)
            reach = self._behind(part, reach) if isinstance(part, Leaf) else self._joined(part, reach)
        return reach

    def _behind(self, leaf: Leaf, reach: Reach) -> Reach:
        centre = leaf.module(reach.centre.clone())  # a clone: a layer may work in place
        if len(centre) != len(reach.centre):
            raise Unbounded(f"{leaf.name}: mixes the samples of a batch")
        try:
            lo, hi = propagate((leaf,), reach.lo, reach.hi)
        except Unbounded:
            lo, hi = torch.full_like(centre, -inf), torch.full_like(centre, inf)
        jacobian, error, folded = self._enclosed(leaf, reach)
        constant = inf_for_nan(reach.constant * self._constant(leaf, reach))
        if jacobian is not None:
            sharper = torch.minimum(matrix_norm(jacobian, self.p) + error, folded)
            constant = torch.minimum(constant, inf_for_nan(reach.base * sharper))
        behind = Reach(centre, lo, hi, reach.radius, constant, reach.base, jacobian, error)
        return behind.cut(torch.minimum(behind.distance(self.p), self._row_distance(leaf, reach)))

    def _constant(self, leaf: Leaf, reach: Reach) -> Tensor:
        """The layer's constant on each box, (N,)."""
        whole = self.constants(leaf)
        layer = as_activation(leaf.module) or leaf.module
        if leaf.unknown or not isinstance(layer, AbstractLayer):
            return torch.full_like(reach.constant, whole)
        local_N = layer.local_lipschitz_constant(reach.lo, reach.hi, self.p)
        return torch.where(local_N >= 0, local_N, inf).clamp(max=whole)

    def _row_distance(self, leaf: Leaf, reach: Reach) -> Tensor:
        """How far the values behind a linear map can be: |w (a - b)| <= ||w||_q ||a - b||_p for its rows w."""
        if not is_linear_map(leaf):
            return reach.constant.new_tensor(inf)
        distance_NO = (reach.constant * reach.radius).unsqueeze(1) * channel_norms(leaf.module, self.p)
        return inf_for_nan(distance_NO.view(*distance_NO.shape, *[1] * (len(leaf.output_shape) - 1)))

    def _enclosed(self, leaf: Leaf, reach: Reach) -> tuple[Tensor | None, Tensor, Tensor]:
        """M, its error, and another bound of the norm of M + E; no M where there is no enclosure."""
        matrix, error, infinite = reach.jacobian, reach.error, torch.full_like(reach.error, inf)
        if matrix is None or leaf.unknown or max(prod(leaf.input_shape), prod(leaf.output_shape)) > LARGEST_DENSE:
            return None, infinite, infinite
        if type(leaf.module) in _RESHAPING:
            return matrix, error, infinite
        if type_before_parametrizations(leaf.module) is nn.Linear and len(leaf.input_shape) == 1:
            weight = leaf.module.weight
            assert isinstance(weight, Tensor)
            return weight @ matrix, inf_for_nan(error * self.constants(leaf)), infinite
        slopes = slopes_on_box(leaf, reach.lo, reach.hi)
        if slopes is None:
            return None, infinite, infinite
        middle, spread = ((slopes[1] + slopes[0]) / 2).unsqueeze(2), ((slopes[1] - slopes[0]) / 2).unsqueeze(2)
        gain = middle.abs() + spread
        grown = inf_for_nan(gain.flatten(1).amax(1) * error)
        new_error = matrix_norm(spread * matrix, self.p) + grown
        return middle * matrix, new_error, matrix_norm(gain * matrix, self.p) + grown

    def _joined(self, branches: Branches, reach: Reach) -> Reach:
        """Sums: constants, matrices and errors add. Concatenations: ||.|| <= (sum L_i^p)^(1/p), rows stand below."""
        ends = [self._through(chain, reach) for chain in branches.chains]
        summed = branches.kind == "sum"

        def of_values(values: list[Tensor]) -> Tensor:
            return sum(values[1:], values[0]) if summed else torch.cat(values, dim=1)

        def of_bounds(values: list[Tensor]) -> Tensor:
            return torch.linalg.vector_norm(torch.stack(values), ord=1 if summed else self.p, dim=0)

        matrices = [end.jacobian for end in ends if end.jacobian is not None and end.base is ends[0].base]
        joined = Reach(
            of_values([end.centre for end in ends]),
            of_values([end.lo for end in ends]),
            of_values([end.hi for end in ends]),
            reach.radius,
            of_bounds([end.constant for end in ends]),
            ends[0].base,
            of_values(matrices) if len(matrices) == len(ends) else None,
            of_bounds([end.error for end in ends]),
        )
        if joined.jacobian is not None:
            sharper = inf_for_nan(joined.base * (matrix_norm(joined.jacobian, self.p) + joined.error))
            joined = replace(joined, constant=torch.minimum(joined.constant, sharper))
        return joined.cut(joined.distance(self.p))


def _begun(reach: Reach) -> Reach:
    """With an enclosure, begun here if there is none and the values are few and in a row, as in dense nets."""
    size = prod(reach.centre.shape[1:])
    if reach.jacobian is not None or size > LARGEST_DENSE or reach.centre.dim() != 2:
        return reach
    identity = torch.eye(size, dtype=reach.lo.dtype, device=reach.lo.device).expand(len(reach.lo), -1, -1)
    return replace(reach, base=reach.constant, jacobian=identity, error=torch.zeros_like(reach.constant))


def local_lipschitz_bound(net: nn.Module, x: Tensor, radius: float | Tensor, p: float = 2) -> Tensor:
    """A constant L for each sample: ||f(a) - f(b)||_p <= L ||a - b||_p for all a, b in the p-ball around it.

    Never above ``lipschitz_bound``; in dense nets up to 256 wide close to the norm of the Jacobian at the sample for a
    small radius. Computed on a copy in float64; the statement is about real arithmetic in eval mode, with a relative
    allowance of 1e-9 for rounding. The network stays as it is.

    Args:
        net: the network.
        x: samples, (N, *).
        radius: of the balls, one or (N,), at least 0, in the unit of x.
        p: exponent of the vector norm, 1, 2 or inf.

    Returns:
        (N,) float64 on the device of x; inf where there is no bound.

    Raises:
        ValueError: another ``p`` or a negative radius.
    """
    check_exponent(p)
    if not bool((torch.as_tensor(radius) >= 0).all()):
        raise ValueError(f"radius={radius}: at least 0")
    with torch.inference_mode(False), torch.no_grad():
        copy = deepcopy(net).double().eval()
        points = x.detach().clone().double()
        radii = torch.as_tensor(radius, dtype=torch.float64, device=x.device).expand(len(x)).clone()
        bound, whole = LocalBound(read(copy, x.shape[1:]), p), lipschitz_bound(copy, x.shape[1:], p).total
        try:
            constants = [inf_for_nan(bound(*part).constant) * ROUNDING for part in batches(points, radii)]
        except Unbounded:
            return torch.full_like(radii, whole)
        return torch.cat(constants).clamp(max=whole)
