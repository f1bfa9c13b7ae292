"""Lightning callbacks: what is watched during training."""

from tautnet.callbacks.board_layout import BoardLayout
from tautnet.callbacks.certification import Certification
from tautnet.callbacks.chance_monitor import ChanceMonitor
from tautnet.callbacks.checkpointing import Checkpoints
from tautnet.callbacks.discriminant_monitor import DiscriminantMonitor
from tautnet.callbacks.divergence_guard import Diverged, DivergenceGuard
from tautnet.callbacks.ics_meter import IcsMeter
from tautnet.callbacks.lipschitz_monitor import LipschitzMonitor
from tautnet.callbacks.polynomial_writer import PolynomialWriter
from tautnet.callbacks.recalibration import Recalibration
from tautnet.callbacks.resting import Alternation, Release
from tautnet.callbacks.spline_monitor import SplineMonitor
from tautnet.callbacks.spline_sparsifier import SplineSparsifier
from tautnet.callbacks.variance_monitor import VarianceMonitor
from tautnet.callbacks.weight_spectrum import WeightSpectrum

__all__ = [
    "Alternation",
    "BoardLayout",
    "Certification",
    "ChanceMonitor",
    "Checkpoints",
    "DiscriminantMonitor",
    "Diverged",
    "DivergenceGuard",
    "IcsMeter",
    "LipschitzMonitor",
    "PolynomialWriter",
    "Recalibration",
    "Release",
    "SplineMonitor",
    "SplineSparsifier",
    "VarianceMonitor",
    "WeightSpectrum",
]
