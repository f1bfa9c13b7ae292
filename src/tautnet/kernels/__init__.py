"""Fused operators behind ``tautnet.functional``: one definition each, several backends under the same tests."""

from tautnet.kernels.dispatch import BACKENDS, Backend
from tautnet.kernels.operators import linear_spline

__all__ = ["BACKENDS", "Backend", "linear_spline"]
