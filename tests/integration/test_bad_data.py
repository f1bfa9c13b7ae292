"""Data that cannot be used, through the application: one line that names file or setting, nothing left behind."""

import gzip
import time
from pathlib import Path

import pytest
import torch
from data_files import write_csv, write_gray_images, write_image_folder, write_mnist, write_npz
from data_settings import small_files
from hub_files import write_shards

FIRST = "train-images-idx3-ubyte.gz"


def refused(command, capsys, tmp_path: Path, *arguments: str) -> str:
    """The one line that the application ends with."""
    run = tmp_path / "run"
    capsys.readouterr()  # what writing the files printed
    assert command(*arguments, f"hydra.run.dir={run}") == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line and not line.startswith("Error executing")]
    assert len(lines) == 1, lines
    assert not run.exists()
    return lines[0]


def truncated(content: bytes) -> bytes:
    return content[:-1]


def wrong_magic(content: bytes) -> bytes:
    return b"\x00\x00\x09" + content[3:]


def wrong_count(content: bytes) -> bytes:
    return content[:7] + bytes([content[7] - 1]) + content[8 : -28 * 28]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (truncated, ("bytes",)),
        (wrong_magic, ("magic",)),
        (wrong_count, ("119", "120")),
        (lambda content: b"", ("empty",)),
    ],
    ids=["truncated", "wrong magic", "wrong count", "empty"],
)
def test_a_damaged_file_is_named(command, capsys, tmp_path, damage, words):
    write_mnist(tmp_path, 120, 20)
    path = tmp_path / FIRST
    content = damage(gzip.decompress(path.read_bytes()))
    path.write_bytes(gzip.compress(content) if content else b"")
    line = refused(command, capsys, tmp_path, "data=mnist", f"data.root={tmp_path}")
    assert all(word in line for word in (FIRST, *words)), line


def test_a_file_that_is_not_there_is_named_with_its_folder(command, capsys, tmp_path):
    write_mnist(tmp_path, 120, 20)
    (tmp_path / FIRST).unlink()
    line = refused(command, capsys, tmp_path, "data=mnist", f"data.root={tmp_path}")
    assert str(tmp_path) in line
    assert "train-images-idx3-ubyte" in line


@pytest.mark.parametrize("option", ["mnist", "fashion_mnist", "cifar10", "cifar100"])
def test_without_folder_and_network_a_line_says_within_seconds_what_to_do(
    command, capsys, tmp_path, option, monkeypatch
):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # where nobody answers
    start = time.monotonic()
    line = refused(command, capsys, tmp_path, f"data={option}")
    assert time.monotonic() - start < 30  # the hub's own package alone tries for longer
    assert "data.root=" in line
    assert "cannot be reached" in line
    assert {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}.get(option, "train-images") in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["data=cifar10", "data.root=nowhere"], ("data.root=nowhere", "no such folder")),
        (["data=npz"], ("data.root",)),
        (["data=npz", "data.root=nowhere.npz"], ("data.root=nowhere.npz", "no such file")),
        (["data=hub", "data.path=nobody/nothing"], ("data.path=nobody/nothing", "cannot be reached")),
        (["data=table", "data.path=nowhere.csv", "data.target=a"], ("nowhere.csv", "no such file")),
        (["data=denoising", "data.root=nowhere", "data.test_root=nowhere"], ("nowhere",)),
        (["data=diabetes", "model=convnet"], ("(10,)", "model=mlp")),
        (["data=diabetes", "model=mlp", "model._target_=tautnet.models.Classifier"], ("Classifier", "Regressor")),
        (["model=dncnn"], ("tautnet.models.Denoiser", "Classifier")),
        (["data=iris", "model=mlp", "data.seed=-1"], ("data.seed=-1", "from 0")),
        (["data=iris", "model=mlp", "data.split_seed=-1"], ("data.split_seed=-1", "from 0")),
        (["data=folder", "data.root=.", "data.image_size=1000000"], ("data.image_size=1000000", "4096")),
        (["data=iris", "model=mlp", "data.table=irises"], ("data.table=irises", "wine")),
        (["data=spirals", "model=mlp", "data.turns=0"], ("data.turns=0", "above 0")),
        (["data=fit_1d", "model=mlp", "data.function=sine"], ("data.function=sine", "cosine")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_settings_of_data_are_named_with_what_is_accepted(command, capsys, tmp_path, arguments, words):
    line = refused(command, capsys, tmp_path, *arguments)
    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("data.augmentation.crop=-1", ("data.augmentation.crop=-1", "at least 0")),
        ("data.augmentation.crop=5000", ("data.augmentation.crop=5000", "at most 1024")),
        ("data.augmentation.label_smoothing=1", ("data.augmentation.label_smoothing=1", "below 1")),
        ("data.augmentation.flipp=true", ("data.augmentation.flipp", "flip")),
        ("data.val_fraction=0", ("data.val_fraction=0", "between 0 and 1")),
        ("data.val_fraction=0.001", ("data.val_fraction=0.001", "120")),
        ("data.batch_size=1000", ("data.batch_size=1000", "at most")),
    ],
)
def test_settings_of_images_are_named_with_what_is_accepted(command, capsys, tmp_path, change, words):
    write_mnist(tmp_path, 120, 20)
    line = refused(command, capsys, tmp_path, "data=mnist", f"data.root={tmp_path}", change)
    assert all(word in line for word in words), line


def test_a_network_that_does_not_give_images_cannot_denoise(command, capsys, tmp_path):
    files = small_files("denoising", tmp_path)
    line = refused(command, capsys, tmp_path, "data=denoising", "model=mlp", *files)
    assert "model.net._target_=tautnet.backbones.mlp" in line
    assert "(8, 1, 8, 8)" in line


def test_images_of_several_sizes_are_named(command, capsys, tmp_path):
    root = tmp_path / "images"
    write_image_folder(root, 40, 10)
    write_gray_images(root / "train" / "cat", sizes=[(3, 5)])
    line = refused(command, capsys, tmp_path, "data=folder", f"data.root={root}")
    assert "image_size" in line
    assert str(root / "train") in line


def test_a_table_is_named_with_its_columns(command, capsys, tmp_path):
    path = tmp_path / "table.csv"
    write_csv(path, {"size": [1, 2, 3] * 10, "weight": [1, 2, 1] * 10})
    line = refused(command, capsys, tmp_path, "data=table", "model=mlp", f"data.path={path}", "data.target=wheight")
    assert all(word in line for word in (str(path), "wheight", "weight", "size"))


def test_pickled_objects_in_an_archive_are_refused(command, capsys, tmp_path):
    import numpy as np

    path = tmp_path / "images.npz"
    write_npz(path, 40, 10)
    arrays = dict(np.load(path))
    np.savez(path, **(arrays | {"y_train": np.array([{}], object)}))
    assert str(path) in refused(command, capsys, tmp_path, "data=npz", f"data.root={path}")


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # more workers than cores
def test_a_bad_sample_that_training_meets_ends_in_one_line(command, capsys, tmp_path, num_workers):
    write_shards(tmp_path / "set", "train", [40, 40], labels={70: -1})
    write_shards(tmp_path / "set", "test", [10])
    files = ["data=stream", f"data.path={tmp_path / 'set'}", "data.image_size=8", "data.num_train=80"]
    quick = ["data.batch_size=8", "callbacks=none", "logger=none", "trainer.max_epochs=1", "model.net.widths=[4]"]
    settings = [*files, *quick, "activation=relu", f"data.num_workers={num_workers}", "data.shuffle=false"]
    assert command(*settings, "trainer.enable_progress_bar=false", f"hydra.run.dir={tmp_path / 'run'}") == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: data: ")
    assert all(words in line for words in (str(tmp_path / "set"), "no class")), line


def test_a_part_without_samples_is_named(command, capsys, tmp_path):
    write_shards(tmp_path / "set", "train", [20])
    write_shards(tmp_path / "set", "test", [0])
    files = ["data=stream", f"data.path={tmp_path / 'set'}", "data.image_size=8", "data.num_train=20"]
    line = refused(command, capsys, tmp_path, *files, "data.batch_size=8")
    assert "test has no samples" in line


def test_two_sets_behind_links_are_told_apart(command, tmp_path):
    classes = {"one": ("a", "b"), "two": ("a", "b", "c")}
    for name, names in classes.items():
        write_image_folder(tmp_path / "store" / name, 40, 10, names)
        (tmp_path / name).mkdir()
        for part in ("train", "test"):
            (tmp_path / name / part).symlink_to(tmp_path / "store" / name / part)
        settings = ["data=folder", f"data.root={tmp_path / name}", "data.batch_size=8", "model=mlp", "debug=fast"]
        run = tmp_path / f"run_{name}"
        assert command(*settings, "callbacks=checkpoints", "logger=none", f"hydra.run.dir={run}") == 0
        checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
        assert checkpoint["hyper_parameters"]["config"]["num_outputs"] == len(names)
