"""The files of an export, all of them or none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from tautnet.activations.linear_spline import LinearSpline
from tautnet.errors import ConfigError
from tautnet.export.layers import Standardize
from tautnet.export.metadata import describe
from tautnet.export.onnx_file import check_packages, write_onnx
from tautnet.export.plain import plain_net
from tautnet.export.probes import DiffersError, largest_error, raw_probes
from tautnet.export.program import traced, write_pt2
from tautnet.export.weights import CONFIG, WEIGHTS, write_weights
from tautnet.splines.export import save_json, save_npz
from tautnet.trained import Trained

_FILES = {
    "onnx": ("model.onnx",),
    "pt2": ("model.pt2",),
    "safetensors": (WEIGHTS, CONFIG),
    "splines": ("splines.json", "splines.npz"),
}
FORMATS = tuple(_FILES)
_Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Written:
    """One file of an export.

    Attributes:
        path: where it is.
        size: in bytes.
        error: largest difference from the network's outputs, as a share of the largest one; None where the file holds
            the network's own numbers.
    """

    path: Path
    size: int
    error: float | None


def export(
    trained: Trained, folder: Path, formats: Sequence[str], raw: bool = False, overwrite: bool = False
) -> tuple[list[Written], dict[str, Any]]:
    """Write a trained network into files that run elsewhere; a network that computes is compared with its origin.

    Args:
        trained: the model; its weights and mode stay.
        folder: made when needed.
        formats: some of ``FORMATS``.
        raw: ``onnx`` and ``pt2`` take raw values and standardise them.
        overwrite: whether files of an earlier export may be replaced.

    Returns:
        The files, and what ``onnx`` and ``pt2`` say about the network, see ``describe``.

    Raises:
        ConfigError: formats that cannot be written, or files that are there.
        DiffersError: an exported network that computes something else; then no file is written.
    """
    _check(trained, folder, formats, overwrite)
    metadata = describe(trained, raw)
    names = [name for chosen in FORMATS if chosen in formats for name in _FILES[chosen]]
    with _made(folder), TemporaryDirectory(prefix=".", suffix=".part", dir=folder) as part:
        try:
            with torch.random.fork_rng(devices=[]):
                errors = _write(trained, Path(part), formats, raw, metadata)
        except DiffersError:
            raise
        except ValueError as error:  # of a network with numbers that are not finite, for example
            raise ConfigError(str(error)) from error
        for name in names:
            Path(part, name).replace(folder / name)
    return [Written(folder / name, (folder / name).stat().st_size, errors.get(name)) for name in names], metadata


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """The folder is there; if nothing was put into a new one, it goes."""
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        if new and not any(folder.iterdir()):
            folder.rmdir()


def _check(trained: Trained, folder: Path, formats: Sequence[str], overwrite: bool) -> None:
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        raise ConfigError(f"format={', '.join(unknown) or 'none'}: some of {', '.join(FORMATS)}")
    if "splines" in formats and not has_splines(trained.model.net):
        raise ConfigError("--format splines: the network has no learned spline; choose other formats")
    if "onnx" in formats:
        check_packages()
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder}: not a folder")
    there = [name for chosen in formats for name in _FILES[chosen] if (folder / name).exists()]
    if there and not overwrite:
        raise ConfigError(f"{folder / there[0]}: is there already; --overwrite replaces it, --output goes elsewhere")


def has_splines(net: nn.Module) -> bool:
    """Whether there is a spline in a network, which the format ``splines`` needs."""
    return any(isinstance(module, LinearSpline) for module in net.modules())


def _write(
    trained: Trained, part: Path, formats: Sequence[str], raw: bool, metadata: dict[str, Any]
) -> dict[str, float]:
    """Into an empty folder; by how much the networks in the files differ, by name of the file."""
    net, errors = trained.model.net, {}
    if "splines" in formats:
        for name, save in zip(_FILES["splines"], (save_json, save_npz), strict=True):
            save(net, part / name)
    if "safetensors" in formats:
        write_weights(trained, describe(trained, raw=False), part)
    computing = {"pt2": write_pt2, "onnx": write_onnx}
    if computing.keys() & set(formats):
        reference, exact, plain, inputs = _sides(trained, raw)
        program = traced(plain, trained.model.input_shape)
        for chosen, write in computing.items():
            if chosen in formats:
                (name,) = _FILES[chosen]
                errors[name] = largest_error(name, write(program, metadata, part / name), reference, inputs, exact)
    return errors


def _sides(trained: Trained, raw: bool) -> tuple[_Function, _Function, nn.Module, list[Tensor]]:
    """The network, the same in float64, what is exported in its place, and inputs for all of them."""
    net, preparation = trained.model.net, trained.preparation
    plain, wide = plain_net(net), deepcopy(net).double()
    inputs = raw_probes(trained.model.input_shape, preparation)
    if not raw:
        return net, lambda x: wide(x.double()), plain, [preparation.prepared(x) for x in inputs]
    offset, scale = (torch.tensor(values, dtype=torch.float64) for values in (preparation.offset, preparation.scale))
    standardised = nn.Sequential(Standardize(offset, scale), plain)
    prepared = preparation.prepared
    return lambda x: net(prepared(x)), lambda x: wide(prepared(x).double()), standardised, inputs
