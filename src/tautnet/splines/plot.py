"""Figures of learned activations."""

from __future__ import annotations

import torch
from matplotlib.figure import Figure

from tautnet.activations import AbstractActivation, LinearSpline
from tautnet.splines.curves import curve_values

MAX_CURVES = 16


@torch.no_grad()
def plot_activation(activation: AbstractActivation, title: str, visited_lo: float, visited_hi: float) -> Figure:
    """The curves of a layer's activation over the grid and the visited inputs.

    Args:
        activation: a learned activation; of more than 16 curves 16 evenly spread ones are drawn.
        title: heading, usually the layer's path.
        visited_lo: smallest input that the layer met.
        visited_hi: largest input that the layer met; the range between is shaded.
    """
    reach = activation.grid_range if isinstance(activation, LinearSpline) else 0.0
    ends = min(-reach, visited_lo), max(reach, visited_hi)
    x_S = torch.linspace(*ends, 400, dtype=torch.float64)
    curves_CS = curve_values(activation, x_S.unsqueeze(0))
    shown = torch.linspace(0, len(curves_CS) - 1, min(len(curves_CS), MAX_CURVES)).round().long().tolist()
    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.axvspan(visited_lo, visited_hi, color="0.92", label="visited inputs")
    for channel in shown:
        (line,) = axes.plot(x_S, curves_CS[channel], linewidth=1)
        if isinstance(activation, LinearSpline):
            positions_CK, values_CK = activation.points()
            active_K = torch.nn.functional.pad(activation.slope_changes()[channel].abs() > 1e-3, (1, 1)).cpu()
            active = positions_CK[channel, active_K], values_CK[channel, active_K]
            axes.plot(*active, ".", markersize=3, color=line.get_color())
    axes.set_title(f"{title}: {len(shown)} of {len(curves_CS)} curves", fontsize=9)
    axes.set_xlabel("input")
    axes.legend(loc="upper left", fontsize=7)
    axes.grid(linewidth=0.3)
    return figure
