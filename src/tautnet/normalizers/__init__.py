"""Normalizers: modules for a layer's output, parametrizations for a layer's weight."""

from tautnet.factories import synchronise_
from tautnet.normalizers.aol import Aol
from tautnet.normalizers.aon import Aon
from tautnet.normalizers.batch import BatchNorm
from tautnet.normalizers.bjorck import Bjorck
from tautnet.normalizers.group import GroupNorm, instance_norm, layer_norm
from tautnet.normalizers.none import no_output_norm, no_weight_norm
from tautnet.normalizers.orthogonal import Orthogonal
from tautnet.normalizers.rms import RmsNorm
from tautnet.normalizers.selection import normalize_weights_
from tautnet.normalizers.spectral import Spectral
from tautnet.normalizers.unitize import Unitize
from tautnet.normalizers.weight_normalization import WeightNormalization
from tautnet.normalizers.weight_standardization import WeightStandardization

__all__ = [
    "Aol",
    "Aon",
    "BatchNorm",
    "Bjorck",
    "GroupNorm",
    "Orthogonal",
    "RmsNorm",
    "Spectral",
    "Unitize",
    "WeightNormalization",
    "WeightStandardization",
    "instance_norm",
    "layer_norm",
    "no_output_norm",
    "no_weight_norm",
    "normalize_weights_",
    "synchronise_",
]
