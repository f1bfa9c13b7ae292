"""Activations, learned and fixed, behind one contract (see ``base``)."""

from tautnet.activations.base import AbstractActivation
from tautnet.activations.fixed import ELU, GELU, LeakyReLU, ReLU
from tautnet.activations.linear_spline import LinearSpline
from tautnet.activations.prelu import PReLU

__all__ = ["ELU", "GELU", "AbstractActivation", "LeakyReLU", "LinearSpline", "PReLU", "ReLU"]
