"""LightningModules: one per kind of task."""

from tautnet.models.base import AbstractModel
from tautnet.models.classifier import Classifier

__all__ = ["AbstractModel", "Classifier"]
