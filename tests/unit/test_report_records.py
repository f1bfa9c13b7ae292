"""A run's files: whole, damaged, missing."""

import csv
import json
from math import inf, isnan

import pytest
from torch.utils.tensorboard import SummaryWriter

from tautnet.errors import ConfigError
from tautnet.report.records import read_record, read_records
from tautnet.report.scalars import read_curves


def log(folder, values, **options):
    with SummaryWriter(str(folder), **options) as board:
        for step, value in values.items():
            board.add_scalar("val/acc", value, step)
        board.add_text("lipschitz/layers", "no number", 0)


def test_scalars_out_of_events(tmp_path):
    log(tmp_path / "tensorboard", {9: 0.5, 19: 0.75, 29: inf})
    curves, problems = read_curves(tmp_path)
    assert (list(curves), problems) == (["val/acc"], [])
    assert (curves["val/acc"].steps, curves["val/acc"].values) == ((9, 19, 29), (0.5, 0.75, inf))


def test_what_an_attempt_logged_too_far_is_taken_back(tmp_path):
    log(tmp_path / "tensorboard", {9: 0.5, 19: 0.75, 29: 0.1, 39: 0.2}, filename_suffix=".0")
    log(tmp_path / "tensorboard", {29: 0.8}, purge_step=20, filename_suffix=".1")
    (curve,) = read_curves(tmp_path)[0].values()
    assert (curve.steps, curve.values) == ((9, 19, 29), (0.5, 0.75, pytest.approx(0.8)))


@pytest.mark.parametrize("damage", ["cut", "flipped", "noise", "length"])
def test_damaged_events_are_read_up_to_there_and_named(tmp_path, damage):
    log(tmp_path / "tensorboard", {step: 0.5 for step in range(20)})
    (file,) = (tmp_path / "tensorboard").iterdir()
    data = bytearray(file.read_bytes())
    if damage == "cut":
        data = data[: len(data) // 2]
    elif damage == "flipped":
        data[len(data) // 2] ^= 4
    else:
        data += b"noise that is no record" if damage == "noise" else b"\xff" * 40
    file.write_bytes(data)
    curves, (problem,) = read_curves(tmp_path)
    assert str(file) in problem
    assert "damaged" in problem
    assert len(curves["val/acc"].steps) in ((20,) if damage in ("noise", "length") else range(1, 20))


def test_csv_where_there_are_no_events(tmp_path):
    def write(folder, rows):
        folder.mkdir(parents=True)
        with (folder / "metrics.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["step", "val/acc", "train/loss"], *rows])

    write(tmp_path / "csv", [[9, 0.5, ""], [9, "", 2.0], [29, 0.1, ""]])
    write(tmp_path / "csv" / "from_step_19", [[29, "", 1.0], [39, "nan", ""]])
    curves, problems = read_curves(tmp_path)
    assert problems == []
    assert (curves["train/loss"].steps, curves["train/loss"].values) == ((9, 29), (2.0, 1.0))
    assert curves["val/acc"].steps == (9, 39)
    assert isnan(curves["val/acc"].values[1])
    (tmp_path / "csv" / "metrics.csv").write_bytes(b"step,val/acc\n5,much\n\xff")
    assert "metrics.csv" in read_curves(tmp_path)[1][0]


def test_an_unfinished_run_and_damaged_files(tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 3\noverrides: [norm=none]\n")
    record = read_record(tmp_path)
    assert (record.finished, record.seed, record.overrides, record.metrics) == (False, 3, ["norm=none"], {})
    assert (record.problems, record.curves) == ([], {})
    for text in ("{", "[1]", '{"metrics": {"a": "much"}}', '{"metrics": 3}', "[" * 5000):
        (tmp_path / "result.json").write_text(text)
        record = read_record(tmp_path)
        assert record.metrics == {}
        assert "result.json" in record.problems[0]
    for text in ("!!python/object/apply:os.system [exit]", "a: &a [0, 0]\nb: &b [*a, *a]\nc: [*b, *b]"):
        (tmp_path / "config.yaml").write_text(text)
        assert "config.yaml" in read_record(tmp_path).problems[0]


def test_where_runs_are_looked_for(tmp_path):
    for name in ("10", "9", "x"):
        (tmp_path / "sweep" / name).mkdir(parents=True)
        text = json.dumps({"metrics": {"a": "inf"}, "seed": 0, "overrides": []})
        (tmp_path / "sweep" / name / "result.json").write_text(text)
    (tmp_path / "sweep" / "other").mkdir()
    records = read_records([tmp_path / "sweep", tmp_path / "sweep" / "9"])
    assert [record.name for record in records] == ["9", "10", "x"]
    assert records[0].metrics == {"a": inf}
    for path in (tmp_path, tmp_path / "sweep" / "other", tmp_path / "nowhere"):
        with pytest.raises(ConfigError, match=str(path)):
            read_records([path])
