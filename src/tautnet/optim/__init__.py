"""Optimizers by parameter role, and learning-rate schedules."""

from tautnet.optim.joint import JointOptimizer
from tautnet.optim.muon import Muon
from tautnet.optim.roles import parameters_by_role

__all__ = ["JointOptimizer", "Muon", "parameters_by_role"]
