"""Penalties added to the training loss."""

from tautnet.regularizers.base import AbstractRegularizer
from tautnet.regularizers.coefficients import CoefficientPenalty
from tautnet.regularizers.lipschitz_excess import LipschitzExcess
from tautnet.regularizers.orthonormality import OrthonormalityPenalty
from tautnet.regularizers.tv2 import SecondOrderVariation
from tautnet.regularizers.variance import VarianceConstancy

__all__ = [
    "AbstractRegularizer",
    "CoefficientPenalty",
    "LipschitzExcess",
    "OrthonormalityPenalty",
    "SecondOrderVariation",
    "VarianceConstancy",
]
