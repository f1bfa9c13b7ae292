"""The product bound, and how bounds of parts make the bound of a whole."""

from __future__ import annotations

from collections.abc import Callable
from math import exp, inf, log, log1p

from tautnet.lipschitz.rules import Unbounded, leaf_constant
from tautnet.lipschitz.structure import Branches, Chain, Leaf


class LeafConstants:
    """The constants of leaves, each computed once.

    Args:
        p: exponent of the vector norm.
    """

    def __init__(self, p: float) -> None:
        self.p = p
        self._values: dict[tuple[str, tuple[int, ...]], tuple[float, str]] = {}

    def __call__(self, leaf: Leaf) -> float:
        """Upper bound of the leaf's constant; inf where there is none."""
        return self._look_up(leaf)[0]

    def reason(self, leaf: Leaf) -> str:
        """Why it is inf; empty where it is finite."""
        return self._look_up(leaf)[1]

    def _look_up(self, leaf: Leaf) -> tuple[float, str]:
        key = (leaf.path, leaf.input_shape)
        if key not in self._values:
            self._values[key] = self._compute(leaf)
        return self._values[key]

    def _compute(self, leaf: Leaf) -> tuple[float, str]:
        try:
            value = leaf_constant(leaf, self.p)
        except Unbounded as unbounded:
            return inf, str(unbounded)
        if not value >= 0:
            return inf, "not a number"  # NaN weights bound nothing
        return value, "" if value < inf else f"no constant for p={self.p:g}"


def log_of(value: float) -> float:
    """Natural logarithm, -inf of 0; inf of NaN, which bounds nothing."""
    if value == 0:
        return -inf
    return log(value) if value > 0 else inf


def to_float(logarithm: float) -> float:
    """exp, with inf beyond float range."""
    return exp(logarithm) if logarithm < 700 else inf


def log_times(a: float, b: float) -> float:
    """Log of a product in which unbounded wins over zero."""
    return inf if inf in (a, b) else a + b


def log_plus(a: float, b: float) -> float:
    """Log of exp(a) + exp(b)."""
    high, low = max(a, b), min(a, b)
    return high if high in (inf, -inf) else high + log1p(exp(low - high))


def log_joined(kind: str, logs: list[float], p: float) -> float:
    """Log of the bound of summed or concatenated branches from those of the branches.

    A concatenation is the p-norm of the branches' norms: (sum L_i^p)^(1/p), the largest for p = inf.
    """
    if inf in logs:
        return inf
    if kind == "concatenation" and p == inf:
        return max(logs)
    exponent = p if kind == "concatenation" else 1
    total = -inf
    for value in logs:
        total = log_plus(total, exponent * value)
    return total / exponent


def log_product(chain: Chain, p: float, constant: Callable[[Leaf], float]) -> float:
    """Log of the product of the leaves' constants; branches are summed or joined."""
    total = 0.0
    for part in chain:
        total = log_times(total, _log_part(part, p, constant))
    return total


def _log_part(part: Leaf | Branches, p: float, constant: Callable[[Leaf], float]) -> float:
    if isinstance(part, Leaf):
        return log_of(constant(part))
    return log_joined(part.kind, [log_product(branch, p, constant) for branch in part.chains], p)
