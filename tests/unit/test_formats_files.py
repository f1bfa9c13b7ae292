"""Image files, .npz archives."""

import zipfile

import numpy as np
import pytest
import torch
from data_files import (
    REAL,
    assert_equal,
    make_arrays,
    png,
    refused,
    write_gray_images,
    write_image,
    write_image_folder,
    write_npz,
)
from PIL import Image

from tautnet.data.formats.decoding import open_image
from tautnet.data.formats.folder import read_folder
from tautnet.data.formats.gray import read_gray_images
from tautnet.data.formats.npz import read_npz

# -- npz


@pytest.mark.parametrize("names", [None, ("train_x", "train_y", "test_x", "test_y")])
@pytest.mark.parametrize("channels", [1, 3])
def test_npz_channels_first(tmp_path, names, channels):
    path = tmp_path / "x.npz"
    expected = write_npz(path, 20, 10, shape=(channels, 8, 7), names=names)
    assert_equal(read_npz(path), expected)


def save(path, **changes):
    arrays = make_arrays(6, 4, 3, shape=(3, 8, 7))
    values = dict(zip(("x_train", "y_train", "x_test", "y_test"), arrays, strict=True)) | changes
    np.savez(path, **{name: value for name, value in values.items() if value is not None})
    return arrays


def test_npz_channels_last_and_columns_of_labels(tmp_path):
    path = tmp_path / "x.npz"
    arrays = make_arrays(6, 4, 3, shape=(3, 8, 7))
    train_x, test_x = (np.moveaxis(x, 1, 3) for x in (arrays.train_x, arrays.test_x))
    save(path, x_train=train_x, x_test=test_x, y_train=arrays.train_y[:, None].astype(np.uint8))
    assert_equal(read_npz(path), arrays)


def test_npz_without_a_channel(tmp_path):
    path = tmp_path / "x.npz"
    arrays = make_arrays(6, 4, 3, shape=(1, 8, 3))
    save(path, x_train=arrays.train_x[:, 0], x_test=arrays.test_x[:, 0])
    assert_equal(read_npz(path), arrays)


ZEROS = np.zeros((6, 3, 8, 7), np.uint8)
BAD_NPZ = {
    "missing array": ({"y_test": None}, "no array y_test", "x_train"),
    "float images": ({"x_train": ZEROS / 255}, "x_train", "float64", "uint8"),
    "ambiguous": ({"x_train": np.zeros((6, 3, 8, 3), np.uint8)}, "x_train", "(6, 3, 8, 3)", "dimension 1 or 3"),
    "no channel": ({"x_train": np.zeros((6, 8, 8, 8), np.uint8)}, "x_train", "(6, 8, 8, 8)", "size 1 or 3"),
    "flat": ({"x_train": ZEROS.reshape(6, -1)}, "x_train", "(6, 168)"),
    "one-hot labels": ({"y_train": np.eye(6, dtype=int)}, "y_train", "(6, 6)", "integers"),
    "float labels": ({"y_train": np.zeros(6)}, "y_train", "float64", "integers"),
    "negative label": ({"y_train": np.array([0, 0, -1, 0, 0, 0])}, "y_train", "label -1 in row 3"),
    "count": ({"y_train": np.zeros(5, int)}, "x_train", "6 images, but 5 labels in y_train"),
    "no images": ({"x_test": ZEROS[:0], "y_test": np.zeros(0, int)}, "x_test", "no images"),
    "other size": ({"x_test": ZEROS[:4, :, :7]}, "x_test", "7x7 RGB", "8x7 RGB", "x_train"),
    "objects": ({"x_train": np.array([None] * 6)}, "Object arrays"),
}


@pytest.mark.parametrize("case", BAD_NPZ.values(), ids=BAD_NPZ.keys())
def test_npz_content(tmp_path, case):
    changes, *words = case
    path = tmp_path / "x.npz"
    save(path, **changes)
    with refused(path, *words):
        read_npz(path)


def test_npz_files(tmp_path):
    path = tmp_path / "x.npz"
    with refused(path, "no such file"):
        read_npz(path)
    save(path)
    content = path.read_bytes()
    for damaged in (b"", content[:100], content[:-30], b"\x93NUMPY" + content[6:50]):
        path.write_bytes(damaged)
        with refused(path, "npz"):
            read_npz(path)
    path.write_bytes(content[:300] + b"\x55" + content[301:])
    with refused(path, "npz"):  # the checksum of the archive
        read_npz(path)
    with zipfile.ZipFile(path, "w"):
        pass
    with refused(path, "no array x_train", "none"):
        read_npz(path)


# -- folders, one a class


@pytest.mark.parametrize("part", ["test", "val"])
@pytest.mark.parametrize("channels", [1, 3])
def test_folder_round_trip(tmp_path, part, channels):
    expected = write_image_folder(tmp_path, 40, 5, shape=(channels, 6, 7), parts=("train", part))
    read = read_folder(tmp_path)
    assert_equal(read, expected)
    assert read.classes == ("cat", "dog")


def test_folder_other_files_are_left_out(tmp_path):
    expected = write_image_folder(tmp_path, 4, 4)
    for name in (".hidden.png", "notes.txt"):
        (tmp_path / "train" / "cat" / name).write_text("x")
    (tmp_path / "train" / ".cache").mkdir()
    assert_equal(read_folder(tmp_path), expected)


def test_folder_gray_among_colours(tmp_path):
    expected = write_image_folder(tmp_path, 4, 4, shape=(3, 6, 7))
    gray = expected.train_x[0, :1]
    write_image(tmp_path / "train" / "cat" / "0000.png", gray)
    read = read_folder(tmp_path)
    assert np.array_equal(read.train_x[0].numpy(), gray.repeat(3, 0))
    assert np.array_equal(read.train_x[1:].numpy(), expected.train_x[1:])


def test_folder_formats(tmp_path):
    write_image_folder(tmp_path, 2, 2)
    image = Image.fromarray(np.full((16, 16, 3), 90, np.uint8))
    for name in ("a.JPG", "b.jpeg", "c.bmp"):
        image.save(tmp_path / "train" / "dog" / name, "BMP" if name.endswith("bmp") else "JPEG")
    read = read_folder(tmp_path)
    assert read.train_y.tolist() == [0, 1, 1, 1, 1]
    assert (read.train_x[2:].int() - 90).abs().max() <= 1


def test_folder_image_size(tmp_path):
    write_image_folder(tmp_path, 2, 2, shape=(1, 4, 4))
    columns = np.arange(8, dtype=np.uint8).repeat(2)[None, None].repeat(8, 1) * 10  # 8 x 16: halved and cut to 4 of 8
    write_image(tmp_path / "train" / "cat" / "0000.png", columns)
    with refused(tmp_path / "train" / "dog" / "0001.png", "4x4 gray", "8x16 gray", "0000.png", "image_size"):
        read_folder(tmp_path)
    read = read_folder(tmp_path, image_size=4)
    assert read.train_x.shape == (2, 1, 4, 4)
    assert (read.train_x[0, 0].int() - torch.tensor([20, 30, 40, 50])).abs().max() <= 3
    assert read_folder(tmp_path, image_size=9).test_x.shape == (2, 1, 9, 9)
    with pytest.raises(ValueError, match=r"\Aimage_size=0: "):
        read_folder(tmp_path, image_size=0)


def test_folder_problems(tmp_path):
    root = tmp_path / "set"
    with refused(root, "no such folder", "train and test"):
        read_folder(root)
    (root / "train").mkdir(parents=True)
    with refused(root, "train and test (or val)"):
        read_folder(root)
    (root / "test").mkdir()
    with refused(root / "train", "no folders"):
        read_folder(root)
    write_image_folder(root, 4, 4)
    (root / "test" / "emu").mkdir()
    with refused(root, "only one of train and test: emu"):
        read_folder(root)
    (root / "train" / "emu").mkdir()
    with refused(root / "train" / "emu", "no images", ".png"):
        read_folder(root)


@pytest.mark.parametrize("content", [b"", b"no image", None], ids=["empty", "text", "cut off"])
def test_folder_unreadable_image(tmp_path, content):
    write_image_folder(tmp_path, 60, 4)
    path = tmp_path / "train" / "dog" / "0033.png"
    path.write_bytes(path.read_bytes()[:200] if content is None else content)
    with refused(path, "not a readable image"):
        read_folder(tmp_path)


def test_modes_of_images(tmp_path):
    rng = np.random.default_rng(0)
    colour = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    for mode, expected in (("1", "L"), ("LA", "L"), ("P", "RGB"), ("RGBA", "RGB"), ("CMYK", "RGB")):
        path = tmp_path / f"{mode}.{'jpg' if mode == 'CMYK' else 'png'}"
        colour.convert(mode).save(path)
        assert open_image(path, "x").mode == expected
    palette = colour.convert("P")
    palette.info["transparency"] = bytes(range(256))
    palette.save(tmp_path / "clear.png", transparency=bytes(range(256)))
    assert open_image(tmp_path / "clear.png", "x").mode == "RGB"
    deep = tmp_path / "deep.png"
    Image.fromarray(rng.integers(0, 2**16, (5, 6), dtype=np.uint16)).save(deep)
    with refused(deep, "more than 8 bits"):
        open_image(deep, str(deep))


# -- gray images of any size


def test_gray_images_round_trip(tmp_path):
    expected = write_gray_images(tmp_path, ((20, 30), (30, 20), (1, 5)))
    read = read_gray_images(tmp_path)
    assert [image.dtype for image in read] == [torch.uint8] * 3
    assert all(np.array_equal(got.numpy(), wanted) for got, wanted in zip(read, expected, strict=True))


def test_gray_images_of_colour(tmp_path):
    colour = make_arrays(1, 0, shape=(3, 6, 5)).train_x[0]
    write_image(tmp_path / "x.png", colour)
    luma = np.tensordot([0.299, 0.587, 0.114], colour, 1)
    assert np.abs(read_gray_images(tmp_path)[0].numpy() - luma).max() <= 1


def test_gray_images_problems(tmp_path):
    with refused(tmp_path / "none", "no such folder"):
        read_gray_images(tmp_path / "none")
    (tmp_path / "notes.txt").write_text("x")
    with refused(tmp_path, "not found", ".png"):
        read_gray_images(tmp_path)
    (tmp_path / "x.png").write_bytes(png(make_arrays(1, 0).train_x[0])[:-40])
    with refused(tmp_path / "x.png", "not a readable image"):
        read_gray_images(tmp_path)


@pytest.mark.skipif(not (REAL / "denoising" / "bsd68").is_dir(), reason="the real BSD68 is not at hand")
def test_real_bsd68():
    read = read_gray_images(REAL / "denoising" / "bsd68")
    assert len(read) == 68
    assert {tuple(image.shape) for image in read} == {(321, 481), (481, 321)}
