"""The compiled library: built once, kept, checked, done without."""

import logging
import subprocess
import sys

import pytest
import torch
from forked import finish, start
from test_kernels import agree, case, needs_compiler, results

from tautnet.kernels import dispatch, linear_spline, native


@needs_compiler
def test_without_wide_vectors_the_results_agree(monkeypatch, tmp_path):
    x, coefficients = case((40, 7, 6, 6), 51, torch.float32)
    expected = results(x, coefficients, "reference")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native, "_FLAGS", (*native._FLAGS, "-DTAUTNET_PORTABLE"))
    native._library.cache_clear()
    native._function.cache_clear()
    try:
        agree(results(x, coefficients, "cpu"), expected, 2e-5)
        agree(
            results(x.flatten(1)[:, :7], coefficients, "cpu"),
            results(x.flatten(1)[:, :7], coefficients, "reference"),
            2e-5,
        )
    finally:
        native._library.cache_clear()
        native._function.cache_clear()


def test_without_a_compiler_one_line_says_so_and_the_reference_computes(monkeypatch, caplog):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CXX", "no-such-compiler")
    native._library.cache_clear()
    dispatch._chosen.cache_clear()
    try:
        with caplog.at_level(logging.INFO, "tautnet"):
            for _ in range(3):
                y = linear_spline(torch.ones(2, 3), torch.ones(3, 5), 1.0)
        assert y.eq(1).all()
        assert [record.getMessage() for record in caplog.records] == [
            "No C++ compiler: splines run in plain torch, several times slower on a CPU. Install g++ or set CXX.",
            "Linear splines on the cpu run on the backend reference.",
        ]
    finally:
        native._library.cache_clear()
        dispatch._chosen.cache_clear()


@needs_compiler
def test_a_compiler_that_fails_leaves_the_reference_and_no_files(monkeypatch, caplog, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native, "_FLAGS", (*native._FLAGS, "--no-such-option"))
    native._library.cache_clear()
    try:
        with caplog.at_level(logging.WARNING, "tautnet"):
            assert not native.available()
        assert len(caplog.records) == 1
        assert "failed" in caplog.records[0].getMessage()
        assert not list((tmp_path / "tautnet-kernels").iterdir())
    finally:
        native._library.cache_clear()


@needs_compiler
def test_the_library_is_compiled_once_and_again_when_it_is_damaged(tmp_path):
    """Each time in a process that has loaded no library yet; a small one, the splines take seconds to compile."""
    (tmp_path / "one.cpp").write_text('extern "C" int one() { return 1; }')
    code = (
        "from pathlib import Path; from tautnet.kernels import native;"
        "assert native.compiled(Path('one.cpp'), 'ones').one() == 1"
    )

    def loaded():
        return finish(start(exec, code, folder=tmp_path, XDG_CACHE_HOME=str(tmp_path)), tmp_path).returncode == 0

    assert loaded()
    (path,) = (tmp_path / "tautnet-kernels").glob("*.so")
    before, content = path.stat().st_mtime_ns, path.read_bytes()
    assert loaded()
    assert path.stat().st_mtime_ns == before
    for damaged in (b"", content[: len(content) // 2], content[:-1] + b"x"):
        path.write_bytes(damaged)
        assert loaded()
        assert len(path.read_bytes()) == len(content)
    assert {found.suffix for found in path.parent.iterdir()} == {".so", ".sha256"}


@needs_compiler
def test_without_a_place_for_the_library_it_is_compiled_for_the_process(monkeypatch, caplog, tmp_path):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    native._library.cache_clear()
    try:
        with caplog.at_level(logging.WARNING, "tautnet"):
            assert native.available()
        assert len(caplog.records) == 1
        assert "not writable" in caplog.records[0].getMessage()
    finally:
        native._library.cache_clear()


def test_torch_and_the_library_share_their_threads():
    code = (
        "import torch; from tautnet.kernels import native; native.available();"
        "maps = open('/proc/self/maps').read(); import re;"
        "print(len(set(re.findall(r'\\S*libgomp\\S*', maps))))"
    )
    if not native.available() or not sys.platform.startswith("linux"):
        pytest.skip("needs a compiler and /proc")
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert int(found) == 1


@needs_compiler
def test_a_library_is_kept_for_its_flags_source_and_compiler(monkeypatch, tmp_path):
    compiler = native._compiler()
    seen = [native._fingerprint(compiler)]
    assert native._fingerprint(compiler) == seen[0]
    other = tmp_path / "compiler"
    other.write_text("#!/bin/sh\necho 1\n")
    other.chmod(0o755)
    seen.append(native._fingerprint([str(other)]))
    other.write_text("#!/bin/sh\necho 2\n")
    seen.append(native._fingerprint([str(other)]))
    with monkeypatch.context() as patch:
        patch.setattr(native, "_FLAGS", (*native._FLAGS, "-DOTHER"))
        seen.append(native._fingerprint(compiler))
    with monkeypatch.context() as patch:
        patch.setattr(native.platform, "machine", lambda: "other")
        seen.append(native._fingerprint(compiler))
    source = tmp_path / "source.cpp"
    source.write_text("")
    with monkeypatch.context() as patch:
        patch.setattr(native, "_SOURCE", source)
        seen.append(native._fingerprint(compiler))
    assert len(set(seen)) == len(seen)


@needs_compiler
@pytest.mark.parametrize(("elements", "expected"), [(32767, 1), (32768, 3)])
def test_threads_are_started_for_large_inputs_alone(elements, expected, monkeypatch):
    used, function = [], native._function

    def spied(*key):
        return lambda *arguments: used.append(arguments[-1]) or function(*key)(*arguments)

    monkeypatch.setattr(native, "_function", spied)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        results(torch.randn(elements, 1), torch.randn(1, 9), "cpu")
    finally:
        torch.set_num_threads(threads)
    assert used == [expected, expected]
