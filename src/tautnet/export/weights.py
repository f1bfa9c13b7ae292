"""A network as safetensors and JSON, from which tautnet builds it again: nothing in the files is executed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from tautnet.errors import ConfigError
from tautnet.models.network import build_net
from tautnet.targets import allowing
from tautnet.trained import Trained

CONFIG, WEIGHTS = "config.json", "model.safetensors"
FORMAT, VERSION = "tautnet network", 1
_SETTINGS = ("model", "activation", "norm", "input_shape", "num_outputs")
_LARGEST_CONFIG = 2**24  # bytes; names of columns may make it long


def write_weights(trained: Trained, metadata: Mapping[str, Any], folder: Path) -> None:
    """Write what ``load_exported`` takes: the weights, bit by bit, and the settings of the network alone.

    Args:
        trained: the model.
        metadata: plain; becomes ``about`` in the settings' file, and the metadata of the weights' file.
        folder: where the two files go.
    """
    tensors = {name: value.detach().contiguous() for name, value in trained.model.net.state_dict().items()}
    content = save(tensors, {name: json.dumps(value, allow_nan=False) for name, value in metadata.items()})
    document = {
        "format": FORMAT,
        "version": VERSION,
        "sha256": hashlib.sha256(content).hexdigest(),
        "settings": {name: trained.settings[name] for name in _SETTINGS},
        "about": metadata,
    }
    (folder / WEIGHTS).write_bytes(content)
    (folder / CONFIG).write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", "utf-8")


def load_exported(folder: Path | str, allow: Sequence[str] = ()) -> nn.Module:
    """Rebuild a network from the two files of an export, in eval mode on the CPU.

    Args:
        folder: holds ``config.json`` and ``model.safetensors``.
        allow: packages or modules of the user whose targets the settings may name.

    Raises:
        ConfigError: files that are missing, damaged, of another format, or do not fit each other.
    """
    folder = Path(folder)
    config, weights = folder / CONFIG, folder / WEIGHTS
    document = _document(config)
    try:
        content = weights.read_bytes()
    except OSError as error:
        raise ConfigError(f"{weights}: {error.strerror}") from error
    if hashlib.sha256(content).hexdigest() != document["sha256"]:
        raise ConfigError(f"{weights}: not the weights that {config} was written with, or damaged")
    try:
        tensors = load(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ConfigError(f"{weights}: not a file of safetensors") from error
    net = _built(document["settings"], config, allow)
    try:
        net.load_state_dict(tensors)
    except (RuntimeError, ValueError, TypeError) as error:
        raise ConfigError(f"{weights}: its weights do not fit the settings in {config}") from error
    return net.eval()


def _document(path: Path) -> dict[str, Any]:
    """The settings' file, its outermost form checked."""
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_CONFIG + 1)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    if len(content) > _LARGEST_CONFIG:
        raise ConfigError(f"{path}: larger than {_LARGEST_CONFIG} bytes, which no settings are")
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: no JSON") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ConfigError(f"{path}: format: {FORMAT} is needed, as tautnet export writes it")
    if document.get("version") != VERSION:
        raise ConfigError(f"{path}: version {document.get('version')}: this tautnet reads version {VERSION}")
    if not isinstance(document.get("settings"), dict) or "sha256" not in document:
        raise ConfigError(f"{path}: settings and sha256 are needed")
    return document


def _built(settings: dict[str, Any], path: Path, allow: Sequence[str]) -> nn.Module:
    shape, outputs = settings.get("input_shape"), settings.get("num_outputs")
    sizes = [*shape, outputs] if isinstance(shape, list) else [None]
    if not all(type(size) is int and size > 0 for size in sizes):
        raise ConfigError(f"{path}: input_shape={shape} num_outputs={outputs}: integers of at least 1")
    try:
        with allowing(allow), torch.random.fork_rng(devices=[]):
            return build_net(settings)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    except (AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not the settings of a network") from error
