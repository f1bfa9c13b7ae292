"""Tables that a trained model is given: columns by name, values as in training, and what is refused."""

import gzip

import pytest

from tautnet.errors import ConfigError
from tautnet.evaluation.tables import TableFile

COLUMNS = ["size", "colour=blue", "colour=red", "a=b"]  # the last is a name of its own


def rows(path, columns=COLUMNS, target=None):
    return list(TableFile(path, columns, len(columns or []) or 2, target).rows())


@pytest.fixture
def csv(tmp_path):
    def write(text, name="t.csv"):
        path = tmp_path / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


def test_columns_are_found_by_name_and_others_are_ignored(csv):
    path = csv('note,a=b,colour, size,kind\n"x, y",1,red,2.5,k\n\n,True,blue,-1e3,l\n')
    assert rows(path) == [([2.5, 0, 1, 1], None), ([-1000, 1, 0, 1], None)]
    assert TableFile(path, COLUMNS, 4).ignored == ["note", "kind"]
    assert [target for _, target in rows(path, target="kind")] == ["k", "l"]
    assert TableFile(path, COLUMNS, 4, "kind").ignored == ["note"]


def test_without_names_columns_count_in_their_order(csv):
    path = csv("u,v\n1,2\n")
    assert rows(path, None) == [([1, 2], None)]
    with pytest.raises(ConfigError, match="2 columns, the network takes 3 numbers"):
        TableFile(path, None, 3)


def test_parquet_and_gzip_say_the_same_as_csv(csv, tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    text = "size,colour,a=b\n1,red,true\n2,blue,false\n"
    table = pyarrow.table({"colour": ["red", "blue"], "size": [1, 2], "a=b": [True, False], "extra": [None, [1]]})
    parquet.write_table(table, tmp_path / "t.parquet")
    plain = rows(csv(text))
    assert rows(tmp_path / "t.parquet") == plain == rows(csv(gzip.compress(text.encode()), "t.csv.gz"))
    assert plain == [([1, 0, 1, 1], None), ([2, 1, 0, 0], None)]


HEADER = "size,colour,a=b\n1,red,1\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEADER + "abc,red,1\n", "row 2: column 'size': 'abc' is no number"),
        (HEADER + "1_0,red,1\n", "row 2: column 'size': '1_0' is no number"),
        (HEADER + "inf,red,1\n", "row 2: column 'size': 'inf'; a finite number is needed"),
        (HEADER + "NaN,red,1\n", "row 2: column 'size': the value is missing"),
        (HEADER + "?,red,1\n", "row 2: column 'size': the value is missing"),
        (HEADER + "1,green,1\n", "row 2: column 'colour': 'green'; the training saw blue, red"),
        (HEADER + "1,,1\n", "row 2: column 'colour': ''; the training saw blue, red"),
        (HEADER + "1,red\n", "row 2: 2 fields, the first line names 3 columns"),
        ("size,a=b\n", "no column colour, which the network was trained with; there are size, a=b"),
        ("colour,colour\n", "several columns are named 'colour'"),
        ("", "empty; a line with the names"),
        (b"size\n\xff\n", "not a readable CSV"),
        ('size,colour,a=b\n"1,red,1\n', "not a readable CSV"),
    ],
)
def test_what_cannot_be_used_is_named(csv, text, message):
    path = csv(text)
    with pytest.raises(ConfigError) as refused:
        rows(path)
    assert str(refused.value).startswith(f"{path}: {message}")


def test_a_damaged_archive_is_refused(csv):
    for content, name in (
        (b"no gzip", "t.csv.gz"),
        (gzip.compress((HEADER + "1,red,1\n" * 99).encode())[:-12], "u.csv.gz"),
    ):
        with pytest.raises(ConfigError, match="not a readable CSV"):
            rows(csv(content, name))
    with pytest.raises(ConfigError, match="no such file"):
        rows(csv("").with_name("none.csv"))


def test_the_target_has_to_be_there(csv):
    with pytest.raises(ConfigError, match="no column 'kind'; there are size, colour, a=b"):
        TableFile(csv(HEADER), COLUMNS, 4, "kind")
