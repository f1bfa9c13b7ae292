"""Normalizers: modules for a layer's output, parametrizations for a layer's weight."""

from tautnet.normalizers.aol import Aol
from tautnet.normalizers.batch import BatchNorm
from tautnet.normalizers.bjorck import Bjorck
from tautnet.normalizers.none import no_output_norm, no_weight_norm
from tautnet.normalizers.spectral import Spectral
from tautnet.normalizers.unitize import Unitize

__all__ = ["Aol", "BatchNorm", "Bjorck", "Spectral", "Unitize", "no_output_norm", "no_weight_norm"]
