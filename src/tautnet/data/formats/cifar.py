"""CIFAR-10 and CIFAR-100 in the forms in which they are handed out."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tautnet.data.formats.files import find_file, missing
from tautnet.data.formats.images import ImageArrays, check_count, check_labels, check_same_size
from tautnet.data.formats.parquet import parquet_columns, read_image_parquet
from tautnet.data.formats.pickles import ROW, read_pickled_batch

Part = tuple[Tensor, Tensor]


class _Layout(NamedTuple):
    """Names and sizes of one of the two sets."""

    classes: tuple[str, ...]
    train_files: tuple[str, ...]
    test_file: str
    python_folder: str
    binary_folder: str
    hub_folder: str
    archives: tuple[str, ...]
    label: str  # in a pickled batch
    hub_label: str  # in parquet files
    num_label_bytes: int  # before the pixels of a binary record; the last one is the class


_CIFAR10 = _Layout(
    classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    train_files=tuple(f"data_batch_{number}" for number in range(1, 6)),
    test_file="test_batch",
    python_folder="cifar-10-batches-py",
    binary_folder="cifar-10-batches-bin",
    hub_folder="plain_text",
    archives=("cifar-10-python.tar.gz", "cifar-10-binary.tar.gz"),
    label="labels",
    hub_label="label",
    num_label_bytes=1,
)
_FINE_LABELS = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish
forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle
mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale willow_tree
wolf woman worm
"""
_CIFAR100 = _Layout(
    classes=tuple(_FINE_LABELS.split()),
    train_files=("train",),
    test_file="test",
    python_folder="cifar-100-python",
    binary_folder="cifar-100-binary",
    hub_folder="cifar100",
    archives=("cifar-100-python.tar.gz", "cifar-100-binary.tar.gz"),
    label="fine_labels",
    hub_label="fine_label",
    num_label_bytes=2,
)


def read_cifar10(root: Path) -> ImageArrays:
    """Read CIFAR-10: 32x32 RGB images of 10 classes.

    What is in ``root``, or in the folder that the archive unpacks to, decides, looked for in this order: the binary
    version (``data_batch_1.bin`` ...), the python version (``data_batch_1`` ...), parquet files of a hub
    (``train-*.parquet`` and ``test-*.parquet``, also below ``data`` or ``plain_text``).

    Source: Krizhevsky (2009).

    Args:
        root: folder.

    Raises:
        ValueError: a file is missing or not what it should be.
    """
    return _read(Path(root), _CIFAR10)


def read_cifar100(root: Path) -> ImageArrays:
    """Read CIFAR-100 with its 100 fine labels.

    The forms and their order are those of ``read_cifar10``; the files are ``train.bin`` and ``test.bin``, ``train`` and
    ``test``, or parquet files, also below ``data`` or ``cifar100``. The names of the classes are in the order of the
    alphabet, as are the labels.

    Source: Krizhevsky (2009).

    Args:
        root: folder.

    Raises:
        ValueError: a file is missing or not what it should be.
    """
    return _read(Path(root), _CIFAR100)


def _read(root: Path, layout: _Layout) -> ImageArrays:
    train, test = _binary(root, layout) or _python(root, layout) or _hub(root, layout) or _nothing(root, layout)
    for part, (_, labels) in (("training", train), ("test", test)):
        check_labels(f"{root}: {part} part", labels, len(layout.classes))
    check_same_size(f"{root}: training part", train[0], f"{root}: test part", test[0])
    if train[0].shape[1:] != (3, 32, 32):
        raise ValueError(f"{root}: images of shape {tuple(train[0].shape[1:])}, expected 3x32x32")
    return ImageArrays(*train, *test, layout.classes)


def _nothing(root: Path, layout: _Layout) -> tuple[Part, Part]:
    archive = find_file([root], layout.archives)
    if archive is not None:
        raise ValueError(f"{archive}: unpack it first (tar -xzf)")
    first = layout.train_files[0]
    raise missing(
        root,
        f"{first}.bin (also in {layout.binary_folder}), {first} (also in {layout.python_folder}) or train-*.parquet "
        f"(also in data or {layout.hub_folder})",
    )


def _binary(root: Path, layout: _Layout) -> tuple[Part, Part] | None:
    return _batches(
        (root, root / layout.binary_folder), layout, ".bin", lambda path: _read_records(path, layout.num_label_bytes)
    )


def _python(root: Path, layout: _Layout) -> tuple[Part, Part] | None:
    return _batches(
        (root, root / layout.python_folder), layout, "", lambda path: read_pickled_batch(path, layout.label)
    )


def _batches(
    folders: tuple[Path, ...], layout: _Layout, end: str, read: Callable[[Path], Part]
) -> tuple[Part, Part] | None:
    """Training and test part from the first folder that holds any of the files; None where none does."""
    names = [name + end for name in (*layout.train_files, layout.test_file)]
    any_file = find_file(folders, names)
    if any_file is None:
        return None
    folder = any_file.parent
    absent = [name for name in names if not (folder / name).is_file()]
    if absent:
        raise ValueError(f"{folder}: {', '.join(absent)} missing beside {any_file.name}")
    batches = [_checked(folder / name, read, len(layout.classes)) for name in names]
    return _joined(batches[:-1]), batches[-1]


def _checked(path: Path, read: Callable[[Path], Part], num_classes: int) -> Part:
    images, labels = read(path)
    check_count(path, len(images), path, len(labels))
    check_labels(path, labels, num_classes)
    return images, labels


def _joined(batches: list[Part]) -> Part:
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def _read_records(path: Path, num_label_bytes: int) -> Part:
    """Records of label bytes and pixels; of CIFAR-100's coarse and fine label the second is taken."""
    size = num_label_bytes + ROW
    content = path.read_bytes()
    if not content or len(content) % size:
        raise ValueError(f"{path}: {len(content)} bytes, expected records of {size} bytes each")
    records = torch.from_numpy(np.frombuffer(content, np.uint8).reshape(-1, size).copy())
    images = records[:, num_label_bytes:].reshape(-1, 3, 32, 32)
    return images.contiguous(), records[:, num_label_bytes - 1].long()


def _hub(root: Path, layout: _Layout) -> tuple[Part, Part] | None:
    """From the first folder that holds parquet files of either part."""
    for folder in (root, root / "data", root / layout.hub_folder):
        train, test = (sorted(folder.glob(f"{part}-*.parquet")) for part in ("train", "test"))
        if train and test:
            return _read_shards(train, layout), _read_shards(test, layout)
        if train or test:
            raise missing(folder, f"{'test' if train else 'train'}-*.parquet beside {(train or test)[0].name}")
    return None


def _read_shards(paths: list[Path], layout: _Layout) -> Part:
    """All files of one part, whose names say how many there are."""
    counts = [re.search(r"-(\d+)-of-(\d+)", path.name) for path in paths]
    numbered = {(int(found[1]), int(found[2])) for found in counts if found}
    absent = {(i, total) for _, total in numbered for i in range(total)} - numbered
    if absent:
        raise ValueError(
            f"{paths[0].parent}: {len(absent)} of the files like {paths[0].name} missing, number {min(absent)[0]}"
        )
    columns = parquet_columns(paths[0])
    images = [name for name in ("img", "image") if name in columns]
    if len(images) != 1 or layout.hub_label not in columns:
        raise ValueError(f"{paths[0]}: columns {', '.join(columns)}; expected img or image, and {layout.hub_label}")
    return read_image_parquet(paths, images[0], layout.hub_label)
