"""What an exported file says about its network."""

from __future__ import annotations

from importlib.metadata import version
from math import inf
from typing import Any

import torch
from torch import nn

from tautnet.lipschitz.bound import lipschitz_bound
from tautnet.lipschitz.input_scale import InputScale
from tautnet.trained import Trained

RAW, STANDARDISED = "raw", "standardised"
_NOTE = (
    "Guaranteed for the trained network in real arithmetic, from its input in these units to its output. The exported "
    "network is the same function with its numbers rounded anew, for which the bound holds up to that rounding."
)


def describe(trained: Trained, raw: bool) -> dict[str, Any]:
    """Plain entries for JSON: what goes in, what comes out, the Lipschitz bound.

    ``input_offset`` and ``input_scale`` say how raw values are standardised, (raw - offset) / scale, 0 where the scale
    is 0; the network in the file does that itself if ``input_units`` is ``raw``. A regression's output y means
    y * target_scale + target_offset. ``lipschitz_bound_p2`` is null where there is none, ``lipschitz_unbounded`` then
    names the layers that are the reason, or where it is beyond float range, ``lipschitz_log_bound_p2`` (natural) then
    says more.

    Args:
        trained: the model.
        raw: whether the network in the file takes raw values.
    """
    preparation = trained.preparation
    return {
        "format": "tautnet export",
        "tautnet": version("tautnet"),
        "task": trained.model.task,
        "input_shape": list(trained.model.input_shape),
        "input_units": RAW if raw else STANDARDISED,
        "input_offset": list(preparation.offset),
        "input_scale": list(preparation.scale),
        "columns": preparation.columns,
        "num_outputs": trained.settings["num_outputs"],
        "classes": preparation.classes,
        "target_offset": preparation.target_offset,
        "target_scale": preparation.target_scale,
        **_bound(trained, raw),
    }


def _bound(trained: Trained, raw: bool) -> dict[str, Any]:
    net: nn.Module = trained.model.net
    if raw:
        scale_C = torch.tensor(trained.preparation.scale, dtype=torch.float64)
        # Through a channel of scale 0 nothing passes: any scale bounds it, the largest makes the bound no larger.
        net = nn.Sequential(InputScale(torch.where(scale_C > 0, scale_C, scale_C.max().clamp(min=1.0))), net)
    report = lipschitz_bound(net, trained.model.input_shape)
    finite = {"lipschitz_bound_p2": report.total, "lipschitz_log_bound_p2": report.log_total}
    return {
        **{name: value if abs(value) < inf else None for name, value in finite.items()},
        "lipschitz_unbounded": list(report.unbounded),
        "lipschitz_units": RAW if raw else STANDARDISED,
        "lipschitz_note": _NOTE,
    }
