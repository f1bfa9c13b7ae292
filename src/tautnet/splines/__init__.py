"""Finished splines: looking at them, thinning and refining them, taking them elsewhere; formulas of any activation."""

from tautnet.splines.export import load_tables, save_json, save_npz, to_plain, to_relu_sum
from tautnet.splines.expressions import evaluate
from tautnet.splines.formulas import Formula, candidates, formulas
from tautnet.splines.refine import double_knots_, doubled
from tautnet.splines.sparsify import SparsifyReport, SplineChange, search_thresholds, sparsify_
from tautnet.splines.tables import Curve, SplineTable, curve_table, curve_tables

__all__ = [
    "Curve",
    "Formula",
    "SparsifyReport",
    "SplineChange",
    "SplineTable",
    "candidates",
    "curve_table",
    "curve_tables",
    "double_knots_",
    "doubled",
    "evaluate",
    "formulas",
    "load_tables",
    "save_json",
    "save_npz",
    "search_thresholds",
    "sparsify_",
    "to_plain",
    "to_relu_sum",
]
