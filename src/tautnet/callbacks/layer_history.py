"""One number a layer over the course of training: means, and a figure of layers by time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from torch import Tensor

_MOST_COLUMNS = 1024  # even


class LayerHistory:
    """Holds the values of all layers, taken at even distances in time, in as much memory as a figure shows.

    When ``_MOST_COLUMNS`` columns are full, pairs of neighbours become their means, and so do later values.

    Args:
        paths: of the layers, the rows of the figure from above.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = list(paths)
        self.steps: list[int] = []  # the first and the last one
        self._columns: list[Tensor] = []
        self._pending: list[Tensor] = []  # fewer than make a column
        self._span = 1  # values in a column

    def add(self, step: int, values_L: Tensor) -> None:
        """Values of one time, in the order of the paths."""
        self.steps = [*self.steps[:1], step]
        self._pending.append(values_L)
        if len(self._pending) < self._span:
            return
        self._columns.append(torch.stack(self._pending).mean(0))
        self._pending = []
        if len(self._columns) == _MOST_COLUMNS:
            self._columns = list(torch.stack(self._columns).view(-1, 2, len(self.paths)).mean(1))
            self._span *= 2

    def state_dict(self) -> dict[str, Any]:
        """All of it, in tensors and numbers."""
        return {"steps": self.steps, "columns": self._columns, "pending": self._pending, "span": self._span}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.steps, self._span = list(state["steps"]), state["span"]
        self._columns, self._pending = list(state["columns"]), list(state["pending"])

    def values(self) -> Tensor:
        """Layers by time, (L, T), T at most ``_MOST_COLUMNS``."""
        rest = [torch.stack(self._pending).mean(0)] if self._pending else []
        return torch.stack([*self._columns, *rest], dim=1)

    def figure(self, title: str) -> Figure:
        """A heat map with a logarithmic scale of colours; what is 0 or not finite stays blank."""
        values_LT = self.values()
        shown = values_LT[(values_LT > 0) & values_LT.isfinite()]
        lo, hi = (shown.min().item(), shown.max().item()) if len(shown) else (1.0, 1.0)
        figure = Figure(figsize=(7, max(2.4, 0.16 * len(self.paths) + 1.4)), layout="constrained")
        axes = figure.subplots()
        axes.set_facecolor("0.85")
        image = axes.imshow(
            values_LT.masked_fill(~((values_LT > 0) & values_LT.isfinite()), torch.nan).numpy(),
            norm=LogNorm(lo, hi if hi > lo else 10 * lo),
            aspect="auto",
            interpolation="nearest",
            extent=(self.steps[0] - 0.5, self.steps[-1] + 0.5, len(self.paths) - 0.5, -0.5),
        )
        figure.colorbar(image, ax=axes)
        axes.set_yticks(range(len(self.paths)), self.paths, fontsize=6)
        axes.set_xlabel("update")
        axes.set_title(title, fontsize=9)
        return figure
