"""Variants out of runs, and what is said about them."""

import csv
import json
from io import StringIO

import pytest
import yaml
from PIL import Image

from tautnet.__main__ import main
from tautnet.errors import ConfigError
from tautnet.report.comparison import as_csv, as_markdown, compare, difference_rows, mean_rows
from tautnet.report.html import element, page, raw, table
from tautnet.report.records import read_records


@pytest.fixture
def make(tmp_path):
    """Write a run as train.py leaves it."""

    def make(name, seed=0, overrides=(), metrics=None, **settings):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        plain = {"seed": seed, "run_dir": str(folder), "objective": "val/acc", "overrides": list(overrides)}
        plain |= {"data": {"seed": seed, "split_seed": 0}, "callbacks": {"last": {"folder": f"{folder}/checkpoints"}}}
        (folder / "config.yaml").write_text(yaml.safe_dump(plain | settings))
        if metrics is not None:
            text = json.dumps({"metrics": metrics, "seed": seed, "overrides": list(overrides)})
            (folder / "result.json").write_text(text)
        return folder

    return make


def sweep(make, seeds=3, gain=0.1):
    for activation, start in (("relu", 0.5), ("spline", 0.5 + gain)):
        for seed in range(seeds):
            metrics = {"test/acc": start + seed / 100, "lipschitz/bound_p2": 10.0 + seed}
            target = {"activation": {"_target_": f"tautnet.activations.{activation}"}}
            make(f"s/{activation}{seed}", seed, [f"activation={activation}", f"seed={seed}"], metrics, **target)


def test_runs_that_differ_in_the_seed_alone_are_a_variant(make, tmp_path):
    sweep(make)
    comparison = compare(read_records([tmp_path / "s"]))
    assert [(variant.settings, len(variant.runs)) for variant in comparison.variants] == [
        ({"activation": "relu"}, 3),
        ({"activation": "spline"}, 3),
    ]
    assert comparison.metrics == ("test/acc", "lipschitz/bound_p2")
    assert mean_rows(comparison) == [
        ["activation", "seeds", "test accuracy", "Lipschitz bound, p = 2"],
        ["relu", "3", "0.5100 ± 0.0100", "11 ± 1"],
        ["spline", "3", "0.6100 ± 0.0100", "11 ± 1"],
    ]
    assert difference_rows(comparison)[1:] == [
        ["activation=spline", "test accuracy", "+0.1 [+0.1, +0.1]", "0.25", "3", "too few seeds"],
        ["activation=spline", "Lipschitz bound, p = 2", "+0 [+0, +0]", "1", "3", "too few seeds"],
    ]
    assert "Too few seeds" in comparison.notes[0]


def test_six_seeds_tell_and_the_baseline_is_chosen(make, tmp_path):
    sweep(make, seeds=6)
    comparison = compare(read_records([tmp_path / "s"]), ["test/acc"], "activation=spline")
    assert difference_rows(comparison)[1:] == [
        ["activation=relu", "test accuracy", "-0.1 [-0.1, -0.1]", "0.0312", "6", "clear, p ≤ 0.05"]
    ]
    assert comparison.notes == ()


def test_settings_tell_apart_what_overrides_do_not(make, tmp_path):
    spline, relu = ({"_target_": f"tautnet.activations.{name}"} for name in ("LinearSpline", "relu"))
    tv2 = {"regularizer": {"tv2": {"_target_": "tautnet.regularizers.SecondOrderVariation", "weight": 1}}}
    adam, sgd = {"optimizer": {"lr": 0.1}}, {"optimizer": {"lr": 0.2}}
    paths = [
        make("a", 0, [], {"x": 1.0}, activation=spline | {"num_knots": 51}, **tv2, **adam),
        make("b", 1, [], {"x": 2.0}, activation=spline | {"num_knots": 51}, **tv2, **adam),
        make("c", 0, [], {"x": 2.0}, activation=relu, regularizer={}, **adam),
        make("d", 0, [], {"x": 2.0}, activation=relu, regularizer={}, **sgd),
    ]
    settings = [variant.settings for variant in compare(read_records(paths), ["x"]).variants]
    assert settings == [
        {"activation": "LinearSpline", "optimizer.lr": "0.1"},
        {"activation": "relu", "optimizer.lr": "0.1"},
        {"activation": "relu", "optimizer.lr": "0.2"},
    ]


def test_a_default_beside_an_override(make, tmp_path):
    paths = [make("a", 0, [], {"x": 1.0}, y=1), make("b", 0, ["y=2", "trainer.progress=plain"], {"x": 1.0}, y=2)]
    assert [v.label for v in compare(read_records(paths), ["x"]).variants] == ["default settings", "y=2"]


def test_what_is_missing_is_said(make, tmp_path):
    paths = [
        make("a", 0, ["y=1"], {"x": 1.0}, y=1),
        make("again", 0, ["y=1"], {"x": 3.0}, y=1),
        make("b", 7, ["y=2"], {"x": "inf"}, y=2),
        make("cut", 1, ["y=2"], y=2),
    ]
    comparison = compare(read_records(paths), ["x"])
    assert mean_rows(comparison)[1:] == [["1", "1", "2"], ["2", "1", "inf"]]
    assert difference_rows(comparison) == []
    notes = "\n".join(comparison.notes)
    assert f"{tmp_path / 'cut'}: left out, not finished" in notes
    assert "y=1: several runs with the same seed" in notes
    assert "No seed is common" in notes
    with pytest.raises(ConfigError, match=r"--metric xx: no run has it; did you mean x\? Accepted: x"):
        compare(read_records(paths), ["xx"])
    with pytest.raises(ConfigError, match=r"--baseline y=3: no variant has it"):
        compare(read_records(paths), ["x"], "y=3")
    with pytest.raises(ConfigError, match="no finished run"):
        compare(read_records(paths[-1:]))


@pytest.mark.parametrize("seed", [[1], {"a": 1}, 0.5])
def test_a_damaged_seed_counts_as_unknown(make, seed):
    runs = read_records([make("a", seed, metrics={"test/acc": 0.5})])
    assert runs[0].seed is None
    assert mean_rows(compare(runs))[1][1] == "1"


def test_one_seed_and_other_data(make):
    paths = [make(name, 0, [f"data={name}"], {"x": 1.0}, data={"_target_": name}) for name in ("iris", "wine")]
    comparison = compare(read_records(paths), ["x"])
    assert difference_rows(comparison) == []
    assert [note.split(":")[0] for note in comparison.notes] == [
        "The runs are on different data",
        "Too few seeds to tell",
    ]


def test_tables_that_are_files(make, tmp_path):
    sweep(make)
    hostile = make("s/x", 0, ["activation=a|<b>,c"], {"test/acc": 0.25}, activation={"_target_": "x"})
    comparison = compare(read_records([tmp_path / "s", hostile]), ["test/acc"])
    rows = list(csv.DictReader(StringIO(as_csv(comparison))))
    assert [row["activation"] for row in rows] == ["relu", "spline", "a|<b>,c"]
    assert float(rows[1]["difference"]) == pytest.approx(0.1)
    assert (rows[1]["n"], rows[1]["pairs"], rows[2]["standard_deviation"]) == ("3", "3", "")
    assert r"| a\|\<b\>,c | 1 | 0.2500 |" in as_markdown(comparison)


def test_the_command(make, tmp_path, capsys):
    sweep(make)
    assert main(["compare", str(tmp_path / "s"), "--output", str(tmp_path / "out"), "--metric", "test/acc"]) == 0
    text = capsys.readouterr().out
    assert "0.6100 ± 0.0100" in text
    assert "Too few seeds" in text
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        *("comparison.csv", "comparison.md", "seeds_test_acc.png", "seeds_test_acc.svg"),
        *("trade_off.png", "trade_off.svg"),
    ]
    with Image.open(tmp_path / "out" / "trade_off.png") as image:
        assert image.convert("L").getextrema()[0] < 100
    for arguments in ([str(tmp_path)], [str(tmp_path / "s"), "--output", str(tmp_path / "out" / "comparison.md")]):
        assert main(["compare", *arguments]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_what_is_not_mark_up_is_text():
    assert element("p", "<script>", element("b", '"&"'), _class='"x"') == (
        '<p class="&quot;x&quot;">&lt;script&gt;<b>&quot;&amp;&quot;</b></p>'
    )
    assert element("meta", http_equiv="x") == '<meta http-equiv="x">'
    assert element("p", "p\N{NO-BREAK SPACE}=") == "<p>p\N{NO-BREAK SPACE}=</p>"
    assert element("p", raw("<i>"), "a\x00b\udcff") == "<p><i>a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}</p>"
    whole = page("</title><script>", table([["<a>"], ["<b>"]], "<c>"))
    assert "<script>" not in whole
    assert "<b>" not in whole


def test_arguments_of_one_target_among_others(make):
    spline = {"_target_": "tautnet.activations.LinearSpline"}
    paths = [
        make("a", 0, [], {"x": 1.0}, activation=spline | {"num_knots": 51}),
        make("b", 0, [], {"x": 1.0}, activation=spline | {"num_knots": 21}),
        make("c", 0, [], {"x": 1.0}, activation={"_target_": "tautnet.activations.relu"}),
    ]
    labels = [variant.label for variant in compare(read_records(paths), ["x"]).variants]
    assert len(set(labels)) == 3
    assert "num_knots=21" in labels[1]
