"""Figures of what the weights of a run hold: learned activations before and after, spectra of the layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from tautnet import checkpoints
from tautnet.activations import AbstractActivation, LinearSpline
from tautnet.callbacks.weight_spectrum import singular_values
from tautnet.errors import ConfigError
from tautnet.factories import DataError
from tautnet.normalizers.selection import select_layers
from tautnet.report.look import BLUE, MUTED, ORANGE, SHADE, legend_below, panels, sampled, title
from tautnet.splines.curves import curve_values
from tautnet.targets import allowing
from tautnet.trained import Trained, open_trained

SPARSE = "sparse"
_ACTIVE = 1e-3  # smallest slope change of a knot that is drawn
_MOST_LAYERS = 8  # that colours tell apart


@dataclass(frozen=True)
class Learned:
    """A run's network at its ends.

    Attributes:
        after: as trained.
        before: the network that training began with; None where it cannot be had.
        sparse: after sparsification; None without.
        visited: range of each activation's inputs in the last validation, by path, where that was watched.
        notes: what is missing and why.
    """

    after: Trained
    before: nn.Module | None
    sparse: nn.Module | None
    visited: Mapping[str, tuple[float, float]]
    notes: list[str] = field(default_factory=list)

    @property
    def tested(self) -> nn.Module:
        """The network that the run's test saw: the sparse one, where there is one."""
        return self.after.model.net if self.sparse is None else self.sparse


def open_learned(path: Path, which: str = "last", allow: Sequence[str] = ()) -> Learned:
    """Open a run, and build the network that its training began with anew from settings and seed.

    Raises:
        ConfigError: a run that cannot be used.
    """
    after = open_trained(path, which, allow)
    notes: list[str] = []
    with allowing(allow):
        before = _initial(after, notes)
    folder = after.checkpoint.parent
    has_sparse = which != SPARSE and (folder / f"{SPARSE}.ckpt").is_file()
    sparse = open_trained(folder / f"{SPARSE}.ckpt", allow=allow).model.net if has_sparse else None
    return Learned(after, before, sparse, _visited(after.checkpoint), notes)


def has_checkpoints(run: Path) -> bool:
    """Whether a run has left weights."""
    return any((run / "checkpoints").glob("*.ckpt"))


def _initial(trained: Trained, notes: list[str]) -> nn.Module | None:
    """As the job builds it: the seed is set, then the model is built, then what waits for data gets a batch."""
    settings = trained.settings
    if settings.get("ckpt") is not None:
        notes.append(f"Training began from {settings['ckpt']}, not from an initialisation: nothing is drawn of before.")
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(settings["seed"]))
        model = type(trained.model)(settings).eval()
        waiting = any(isinstance(module, LinearSpline) and module.awaits_range for module in model.net.modules())
        if waiting:
            try:
                model.calibrate_(next(iter(trained.data().train_dataloader()))[0])
            except (ConfigError, DataError, OSError) as error:
                notes.append(f"The grids' ranges came from data that is not there ({error}): nothing of before.")
                return None
    return model.net.eval()


def _visited(checkpoint: Path) -> dict[str, tuple[float, float]]:
    """What the monitor of splines keeps in a checkpoint."""
    states: dict[str, Any] = checkpoints.read(checkpoint).get("callbacks", {})
    found = states.get("SplineMonitor", {}).get("visited", {})
    return {str(path): (float(lo), float(hi)) for path, (lo, hi) in found.items()}


def activations_of(net: nn.Module | None) -> dict[str, AbstractActivation]:
    """The learned activations of a network by path."""
    modules = () if net is None else net.named_modules()
    return {
        path: module
        for path, module in modules
        if isinstance(module, AbstractActivation) and any(True for _ in module.parameters())
    }


def activation_figure(learned: Learned, path: str, most: int = 16) -> Figure:
    """Curves of a layer, a small panel each: before training dashed, after it, and sparse; knots that bend as dots.

    Args:
        learned: of the run.
        path: of the activation.
        most: panels; of more curves some that are evenly spread.
    """
    stages = [("before training", learned.before, MUTED, "--"), ("after", learned.after.model.net, BLUE, "-")]
    stages.append(("sparse", learned.sparse, ORANGE, "-"))
    found = [(label, activations_of(net).get(path), color, line) for label, net, color, line in stages]
    drawn = [(label, each, color, line) for label, each, color, line in found if each is not None]
    visited = learned.visited.get(path)
    ends = _ends([each for _, each, _, _ in drawn], visited)
    curves = [(label, *_curves(each, *ends), each, color, line) for label, each, color, line in drawn]
    num_curves = len(curves[0][2])
    chosen = sampled(range(num_curves), most)
    columns = min(4, len(chosen))
    rows = -(-len(chosen) // columns)
    width, height = 4.0, 0.8 + max(0.9 * rows, 1.6)
    figure, places = panels(rows, columns, width, height, shared=True)
    for axes, channel in zip(places, chosen, strict=False):
        if visited is not None:
            axes.axvspan(*visited, color=SHADE, label="visited inputs", zorder=0)
        for label, x_CS, y_CS, each, color, line in curves:
            axes.plot(x_CS[channel], y_CS[channel], line, color=color, linewidth=1.3, label=label)
            _knots(axes, each, channel, color)
        axes.set_title(f"{channel}", fontsize=8, fontweight="normal", pad=2)
        axes.set_xlim(*ends)
        axes.tick_params(labelsize=7)
    for axes in places[len(chosen) :]:
        axes.set_visible(False)
    how_many = f"{len(chosen)} of {num_curves} curves" if num_curves > 1 else "one curve"
    title(figure, f"{path}  {type(curves[0][3]).__name__}: output over input, {how_many}")
    legend_below(places[0])
    return figure


def _ends(activations: Sequence[AbstractActivation], visited: tuple[float, float] | None) -> tuple[float, float]:
    """The drawn range: the grids and the visited inputs."""
    reaches = [float(each.points()[0].abs().max()) for each in activations if isinstance(each, LinearSpline)]
    reach = max(reaches, default=3.0 if visited is None else 0.0)
    lo, hi = visited or (-reach, reach)
    return min(lo, -reach), max(hi, reach)


@torch.no_grad()
def _curves(activation: AbstractActivation, lo: float, hi: float) -> tuple[Tensor, Tensor]:
    """Positions and values, a row a curve; of a spline its knots and ends, which is all there is to it."""
    if isinstance(activation, LinearSpline):
        x_CK, y_CK = activation.points()
        slopes_CK = activation.slopes()
        first, last = torch.full_like(x_CK[:, :1], lo), torch.full_like(x_CK[:, :1], hi)
        before = y_CK[:, :1] + (first - x_CK[:, :1]) * slopes_CK[:, :1]
        after = y_CK[:, -1:] + (last - x_CK[:, -1:]) * slopes_CK[:, -1:]
        return torch.cat([first, x_CK, last], dim=1), torch.cat([before, y_CK, after], dim=1)
    x_S = torch.linspace(lo, hi, 101, dtype=torch.float64)
    y_CS = curve_values(activation, x_S.unsqueeze(0))
    return x_S.expand_as(y_CS), y_CS


def _knots(axes: Axes, activation: AbstractActivation, channel: int, color: str) -> None:
    if isinstance(activation, LinearSpline):
        x_CK, y_CK = activation.points()
        bends_K = activation.slope_changes()[channel].detach().abs() > _ACTIVE
        x_K, y_K = x_CK[channel, 1:-1][bends_K], y_CK[channel, 1:-1][bends_K]
        axes.plot(x_K, y_K, ".", color=color, markersize=2.5)


def spectra_figure(learned: Learned) -> Figure | None:
    """Singular values of the effective weights, before training dashed; None for a network without such layers."""
    try:
        layers = select_layers(learned.after.model.net)
    except ValueError:  # no dense or convolutional layer
        return None
    before = {} if learned.before is None else select_layers(learned.before)
    figure, (axes,) = panels(height=2.9)
    shown = sampled(list(layers), _MOST_LAYERS)
    for path in shown:
        values = singular_values(layers[path])
        places = torch.linspace(0, 1, len(values)) if len(values) > 1 else torch.zeros(1)
        kind = type(layers[path]).__name__.removeprefix("Parametrized")
        (line,) = axes.plot(places, values, ".-", markersize=3, label=f"{path} {kind}")
        if path in before:
            start = singular_values(before[path])
            axes.plot(places, start, "--", color=line.get_color(), linewidth=0.9, alpha=0.7)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("from the largest to the smallest" + "; dashed: before training" * bool(before))
    axes.set_ylabel("singular value")
    left_out = f" ({len(shown)} of {len(layers)} layers)" * (len(shown) < len(layers))
    title(figure, f"Spectra of the weights{left_out}")
    legend_below(axes)
    return figure
