"""From files of every format to the parts of a data set."""

import os
import re
from functools import partial

import numpy as np
import pytest
import torch
from data_files import (
    write_cifar10_binary,
    write_cifar10_python,
    write_cifar100_python,
    write_cifar_parquet,
    write_image_folder,
    write_mnist,
    write_npz,
)

from tautnet.data.augment import Augmentation
from tautnet.data.cache import cache_folder
from tautnet.data.image_samples import Colours
from tautnet.data.images import Images

IMAGES = partial(Images, "npz", batch_size=6, val_fraction=0.2)
FORMATS = {
    "mnist": ("mnist", write_mnist, 60, 20),
    "cifar10 python": ("cifar10", write_cifar10_python, 60, 20),
    "cifar10 binary": ("cifar10", write_cifar10_binary, 60, 20),
    "cifar10 parquet": ("cifar10", write_cifar_parquet, 60, 20),
    "cifar100": ("cifar100", write_cifar100_python, 400, 100),
    "npz": ("npz", write_npz, 60, 20),
    "folder": ("folder", partial(write_image_folder, classes=("a", "b", "c")), 32, 9),
}
EVERYTHING = Augmentation(crop=2, flip=True, cutout=3, mixup=0.5, cutmix=1.0, label_smoothing=0.1)


def restored(data, loader):
    """Images in units of uint8 values and classes of a whole loader."""
    x, y = map(torch.cat, zip(*loader, strict=True))
    colours = data.splits.test.colours
    mean, deviation = (value.view(-1, 1, 1) for value in (colours.mean, colours.deviation))
    return (x.double() * deviation + mean).round().to(torch.uint8).numpy(), y.numpy()


def sorted_samples(x, y):
    return sorted((int(label), image.tobytes()) for image, label in zip(x, y, strict=True))


@pytest.fixture
def npz(tmp_path):
    arrays = write_npz(tmp_path / "a.npz", 60, 20, shape=(3, 6, 6))
    return str(tmp_path / "a.npz"), arrays


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_its_images(name, tmp_path):
    kind, write, *counts = FORMATS[name]
    root = tmp_path / "set.npz" if kind == "npz" else tmp_path / "set"
    arrays = write(root, *counts)
    for _ in range(2):  # the second time perhaps from the cache
        data = Images(kind, str(root), batch_size=1, val_fraction=0.25)
        assert (data.task, data.input_shape) == ("classification", arrays.train_x.shape[1:])
        assert data.num_outputs == len(set(arrays.train_y))
        test_x, test_y = restored(data, data.test_dataloader())
        assert np.array_equal(test_x, arrays.test_x)
        assert np.array_equal(test_y, arrays.test_y)
        parts = [restored(data, loader) for loader in (data.train_dataloader(), data.val_dataloader())]
        together = [np.concatenate(values) for values in zip(*parts, strict=True)]
        assert sorted_samples(*together) == sorted_samples(arrays.train_x, arrays.train_y)
        assert len(parts[1][1]) == counts[0] / 4
    assert cache_folder().exists() == (name in ("folder", "cifar10 parquet"))


def test_decoded_images_are_read_anew_when_a_file_changes(tmp_path):
    write_image_folder(tmp_path, 12, 4)
    first = Images("folder", str(tmp_path), batch_size=4)
    file = next((tmp_path / "test").rglob("*.png"))
    other = next(path for path in (tmp_path / "train").rglob("*.png"))
    file.write_bytes(other.read_bytes())
    os.utime(file, ns=(10**18, 10**18))
    second = Images("folder", str(tmp_path), batch_size=4)
    assert not torch.equal(first.splits.test.images, second.splits.test.images)
    assert Images("folder", str(tmp_path), image_size=8, batch_size=4).input_shape == (3, 8, 8)


def test_hold_out_is_stratified_seeded_and_apart_from_the_order_seed(npz):
    path, arrays = npz
    make = partial(IMAGES, path)
    data = make()
    assert set(torch.bincount(data.splits.val.classes).tolist()) == {1, 2}  # a fifth of 6 each
    train, val = (sorted_samples(part.images.numpy(), part.classes) for part in (data.splits.train, data.splits.val))
    assert not set(train) & set(val)
    assert sorted(train + val) == sorted_samples(arrays.train_x, arrays.train_y)
    assert torch.equal(make(seed=7).splits.val.images, data.splits.val.images)
    assert not torch.equal(make(split_seed=7).splits.val.images, data.splits.val.images)
    half = make(val_fraction=0.5).splits
    assert torch.bincount(half.val.classes).tolist() == torch.bincount(half.train.classes).tolist() == [3] * 10


def test_colours_are_those_of_the_training_part_alone(npz):
    path, _ = npz
    splits = IMAGES(path, augmentation=Augmentation(crop=2)).splits
    pixels = splits.train.images[:, :, 2:-2, 2:-2].double().numpy()
    for part in (splits.train, splits.val, splits.test):
        np.testing.assert_allclose(part.colours.mean.numpy(), pixels.mean((0, 2, 3)), rtol=1e-12)
        np.testing.assert_allclose(part.colours.deviation.numpy(), pixels.std((0, 2, 3)), rtol=1e-12)
    assert abs(splits.test.images.double().mean() - pixels.mean()) > 0.01


def test_colours_of_a_constant_channel_and_standardising(float64):
    images = torch.stack([torch.full((4, 2, 2), 7), torch.arange(16).view(4, 2, 2)], 1).to(torch.uint8)
    colours = Colours.of(images)
    assert colours.deviation[0] == 1
    x = colours.standardise(images)
    assert x.dtype == torch.float64
    torch.testing.assert_close(x[:, 0], torch.zeros(4, 2, 2))
    torch.testing.assert_close(x[:, 1].mean(), torch.tensor(0.0))
    torch.testing.assert_close(x[:, 1].var(correction=0), torch.tensor(1.0))
    assert images[0, 0, 0, 0] == 7  # standardising leaves the images alone


def test_evaluation_is_never_augmented(npz):
    path, _ = npz
    plain, changed = (IMAGES(path, augmentation=a) for a in (None, EVERYTHING))
    for name in ("val_dataloader", "test_dataloader"):
        for epoch in (0, 1):
            batches = [list(loaded) for loaded in (getattr(data, name)() for data in (plain, changed))]
            for (x, y), (other_x, other_y) in zip(*batches, strict=True):
                assert torch.equal(x, other_x), epoch
                assert torch.equal(y, other_y)
    x, y = next(iter(changed.train_dataloader()))
    assert (tuple(x.shape), tuple(y.shape)) == ((6, 3, 6, 6), (6, 10))
    assert changed.input_shape == (3, 6, 6)
    assert (x.dtype, y.dtype) == (torch.float32, torch.float32)


def test_training_batches_follow_the_seed(npz):
    path, _ = npz
    first, again, other = (
        next(iter(IMAGES(path, seed=seed, augmentation=EVERYTHING).train_dataloader())) for seed in (1, 1, 2)
    )
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize("kind", ["mnist", "cifar10", "cifar100"])
def test_without_files_and_network_the_files_are_named(kind, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    files = {"mnist": "t10k", "cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}[kind]
    with pytest.raises(ValueError, match=rf"\Aroot=None: path=nobody/{kind}: [^\n]*{files}[^\n]*root=<folder>\Z"):
        Images(kind, None, hub=f"nobody/{kind}")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"format": "tiff"}, "format=tiff: one of mnist, cifar10, "),
        ({"image_size": 8}, "image_size=8: "),
        ({"format": "folder", "image_size": 0}, "image_size=0: "),
        ({"val_fraction": 0.0}, "val_fraction=0.0: "),
        ({"val_fraction": float("nan")}, "val_fraction=nan: "),
        ({"root": None}, "root=None: a file is needed"),
        ({"root": None, "format": "folder"}, "root=None: a folder is needed"),
        ({"root": "nowhere/at/all"}, "root=nowhere/at/all: no such file"),
        ({"batch_size": 55}, "batch_size=55: at most the 48 training samples"),
        ({"val_fraction": 0.05}, "val_fraction=0.05: 0.05 of 60 samples cannot be held out: "),
    ],
)
def test_bad_arguments_are_named_with_their_value(settings, message, npz):
    with pytest.raises(ValueError, match=rf"\A{re.escape(message)}"):
        Images(**{"format": "npz", "root": npz[0], "batch_size": 4, "val_fraction": 0.2} | settings)
