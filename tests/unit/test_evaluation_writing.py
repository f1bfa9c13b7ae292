"""Whole files or none, rows that can be read again, and a closed pipe."""

import csv
import json
import os
import subprocess
import sys

import pytest

from tautnet.errors import ConfigError
from tautnet.evaluation.writing import check_free, printable, progress, rows_into, table, whole_file

ROWS = [{"a": 0.1 + 0.2, "b": 'x, "y"\n'}, {"a": float("inf"), "b": None}]


def test_csv_keeps_every_bit(tmp_path, capsys):
    for path in (tmp_path / "t.csv", None):
        with rows_into(path, ["a", "b"]) as write:
            for row in ROWS:
                write(row)
    text = (tmp_path / "t.csv").read_text()
    assert capsys.readouterr().out == text
    read = list(csv.DictReader(text.splitlines(keepends=True)))
    assert [float(row["a"]) for row in read] == [0.1 + 0.2, float("inf")]
    assert [row["b"] for row in read] == ['x, "y"\n', ""]


@pytest.mark.parametrize("rows", [[], ROWS[:1], ROWS])
def test_json_has_null_for_what_has_no_limit(tmp_path, rows):
    with rows_into(tmp_path / "t.json", ["a", "b"]) as write:
        for row in rows:
            write(row)
    read = json.loads((tmp_path / "t.json").read_text(), parse_constant=pytest.fail)
    assert read == [row | {"a": None if row["a"] == float("inf") else row["a"]} for row in rows]


def test_a_file_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("before")

    def fail(write):
        write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), whole_file(path) as file:
        fail(file.write)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("t.csv", "before")]


def test_files_are_replaced_only_on_demand(tmp_path):
    path = tmp_path / "t.csv"
    check_free(path, overwrite=False)
    path.write_text("")
    check_free(path, overwrite=True)
    for wrong, overwrite, message in (
        (path, False, "exists; --overwrite replaces it"),
        (tmp_path, True, "a folder; the name of a file is needed"),
        (tmp_path / "none" / "t.csv", True, "no such folder as"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_free(wrong, overwrite)


def test_a_reader_that_has_seen_enough_ends_the_program_silently():
    code = (
        "from tautnet.evaluation.writing import pipe_may_close, rows_into\n"
        "with pipe_may_close(), rows_into(None, ['a']) as write:\n"
        "    for i in range(10**6): write({'a': i})\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"a\n"
        process.stdout.close()
        assert (process.stderr.read(), process.wait(60)) == (b"", 141)


def test_columns_and_control_characters():
    assert table([["name", "n"], ["a", "10"]]) == "name   n\na     10\n"
    assert printable("a\nb\x1b[31m" + os.fsdecode(b"\xff")) == "a b [31m" + os.fsdecode(b"\xff")


def test_without_a_terminal_there_is_no_progress(capsys):
    with progress("work", 3) as tell:
        tell()
    assert capsys.readouterr() == ("", "")
