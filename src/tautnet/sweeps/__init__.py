"""Sweeps: directories that can be taken up again, a grid and a study over the same settings, a table and a plot.

Imports neither torch nor Lightning nor Optuna: Hydra looks at its plugins at every start.
"""
