"""evaluate, predict and certify on runs of train.py, without conf/."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
from data_files import write_gray_images
from forked import finish, start, train
from sklearn.datasets import load_digits, load_iris

from tautnet.__main__ import main
from tautnet.trained import open_trained

QUICK = ("debug=fast", "logger=none", "trainer=cpu", "trainer.enable_progress_bar=false", "model.net.widths=[6]")
CERTIFY = {"epsilons_l2": "[0.01,0.2]", "epsilons_linf": "[0.02]", "num_samples": 24, "num_steps": 3}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three trained side by side: digits, certified; iris; diabetes."""
    jobs = {
        "digits": ("callbacks=certify", *(f"callbacks.certify.{key}={value}" for key, value in CERTIFY.items())),
        "iris": ("data=iris",),
        "diabetes": ("data=diabetes", "norm=none"),
    }
    started = {}
    for name, overrides in jobs.items():
        folder = tmp_path_factory.mktemp(name)
        arguments = (*QUICK, "model=mlp", "trainer.limit_test_batches=null", *overrides, f"hydra.run.dir={folder}/run")
        started[name] = (start(train, *arguments, folder=folder), folder)
    for process, folder in started.values():
        done = finish(process, folder)
        assert done.returncode == 0, done.stderr
    return {name: folder / "run" for name, (_, folder) in started.items()}


@pytest.fixture
def tautnet(tmp_path, monkeypatch, capsys):
    """A command in an empty folder; its status, what it printed, what it said."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        status = main([str(argument) for argument in arguments])
        return status, *capsys.readouterr()

    return run


def found_in(path):
    return json.loads(Path(path).read_text())


def read(text):
    return list(csv.DictReader(text.splitlines()))


@pytest.mark.parametrize("name", ["digits", "iris", "diabetes"])
def test_the_own_test_part_gives_the_metrics_of_the_run(tautnet, runs, name):
    status, out, err = tautnet("evaluate", runs[name], "--output", "e.json")
    assert (status, err) == (0, "")
    found = found_in("e.json")
    result = json.loads((runs[name] / "result.json").read_text())["metrics"]
    same = {key: value for key, value in result.items() if key in ("test/loss", "test/acc", "test/r2")}
    assert len(same) == 2
    assert {key: found["metrics"][key] for key in same} == same
    assert all(key in out for key in same)
    assert found["samples"] == {"digits": 360, "iris": 30, "diabetes": 89}[name]
    if name != "diabetes":
        confusion = np.array(found["confusion"])
        assert confusion.sum() == found["samples"]
        assert confusion.trace() / found["samples"] == pytest.approx(same["test/acc"])
        assert list(found["accuracy_per_class"]) == found["classes"]


def test_the_validation_part_too(tautnet, runs):
    tautnet("evaluate", runs["iris"], "--part", "val", "--output", "e.json")
    result = json.loads((runs["iris"] / "result.json").read_text())["metrics"]
    assert found_in("e.json")["metrics"]["val/loss"] == result["val/loss"]


def test_certify_says_what_the_callback_said(tautnet, runs):
    """To the bit, for the same samples."""
    arguments = ("--samples", 24, "--steps", 3, "--output", "c")
    assert tautnet("certify", runs["digits"], "--norm", "linf", "--eps", "1/50", *arguments)[0] == 0
    (row,) = found_in("c/certificates.json")["rows"]
    callback = json.loads((runs["digits"] / "certificates" / "certificates.json").read_text())
    assert [row] == [other for other in callback["rows"] if other["norm"] == "linf"]
    _, out, _ = tautnet("certify", runs["digits"], "--norm", "l2", "--eps", "0.2,0.01", *arguments, "--overwrite")
    found = found_in("c/certificates.json")
    assert found["radii"]["l2"] == callback["radii"]["l2"]
    assert found["rows"] == [other for other in callback["rows"] if other["norm"] == "l2"]
    assert "24 samples" in out
    assert sorted(os.listdir("c")) == ["certificates.csv", "certificates.json", "certificates.png"]


def test_images_of_digits_get_the_class_of_the_evaluation(tautnet, runs, tmp_path):
    digits = load_digits()
    np.save("x.npy", digits.images / 16)
    status, out, _ = tautnet("predict", runs["digits"], "x.npy", "--top", 2)
    rows = read(out)
    assert (status, len(rows)) == (0, 1797)
    assert list(rows[0]) == ["file", "row", "class", "probability", "class_2", "probability_2", "margin", "radius_l2"]
    share = np.mean([int(row["class"]) == true for row, true in zip(rows, digits.target, strict=True)])
    tautnet("evaluate", runs["digits"], "--part", "all", "--output", "e.json")
    assert share == pytest.approx(found_in("e.json")["metrics"]["all/acc"], abs=1e-6)
    assert all(float(row["radius_l2"]) >= 0 for row in rows)


def test_a_table_is_predicted_by_its_columns(tautnet, runs):
    table = load_iris()
    with open("t.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["species", *table.feature_names[::-1]])
        writer.writerows([table.target_names[t], *x[::-1]] for x, t in zip(table.data, table.target, strict=True))
    status, _, err = tautnet("predict", runs["iris"], "t.csv", "--output", "p.json")
    rows = found_in("p.json")
    assert (status, err) == (0, "note: t.csv: not asked for: species\n")
    assert set(rows[0]) == {"file", "row", "class", "probability", "margin", "radius_l2"}
    tautnet("evaluate", runs["iris"], "--file", "t.csv", "--target", "species", "--output", "e.json")
    found = found_in("e.json")
    right = np.mean([row["class"] == table.target_names[t] for row, t in zip(rows, table.target, strict=True)])
    assert right == pytest.approx(found["metrics"]["file/acc"], abs=1e-6)
    assert found["data"] == "t.csv"


@pytest.mark.parametrize("name", ["iris", "diabetes"])
def test_a_table_without_rows_is_told_and_many_other_columns_are_counted(tautnet, runs, tmp_path, name):
    columns = open_trained(runs[name]).preparation.columns
    (tmp_path / "t.csv").write_text(",".join([*columns, *(f"c{i}" for i in range(30))]) + "\n")
    status, out, err = tautnet("predict", runs[name], "t.csv")
    assert (status, out.count("\n")) == (0, 1)
    ignored, empty = err.splitlines()
    assert ignored.startswith("note: t.csv: not asked for: c0, c1, ")
    assert ignored.endswith(", c19, ... (30)")
    assert empty == "note: no samples in these files"


REFUSED = [
    ("evaluate iris --data irys", "error: --data irys: no such set; did you mean iris?"),
    ("evaluate iris --part none", "error: --part none: one of test, val, train, all"),
    ("evaluate iris --data iris wine", "error: --data iris wine: one name, and settings"),
    ("evaluate iris --file t.csv --part val", "error: --file t.csv: all of its rows; without"),
    ("evaluate iris --target x", "error: --target x: the column of --file"),
    ("evaluate iris --output there.csv", "error: --output there.csv: exists; --overwrite replaces it"),
    ("evaluate digits --file t.csv", "error: --file t.csv: a table; the network takes (1, 8, 8)"),
    ("predict iris none.csv", "error: none.csv: no such file"),
    ("predict iris t.csv --top 4", "error: --top 4: from 1 to 3, the number of classes"),
    ("predict iris t.csv --output t.txt", "error: --output t.txt: a name that ends in .csv or .json"),
    ("predict iris t.csv --output t.csv --overwrite", "error: --output t.csv: one of the files that are read"),
    ("predict iris t.csv --eps=", "error: --eps : a finite number of at least 0"),
    ("predict iris t.csv --output there.csv", "error: --output there.csv: exists; --overwrite replaces it"),
    ("predict iris t.csv", "error: t.csv: no columns sepal length (cm), sepal width (cm), "),
    ("predict iris t.csv --resize", "error: --resize: the network takes 4 numbers"),
    ("predict iris t.csv --eps 0.1,x", "error: --eps x: a finite number of at least 0"),
    ("predict diabetes t.csv --norm l2", "error: --norm: of classes; the run is for regression"),
    ("predict digits gray", "error: gray/0000.png: "),
    ("certify diabetes", "last.ckpt: for regression; predicted classes are certified"),
    ("certify iris --eps 1/0", "error: --eps 1/0: a finite number of at least 0"),
    ("certify iris --steps 0", "error: --steps 0: an integer of at least 1, at most 10000"),
    ("certify iris --seed -1", "error: --seed -1: an integer from 0"),
    ("certify iris --output there.csv", "error: --output there.csv: a file; a folder is needed"),
    ("certify iris --output none/c", "error: --output none/c: no such folder as none"),
]


@pytest.mark.parametrize(("line", "said"), REFUSED)
def test_what_cannot_be_done_is_told_in_a_line(tautnet, runs, tmp_path, line, said):
    for name in ("t.csv", "there.csv"):
        (tmp_path / name).write_text("a,b\n1,2\n")
    write_gray_images(tmp_path / "gray")
    command, run, *rest = line.split()
    status, _, err = tautnet(command, runs[run], *rest)
    assert status == 2
    assert said in err
    assert err.count("\n") == 1
    assert sorted(os.listdir(tmp_path)) == ["gray", "t.csv", "there.csv"]
