"""Tables of files, of the hub's formats and of scikit-learn: split, numbered, standardised."""

import re
from functools import partial

import numpy as np
import pytest
import torch
from data_files import write_csv, write_table_parquet

from tautnet.data.embedded import Embedded
from tautnet.data.split import check_fractions, hold_out, standardised, table_splits, three_parts
from tautnet.data.table import Table


def columns(count=40):
    rng = np.random.default_rng(0)
    return {
        "a": rng.normal(5, 3, count).tolist(),
        "constant": [0.1] * count,
        "b": rng.normal(-2, 0.1, count).tolist(),
        "kind": [("red", "green")[i % 4 == 0] for i in range(count)],
        "y": [float(i) for i in range(count)],
    }


@pytest.fixture
def path(tmp_path):
    write_csv(tmp_path / "a.csv", columns())
    return str(tmp_path / "a.csv")


def parts(data):
    return [(part.inputs, part.targets) for part in (data.splits.train, data.splits.val, data.splits.test)]


# --- splits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [None, np.arange(200) % 4 % 3])
def test_parts_are_disjoint_together_everything_and_stratified(classes):
    found = three_parts(200, classes, 0.1, 0.2, 5)
    assert [len(part) for part in found] == [140, 20, 40]
    assert sorted(np.concatenate(found)) == list(range(200))
    if classes is not None:
        assert [np.bincount(classes[part]).tolist() for part in found] == [[70, 35, 35], [10, 5, 5], [20, 10, 10]]
    again, other = (three_parts(200, classes, 0.1, 0.2, seed) for seed in (5, 6))
    assert all(np.array_equal(a, b) for a, b in zip(found, again, strict=True))
    assert not np.array_equal(found[2], other[2])


def test_hold_out_takes_its_share_of_the_indices_that_it_gets():
    indices = np.arange(10, 50)
    classes = np.arange(100) % 2
    rest, part = hold_out(indices, classes, 0.25, 0, "val_fraction=0.25")
    assert (len(rest), len(part)) == (30, 10)
    assert sorted([*rest, *part]) == indices.tolist()
    assert np.bincount(classes[part]).tolist() == [5, 5]


@pytest.mark.parametrize("value", [0.0, 0.009, 0.981, 1.0, -0.1, float("nan")])
def test_fractions_out_of_range(value):
    for arguments, name in (((value, 0.2), "val_fraction"), ((0.2, value), "test_fraction")):
        with pytest.raises(ValueError, match=rf"\A{name}={value}: "):
            check_fractions(*arguments)


def test_fractions_that_leave_nothing():
    check_fractions(0.01, 0.98)
    with pytest.raises(ValueError, match=r"\Aval_fraction=0\.6: with test_fraction=0\.4 "):
        check_fractions(0.6, 0.4)


def test_standardised_by_the_training_rows():
    rng = np.random.default_rng(0)
    x = np.column_stack([rng.normal(3, 2, 50), np.full(50, 0.1), np.full(50, 1e9), rng.normal(0, 1e-9, 50)])
    x[40:, 1] = 7  # constant in the training rows
    train = np.arange(40)
    found = standardised(x, train)
    for column in (0, 3):
        np.testing.assert_allclose(found[train, column].mean(), 0, atol=1e-12)
        np.testing.assert_allclose(found[train, column].std(), 1, rtol=1e-12)
        np.testing.assert_allclose(found[:, column], (x[:, column] - x[:40, column].mean()) / x[:40, column].std())
    assert not found[:, 1:3].any()


def test_targets_of_a_regression_are_standardised_and_classes_are_not():
    x, y = np.random.default_rng(0).normal(size=(50, 2)), np.arange(50.0)
    splits = table_splits(x, y, "regression", 0.2, 0.2, 0)
    assert splits.train.targets.shape == (30, 1)
    assert splits.train.targets.double().mean().item() == pytest.approx(0, abs=1e-6)
    assert splits.train.targets.double().std(correction=0).item() == pytest.approx(1, abs=1e-6)
    assert abs(splits.test.targets.mean().item()) > 1e-3
    classes = table_splits(x, np.arange(50) % 2, "classification", 0.2, 0.2, 0).train.targets
    assert (classes.dtype, classes.sum().item()) == (torch.int64, 15)


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_table_of_a_file(kind, tmp_path):
    path = tmp_path / f"a.{kind}"
    (write_csv if kind == "csv" else write_table_parquet)(path, columns())
    data = Table(str(path), "kind", batch_size=4, val_fraction=0.2)
    assert (data.task, data.num_outputs, data.input_shape) == ("classification", 2, (4,))
    assert [len(x) for x, _ in parts(data)] == [24, 8, 8]
    x, y = (torch.cat(values).double() for values in zip(*parts(data), strict=True))
    assert not x[:, 1].any()
    rows = x[:, 3].argsort()  # y, which tells the row
    assert y[rows].tolist() == [float(i % 4 != 0) for i in range(40)]  # green is 0, red is 1
    a = torch.tensor(columns()["a"], dtype=torch.float64)
    assert torch.corrcoef(torch.stack([x[rows, 0], a]))[0, 1].item() == pytest.approx(1)
    train = parts(data)[0][0].double()
    torch.testing.assert_close(train[:, [0, 2, 3]].mean(0), torch.zeros(3).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(train[:, [0, 2, 3]].std(0, correction=0), torch.ones(3).double(), rtol=0, atol=1e-6)


def test_regression_of_a_file(path):
    data = Table(path, "y", "regression", batch_size=4, val_fraction=0.2)
    assert (data.task, data.num_outputs, data.input_shape) == ("regression", 1, (5,))  # two values of kind
    x, y = parts(data)[0]
    assert (x.dtype, y.dtype, y.shape) == (torch.float32, torch.float32, (24, 1))
    assert len(set(x[:, 3].tolist())) == 2


def test_classes_are_numbered_in_the_order_of_their_values(tmp_path):
    values = [30.0, -1.0, 7.5]
    write_csv(tmp_path / "a.csv", {"n": list(range(30)), "y": [values[i % 3] for i in range(30)]})
    x, y = (torch.cat(v) for v in zip(*parts(Table(str(tmp_path / "a.csv"), "y", batch_size=4)), strict=True))
    assert y[x[:, 0].argsort()].tolist() == [2, 0, 1] * 10


def test_split_depends_on_the_split_seed_and_not_on_the_order_seed(path):
    make = partial(Table, path, "kind", batch_size=4)
    assert torch.equal(make(seed=5).splits.test.inputs, make().splits.test.inputs)
    assert not torch.equal(make(split_seed=5).splits.test.inputs, make().splits.test.inputs)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": "constant"}, "target=constant: one value only (0.1)"),
        ({"target": "y"}, "target=y: 40 different values in 40 rows are no classes"),
        ({"target": "kind", "task": "regression"}, "target=kind: text; "),
        ({"task": "ranking"}, "task=ranking: one of classification, regression"),
        ({"val_fraction": 0.0}, "val_fraction=0.0: "),
        ({"test_fraction": 0.99}, "test_fraction=0.99: "),
        ({"batch_size": 29}, "batch_size=29: at most the 28 training samples"),
    ],
)
def test_bad_arguments_are_named_with_their_value(path, settings, message):
    with pytest.raises(ValueError, match=rf"\A{re.escape(message)}"):
        Table(**{"path": path, "target": "kind", "batch_size": 4} | settings)


def test_a_class_of_two_samples_cannot_be_divided(tmp_path):
    write_csv(tmp_path / "a.csv", {"n": list(range(30)), "y": ["a"] * 2 + ["b"] * 28})
    with pytest.raises(ValueError, match=r"\Atarget=y: a in 2 rows only; "):
        Table(str(tmp_path / "a.csv"), "y", batch_size=4)


def test_a_part_that_is_too_small_for_all_classes_is_named(tmp_path):
    write_csv(tmp_path / "a.csv", {"n": list(range(12)), "y": [i % 3 for i in range(12)]})
    with pytest.raises(ValueError, match=r"\Aval_fraction=0\.1: 0\.125 of 9 samples cannot be held out: "):
        Table(str(tmp_path / "a.csv"), "y", batch_size=4)


def test_a_set_of_the_hub_that_is_out_of_reach(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ValueError, match=r"\Apath=nobody/nothing: no such file, and as a set of the hub: [^\n]*\Z"):
        Table("nobody/nothing", "y")


# --- embedded tables --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "samples", "features", "classes"),
    [("breast_cancer", 569, 30, 2), ("wine", 178, 13, 3), ("iris", 150, 4, 3), ("diabetes", 442, 10, 0)],
)
def test_embedded_tables(table, samples, features, classes):
    data = Embedded(table)
    assert data.task == ("classification" if classes else "regression")
    assert (data.num_outputs, data.input_shape) == (classes or 1, (features,))
    assert sum(len(x) for x, _ in parts(data)) == samples
    x, y = parts(data)[0]
    torch.testing.assert_close(x.double().mean(0), torch.zeros(features).double(), rtol=0, atol=1e-5)
    torch.testing.assert_close(x.double().std(0, correction=0), torch.ones(features).double(), rtol=0, atol=1e-5)
    if classes:
        shares = [torch.bincount(part_y) / len(part_y) for _, part_y in parts(data)]
        assert max((share - shares[0]).abs().max().item() for share in shares) < 0.04
    else:
        assert y.double().std(correction=0).item() == pytest.approx(1, abs=1e-5)


def test_unknown_embedded_table():
    with pytest.raises(ValueError, match=r"\Atable=boston: one of breast_cancer, wine, iris, diabetes"):
        Embedded("boston")
