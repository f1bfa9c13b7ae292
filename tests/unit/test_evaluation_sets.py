"""Data to evaluate on: by name without conf/, changed, and in the units of the run."""

import csv
import inspect
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import CONF, options

from tautnet.config import build, locate
from tautnet.data.preparation import Preparation
from tautnet.errors import ConfigError
from tautnet.evaluation.metrics import evaluate
from tautnet.evaluation.prepared import PreparedBatches
from tautnet.evaluation.sets import SETS, batches_of, data_of, table_batches
from tautnet.evaluation.tables import TableFile
from tautnet.models import Classifier, Regressor
from tautnet.trained import Trained

OF_TRAINING = {"batch_size", "seed", "shuffle", "augmentation"}  # what an evaluation does not depend on


@pytest.mark.parametrize("option", options("data"))
def test_every_set_of_conf_is_known_by_the_same_arguments(option):
    config = yaml.safe_load((CONF / "data" / f"{option}.yaml").read_text())
    config = config.get("data", config)
    target, fixed = SETS[option]
    assert config["_target_"] == f"tautnet.data.{target}"
    parameters = inspect.signature(locate(config["_target_"], "data")).parameters
    for name, value in config.items():
        if name in OF_TRAINING or name == "_target_" or value == "???":
            continue
        assert fixed.get(name, parameters[name].default) == value, name


def trained_on(settings, *overrides, model=Classifier):
    """An untrained model with the preparation of its data."""
    composed = settings("model=mlp", "norm=none", "activation=relu", "model.net.widths=[4]", *overrides)
    data = build(composed["data"], "data")
    spec = composed | {"input_shape": list(data.input_shape), "num_outputs": data.num_outputs}
    return Trained(Path("a.ckpt"), spec, model(spec).eval(), data.preparation, 0, 0), data


@pytest.fixture
def iris(settings):
    return trained_on(settings, "data=iris")[0]


def gathered(batches: PreparedBatches) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = zip(*batches, strict=True)
    return torch.cat(x), torch.cat(y)


def test_the_own_data_come_as_they_were_tested(settings):
    trained, data = trained_on(settings, "data=iris")
    x, y = gathered(batches_of(data, "test", trained.preparation, "own"))
    assert torch.equal(x, data.splits.test.inputs)
    assert torch.equal(y, data.splits.test.targets)


def test_all_parts_are_each_sample_once(settings):
    trained, data = trained_on(settings, "data=iris")
    parts = {part: gathered(batches_of(data, part, trained.preparation, "own"))[0] for part in ("train", "val", "test")}
    everything = batches_of(data, "all", trained.preparation, "own")
    assert torch.equal(gathered(everything)[0], torch.cat(list(parts.values())))
    assert (len(everything), everything.description) == (3, "all parts of own")
    assert sum(map(len, parts.values())) == 150


def test_another_split_is_standardised_as_the_run_was(iris):
    from sklearn.datasets import load_iris

    data = data_of(iris, "iris", ["data.split_seed=5"])
    x, _ = gathered(batches_of(data, "test", iris.preparation, "other"))
    raw = x.double() * torch.tensor(iris.preparation.scale) + torch.tensor(iris.preparation.offset)
    table = torch.from_numpy(load_iris().data)
    assert (raw.unsqueeze(1) - table).abs().amax(2).amin(1).max() < 1e-5  # each is a row of the table


def test_a_shifted_set_is_seen_as_shifted(settings, tmp_path):
    """Standardised by itself it would look like the training data."""
    rng = np.random.default_rng(0)
    classes = np.arange(80) % 2
    images = (rng.integers(0, 50, (80, 4, 4)) + 100 * classes[:, None, None]).astype(np.uint8)
    for name, shift in (("seen", 0), ("shifted", 100)):
        x = images + np.uint8(shift)
        np.savez(tmp_path / f"{name}.npz", x_train=x, y_train=classes, x_test=x, y_test=classes)
    trained, data = trained_on(settings, "data=npz", f"data.root={tmp_path}/seen.npz", "data.batch_size=8")
    shifted = data_of(trained, "npz", [f"data.root={tmp_path}/shifted.npz"])
    (own, _), (other, _) = (gathered(batches_of(some, "test", trained.preparation, "")) for some in (data, shifted))
    torch.testing.assert_close((other - own) * trained.preparation.scale[0], torch.full_like(own, 100 / 255))


def test_regression_targets_keep_their_unit_and_errors_are_in_it(settings):
    trained, data = trained_on(settings, "data=diabetes", model=Regressor)
    own = evaluate(trained, batches_of(data, "test", trained.preparation, ""), "test")
    other = replace(trained, preparation=replace(trained.preparation, target_offset=100.0, target_scale=2.0))
    x, y = gathered(batches_of(data, "test", other.preparation, ""))
    was, targets = trained.preparation, data.splits.test.targets
    raw = targets.double() * was.target_scale + was.target_offset
    torch.testing.assert_close(y.double() * 2 + 100, raw, rtol=1e-5, atol=1e-3)
    outputs = trained.model.net(x).detach().double()
    found = evaluate(other, batches_of(data, "test", other.preparation, ""), "test").metrics
    assert found["test/mae"] == pytest.approx(float((outputs * 2 + 100 - raw).abs().mean()), rel=1e-5)
    assert found["test/rmse"] == pytest.approx(float((outputs * 2 + 100 - raw).square().mean().sqrt()), rel=1e-5)
    assert own.metrics["test/loss"] != found["test/loss"]
    assert (own.num_samples, own.confusion, own.per_class) == (89, None, [])


@pytest.mark.parametrize(
    ("option", "overrides", "message"),
    [
        ("irys", [], "--data irys: no such set; did you mean iris"),
        (None, ["data.split_sed=1"], "data.split_sed: no such key; did you mean split_seed"),
        (None, ["split_seed=1"], "split_seed=1: not of the form data."),
        (None, ["data.augmentation.crop=1"], "data.augmentation.crop: cannot be changed here"),
        (None, ["data._target_=os.system"], "data._target_: cannot be changed here"),
        (None, ["data.split_seed=x"], "data.split_seed=x: an integer is needed"),
        ("wine", [], r"data: input_shape \[13\]"),
        ("npz", [], "data.root: a value is needed"),
        ("npz", ["data.root=none.npz"], "data.root=none.npz: no such file"),
        ("diabetes", [], "data: input_shape"),
    ],
)
def test_data_that_do_not_fit_are_refused(iris, option, overrides, message):
    with pytest.raises(ConfigError, match=message):
        data_of(iris, option, overrides)


def test_another_task_or_other_classes_are_refused(iris):
    regressor = replace(iris, model=Regressor(iris.settings))
    with pytest.raises(ConfigError, match=r"data: for classification, a\.ckpt was trained for regression"):
        data_of(regressor, "iris", [])
    renamed = replace(iris, preparation=replace(iris.preparation, classes=["virginica", "setosa", "versicolor"]))
    with pytest.raises(ConfigError, match=r"its classes are setosa, versicolor, virginica; .* virginica, setosa"):
        data_of(renamed, "iris", [])
    with pytest.raises(ConfigError, match="--part tset: one of test, val, train, all"):
        batches_of(data_of(iris, None, []), "tset", iris.preparation, "")


def test_columns_in_another_order_are_put_in_the_runs():
    own = Preparation([1, 10], [2, 20], columns=["a", "b"])
    trained = Preparation([0, 0], [1, 1], columns=["b", "a"])
    (x, _), *_ = PreparedBatches([[(torch.tensor([[1.0, 2.0]]), torch.zeros(1))]], own, trained, False, "")
    assert x.tolist() == [[50, 3]]
    with pytest.raises(ConfigError, match="data: no columns c; there are a, b"):
        PreparedBatches([], own, replace(trained, columns=["a", "c"]), False, "")


def test_a_column_that_the_set_knows_as_constant_is_noted(iris, capsys):
    data = data_of(iris, None, [])
    data.splits = replace(data.splits, preparation=replace(iris.preparation, scale=[0.0, 1, 1, 1]))
    batches_of(data, "test", iris.preparation, "")
    assert "taken as constant: sepal length (cm)" in capsys.readouterr().err


# --- a labelled table -------------------------------------------------------------------------------------------------


@pytest.fixture
def flowers(tmp_path, iris):
    """Every third flower as a table, columns turned round."""
    from sklearn.datasets import load_iris

    table = load_iris()
    with (tmp_path / "flowers.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*iris.preparation.columns[::-1], "species"])
        for row, label in list(zip(table.data, table.target, strict=True))[::3]:
            writer.writerow([*row[::-1], table.target_names[label]])
    return tmp_path / "flowers.csv"


def test_a_table_is_evaluated_row_by_row(iris, flowers):
    from sklearn.datasets import load_iris

    batches = table_batches(iris, flowers, "species")
    x, labels = gathered(batches)
    table = load_iris()
    torch.testing.assert_close(x, iris.preparation.prepared(torch.from_numpy(table.data[::3])))
    assert labels.tolist() == table.target[::3].tolist()
    evaluation = evaluate(iris, batches, "file")
    predicted = iris.model.net(x).argmax(1)
    assert evaluation.num_samples == len(labels) == 50
    assert evaluation.metrics["file/acc"] == pytest.approx(float((predicted == labels).double().mean()))
    for true in range(3):
        assert evaluation.confusion[true] == [int(((labels == true) & (predicted == k)).sum()) for k in range(3)]


def test_classes_that_are_numbers_are_known_by_them(iris, tmp_path):
    named = replace(iris, preparation=replace(iris.preparation, columns=None, classes=["10", "2", "2.5"]))
    (tmp_path / "t.csv").write_text("a,b,y,c,d\n1,2,2.50,3,4\n1,2,10,3,4\n1,2,2.0,3,4\n")
    assert gathered(table_batches(named, tmp_path / "t.csv", "y"))[1].tolist() == [2, 0, 1]


def test_a_class_that_the_run_does_not_know_is_refused(iris, flowers):
    flowers.write_text(flowers.read_text().replace("virginica", "rose", 1))
    with pytest.raises(ConfigError, match=r"flowers.csv: row 35: column 'species': 'rose' is no class; .* setosa"):
        table_batches(iris, flowers, "species")
    with pytest.raises(ConfigError, match="--target is needed"):
        table_batches(iris, flowers, None)
    assert TableFile(flowers, iris.preparation.columns, 4, "species").ignored == []
