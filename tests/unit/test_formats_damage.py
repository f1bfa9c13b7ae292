"""Files with random damage: read, or refused in one line that begins with their path; never anything else."""

import gzip
import pickle
from functools import partial

import numpy as np
import pytest
from data_files import (
    idx_bytes,
    make_arrays,
    png,
    python2_pickle,
    write_csv,
    write_image_table,
    write_npz,
    write_table_parquet,
)

from tautnet.data.formats.idx import read_idx
from tautnet.data.formats.npz import read_npz
from tautnet.data.formats.parquet import read_image_parquet
from tautnet.data.formats.pickles import read_pickled_batch
from tautnet.data.formats.table import read_table

ROWS = make_arrays(2, 0).train_x.reshape(2, -1)
SMALL = make_arrays(2, 2, shape=(1, 4, 4))
TABLE = {"a": [1, 2], "b": ["x", "y"], "y": [0, 1]}
batch = partial(read_pickled_batch, label_key="labels")
table = partial(read_table, target="y")

# How to write a file, how to read it, and how many bytes to damage (the rest is pixels).
FORMATS = {
    "idx": (lambda path: path.write_bytes(gzip.compress(idx_bytes(SMALL.train_x[:, 0]))), read_idx, None),
    "python 2": (lambda path: path.write_bytes(python2_pickle(ROWS, [0, 1], "labels")), batch, 200),
    "python 3": (lambda path: path.write_bytes(pickle.dumps({"data": ROWS, "labels": [0, 1]}, 4)), batch, 200),
    "npz": (lambda path: write_npz(path, 2, 2, shape=(1, 4, 4)), read_npz, None),
    "images": (
        lambda path: write_image_table(path, [png(image) for image in SMALL.train_x], [0, 1]),
        lambda path: read_image_parquet([path], "img", "label"),
        None,
    ),
    "parquet": (lambda path: write_table_parquet(path, TABLE), table, None),
    "csv": (lambda path: write_csv(path, TABLE), table, None),
}


def damaged(content: bytes, num_bytes: int | None, rng: np.random.Generator) -> bytes:
    """One byte changed, left out or put in."""
    place = int(rng.integers(num_bytes or len(content)))
    inserted = bytes(rng.integers(0, 256, rng.integers(0, 3), dtype=np.uint8))
    return content[:place] + inserted + content[place + 1 :]


@pytest.mark.parametrize("name", FORMATS)
def test_random_damage(tmp_path, name):
    if name in ("images", "parquet", "csv"):
        pytest.importorskip("pandas")
        pytest.importorskip("pyarrow")
    write, read, num_bytes = FORMATS[name]
    path = tmp_path / ("x.npz" if name == "npz" else "x.parquet" if name == "parquet" else "x")
    write(path)
    read(path)
    content, rng, refusals = path.read_bytes(), np.random.default_rng(0), []
    for _ in range(60):
        path.write_bytes(damaged(content, num_bytes, rng))
        try:
            read(path)
        except ValueError as error:
            refusals.append(str(error))
    assert len(refusals) > 10
    assert [text for text in refusals if not text.startswith(str(path)) or "\n" in text] == []
