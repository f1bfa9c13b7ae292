"""Hostile data files: nothing in them runs, sizes are believed to nobody, other people's caches are not used."""

import gzip
import io
import os
import pickle
import struct
import tarfile
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import idx_bytes, png, refused

from tautnet.data import cache
from tautnet.data.formats import parquet, table
from tautnet.data.formats.decoding import MAX_PIXELS, open_image
from tautnet.data.formats.idx import read_idx
from tautnet.data.formats.npz import read_npz
from tautnet.data.formats.pickles import read_pickled_batch
from tautnet.data.formats.table import read_table
from tautnet.data.hub_access import HubError, open_parts

CANARY = "canary"


class Payload:
    """Makes a directory when it is unpickled."""

    def __reduce__(self) -> tuple:
        return os.mkdir, (CANARY,)


@pytest.fixture(autouse=True)
def _no_canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "here" / "there").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here" / "there")
    yield
    assert not list(tmp_path.rglob(f"{CANARY}*"))


# -- images


def png_of(width: int, height: int) -> bytes:
    """A PNG file whose header promises so many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + content


def test_a_program_in_postscript_is_no_image(tmp_path):
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(canary) (w) file closefile\n"
    (tmp_path / "x.png").write_bytes(script)
    for source in (tmp_path / "x.png", script):
        with refused(Path("x.png"), "not a readable image"):
            open_image(source, "x.png")


@pytest.mark.parametrize("size", [(2**13, 2**13 + 1), (10_000, 10_000), (2**31 - 1, 2**31 - 1)])
def test_an_image_of_too_many_pixels_is_refused_undecoded(size):
    assert size[0] * size[1] > MAX_PIXELS
    tracemalloc.start()
    with refused(Path("x.png"), "not a readable image"):
        open_image(png_of(*size), "x.png")
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_an_image_cut_off_is_refused():
    content = png(np.random.default_rng(0).integers(0, 256, (3, 8, 8)).astype(np.uint8))
    for size in range(0, len(content) - 20, 7):
        with refused(Path("x.png"), "not a readable image"):
            open_image(content[:size], "x.png")


# -- idx


def test_a_file_that_unpacks_to_more_than_its_header_says_is_not_unpacked(tmp_path):
    path = tmp_path / "x.gz"
    content = gzip.compress(idx_bytes(np.zeros((2, 3, 4))) + bytes(2**27), 9)
    path.write_bytes(content)
    tracemalloc.start()
    with refused(path, "at least 41 bytes, expected 40"):
        read_idx(path)
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


@pytest.mark.parametrize("zipped", [False, True])
def test_sizes_that_the_file_does_not_have_are_not_allocated(tmp_path, zipped):
    path = tmp_path / "x"
    content = struct.pack(">IIII", 2051, *[2**32 - 1] * 3) + bytes(10)
    path.write_bytes(gzip.compress(content) if zipped else content)
    tracemalloc.start()
    with refused(path, "26 bytes, expected "):
        read_idx(path)
    assert tracemalloc.get_traced_memory()[1] < 2**26
    tracemalloc.stop()


# -- pickles, npz


def test_a_pickled_batch_runs_nothing_and_changes_no_function(tmp_path):
    path = tmp_path / "data_batch_1"
    hostile = [
        pickle.dumps(Payload(), 4),
        pickle.dumps({"data": Payload(), "labels": [0]}, 2),
        b"cos\nmkdir\n(S'canary'\ntR.",
        b"ccopyreg\n_reconstructor\n.",
        # BUILD on the one function that arrays need: its defaults are replaced
        b"c_codecs\nencode\n(N}S'__defaults__'\n(S'x'\nS'latin1'\nttb.",
        b"\x80\x05\x95" + b"\xff" * 8 + b".",
        b"\x8e" + b"\xff" * 7 + b"\x7f",
    ]
    for content in hostile:
        path.write_bytes(content)
        with refused(path):
            read_pickled_batch(path, "labels")


def test_objects_in_an_archive_are_not_unpickled(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, x_train=np.array([Payload()], object), y_train=[0], x_test=[0], y_test=[0])
    with refused(path):
        read_npz(path)


# -- tables


def test_a_parquet_file_of_a_thousand_million_values_is_not_read(tmp_path, monkeypatch):
    arrow = pytest.importorskip("pyarrow")
    path = tmp_path / "x.parquet"
    pytest.importorskip("pyarrow.parquet").write_table(arrow.table({"a": [1.0] * 20, "b": [0] * 20}), path)
    read_table(path, "b")
    monkeypatch.setattr(parquet, "MAX_VALUES", 39)
    with refused(path, "20 rows of 2 columns, at most 39 values"):
        read_table(path, "b")


def test_what_pandas_has_written_into_a_parquet_file_is_not_followed(tmp_path):
    pandas = pytest.importorskip("pandas")
    path = tmp_path / "x.parquet"
    frame = pandas.DataFrame({"a": [1.0, 2.0], "b": [3.0, 4.0]}).set_index("b")
    frame.to_parquet(path)
    assert read_table(path, "a").names == ("b",)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a,b\n=cmd|'/c calc'!A0,1\n2,3\n4,5\n6,7\n", "text among its numbers"),
        (b"a,b\n" + b"1" * 400 + b",2\n", ""),
        (b"a,b\n" + b"x" * 2**20 + b'"\n', ""),
        (b'a,b\n"' + b"x" * 1000, ""),
        (b"\xff\xfe\x00a", "not a readable CSV"),
    ],
    ids=["formula", "a number of 400 digits", "a field of a megabyte", "a quote left open", "no UTF-8"],
)
def test_a_hostile_table_is_refused(tmp_path, content, words):
    path = tmp_path / "x.csv"
    path.write_bytes(content)
    with refused(path, words):
        read_table(path, "b")


def test_a_line_of_commas_is_not_read_as_a_table(tmp_path, monkeypatch):
    monkeypatch.setattr(table, "MAX_COLUMNS", 9)
    (tmp_path / "x.csv").write_text(f"{','.join(map(str, range(10)))}\n{'1,' * 10}\n")
    with refused(tmp_path / "x.csv", "10 columns, at most 9 are accepted"):
        read_table(tmp_path / "x.csv", "1")


def test_control_characters_are_text(tmp_path):
    (tmp_path / "x.csv").write_bytes(b"a,b\n\x00\x1b,1\n")
    assert read_table(tmp_path / "x.csv", "b").names == ("a=\0\x1b",)


# -- folders of the hub's formats


def hub_folder(root: Path, **members: bytes) -> Path:
    """A tar shard with members of these suffixes."""
    root.mkdir()
    with tarfile.open(root / "train-000.tar", "w") as archive:
        for suffix, content in members.items():
            info = tarfile.TarInfo(f"../../{CANARY}.{suffix}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return root


def saved(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


@pytest.fixture
def _datasets() -> None:
    pytest.importorskip("datasets")


@pytest.mark.usefixtures("_datasets")
def test_members_of_an_archive_are_neither_unpacked_nor_unpickled(tmp_path):
    pixels = png(np.zeros((3, 4, 4), np.uint8))
    folder = hub_folder(tmp_path / "one", png=pixels, cls=b"0", pickle=pickle.dumps(Payload()))
    assert len(open_parts(str(folder), None, streaming=False)["train"]) == 1
    folder = hub_folder(tmp_path / "two", png=pixels, cls=b"0", pth=saved(Payload()))
    with pytest.raises(HubError):
        open_parts(str(folder), None, streaming=False)


@pytest.mark.usefixtures("_datasets")
def test_a_script_beside_the_data_is_not_run(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "set.py").write_text(f"import os; os.mkdir({CANARY!r})")
    (tmp_path / "set" / "x.csv").write_text("a\n1\n")
    with pytest.raises(HubError):
        open_parts(str(tmp_path / "set"), None, streaming=False)


@pytest.mark.parametrize("named", ["/etc/hostname", "../secret.csv", "http://127.0.0.1:9/x.csv", "a/../../b", "~/x"])
@pytest.mark.parametrize("form", ["---\n{}---\n", "\n ---\r\n{}---\n# A set"])
def test_a_description_names_no_files_elsewhere(tmp_path, named, form):
    config = f"configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: [x.csv, '{named}']\n"
    (tmp_path / "README.md").write_text(form.format(config))
    with pytest.raises(HubError, match=r"README.md: names .*, which is outside of the folder"):
        open_parts(str(tmp_path), None, streaming=False)


# -- the cache


def read() -> dict:
    return {"x": torch.ones(2)}


def forge() -> Path:
    """What an attacker wants trained on, with the right digest."""
    cache.cached("key", lambda: {"x": torch.zeros(2)})
    return cache.cache_folder() / "key.safetensors"


@pytest.mark.skipif(os.name != "posix", reason="owners of files")
def test_a_cache_that_others_can_write_is_not_used(caplog):
    path = forge()
    assert cache.cached("key", read)["x"].tolist() == [0, 0]
    for place in (path, path.parent):
        mode = place.stat().st_mode
        place.chmod(0o777)
        assert cache.cached("key", read)["x"].tolist() == [1, 1]
        assert caplog.messages[-1].startswith(f"{place}: another user may have written it")
        place.chmod(mode)
    assert cache.cached("key", read)["x"].tolist() == [0, 0]


@pytest.mark.skipif(os.name != "posix", reason="owners of files")
@pytest.mark.parametrize("kind", ["file", "link", "dangling link"])
def test_a_cache_of_another_user_is_not_used(monkeypatch, tmp_path, kind):
    path = forge()
    if kind != "file":
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / ("elsewhere" if kind == "link" else "nowhere"))
    monkeypatch.setattr(os, "getuid", lambda: path.lstat().st_uid + 1)
    monkeypatch.setattr(cache, "_ROOT", -1)
    assert cache.cached("key", read)["x"].tolist() == [1, 1]
    assert not (tmp_path / "nowhere").exists()
