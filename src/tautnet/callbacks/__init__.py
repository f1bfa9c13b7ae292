"""Lightning callbacks: what is watched during training."""

from tautnet.callbacks.certification import Certification
from tautnet.callbacks.lipschitz_monitor import LipschitzMonitor
from tautnet.callbacks.spline_monitor import SplineMonitor
from tautnet.callbacks.spline_sparsifier import SplineSparsifier

__all__ = ["Certification", "LipschitzMonitor", "SplineMonitor", "SplineSparsifier"]
