"""Decoded images on disk: read once, noticed when changed or damaged."""

import logging
import os
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from tautnet.data import cache
from tautnet.data.cache import cache_folder, cached, fingerprint


class Reader:
    """Gives the same tensors every time, and counts how often."""

    def __init__(self):
        self.calls = 0
        self.tensors = {
            "x": torch.arange(256, dtype=torch.uint8).view(4, 1, 8, 8),
            "y": torch.tensor([3, 1, 2, 0]),
            "empty": torch.empty(0, 2),
        }

    def __call__(self):
        self.calls += 1
        return {name: tensor.clone() for name, tensor in self.tensors.items()}


def assert_equal(found, reader):
    assert found.keys() == reader.tensors.keys()
    for name, tensor in reader.tensors.items():
        assert torch.equal(found[name], tensor)
        assert found[name].dtype == tensor.dtype


def stored():
    return [path for path in cache_folder().rglob("*") if path.is_file()]


def test_place_of_the_cache(monkeypatch, tmp_path):
    assert str(cache_folder()) == os.path.join(os.environ["XDG_CACHE_HOME"], "tautnet")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "tautnet"


def test_the_second_call_does_not_read(caplog):
    reader = Reader()
    for _ in range(3):
        assert_equal(cached("key", reader), reader)
    assert reader.calls == 1
    assert [path.name for path in stored()] == ["key.safetensors"]
    assert not caplog.records


def test_each_key_has_its_own_tensors():
    first, second = Reader(), Reader()
    second.tensors = {"x": torch.ones(3)}
    cached("a", first)
    assert_equal(cached("b", second), second)
    assert_equal(cached("a", first), first)
    assert (first.calls, second.calls) == (1, 1)


def test_fingerprint_follows_kind_names_size_and_time(tmp_path):
    files = [tmp_path / "a", tmp_path / "b"]
    for file in files:
        file.write_bytes(b"1234")
        os.utime(file, ns=(10**18, 10**18))
    first = fingerprint("kind", tmp_path, files)
    assert fingerprint("kind", tmp_path, files[::-1]) == first
    others = [fingerprint("other", tmp_path, files), fingerprint("kind", tmp_path, files[:1])]
    os.utime(files[1], ns=(10**18, 10**18 + 1))
    others.append(fingerprint("kind", tmp_path, files))
    files[1].write_bytes(b"12345")
    os.utime(files[1], ns=(10**18, 10**18))
    others.append(fingerprint("kind", tmp_path, files))
    files[1].write_bytes(b"1234")
    os.utime(files[1], ns=(10**18, 10**18))
    assert fingerprint("kind", tmp_path, files) == first
    files[1] = files[1].rename(tmp_path / "c")
    others.append(fingerprint("kind", tmp_path, files))
    assert len({first, *others}) == 6


def damage_data(content):
    return content[:-40] + bytes([content[-40] ^ 1]) + content[-39:]


def damage_hash(content):
    place = content.index(b"sha256") + 9
    return content[:place] + (b"0" if content[place : place + 1] != b"0" else b"1") + content[place + 1 :]


@pytest.mark.parametrize(
    "change",
    [damage_data, damage_hash, lambda c: c[:-1], lambda c: b"", lambda c: b"\xff" * 16 + c[16:], lambda c: c + b"0"],
)
def test_damage_is_noticed_and_repaired(change, caplog):
    reader = Reader()
    cached("key", reader)
    (path,) = stored()
    path.write_bytes(change(path.read_bytes()))
    assert_equal(cached("key", reader), reader)
    assert reader.calls == 2
    assert [(r.levelno, r.getMessage()) for r in caplog.records] == [(logging.WARNING, f"{path}: damaged, read anew")]
    assert_equal(cached("key", reader), reader)
    assert reader.calls == 2


def test_a_changed_shape_or_type_is_damage():
    tensors = Reader().tensors
    digest = cache._content_hash(tensors)
    assert cache._content_hash(dict(reversed(tensors.items()))) == digest
    for change in ({"x": tensors["x"].view(-1)}, {"x": tensors["x"].view(torch.int8)}, {"z": tensors["y"]}):
        assert cache._content_hash(tensors | change) != digest


def test_a_folder_that_cannot_be_written_still_gives_the_data(monkeypatch, tmp_path, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    reader = Reader()
    for calls in (1, 2):
        assert_equal(cached("key", reader), reader)
        assert reader.calls == len(caplog.records) == calls
    assert "not stored (" in caplog.records[0].getMessage()


@pytest.mark.parametrize("error", [SafetensorError("no space left"), OSError(28, "No space left on device")])
@pytest.mark.parametrize("function", ["save_file", "os.replace"])
def test_nothing_is_left_when_writing_fails(monkeypatch, caplog, function, error):
    def fail(_, path, *rest):
        if function == "save_file":
            path.write_bytes(b"half")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(f"tautnet.data.cache.{function}", fail)
        reader = Reader()
        assert_equal(cached("key", reader), reader)
    assert stored() == []
    assert [r.levelno for r in caplog.records] == [logging.WARNING]
    assert "o space left" in caplog.records[0].getMessage()
    assert_equal(cached("key", reader), reader)
    assert len(stored()) == 1


def test_nothing_is_stored_when_reading_fails():
    def fail():
        raise ValueError("no images")

    with pytest.raises(ValueError, match="no images"):
        cached("key", fail)
    assert stored() == []


def linked(folder, **blobs):
    """A folder of links to files that lie elsewhere."""
    for name, blob in blobs.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(blob)
    return folder


def test_fingerprint_follows_the_names_of_links_and_where_they_lead(tmp_path):
    one, two = tmp_path / "1", tmp_path / "2"
    for blob in (one, two):
        blob.write_bytes(b"1234")
        os.utime(blob, ns=(10**18, 10**18))
    roots = [linked(tmp_path / "x", a=one), linked(tmp_path / "y", a=one), linked(tmp_path / "z", a=two)]
    named = [fingerprint("kind", root, [root / "a"]) for root in roots]
    moved = linked(tmp_path / "x", b=one)
    assert len({*named, fingerprint("kind", moved, [moved / "b"])}) == 4


def test_fingerprint_takes_names_that_are_no_text(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe"))
    path.write_bytes(b"1")
    assert fingerprint("kind", tmp_path, [path]) != fingerprint("kind", tmp_path, [])


def test_stored_tensors_that_do_not_fit_are_read_anew(caplog):
    reader = Reader()
    cached("key", reader)
    assert_equal(cached("key", reader, lambda tensors: False), reader)
    assert reader.calls == 2
    assert "damaged" in caplog.text
