"""LightningModules: one per model variant, over one abstract base."""

from tautnet.models.base import AbstractModel
from tautnet.models.classifier import Classifier
from tautnet.models.denoiser import Denoiser
from tautnet.models.regressor import Regressor

__all__ = ["AbstractModel", "Classifier", "Denoiser", "Regressor"]
