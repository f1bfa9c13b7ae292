"""Checkpoint files: whole or not there, and never believed when they are not what was written."""

import errno
import logging
import resource
import signal
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from tautnet import checkpoint_io, checkpoints
from tautnet.checkpoint_io import AtomicCheckpointIO
from tautnet.checkpoints import DamagedError, newest_, older, read, write


def state(number: int, size: int = 200) -> dict:
    return {"number": number, "weights": torch.arange(size), "optimizer_states": [], "random": (3, (1, 2), None)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write(state(1), tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


def test_what_is_written_is_read(path):
    found = read(path)
    assert found["number"] == 1
    assert found["random"] == (3, (1, 2), None)
    assert torch.equal(found["weights"], torch.arange(200))


def test_others_can_read_it_too(path):
    assert torch.load(path, weights_only=True)["number"] == 1
    assert zipfile.ZipFile(path).testzip() is None


def test_cut_off_anywhere_it_is_named(path):
    content = path.read_bytes()
    for size in range(0, len(content), max(1, len(content) // 100)):
        path.write_bytes(content[:size])
        with pytest.raises(DamagedError, match=r"last\.ckpt: (empty|not a checkpoint of tautnet, or cut off)"):
            read(path)


def test_a_flipped_bit_anywhere_is_noticed(path):
    content, rng = path.read_bytes(), np.random.default_rng(0)
    for bit in rng.choice(8 * len(content), 1000, replace=False):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        with pytest.raises(DamagedError, match=r"last\.ckpt: "):
            read(path)


def test_bytes_behind_it_are_noticed(path):
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(DamagedError, match="not a checkpoint of tautnet, or cut off"):
        read(path)


@pytest.mark.parametrize("content", [b"text", b"PK\x05\x06" + 18 * b"\0", b"sha256:" + 64 * b"0"])
def test_foreign_files_are_named(path, content):
    path.write_bytes(content)
    with pytest.raises(DamagedError, match=r"last\.ckpt: "):
        read(path)


def test_what_torch_alone_has_written_is_not_ours(path):
    torch.save(state(1), path)
    with pytest.raises(DamagedError, match="not a checkpoint of tautnet"):
        read(path)


def test_a_sealed_file_of_something_else_is_not_a_checkpoint(path):
    write([1, 2], path)
    with pytest.raises(DamagedError, match="not a checkpoint of tautnet"):
        read(path)


def test_the_ones_before_are_kept_in_their_order(tmp_path):
    path = tmp_path / "last.ckpt"
    for number in range(5):
        write(state(number), path, keep=3)
    assert [read(older(path, age))["number"] for age in range(3)] == [4, 3, 2]
    assert len(list(tmp_path.iterdir())) == 3


def test_the_newest_that_is_whole_is_taken(tmp_path, caplog):
    path = tmp_path / "last.ckpt"
    for number in range(3):
        write(state(number), path, keep=3)
    assert newest_(tmp_path) == path
    path.write_bytes(path.read_bytes()[:-1000])
    older(path, 1).write_bytes(b"")
    (tmp_path / "last.ckpt.part").write_bytes(b"begun")
    with caplog.at_level(logging.WARNING):
        assert newest_(tmp_path) == older(path, 2)
    assert [message.split(": ")[0] for message in caplog.messages] == [str(path), str(older(path, 1))]
    left = {"last.ckpt.damaged", "last-1.ckpt.damaged", "last-2.ckpt"}
    assert {found.name for found in tmp_path.iterdir()} == left
    older(path, 2).unlink()
    assert newest_(tmp_path) is None
    write(state(7), tmp_path / "best.ckpt")
    assert newest_(tmp_path) == tmp_path / "best.ckpt"


def test_weights_alone_continue_nothing(tmp_path):
    write({"weights": torch.ones(1)}, tmp_path / "last.ckpt")
    assert newest_(tmp_path) is None


@pytest.fixture
def small_files() -> object:
    """No file may exceed 4 kB: what a full disk does, without one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("size", [2000, 200_000])
def test_a_write_that_fails_leaves_the_files_before(path, small_files, size):
    before = path.read_bytes()
    with pytest.raises(OSError, match="File too large") as caught:
        write(state(2, size), path, keep=2)
    assert caught.value.errno == errno.EFBIG
    assert caught.value.filename == str(path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_cut_off_at_any_moment_there_is_a_whole_file(path, monkeypatch, step):
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints.os if step == "fsync" else Path, step, fail)
    with pytest.raises(KeyboardInterrupt):
        write(state(2), path)
    assert newest_(path.parent) == path
    assert read(path)["number"] == 1


def test_large_ones_are_written_beside_the_training(tmp_path, monkeypatch):
    """From a copy: what training changes meanwhile is not in the file."""
    monkeypatch.setattr(checkpoint_io, "_BESIDE_TRAINING", 1)
    files, path = AtomicCheckpointIO(), tmp_path / "last.ckpt"
    files.keep(path, 2)
    for number in range(3):
        content = state(number)
        files.save_checkpoint(content, path)
        content["weights"].fill_(-1)
    files.teardown()
    assert [read(older(path, age))["number"] for age in range(2)] == [2, 1]
    assert torch.equal(read(path)["weights"], torch.arange(200))
    assert files.load_checkpoint(path)["number"] == 2
    files.remove_checkpoint(path)
    assert not path.exists()


def test_an_error_beside_the_training_is_met(tmp_path, monkeypatch, small_files):
    monkeypatch.setattr(checkpoint_io, "_BESIDE_TRAINING", 1)
    files = AtomicCheckpointIO()
    files.save_checkpoint(state(1, 2000), tmp_path / "last.ckpt")
    with pytest.raises(OSError, match=r"last\.ckpt"):
        files.save_checkpoint(state(2, 10), tmp_path / "last.ckpt")
    files.save_checkpoint(state(3, 10), tmp_path / "last.ckpt")
    files.wait()
    assert read(tmp_path / "last.ckpt")["number"] == 3
