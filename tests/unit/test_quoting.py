"""Paths reach Hydra as they were typed, whatever their characters."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given
from hypothesis import strategies as st

from tautnet.quoting import PATHS, quote, quoted, unquote


def read(argument: str) -> object:
    """The value that Hydra takes from an argument."""
    override = OverridesParser.create().parse_override(argument)
    assert not override.is_sweep_override()
    return override.value()


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12))
@example("a=b,c d")
@example("'")
@example("\\'")
@example("\\")
@example("=\\\\")
@example("ü [1]{2}(3)#~!;&<>\"'")
def test_hydra_reads_the_path_that_was_typed(name):
    path = f"/tmp/{name}/c"
    if "${" not in path:
        assert read(quoted(f"ckpt={path}", multirun=False)) == path
    assert unquote(quote(name)) == name


def test_backslashes_at_the_end_do_not_take_the_quote_with_them():
    for path in ("/a=b\\", "/a=b\\\\", "/a=b\\'"):
        assert read(quoted(f"ckpt={path}", multirun=False)) == path


@given(st.text(st.characters(exclude_characters="\0,", exclude_categories=["Cs"]), max_size=12))
def test_so_it_does_in_a_sweep_but_for_commas(name):
    path = f"/tmp/{name}/c"
    if "${" not in path:
        assert read(quoted(f"data.root={path}", multirun=True)) == path


@pytest.mark.parametrize("multirun", [False, True])
@pytest.mark.parametrize(
    "argument",
    [
        *(
            "ckpt='/a=b'",
            'ckpt="/a=b"',
            "ckpt=null",
            "ckpt=/plain/a b.ckpt",
            "hydra.run.dir=outputs/${now:%Y,%m}",
            "-m",
        ),
        *("activation=spline", "model.net.widths=[4,4]", "+x={a:1}", "run=[test]", "--cfg", "ckpt", "data=npz"),
    ],
)
def test_what_is_no_path_or_written_for_hydra_stays(argument, multirun):
    assert quoted(argument, multirun) == argument


def test_quotes_that_a_user_typed_are_understood():
    for value in ("'/a=b'", '"/a=b"', '"a\\"b"', "'a\\\\'", '"it\'s"', "'a\\b'"):
        assert unquote(value) == read(f"ckpt={value}")
    for value in ("/a=b", "", "'", "'a\""):
        assert unquote(value) == value


def test_the_values_of_a_sweep_stay_several():
    for argument in ("data.path=a.csv,b.csv", "ckpt=glob(*)", "ckpt=choice(/ü)"):
        assert quoted(argument, multirun=True) == argument
        assert read(quoted(argument, multirun=False)) == argument.partition("=")[2]


def test_one_file_with_a_comma_is_one_value(tmp_path):
    path = tmp_path / "a,b.csv"
    path.touch()
    for argument in (f"data.path={path}", "hydra.sweep.dir=x,y"):
        assert read(quoted(argument, multirun=True)) == argument.partition("=")[2]


def test_the_home_is_meant_as_in_a_shell(monkeypatch):
    monkeypatch.setenv("HOME", "/home/jürgen")
    assert [quoted(f"{key}=~/runs", multirun=False) for key in PATHS] == [f"{key}='/home/jürgen/runs'" for key in PATHS]
