"""Small sets in the formats of the public hub, written for tests; pixels tell which image they belong to."""

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from data_files import png


def numbered_image(number: int, side: int = 4, channels: int = 3) -> np.ndarray:
    """(C, side, side) uint8 whose first pixels spell ``number`` (below 65536)."""
    image = np.full((channels, side, side), number * 37 % 251, np.uint8)
    image[:, 0, 0], image[:, 0, 1] = number // 256, number % 256
    return image


def numbers_of(images) -> list[int]:
    """The numbers of a batch (N, C, H, W) of images that are in units of uint8 values."""
    high, low = (images[:, 0, 0, column].round().long() for column in (0, 1))
    return (high * 256 + low).tolist()


def write_shards(
    root: Path, part: str, sizes: Sequence[int], num_classes: int = 3, start: int = 0, labels=None, contents=None
) -> Path:
    """Parquet files of ``sizes`` images and classes, numbered on from ``start``; class = number % ``num_classes``."""
    from datasets import ClassLabel, Dataset, Features, Image

    root.mkdir(parents=True, exist_ok=True)
    features = Features({"image": Image(), "label": ClassLabel(names=[f"c{i}" for i in range(num_classes)])})
    for shard, size in enumerate(sizes):
        numbers = range(start, start + size)
        start += size
        rows = {
            "image": [{"bytes": (contents or {}).get(i) or png(numbered_image(i)), "path": None} for i in numbers],
            "label": [(labels or {}).get(i, i % num_classes) for i in numbers],
        }
        name = f"{part}-{shard:05d}-of-{len(sizes):05d}.parquet"
        Dataset.from_dict(rows, features=features).to_parquet(str(root / name))
    return root


def write_tars(root: Path, part: str, sizes: Sequence[int], num_classes: int = 3) -> Path:
    """Tar files of pairs <key>.png and <key>.cls."""
    root.mkdir(parents=True, exist_ok=True)
    number = 0
    for shard, size in enumerate(sizes):
        with tarfile.open(root / f"{part}-{shard:05d}.tar", "w") as file:
            for _ in range(size):
                for suffix, content in (
                    ("png", png(numbered_image(number))),
                    ("cls", str(number % num_classes).encode()),
                ):
                    entry = tarfile.TarInfo(f"{number:06d}.{suffix}")
                    entry.size = len(content)
                    file.addfile(entry, io.BytesIO(content))
                number += 1
    return root
