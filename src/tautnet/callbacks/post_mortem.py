"""Where a training step first met a value that is not finite: look for it, tell it, write it down."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from lightning_fabric.utilities.apply_func import move_data_to_device
from torch import Tensor, nn

from tautnet.models.base import AbstractModel

# In the order in which a step meets them. The loss: of a finite output and finite penalties. Nothing: in this rank.
Kind = Literal["input", "target", "parameter", "module", "penalty", "loss", "gradient", "nothing"]
_LOOK_AT_DATA = "; look at the data"
_SLOW_DOWN = "; a smaller optimizer.lr, scheduler=warmup or trainer.gradient_clip_val may help"


@dataclass(frozen=True)
class Values:
    """What a tensor holds.

    Attributes:
        shape: of the tensor.
        low: smallest finite value; None without any.
        high: largest finite value; None without any.
        num_nan: how many values are NaN.
        num_infinite: how many are infinite.
        first_bad: index of the first that is one or the other; None without any.
    """

    shape: tuple[int, ...]
    low: float | None
    high: float | None
    num_nan: int
    num_infinite: int
    first_bad: tuple[int, ...] | None

    @classmethod
    def of(cls, x: Tensor) -> Values:
        """Those of a tensor of any type."""
        x = x.detach()
        fine = x.isfinite()
        finite, bad = x[fine], (~fine).nonzero()
        low, high = (float(end) for end in finite.aminmax()) if finite.numel() else (None, None)
        first_bad = tuple(bad[0].tolist()) if len(bad) else None
        return cls(tuple(x.shape), low, high, int(x.isnan().sum()), int(x.isinf().sum()), first_bad)

    def __str__(self) -> str:
        """In words."""
        parts = ["no finite value" if self.low is None else f"values in [{self.low:.4g}, {self.high:.4g}]"]
        parts += [f"{count} {name}" for count, name in ((self.num_nan, "NaN"), (self.num_infinite, "inf")) if count]
        return ", ".join(parts)


@dataclass
class Visit:
    """A module in a forward pass.

    Attributes:
        path: of the module in the model.
        type: the name of its class.
        input: the first tensor that entered; None without any.
        output: the first tensor that left; None without any.
    """

    path: str
    type: str
    input: Values | None
    output: Values | None


@dataclass
class Finding:
    """The first value of a step that is not finite.

    Attributes:
        kind: what it is part of.
        name: which one of these.
        values: of this tensor; of a module its output.
        modules: those that ran, in the order in which they ended.
        bad_gradients: parameters whose gradient is not finite, in the order of the backward pass.
        bad_buffers: buffers that are not finite.
    """

    kind: Kind
    name: str = ""
    values: Values | None = None
    modules: list[Visit] = field(default_factory=list)
    bad_gradients: list[str] = field(default_factory=list)
    bad_buffers: list[str] = field(default_factory=list)

    @property
    def cure(self) -> str:
        """What a user can do, as the end of a sentence."""
        return _LOOK_AT_DATA if self.kind in ("input", "target") else _SLOW_DOWN

    def __str__(self) -> str:
        """In words."""
        if self.kind in ("loss", "nothing"):
            return "the loss itself"
        what = f"the {self.kind} {self.name}".strip()
        path = self.name if self.kind == "module" else self.name.rpartition(".")[0]
        visit = next((visit for visit in reversed(self.modules) if visit.path == path), None)
        if self.kind in ("module", "gradient") and visit is not None:
            what = f"the output of {path}" if self.kind == "module" else f"the gradient of {self.name}"
            return f"{what} ({visit.type}; its input: {visit.input})"
        at = f" at {list(self.values.first_bad)}" if self.values and self.values.first_bad else ""
        return f"{what}{at} ({self.values})"


def examine(model: AbstractModel, batch: Sequence[Tensor], forward: Callable[[], Any], bad_loss: bool) -> Finding:
    """Look for the first value that is not finite, in the order in which a training step computes.

    Args:
        model: has the gradients of the step.
        batch: inputs and targets.
        forward: runs the network on the inputs as the step did; what it does to buffers and generators is the caller's
            matter.
        bad_loss: whether the batch's loss is not finite.
    """
    with _visits(model) as modules:
        forward()
    bad_gradients = _bad_gradients(model, modules)
    found = _first_bad(model, batch, modules, bad_loss)
    if found is None and bad_gradients:
        found = Finding("gradient", bad_gradients[0], Values.of(_gradients(model)[bad_gradients[0]]))
    found = found or Finding("nothing")
    found.modules, found.bad_gradients = modules, bad_gradients
    return found


def bad_parameter(model: nn.Module) -> Finding | None:
    """The first parameter that is not finite."""
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            return Finding("parameter", name, Values.of(parameter))
    return None


def earliest(findings: Sequence[Finding]) -> int:
    """Which of several findings on one step comes first in it; the others may follow from it."""
    order = get_args(Kind)
    return min(range(len(findings)), key=lambda number: order.index(findings[number].kind))


def write_down(folder: Path, model: nn.Module, batch: Any, finding: Finding, report: Mapping[str, Any]) -> None:
    """Write ``weights.pt``, ``batch.pt`` if there is a batch, and last ``report.json``.

    Raises:
        OSError: it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(move_data_to_device(model.state_dict(), torch.device("cpu")), folder / "weights.pt")
    if batch is not None:
        torch.save(move_data_to_device(batch, torch.device("cpu")), folder / "batch.pt")
    found = asdict(finding)
    first = {name: found.pop(name) for name in ("kind", "name", "values")}
    found["bad_buffers"] = [name for name, buffer in model.named_buffers() if not buffer.isfinite().all()]
    text = json.dumps({**report, "first_bad": first, **found}, indent=1, allow_nan=False)
    (folder / "report.json").write_text(text + "\n")


def _first_bad(
    model: AbstractModel, batch: Sequence[Tensor], modules: Sequence[Visit], bad_loss: bool
) -> Finding | None:
    inputs, targets = (Values.of(part) for part in batch)
    if inputs.first_bad is not None:
        return Finding("input", values=inputs)
    if targets.first_bad is not None:
        return Finding("target", values=targets)
    found = bad_parameter(model)
    if found is not None or not bad_loss:
        return found
    for visit in modules:
        if visit.output is not None and visit.output.first_bad is not None:
            return Finding("module", visit.path, visit.output)
    for name, regularizer in model.regularizers.items():
        penalty = Values.of(regularizer())
        if penalty.first_bad is not None:
            return Finding("penalty", f"regularizers.{name}", penalty)
    return Finding("loss")


@contextmanager
def _visits(model: AbstractModel) -> Iterator[list[Visit]]:
    """The modules of the network that run, in the order in which they end."""
    ended: list[Visit] = []
    entered: list[Values | None] = []  # of the modules under way

    def enter(module: nn.Module, inputs: Any) -> None:
        entered.append(_first_tensor(inputs))  # now: a module may write into its input

    def leave(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def note(module: nn.Module, inputs: Any, output: Any) -> None:
            ended.append(Visit(path, type(module).__name__, entered.pop(), _first_tensor(output)))

        return note

    modules = [(f"net.{path}".rstrip("."), module) for path, module in model.net.named_modules()]
    handles = [module.register_forward_pre_hook(enter) for _, module in modules]
    handles += [module.register_forward_hook(leave(path)) for path, module in modules]
    try:
        yield ended
    finally:
        for handle in handles:
            handle.remove()


def _first_tensor(values: Any) -> Values | None:
    parts = values if isinstance(values, (tuple, list)) else (values,)
    return next((Values.of(part) for part in parts if isinstance(part, Tensor)), None)


def _gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def _bad_gradients(model: nn.Module, modules: Sequence[Visit]) -> list[str]:
    """Those outside the network, which stand next to the loss, then those of the modules that ended last."""
    order = {visit.path: number for number, visit in enumerate(modules)}
    bad = [name for name, gradient in _gradients(model).items() if not gradient.isfinite().all()]
    return sorted(bad, key=lambda name: -order.get(name.rpartition(".")[0], len(order)))
