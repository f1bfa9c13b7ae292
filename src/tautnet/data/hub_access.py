"""Opening sets of the public hub, or local folders in its formats, through the ``datasets`` package."""

from __future__ import annotations

import os
import re
import tarfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from logging import CRITICAL
from pathlib import Path
from pickle import UnpicklingError
from threading import Thread
from typing import Any

import torch
import yaml
from torch import Tensor

from tautnet.data.formats.decoding import fitted, in_threads, open_image, pixels, stacked
from tautnet.factories import DataError

HUB = "https://huggingface.co"
SECONDS = 4  # to wait for the hub
_LABEL_NAMES = ("label", "labels", "fine_label", "cls", "class")
_TEST_NAMES = ("test", "validation", "valid", "val")
_DESCRIPTIONS = ("README.md", ".huggingface.yaml")  # where a folder may say which of its files are the set
_HEADER = re.compile(r"\s*---[\r\n]+(.*?)[\r\n]+---(\r|\n|$)", re.DOTALL)  # as the package finds it
_ELSEWHERE = re.compile(r"[/\\~]|.*(:[/\\]|(^|[/\\])\.\.($|[/\\]))", re.DOTALL)
_UNREADABLE = (OSError, ValueError, RuntimeError, UnpicklingError, tarfile.TarError, zipfile.BadZipFile)


class HubError(ValueError):
    """A set that cannot be opened, with the reason."""


@dataclass(frozen=True)
class ImageColumns:
    """Which columns of a set hold images and classes, and how many classes there are (None: not stated)."""

    image: str
    label: str
    num_classes: int | None


def open_parts(path: str, subset: str | None, streaming: bool) -> Mapping[str, Any]:
    """The parts of a set by name (``train``, ``test``, ...), as objects of the ``datasets`` package.

    Args:
        path: name on the hub (owner/set) or a local folder.
        subset: which of several configurations.
        streaming: read samples when they are asked for instead of preparing the whole set first.

    Raises:
        HubError: the package is missing, the hub out of reach, or the set cannot be read.
    """
    if not path:
        raise HubError("a name or a folder is needed")
    local = Path(path).expanduser()
    _check_description(local)
    if not local.is_dir() and not _reachable():
        os.environ["HF_HUB_OFFLINE"] = "1"  # read when the package is imported: it then uses what it stored before
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise HubError("needs the package datasets: pip install 'tautnet[data]'") from error
    datasets.logging.set_verbosity(CRITICAL)  # what goes wrong is said once, by the error
    try:
        return datasets.load_dataset(str(local) if local.is_dir() else path, subset, streaming=streaming)
    except datasets.exceptions.DatasetNotFoundError as error:
        raise HubError("no such set on the hub, and no such folder here") from error
    except ConnectionError as error:
        raise HubError("not stored on this machine, and the hub cannot be reached") from error
    except (*_UNREADABLE, datasets.exceptions.DatasetsError) as error:
        raise HubError(" ".join(str(error).split())[:300]) from error


def _check_description(folder: Path) -> None:
    """Refuse a local folder that declares files which lie elsewhere, or in the network, to be its own."""
    for name in _DESCRIPTIONS:
        path = folder / name
        text = path.read_text(errors="replace") if path.is_file() else ""
        header = _HEADER.match(text)
        try:
            content = yaml.safe_load(header[1] if header else text if path.suffix == ".yaml" else "")
        except yaml.YAMLError as error:
            raise HubError(f"{path}: not readable") from error
        configs = content.get("configs") if isinstance(content, dict) else None
        for value in _texts(configs):
            if _ELSEWHERE.match(value):
                raise HubError(f"{path}: names {value}, which is outside of the folder")


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for entry in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _texts(entry)


def _reachable() -> bool:
    """Whether the hub answers within seconds; the package itself would try for half a minute."""
    found: list[bool] = []

    def ask() -> None:
        try:
            urllib.request.urlopen(os.environ.get("HF_ENDPOINT", HUB), timeout=SECONDS).close()
            found.append(True)
        except urllib.error.HTTPError:  # an answer too
            found.append(True)
        except (OSError, ValueError):
            pass

    thread = Thread(target=ask, daemon=True)  # looking up a name has no timeout of its own
    thread.start()
    thread.join(SECONDS)
    return bool(found)


def image_columns(features: Mapping[str, Any] | None, path: str, label: str | None) -> ImageColumns:
    """Find the image column and the class column.

    Args:
        features: of the set.
        path: for messages.
        label: name of the class column; None takes the only one of kind ClassLabel, or a usual name.

    Raises:
        ValueError: there is no image column, or no single candidate for the classes.
    """
    kinds = {name: type(feature).__name__ for name, feature in (features or {}).items()}
    images = [name for name, feature in (features or {}).items() if _is_image(feature)]
    if not images:
        raise ValueError(f"path={path}: no image column; it has {', '.join(kinds) or 'no known columns'}")
    labels = [name for name, kind in kinds.items() if kind == "ClassLabel"]
    if len(labels) != 1:
        usual = [name for name in kinds if name in _LABEL_NAMES]
        labels = sorted(usual, key=_LABEL_NAMES.index)[:1] or labels
    if label is not None:
        labels = [name for name in kinds if name == label and name not in images]
    if len(labels) != 1:
        wanted = f"label={label}" if label is not None else f"path={path}"
        raise ValueError(f"{wanted}: name the column of the classes by data.label; there are {', '.join(kinds)}")
    assert features is not None
    kind = str(getattr(features[labels[0]], "dtype", kinds[labels[0]]))
    if not kind.startswith(("int", "uint")):
        raise ValueError(f"label={labels[0]}: a column of {kind}, classes are integers; there are {', '.join(kinds)}")
    return ImageColumns(images[0], labels[0], getattr(features[labels[0]], "num_classes", None))


def _is_image(feature: Any) -> bool:
    """Declared as an image, or stored like one: a structure with the bytes of a file."""
    return type(feature).__name__ == "Image" or (isinstance(feature, dict) and "bytes" in feature)


def test_name(parts: Mapping[str, Any]) -> str | None:
    """Name of the part to test on, None if the set has no other part than ``train``."""
    return next((name for name in _TEST_NAMES if name in parts), None)


def open_table(path: str) -> Any:
    """All parts of a set of tables as one ``pandas.DataFrame``.

    Raises:
        HubError: as of ``open_parts``.
    """
    parts = open_parts(path, None, streaming=False)
    import datasets

    return datasets.concatenate_datasets(list(parts.values())).to_pandas()


def undecoded(part: Any, columns: ImageColumns) -> Any:
    """A part with its image and class columns alone, images as they are stored."""
    import datasets

    return part.select_columns([columns.image, columns.label]).cast_column(columns.image, datasets.Image(decode=False))


def decoded(encoded: Sequence[bytes], source: str, image_size: int | None, channels: int | None = None) -> Tensor:
    """Decode and, with ``image_size``, scale and cut to a square; shape (N, C, H, W) uint8.

    Args:
        encoded: PNG, JPEG and the like.
        source: of the images, for messages.
        image_size: side in pixels.
        channels: 1 for gray, 3 for RGB; None takes gray only if all images are gray.

    Raises:
        DataError: an image that cannot be decoded, or sizes that differ without ``image_size``.
    """
    try:
        images = in_threads(lambda item: open_image(item, source), encoded)
    except ValueError as error:
        raise DataError(str(error)) from error
    mode = {1: "L", 3: "RGB"}.get(channels or 0) or ("L" if all(image.mode == "L" for image in images) else "RGB")
    sized = [image.convert(mode) for image in images]
    if image_size is not None:
        sized = [fitted(image, image_size) for image in sized]
    try:
        return stacked([pixels(image) for image in sized], lambda index: f"{source}: image {index + 1}")
    except ValueError as error:
        raise DataError(f"{error}; image_size makes them equal") from error


def class_numbers(labels: Sequence[int | None], source: str, num_classes: int | None = None) -> Tensor:
    """(N,) int64.

    Raises:
        DataError: a sample without a class, or with one that is not below ``num_classes``.
    """
    if any(label is None or label < 0 for label in labels):
        raise DataError(f"{source}: a sample has no class; only parts with classes can be used")
    numbers = torch.tensor(labels, dtype=torch.int64)
    if num_classes is not None and numbers.max() >= num_classes:
        raise DataError(f"{source}: class {int(numbers.max())}, expected 0 to {num_classes - 1}")
    return numbers
