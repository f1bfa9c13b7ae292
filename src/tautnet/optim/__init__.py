"""Optimizers by parameter role, and learning-rate schedules."""

from tautnet.optim.joint import JointOptimizer
from tautnet.optim.roles import parameters_by_role

__all__ = ["JointOptimizer", "parameters_by_role"]
