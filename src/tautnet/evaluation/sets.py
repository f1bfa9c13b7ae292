"""Data to evaluate on: those of the run, the same changed, or another set of the application by its name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tautnet.config import ConfigError
from tautnet.data.base import AbstractData, AbstractTensorData
from tautnet.data.loader import TensorLoader
from tautnet.data.preparation import Preparation
from tautnet.evaluation.labelled import LabelledTable
from tautnet.evaluation.prepared import PreparedBatches
from tautnet.evaluation.writing import note
from tautnet.spelling import suggest
from tautnet.trained import Trained

PARTS = ("test", "val", "train", "all")

_EMBEDDED, _IMAGES, _TABLE = "embedded.Embedded", "images.Images", "table.Table"
# The class of each data=<name>, and what the name says of its arguments; all others have defaults or are asked for.
SETS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "area": ("area.Area", {}),
    "breast_cancer": (_EMBEDDED, {"table": "breast_cancer"}),
    "cifar10": (_IMAGES, {"format": "cifar10", "root": None, "hub": "uoft-cs/cifar10"}),
    "cifar100": (_IMAGES, {"format": "cifar100", "root": None, "hub": "uoft-cs/cifar100"}),
    "denoising": ("denoising.Denoising", {}),
    "diabetes": (_EMBEDDED, {"table": "diabetes"}),
    "digits": ("digits.Digits", {}),
    "fashion_mnist": (_IMAGES, {"format": "mnist", "root": None, "hub": "zalando-datasets/fashion_mnist"}),
    "fit_1d": ("fit_1d.Fit1d", {}),
    "folder": (_IMAGES, {"format": "folder"}),
    "hub": ("hub.HubImages", {}),
    "iris": (_EMBEDDED, {"table": "iris"}),
    "mnist": (_IMAGES, {"format": "mnist", "root": None, "hub": "ylecun/mnist"}),
    "npz": (_IMAGES, {"format": "npz"}),
    "polynomials": ("polynomials.Polynomials", {}),
    "spirals": ("spirals.Spirals", {}),
    "stream": ("image_stream.ImageStream", {"image_size": 224}),
    "table": (_TABLE, {"task": "classification"}),
    "table_regression": (_TABLE, {"task": "regression"}),
    "two_gaussians": ("two_gaussians.TwoGaussians", {}),
    "wine": (_EMBEDDED, {"table": "wine"}),
}


def data_of(trained: Trained, option: str | None, overrides: Sequence[str]) -> AbstractData:
    """The data that a command line asks for.

    Args:
        trained: whose network gets them.
        option: name of a set of the application; None for that of the run.
        overrides: ``data.<key>=<value>``, as ``train.py`` takes them.

    Raises:
        ConfigError: no such set or key, data that cannot be used, or that the network does not fit.
    """
    if option is None:
        settings = dict(trained.settings["data"])
    else:
        if option not in SETS:
            raise ConfigError(f"--data {option}: no such set{suggest(option, SETS)}")
        target, fixed = SETS[option]
        settings = {"_target_": f"tautnet.data.{target}", **fixed}
        if option != "stream":  # evaluation does not depend on it, but it must not exceed the training part
            settings["batch_size"] = 1
    if "augmentation" in settings:
        settings["augmentation"] = None  # training alone is augmented
    data = replace(trained, settings=trained.settings | {"data": settings | _values(overrides)}).data()
    if data.task != trained.model.task:
        raise ConfigError(f"data: for {data.task}, {trained.checkpoint} was trained for {trained.model.task}")
    _check_classes(trained, data)
    return data


def _values(overrides: Sequence[str]) -> dict[str, Any]:
    values = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        group, _, name = key.partition(".")
        if not equals or group != "data" or not name:
            raise ConfigError(f"{override}: not of the form data.<key>=<value>; a set is named by --data")
        if "." in name or name in ("_target_", "augmentation"):
            raise ConfigError(f"{key}: cannot be changed here; --data names another set, and nothing is augmented")
        values[name] = _value(text)
    return values


def _value(text: str) -> Any:
    """Numbers, true, false, null and lists are what they say; all else is text."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _check_classes(trained: Trained, data: AbstractData) -> None:
    """Numbers mean the same only if names do."""
    classes, known = data.preparation.classes, trained.preparation.classes
    if classes is not None and known is not None and list(classes) != list(known):
        names, others = (", ".join(list(of)[:20]) for of in (classes, known))
        raise ConfigError(f"data: its classes are {names}; {trained.checkpoint} was trained with {others}")


def batches_of(data: AbstractData, part: str, trained: Preparation, name: str) -> PreparedBatches:
    """A part in its order, put through the preparation of the run instead of its own.

    A test set that is shifted or stretched against the training data stays so.

    Args:
        data: where they come from.
        part: ``test``, ``val``, ``train`` (without augmentation) or ``all``.
        trained: of the run.
        name: of the data, in words.

    Raises:
        ConfigError: no such part in these data.
    """
    if part not in PARTS:
        raise ConfigError(f"--part {part}: one of {', '.join(PARTS)}")
    loaders: list[Any] = []
    if part in ("train", "all"):
        if not isinstance(data, AbstractTensorData):
            raise ConfigError(f"--part {part}: of data in memory; a stream's training part comes in no order")
        loaders.append(
            TensorLoader(data.splits.train, data.test_dataloader().batch_size, shuffle=False, drop_last=False)
        )
    if part in ("val", "all"):
        loaders.append(data.val_dataloader())
    if part in ("test", "all"):
        loaders.append(data.test_dataloader())
    own = data.preparation
    unknown = [own.columns[i] if own.columns else str(i) for i, scale in enumerate(own.scale) if scale == 0]
    if unknown and own != trained:
        note(f"constant in the training part of these data, and taken as constant: {', '.join(unknown)}")
    description = f"{'all parts' if part == 'all' else f'the {part} part'} of {name}"
    return PreparedBatches(loaders, own, trained, data.task == "regression", description)


def table_batches(trained: Trained, path: Path, target: str | None) -> PreparedBatches:
    """All rows of a table with their true values.

    Args:
        trained: whose columns and classes count.
        path: see ``TableFile``.
        target: the column of the true values; None for that of the run.

    Raises:
        ConfigError: a file that cannot be used.
    """
    if len(trained.model.input_shape) != 1:
        raise ConfigError(f"--file {path}: a table; the network takes {trained.model.input_shape}")
    target = target or trained.settings["data"].get("target")
    if target is None:
        raise ConfigError(f"--file {path}: --target is needed, the column of the true values")
    raw = Preparation.none(trained.model.input_shape[0])
    table = LabelledTable(path, target, trained)
    return PreparedBatches([table], raw, trained.preparation, trained.model.task == "regression", str(path))
