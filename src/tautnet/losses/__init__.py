"""Losses of classifiers."""

from tautnet.losses.base import AbstractClassificationLoss, CrossEntropy
from tautnet.losses.certified import AbstractCertifiedLoss, Interval, SingleProp
from tautnet.losses.margin import Hinge, HingeKantorovichRubinstein, MarginCrossEntropy
from tautnet.losses.nothing import NoLoss

__all__ = [
    "AbstractCertifiedLoss",
    "AbstractClassificationLoss",
    "CrossEntropy",
    "Hinge",
    "HingeKantorovichRubinstein",
    "Interval",
    "MarginCrossEntropy",
    "NoLoss",
    "SingleProp",
]
