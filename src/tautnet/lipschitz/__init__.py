"""Lipschitz constants of networks: guaranteed bounds from above, observations from below."""

from tautnet.lipschitz.bound import LayerBound, LipschitzReport, lipschitz_bound
from tautnet.lipschitz.lower import lipschitz_lower

__all__ = ["LayerBound", "LipschitzReport", "lipschitz_bound", "lipschitz_lower"]
