"""Every data set of the application on small files that are made here, for tests that run or build all of them."""

from pathlib import Path

from data_files import (
    write_cifar10_python,
    write_cifar100_binary,
    write_csv,
    write_gray_images,
    write_image_folder,
    write_mnist,
    write_npz,
)
from hub_files import write_shards

SMALL_BATCH = "data.batch_size=8"


def small_files(option: str, folder: Path) -> list[str]:
    """Write what ``data=<option>`` reads into ``folder``; the settings that name it. Nothing for sets without files."""
    path = folder / option
    if option in ("mnist", "fashion_mnist"):
        write_mnist(path, 120, 20)
    elif option == "cifar10":
        write_cifar10_python(path, 600, 20)
    elif option == "cifar100":
        write_cifar100_binary(path, 1000, 100)
    elif option == "npz":
        path = folder / "images.npz"
        write_npz(path, 100, 20)
    elif option == "folder":
        write_image_folder(path, 40, 10)
    elif option in ("hub", "stream"):
        write_shards(path, "train", [20, 20])
        write_shards(path, "test", [10])
        stream = ["data.image_size=8", "data.num_train=40"]
        return [f"data.path={path}", SMALL_BATCH, *(stream if option == "stream" else [])]
    elif option in ("table", "table_regression"):
        path = folder / "table.csv"
        write_csv(path, {"size": [i % 7 for i in range(60)], "colour": ["red", "blue"] * 30, "kind": [0, 1, 2] * 20})
        return [f"data.path={path}", "data.target=kind", SMALL_BATCH]
    elif option == "denoising":
        write_gray_images(path / "train", sizes=[(24, 20)] * 4)
        write_gray_images(path / "test")
        patches = ["data.patch_size=8", "data.patches_per_image=4", "data.num_val=1"]
        return [f"data.root={path / 'train'}", f"data.test_root={path / 'test'}", SMALL_BATCH, *patches]
    else:
        return []
    return [f"data.root={path}", SMALL_BATCH]
