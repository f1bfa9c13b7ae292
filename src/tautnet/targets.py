"""Which classes and functions a configuration can name by ``_target_``.

A configuration may come from a file that somebody else wrote: what it names must not be able to run a program, load a
pickle, fetch from the network, import by name, or delete. Where something writes is checked in ``tautnet.config``.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from typing import Any

PACKAGES = ("tautnet.", "torch.nn.", "torch.optim.", "pytorch_lightning.", "torchmetrics.")

# Where a class must be defined, by the beginning of its full name. Of tautnet the packages that a network, its data and
# its training are made of, not those that start processes or tidy directories up.
_CLASSES = (
    *("tautnet.activations.", "tautnet.backbones.", "tautnet.callbacks.", "tautnet.data.", "tautnet.losses."),
    *("tautnet.models.", "tautnet.normalizers.", "tautnet.optim.", "tautnet.regularizers."),
    *("torch.nn.", "torch.optim."),
    # The rest of torchmetrics fetches pretrained networks, some of them as pickles, and runs programs.
    *("torchmetrics.aggregation.", "torchmetrics.classification.", "torchmetrics.regression."),
    # Left out of Lightning: loggers that send to a service; demos that download; servers; the command line, which
    # imports by name; callbacks that read files of their own; strategies that unpickle (FSDP, DeepSpeed) or start
    # other programs.
    *("pytorch_lightning.trainer.trainer.Trainer", "pytorch_lightning.accelerators."),
    *("pytorch_lightning.loggers.csv_logs.", "pytorch_lightning.loggers.tensorboard."),
    *("pytorch_lightning.callbacks.device_stats_monitor.", "pytorch_lightning.callbacks.early_stopping."),
    *("pytorch_lightning.callbacks.finetuning.", "pytorch_lightning.callbacks.gradient_accumulation_scheduler."),
    *("pytorch_lightning.callbacks.lr_monitor.", "pytorch_lightning.callbacks.model_checkpoint."),
    *("pytorch_lightning.callbacks.model_summary.", "pytorch_lightning.callbacks.on_exception_checkpoint."),
    *("pytorch_lightning.callbacks.progress.", "pytorch_lightning.callbacks.pruning."),
    *("pytorch_lightning.callbacks.rich_model_summary.", "pytorch_lightning.callbacks.stochastic_weight_avg."),
    *("pytorch_lightning.callbacks.throughput_monitor.", "pytorch_lightning.callbacks.timer."),
    *("pytorch_lightning.callbacks.weight_averaging.", "pytorch_lightning.plugins.precision."),
    *("pytorch_lightning.profilers.advanced.", "pytorch_lightning.profilers.base."),
    *("pytorch_lightning.profilers.pytorch.", "pytorch_lightning.profilers.simple."),
    *("pytorch_lightning.strategies.ddp.", "pytorch_lightning.strategies.model_parallel."),
    "pytorch_lightning.strategies.single_device.",
)
# Functions of these alone: others may load files, as Lightning's checkpoint loader does.
_FUNCTIONS = (
    *("tautnet.backbones.", "tautnet.normalizers.", "tautnet.optim.schedules."),
    "torch.nn.utils.parametrizations.",
)
_NAME = re.compile(r"[A-Za-z]\w*(\.[A-Za-z]\w*){1,15}", re.ASCII)

# No state: what the command line of the job under way says. Deep inside a model nobody knows the command line.
_named: ContextVar[tuple[str, ...]] = ContextVar("named", default=())


@contextmanager
def allowing(prefixes: Sequence[str]) -> Iterator[None]:
    """Meanwhile accept every class and function that is defined below these packages or modules too."""
    token = _named.set(tuple(f"{prefix}." for prefix in prefixes))
    try:
        yield
    finally:
        _named.reset(token)


def accepted() -> tuple[str, ...]:
    """The packages below which targets lie."""
    return tuple(prefix[:-1] for prefix in (*PACKAGES, *_named.get()))


def find(path: object) -> Callable[..., Any] | None:
    """The class or function of a full name; None if there is none, or none that a configuration can name."""
    named = _named.get()
    if not isinstance(path, str) or not _NAME.fullmatch(path) or not path.startswith((*PACKAGES, *named)):
        return None
    module_name, _, name = path.rpartition(".")
    try:
        target = getattr(import_module(module_name), name)
    except (ImportError, AttributeError):
        return None
    if not (inspect.isclass(target) or inspect.isroutine(target)):
        return None
    # A module also holds what it imports: os.system must not be reachable through one of ours.
    origin = f"{target.__module__}.{target.__qualname__}"
    allowed = _CLASSES if inspect.isclass(target) else _FUNCTIONS
    return target if origin.startswith((*allowed, *named)) else None
