"""How the trainer makes its steps: settings that it, or this machine, would not carry out."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from math import inf
from typing import Any

import torch

from tautnet.config import ConfigError


def check_steps(trainer: Mapping[str, Any], compiles: bool) -> None:
    """Refuse what would not happen as asked: accumulation, clipping, precision, compilation.

    Args:
        trainer: the trainer's settings.
        compiles: whether the network is to be compiled.

    Raises:
        ConfigError: a setting that has no effect, or that this machine cannot serve.
    """
    _check_gradients(trainer)
    if trainer.get("max_steps", -1) != -1:  # Lightning counts an epoch twice when such a run goes on
        raise ConfigError(f"trainer.max_steps={trainer['max_steps']}: name trainer.max_epochs and .limit_train_batches")
    accelerator, precision = trainer.get("accelerator"), trainer.get("precision")
    on_cpu = accelerator == "cpu" or (accelerator in (None, "auto") and not torch.accelerator.is_available())
    if on_cpu and str(precision) in ("16", "16-mixed"):  # Lightning would train in bfloat16 instead
        raise ConfigError(f"trainer.precision={precision}: needs a GPU; on the CPU 32-true or bf16-mixed")
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")  # as torch looks for it
    if compiles and on_cpu and shutil.which(compiler) is None:
        raise ConfigError(f"compile=true: needs a C++ compiler, and there is no {compiler}; CXX may name another")


def _check_gradients(trainer: Mapping[str, Any]) -> None:
    """What Lightning takes without a word and does not do."""
    batches = trainer.get("accumulate_grad_batches")
    if isinstance(batches, int) and batches < 1:
        raise ConfigError(f"trainer.accumulate_grad_batches={batches}: an integer of at least 1")
    value, algorithm = trainer.get("gradient_clip_val"), trainer.get("gradient_clip_algorithm")
    if isinstance(value, (int, float)) and not 0 < value < inf:
        raise ConfigError(f"trainer.gradient_clip_val={value}: a finite number above 0, or null for no clipping")
    if value is None and algorithm is not None:
        raise ConfigError(f"trainer.gradient_clip_algorithm={algorithm}: null while trainer.gradient_clip_val is null")
