"""Sets in the formats of the public hub: parts, columns, and what is refused."""

import re
from functools import partial

import pytest
import torch
from data_files import make_arrays, png
from hub_files import numbered_image, numbers_of, write_shards, write_tars

from tautnet.data.hub import HubImages
from tautnet.data.image_stream import ImageStream

pytest.importorskip("datasets")


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_parts_and_labels_of_a_set_in_memory(kind, tmp_path):
    for part, sizes in (("train", [14, 16]), ("test", [9])):
        (write_shards if kind == "parquet" else write_tars)(tmp_path, part, sizes)
    for _ in range(2):  # the second time from the cache
        data = HubImages(str(tmp_path), batch_size=1, val_fraction=0.2)
        assert (data.num_outputs, data.input_shape) == (3, (3, 4, 4))
        splits = data.splits
        assert numbers_of(splits.test.images.double()) == list(range(9))
        held, kept = (numbers_of(part.images.double()) for part in (splits.val, splits.train))
        assert sorted(held + kept) == list(range(30))
        assert torch.bincount(splits.val.classes).tolist() == [2, 2, 2]
        for part in (splits.train, splits.val, splits.test):
            assert [n % 3 for n in numbers_of(part.images.double())] == part.classes.tolist()


def test_a_set_without_test_part_is_split(tmp_path):
    write_shards(tmp_path, "train", [60])
    data = HubImages(str(tmp_path), batch_size=1, val_fraction=0.25, test_fraction=0.2)
    found = [numbers_of(part.images.double()) for part in (data.splits.train, data.splits.val, data.splits.test)]
    assert [len(part) for part in found] == [36, 12, 12]
    assert sorted(n for part in found for n in part) == list(range(60))
    assert torch.bincount(data.splits.test.classes).tolist() == [4, 4, 4]
    other = HubImages(str(tmp_path), batch_size=1, val_fraction=0.25, split_seed=1)
    assert numbers_of(other.splits.test.images.double()) != found[2]


def test_sizes_and_colours_that_differ(tmp_path):
    images = {0: png(numbered_image(0, side=6)), 4: png(make_arrays(1, 1, shape=(1, 4, 4)).train_x[0])}
    write_shards(tmp_path, "train", [30], contents=images)
    write_shards(tmp_path, "test", [9])
    with pytest.raises(
        ValueError, match=rf"\A{re.escape(str(tmp_path))}: image 2: [^\n]*; image_size makes them equal"
    ):
        HubImages(str(tmp_path), batch_size=1, val_fraction=0.2)
    assert HubImages(str(tmp_path), batch_size=1, val_fraction=0.2, image_size=5).input_shape == (3, 5, 5)


def test_gray_images_stay_gray(tmp_path):
    for part, sizes in (("train", [30]), ("test", [6])):
        write_shards(tmp_path, part, sizes, contents={i: png(numbered_image(i, channels=1)) for i in range(30)})
    assert HubImages(str(tmp_path), batch_size=1).input_shape == (1, 4, 4)
    assert ImageStream(str(tmp_path), image_size=4, num_train=30, batch_size=1).input_shape == (1, 4, 4)


@pytest.mark.parametrize("make", [HubImages, partial(ImageStream, image_size=4, num_train=30)])
@pytest.mark.parametrize(("label", "start"), [("colour", "label=colour: "), ("label", None)])
def test_label_column(make, label, start, tmp_path):
    for part in ("train", "test"):
        write_shards(tmp_path, part, [30])
    if start is None:
        assert make(path=str(tmp_path), label=label, batch_size=1).num_outputs == 3
        return
    with pytest.raises(ValueError, match=rf"\A{start}[^\n]*there are image, label\Z"):
        make(path=str(tmp_path), label=label)


@pytest.mark.parametrize("make", [HubImages, partial(ImageStream, image_size=4)])
def test_a_set_without_images(make, tmp_path):
    from datasets import Dataset

    for part in ("train", "test"):
        Dataset.from_dict({"a": [1, 2], "label": [0, 1]}).to_parquet(str(tmp_path / f"{part}-00000-of-00001.parquet"))
    with pytest.raises(ValueError, match=rf"\Apath={re.escape(str(tmp_path))}: no image column; it has a, label\Z"):
        make(path=str(tmp_path))


@pytest.mark.parametrize("make", [HubImages, partial(ImageStream, image_size=4, num_train=10, batch_size=2)])
def test_missing_class_and_corrupt_image_are_refused(make, tmp_path):
    def use(path):
        data = make(path=str(path))
        return list(data.train_dataloader())

    for name, change, message in (
        ("classes", {"labels": {5: -1}}, "a sample has no class"),
        ("images", {"contents": {5: b"\x89PNG no image"}}, "not a readable image"),
    ):
        write_shards(tmp_path / name, "train", [10], **change)
        write_shards(tmp_path / name, "test", [4])
        with pytest.raises(ValueError, match=rf"{re.escape(str(tmp_path / name))}: {message}"):
            use(tmp_path / name)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 0}, "image_size=0: "),
        ({"val_fraction": 1.0}, "val_fraction=1.0: "),
        ({"test_fraction": 0.0}, "test_fraction=0.0: "),
        ({"test_fraction": float("nan")}, "test_fraction=nan: "),
        ({"batch_size": 13}, "batch_size=13: at most the 9 training samples"),
    ],
)
def test_bad_arguments_are_named_with_their_value(settings, message, tmp_path):
    for part in ("train", "test"):
        write_shards(tmp_path, part, [12])
    with pytest.raises(ValueError, match=rf"\A{re.escape(message)}"):
        HubImages(**{"path": str(tmp_path), "batch_size": 1, "val_fraction": 0.25} | settings)


def test_a_set_without_training_part(tmp_path):
    write_shards(tmp_path, "test", [12])
    with pytest.raises(ValueError, match=rf"\Apath={re.escape(str(tmp_path))}: no part named train; there are test\Z"):
        HubImages(str(tmp_path))


@pytest.mark.parametrize("make", [HubImages, partial(ImageStream, image_size=4)])
def test_a_set_that_is_out_of_reach(make, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ValueError, match=r"\Apath=nobody/nothing: [^\n]*\Z"):
        make(path="nobody/nothing")


@pytest.mark.parametrize("change", ["pixel", "class", "image_size"])
def test_decoded_images_are_read_anew_when_the_set_or_a_setting_changes(tmp_path, change):
    write_shards(tmp_path / "a", "train", [12])
    write_shards(tmp_path / "a", "test", [6])
    make = partial(HubImages, batch_size=1, val_fraction=0.25)
    first = make(str(tmp_path / "a")).splits.test
    if change == "image_size":
        assert make(str(tmp_path / "a"), image_size=3).input_shape == (3, 3, 3)
        return
    write_shards(tmp_path / "a", "test", [6], **({"start": 9} if change == "pixel" else {"labels": {0: 2}}))
    second = make(str(tmp_path / "a")).splits.test
    assert torch.equal(first.images, second.images) == (change == "class")
    assert torch.equal(first.classes, second.classes) == (change == "pixel")
