"""Lipschitz constants of networks: guaranteed bounds from above, observations from below, certificates."""

from tautnet.lipschitz.bound import LayerBound, LipschitzReport, UnboundedError, lipschitz_bound
from tautnet.lipschitz.certify import certified_at, certified_radius
from tautnet.lipschitz.local import local_lipschitz_bound
from tautnet.lipschitz.lower import lipschitz_lower
from tautnet.lipschitz.paper_bound import PaperBound, paper_bound

__all__ = [
    "LayerBound",
    "LipschitzReport",
    "PaperBound",
    "UnboundedError",
    "certified_at",
    "certified_radius",
    "lipschitz_bound",
    "lipschitz_lower",
    "local_lipschitz_bound",
    "paper_bound",
]
