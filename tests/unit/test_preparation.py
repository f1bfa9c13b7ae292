"""From raw values to what networks get: as the data sets say, exactly what they do."""

import numpy as np
import pytest
import torch
from sklearn import datasets

from tautnet.config import build
from tautnet.data.preparation import Preparation
from tautnet.data.table import Table


@pytest.mark.parametrize("name", ["wine", "iris", "breast_cancer"])
def test_of_an_embedded_table(name, settings):
    data = build(settings(f"data={name}")["data"], "data")
    bunch = getattr(datasets, f"load_{name}")()
    assert data.preparation.columns == list(bunch.feature_names)
    assert [data.preparation.class_name(i) for i in range(data.num_outputs)] == list(bunch.target_names)
    rows = {tuple(row) for row in data.preparation.prepared(torch.from_numpy(bunch.data)).tolist()}
    assert all(tuple(row) in rows for part in vars(data.splits).values() if isinstance(part, type(data.splits.test))
               for row in part.inputs.tolist())  # fmt: skip


def test_of_a_regression_takes_outputs_back_to_target_values(settings):
    data = build(settings("data=diabetes")["data"], "data")
    raw = data.splits.test.targets.double() * data.preparation.target_scale + data.preparation.target_offset
    known = set(datasets.load_diabetes().target)
    assert {round(value, 3) for value in raw.flatten().tolist()} <= known


def test_of_a_table_with_text_and_a_constant_column(tmp_path):
    rows = "\n".join(f"{i},{'red' if i % 3 else 'blue'},5,{'yes' if i % 2 else 'no'}" for i in range(30))
    (tmp_path / "t.csv").write_text(f"a,colour,five,y\n{rows}\n")
    preparation = Table(str(tmp_path / "t.csv"), "y", batch_size=4).preparation
    assert preparation.columns == ["a", "colour=blue", "colour=red", "five"]
    assert preparation.classes == ["no", "yes"]
    assert preparation.scale[3] == 0
    assert preparation.prepared(torch.tensor([[1.0, 0.0, 1.0, 99.0]]))[0, 3] == 0  # as the table's own rows


def test_of_digits_is_for_pixels_from_0_to_1(settings):
    data = build(settings("data=digits")["data"], "data")
    pixels = torch.from_numpy(datasets.load_digits().images / 16).unsqueeze(1)
    mine = {tuple(row) for row in data.preparation.prepared(pixels).flatten(1).mul(1e4).round().tolist()}
    theirs = {tuple(row) for row in data.splits.test.inputs.flatten(1).mul(1e4).round().tolist()}
    assert len(theirs - mine) <= len(theirs) // 50  # a last digit may fall on the other side


def test_holds_plain_lists_which_checkpoints_can_hold():
    preparation = Preparation(np.array([1.0]), (np.float64(2.0),), columns=("a",), classes=None)
    assert (preparation.offset, preparation.scale, preparation.columns) == ([1.0], [2.0], ["a"])
    assert all(type(value) is float for value in (*preparation.offset, *preparation.scale))
    assert preparation.class_name(3) == "3"


def test_works_by_channel_of_images():
    preparation = Preparation([0.0, 1.0], [1.0, 2.0])
    x = torch.ones(1, 2, 2, 2, dtype=torch.uint8)
    assert preparation.prepared(x)[0, :, 0, 0].tolist() == [1.0, 0.0]
