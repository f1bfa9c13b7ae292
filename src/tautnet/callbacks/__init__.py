"""Lightning callbacks: what is watched during training."""

from tautnet.callbacks.certification import Certification
from tautnet.callbacks.ics_meter import IcsMeter
from tautnet.callbacks.lipschitz_monitor import LipschitzMonitor
from tautnet.callbacks.spline_monitor import SplineMonitor
from tautnet.callbacks.spline_sparsifier import SplineSparsifier
from tautnet.callbacks.weight_spectrum import WeightSpectrum

__all__ = ["Certification", "IcsMeter", "LipschitzMonitor", "SplineMonitor", "SplineSparsifier", "WeightSpectrum"]
