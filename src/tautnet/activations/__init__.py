"""Activations, learned and fixed, behind one contract (see ``base``)."""

from tautnet.activations.base import AbstractActivation
from tautnet.activations.fixed import ELU, GELU, Absolute, LeakyReLU, ReLU, Tanh
from tautnet.activations.group_sort import GroupSort, MaxMin
from tautnet.activations.linear_spline import LinearSpline
from tautnet.activations.prelu import PReLU
from tautnet.activations.relu_sum import ReluSum
from tautnet.activations.slaf import Slaf

__all__ = [
    "ELU",
    "GELU",
    "Absolute",
    "AbstractActivation",
    "GroupSort",
    "LeakyReLU",
    "LinearSpline",
    "MaxMin",
    "PReLU",
    "ReLU",
    "ReluSum",
    "Slaf",
    "Tanh",
]
