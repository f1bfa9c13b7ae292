"""Tables in CSV and parquet files."""

import gzip
import sys

import numpy as np
import pytest
from data_files import REAL, refused, write_csv, write_table_parquet

from tautnet.data.formats.table import read_table

pytest.importorskip("pandas")
COLUMNS = {
    "size": [1.5, -2.25, 1e300, 0.1],
    "count": [3, 1, 2, 2],
    "new": [True, False, True, True],
    "colour": ["red", "blue", "red", "green"],
    "constant": [7, 7, 7, 7],
    "y": ["b", "a", "b", "a"],
}
FEATURES = np.array(
    [
        [1.5, 3, 1, 0, 0, 1, 7],
        [-2.25, 1, 0, 1, 0, 0, 7],
        [1e300, 2, 1, 0, 0, 1, 7],
        [0.1, 2, 1, 0, 1, 0, 7],
    ]
)
NAMES = ("size", "count", "new", "colour=blue", "colour=green", "colour=red", "constant")


@pytest.fixture(params=["csv", "parquet"])
def write(request, tmp_path):
    """Write columns into a file of either format and return its path."""
    if request.param == "parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path / f"table.{request.param}"

    def writer(columns):
        (write_csv if request.param == "csv" else write_table_parquet)(path, columns)
        return path

    return writer


def test_round_trip(write):
    table = read_table(write(COLUMNS), "y")
    assert table.features.dtype == np.float64
    assert np.array_equal(table.features, FEATURES)
    assert table.names == NAMES
    assert table.target.dtype == object
    assert table.target.tolist() == COLUMNS["y"]


@pytest.mark.parametrize(("target", "values"), [("size", COLUMNS["size"]), ("new", [1, 0, 1, 1])])
def test_targets_of_numbers(write, target, values):
    table = read_table(write(COLUMNS), target)
    assert table.target.dtype == np.float64
    assert table.target.tolist() == values
    assert len(table.names) == len(table.features[0])


def test_a_seeded_table_is_exact(write):
    values = np.random.default_rng(0).normal(size=(50, 4)) * 10.0 ** np.arange(-8, 8, 4)
    table = read_table(write({name: values[:, i].tolist() for i, name in enumerate("abcd")}), "c")
    assert np.allclose(table.features, values[:, [0, 1, 3]], rtol=1e-15, atol=0)


@pytest.mark.parametrize("column", ["size", "new", "colour", "y"])
def test_missing_values(write, column):
    values = [*COLUMNS[column][:2], None, COLUMNS[column][3]]
    path = write(COLUMNS | {column: values})
    with refused(path, f"column '{column}': missing value in row 3"):
        read_table(path, "y")


@pytest.mark.parametrize("text", ["?", "NA", "nan", " "])
def test_missing_values_as_text(tmp_path, text):
    path = tmp_path / "x.csv"
    write_csv(path, {"a": [1, text, text], "y": [0, 1, 0]})
    with refused(path, "column 'a': missing value in row 2"):
        read_table(path, "y")


@pytest.mark.parametrize("column", ["size", "y"])
def test_infinite_values(write, column):
    path = write(COLUMNS | {column: [1.0, 2.0, float("-inf"), 3.0]})
    with refused(path, f"column '{column}': infinite value in row 3"):
        read_table(path, "y")


def test_target_that_is_not_there(write):
    path = write(COLUMNS)
    with refused(path, "no column 'colours' (nearest: 'colour'); there are size, count,"):
        read_table(path, "colours")
    path = write({f"column{i}": [i] for i in range(30)})
    with refused(path, "no column 'zzz'; there are column0", "column19 ... (30)"):
        read_table(path, "zzz")


def test_no_features_and_no_rows(write):
    path = write({"y": [1, 2]})
    with refused(path, "no columns beside the target"):
        read_table(path, "y")
    path = write({"a": [], "y": []})
    with refused(path, "no rows"):
        read_table(path, "y")


def test_text_of_many_values(write):
    for count in (100, 101):
        path = write({"id": [f"n{i:03d}" for i in range(count)], "y": list(range(count))})
        if count == 100:
            assert np.array_equal(read_table(path, "y").features, np.eye(100))
        else:
            with refused(path, "column 'id' is text with 101 different values", "'n000'", "100"):
                read_table(path, "y")


def test_columns_of_one_name(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("a,b,a,y\n1,2,3,4\n")
    with refused(path, "several columns are named 'a'"):
        read_table(path, "y")
    pa = pytest.importorskip("pyarrow")
    path = tmp_path / "x.parquet"
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_arrays([pa.array([1])] * 3, names=["a", "a", "y"]), path)
    with refused(path, "several columns are named 'a'"):
        read_table(path, "y")


def test_csv_spaces_byte_order_mark_and_gzip(tmp_path):
    path = tmp_path / "x.csv.gz"
    path.write_bytes(gzip.compress("\ufeffa, b, y\n1, 2, 3\n4, 5, 6\n".encode()))
    table = read_table(path, "y")
    assert table.names == ("a", "b")
    assert table.features.tolist() == [[1, 2], [4, 5]]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ("not a readable CSV file",)),
        (b"\n\n", ("not a readable CSV file",)),
        (b"a,y\n1,2,3\n", ("not a readable CSV file",)),
        (b"a,y\n1,2\n1,2,3\n", ("not a readable CSV file",)),
        (b"a,y\n1,2\n1\n", ("column 'y': missing value in row 2",)),
        (b"a,y\n\xff\xfe,2\n", ("not a readable CSV file",)),
        (b"a;y\n1;2\n", ("no column 'y'", "a;y")),
    ],
)
def test_csv_problems(tmp_path, content, words):
    path = tmp_path / "x.csv"
    path.write_bytes(content)
    with refused(path, *words):
        read_table(path, "y")


@pytest.mark.parametrize("keep", [0, 8, -1])
def test_damaged_parquet(tmp_path, keep):
    pytest.importorskip("pyarrow")
    path = tmp_path / "x.parquet"
    write_table_parquet(path, COLUMNS)
    path.write_bytes(path.read_bytes()[:keep])
    with refused(path, "parquet"):
        read_table(path, "y")


def test_columns_of_other_types(tmp_path):
    from datetime import date

    pytest.importorskip("pyarrow")
    path = tmp_path / "x.parquet"
    for values in ([date(2020, 1, 1)], [[1, 2]], [b"x"]):
        write_table_parquet(path, {"a": values, "y": [1]})
        with refused(path, "column 'a' is object, expected numbers, truth values or text"):
            read_table(path, "y")


def test_files_and_modules_that_are_missing(tmp_path, monkeypatch):
    path = tmp_path / "x.csv"
    with refused(path, "no such file"):
        read_table(path, "y")
    write_csv(path, COLUMNS)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with refused(path, "needs pandas; pip install 'tautnet[data]'"):
        read_table(path, "y")


@pytest.mark.skipif(not (REAL / "uci").is_dir(), reason="the real UCI tables are not at hand")
def test_real_letter():
    table = read_table(REAL / "uci" / "letter.csv", "target")
    assert table.features.shape == (20_000, 16)
    assert (table.features.min(), table.features.max()) == (0, 15)
    assert sorted(set(table.target)) == list(range(26))


def test_text_among_numbers_is_named(tmp_path):
    path = tmp_path / "a.csv"
    write_csv(path, {"n": [1, 2, "1,000", 4], "y": [0, 1, 0, 1]})
    with refused(path, "'n'", "'1,000'", "row 3"):
        read_table(path, "y")
