"""Penalties added to the training loss."""

from tautnet.regularizers.base import AbstractRegularizer
from tautnet.regularizers.tv2 import SecondOrderVariation

__all__ = ["AbstractRegularizer", "SecondOrderVariation"]
