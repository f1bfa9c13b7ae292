"""Images and labels in parquet files, as dataset hubs keep them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tautnet.data.formats.decoding import Pixels, in_threads, open_image, pixels, stacked
from tautnet.data.formats.files import data_module, one_line
from tautnet.data.formats.images import check_labels

MAX_VALUES = 10**9  # of one file: repeated values take no space in it, but 8 bytes each in memory


def read_image_parquet(paths: Sequence[Path], image_column: str, label_column: str) -> tuple[Tensor, Tensor]:
    """Read images and labels from the parts of one table, in the order given.

    An image is a struct with the field ``bytes``, or those bytes themselves: a PNG or another format that Pillow
    decodes. Gray images have 1 channel, all others 3 (RGB).

    Args:
        paths: of the parquet files, at least one.
        image_column: name.
        label_column: name, integers from 0.

    Returns:
        Images (N, C, H, W) uint8 and labels (N,) int64.

    Raises:
        ValueError: no paths, a damaged file, a column that is missing or of another type, an image that cannot be
            decoded or differs from the first in size or mode. Rows count from 1.
    """
    if not paths:
        raise ValueError("paths=[]: at least one parquet file")
    names: list[str] = []
    images: list[Pixels] = []
    labels: list[Tensor] = []
    for path in map(Path, paths):
        table = _columns(path, [image_column, label_column])
        encoded = _encoded(path, table.column(image_column).to_pylist(), image_column)
        part_names = [f"{path}: row {row}" for row in range(1, len(encoded) + 1)]
        labels.append(_labels(path, table.column(label_column), label_column))
        images += in_threads(_decode, list(zip(encoded, part_names, strict=True)))
        names += part_names
    if not images:
        raise ValueError(f"{paths[0]}: no rows")
    return stacked(images, names.__getitem__), torch.cat(labels)


def parquet_columns(path: Path) -> tuple[str, ...]:
    """Names of the columns.

    Raises:
        ValueError: the file is missing or damaged.
    """
    schema = open_parquet(path).schema_arrow
    try:
        return tuple(schema.names)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: damaged parquet file ({one_line(error)})") from error


def open_parquet(path: Path) -> Any:
    """A ``pyarrow.parquet.ParquetFile``.

    Raises:
        ValueError: the file is missing or damaged, or pyarrow is not installed.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    pyarrow, parquet = data_module("pyarrow", path), data_module("pyarrow.parquet", path)
    try:
        return parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a readable parquet file ({one_line(error)})") from error


def read_columns(path: Path, columns: list[str] | None = None) -> Any:
    """A ``pyarrow.Table`` of some columns, or of all.

    Raises:
        ValueError: as of ``open_parquet``, damaged content, or more than 10^9 values.
    """
    file = open_parquet(path)
    pyarrow = data_module("pyarrow", path)
    num_columns = file.metadata.num_columns if columns is None else len(columns)
    if file.metadata.num_rows * num_columns > MAX_VALUES:
        raise ValueError(f"{path}: {file.metadata.num_rows} rows of {num_columns} columns, at most {MAX_VALUES} values")
    try:
        table = file.read(columns=columns)
        table.validate(full=True)
        return table
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: damaged parquet file ({one_line(error)})") from error


def _columns(path: Path, columns: list[str]) -> Any:
    present = parquet_columns(path)
    for name in columns:
        if present.count(name) != 1:
            raise ValueError(f"{path}: {present.count(name)} columns named {name}, expected one; there are {present}")
    return read_columns(path, columns)


def _encoded(path: Path, values: list[Any], column: str) -> list[bytes]:
    """The bytes of each image."""
    found: list[bytes] = []
    for value in values:
        content = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(content, bytes):
            raise ValueError(f"{path}: row {len(found) + 1} of column {column} holds no image bytes")
        found.append(content)
    return found


def _labels(path: Path, column: Any, name: str) -> Tensor:
    """(N,) int64."""
    types = data_module("pyarrow.types", path)
    if not types.is_integer(column.type) or column.null_count:
        kind = f"{column.type} with missing values" if column.null_count else column.type
        raise ValueError(f"{path}: column {name} is {kind}, expected integers")
    labels = torch.tensor(column.to_pylist(), dtype=torch.int64)
    check_labels(f"{path}: column {name}", labels)
    return labels


def _decode(item: tuple[bytes, str]) -> Pixels:
    return pixels(open_image(*item))
