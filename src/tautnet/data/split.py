"""Seeded splits and standardised tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from tautnet.data.base import Splits
from tautnet.data.loader import TensorSamples
from tautnet.data.preparation import Preparation
from tautnet.factories import Task

Indices = np.ndarray  # (n,) int64
Array = np.ndarray[Any, Any]


def check_fractions(val_fraction: float, test_fraction: float) -> None:
    """Raise ValueError unless both parts exist and leave something to train on."""
    for name, value in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
        if not 0.01 <= value <= 0.98:  # at least a sample of each class
            raise ValueError(f"{name}={value}: from 0.01 to 0.98")
    if not val_fraction + test_fraction <= 0.99:
        raise ValueError(f"val_fraction={val_fraction}: with test_fraction={test_fraction} at most 0.99")


def hold_out(
    indices: Indices, classes: Array | None, fraction: float, seed: int, asked: str
) -> tuple[Indices, Indices]:
    """The rest and the part of ``fraction``; with ``classes``, of all samples, each class is divided alike.

    Raises:
        ValueError: a part too small to hold every class; the message begins with ``asked``.
    """
    from sklearn.model_selection import train_test_split  # slow to import: bad arguments are answered before

    strata = None if classes is None else classes[indices]
    try:
        rest, part = train_test_split(indices, test_size=fraction, stratify=strata, random_state=seed)
    except ValueError as error:
        raise ValueError(f"{asked}: {fraction:.3g} of {len(indices)} samples cannot be held out: {error}") from error
    return rest, part


def three_parts(
    num_samples: int, classes: Array | None, val_fraction: float, test_fraction: float, seed: int
) -> tuple[Indices, Indices, Indices]:
    """Indices of training, validation and test part; the fractions are of all samples."""
    rest, test = hold_out(np.arange(num_samples), classes, test_fraction, seed, f"test_fraction={test_fraction}")
    train, val = hold_out(rest, classes, val_fraction / (1 - test_fraction), seed, f"val_fraction={val_fraction}")
    return train, val, test


def drawn_splits(num_points: int, seed: int, draw: Callable[[int, torch.Generator], TensorSamples]) -> Splits:
    """``num_points`` to train and a quarter of it each to validate and to test, drawn one after the other."""
    generator = torch.Generator().manual_seed(seed)
    return Splits(*(draw(count, generator) for count in (num_points, num_points // 4, num_points // 4)))


def table_splits(
    features: Array,
    target: Array,
    task: Task,
    val_fraction: float,
    test_fraction: float,
    seed: int,
    columns: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
) -> Splits:
    """Split a table and standardise it by its training part: features, and the targets of a regression.

    A constant column becomes 0.

    Args:
        features: (N, D).
        target: (N,) class numbers from 0, or real values.
        task: ``classification`` or ``regression``.
        val_fraction: share of all samples.
        test_fraction: share of all samples.
        seed: of the split.
        columns: names of the features, if they have some.
        classes: names of the classes; None: their numbers, or a regression.

    Raises:
        ValueError: a class with too few samples to be divided.
    """
    strata = target if task == "classification" else None
    parts = three_parts(len(features), strata, val_fraction, test_fraction, seed)
    x = standardised(features, parts[0])
    mean, deviation, constant = _statistics(features, parts[0])
    preparation = Preparation(mean.tolist(), np.where(constant, 0.0, deviation).tolist(), columns, classes)
    y, dtype = target, np.int64 if task == "classification" else np.float32
    if task == "regression":
        y = standardised(target[:, None], parts[0])
        (offset,), (scale,), (constant,) = _statistics(target[:, None], parts[0])
        preparation = replace(preparation, target_offset=float(offset), target_scale=0.0 if constant else float(scale))
    return Splits(
        *(
            TensorSamples(torch.from_numpy(x[i].astype(np.float32)), torch.from_numpy(y[i].astype(dtype)))
            for i in parts
        ),
        preparation=preparation,
    )


def standardised(columns_ND: Array, train: Indices) -> Array:
    """(x - mean) / deviation of the training rows, 0 where that is constant.

    Raises:
        ValueError: values whose mean or deviation overflows.
    """
    mean, deviation, constant = _statistics(columns_ND, train)
    return np.where(constant, 0.0, (columns_ND - mean) / deviation)


def _statistics(columns_ND: Array, train: Indices) -> tuple[Array, Array, Array]:
    """Mean and deviation of each column over the training rows, and which are constant; their deviation is called 1."""
    with np.errstate(over="ignore", invalid="ignore"):
        mean, deviation = columns_ND[train].mean(0), columns_ND[train].std(0)
    if not (np.isfinite(mean).all() and np.isfinite(deviation).all()):
        raise ValueError("values too large to be standardised")
    constant = deviation <= 1e-12 * np.abs(columns_ND[train]).max(0, initial=0)
    return mean, np.where(constant, 1.0, deviation), constant
