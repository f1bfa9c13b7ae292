"""The certification callback, end to end, and the unit of the data."""

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from torch import nn

from tautnet.callbacks.certification import Certification
from tautnet.config import build
from tautnet.data.augment import Augmentation
from tautnet.data.formats.images import ImageArrays
from tautnet.data.image_parts import image_splits
from tautnet.data.table import Table
from tautnet.evaluation import certificates as module
from tautnet.evaluation.certificates import Effort, Row, examine
from tautnet.evaluation.curves import accuracy_figure, write_certificates
from tautnet.lipschitz.certify import Certifier
from tautnet.models import Classifier

L2, LINF = [0.05, 0.5], [0.01, 0.1]


def trainer_with(tmp_path, *callbacks):
    return pl.Trainer(
        accelerator="cpu", max_epochs=4, logger=False, callbacks=list(callbacks), enable_progress_bar=False,
        enable_checkpointing=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip


@pytest.fixture
def trained(settings, tmp_path):
    """A model and its data, trained for a moment."""

    def make(*overrides):
        composed = settings("model=mlp", "norm=none", "model.net.widths=[16]", *overrides)
        data = build(composed["data"], "data")
        spec = composed | {"input_shape": list(data.input_shape), "num_outputs": data.num_outputs}
        model = Classifier(spec)
        trainer_with(tmp_path).fit(model, data)
        return model, data

    return make


def test_shares_are_ordered_logged_and_written(trained, tmp_path):
    model, data = trained()
    certification = Certification(L2, LINF, num_samples=60, num_steps=8, folder=str(tmp_path / "certificates"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    logged = trainer_with(tmp_path, certification).test(model, data, verbose=False)[0]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items() if "extra" not in name)
    assert logged["certified/clean"] > 0.5
    for norm, epsilons in (("l2", L2), ("linf", LINF)):
        for eps in epsilons:
            shares = [
                logged[f"certified/{norm}_{eps:g}"],
                logged[f"attacked/{norm}_{eps:g}"],
                logged["certified/clean"],
            ]
            assert shares == sorted(shares)
        assert logged[f"certified/{norm}_{epsilons[0]:g}"] > 0  # certificates are not empty
        assert logged[f"attacked/{norm}_{epsilons[1]:g}"] < logged["certified/clean"]  # attacks succeed
    written = json.loads((tmp_path / "certificates" / "certificates.json").read_text())
    with (tmp_path / "certificates" / "certificates.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["norm"], float(row["eps"])) for row in rows] == [
        ("l2", 0.05),
        ("l2", 0.5),
        ("linf", 0.01),
        ("linf", 0.1),
    ]
    for row, same in zip(rows, written["rows"], strict=True):
        assert (
            float(row["certified"])
            == same["certified"]
            == pytest.approx(logged[f"certified/{row['norm']}_{float(row['eps']):g}"])
        )
        radii = torch.tensor(written["radii"][row["norm"]])
        assert len(radii) == 60
        assert (radii >= same["eps"]).double().mean() == pytest.approx(same["certified"])
    assert (tmp_path / "certificates" / "certificates.png").stat().st_size > 5000


def test_a_broken_certificate_stops_the_program(trained, tmp_path, monkeypatch):
    model, data = trained()
    monkeypatch.setattr(Certifier, "certified", lambda self, x, labels, eps: torch.ones(len(x), dtype=torch.bool))
    with pytest.raises(RuntimeError, match=r"linf eps=0\.5 flips the certified predictions of the samples \[\d+"):
        trainer_with(tmp_path, Certification([], [0.5], 20, 5)).test(model, data, verbose=False)


def examined(monkeypatch, proved, flipped, seed=0):
    """Rows and radii at 0.1 and 0.2 of one sample, certified and flipped there; and the seeds of the attacks."""
    seeds = []

    def attack(net, x, labels, eps, p, num_steps, num_restarts, seed):
        seeds.append(seed)
        return -x if eps in flipped else x

    monkeypatch.setattr(Certifier, "certified", lambda self, x, labels, eps: torch.tensor([eps in proved]))
    monkeypatch.setattr(module, "attack", attack)
    net, x = nn.Linear(2, 2, bias=False).double(), torch.tensor([[0.01, 0.0]]).double()
    nn.init.eye_(net.weight)
    rows, radii = examine(net, torch.ones(2), x, torch.tensor([0]), {"l2": [0.1, 0.2]}, Effort(seed=seed))
    return rows, radii["l2"], seeds


def test_what_falls_to_a_small_attack_does_not_survive_a_larger_one(monkeypatch):
    rows, _, seeds = examined(monkeypatch, proved=(), flipped=(0.1,), seed=7)
    assert [row.attacked for row in rows] == [0, 0]
    assert [row.clean for row in rows] == [1, 1]
    assert seeds == [7, 7]


def test_what_is_certified_at_a_radius_is_certified_at_smaller_ones(monkeypatch):
    rows, radii, _ = examined(monkeypatch, proved=(0.2,), flipped=())
    assert [row.certified for row in rows] == [1, 1]
    assert radii == [0.2]


def test_samples_are_spread_evenly_over_each_batch_and_soft_labels_become_classes():
    certification, trainer = Certification([0.1], [], num_samples=4), SimpleNamespace(num_test_batches=[2])
    x, labels = torch.arange(8.0).view(8, 1), torch.arange(8) % 3
    for targets in (labels, nn.functional.one_hot(labels, 3) * 0.8):
        certification.on_test_batch_start(trainer, None, (x, targets), 0)
    points, classes = certification._selection.samples()
    assert points[:, 0].tolist() == [0, 4, 0, 4]
    assert classes.tolist() == [0, 1, 0, 1]


def test_radii_without_limit_are_null(tmp_path):
    write_certificates(tmp_path, [Row("l2", 0.1, 0.9, 0.8, 0.7)], {"l2": [0.5, float("inf")]})
    text = (tmp_path / "certificates.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["radii"] == {"l2": [0.5, None]}


def test_a_single_logit_is_certified(trained, tmp_path):
    model, data = trained("data=breast_cancer", "model.net.single_logit=true")
    logged = trainer_with(tmp_path, Certification([0.001], [], 40, 5)).test(model, data, verbose=False)[0]
    assert 0 < logged["certified/l2_0.001"] <= logged["attacked/l2_0.001"] <= logged["certified/clean"]


def test_other_tasks_are_refused(settings, tmp_path):
    composed = settings("data=diabetes", "model=mlp", "norm=none", "model._target_=tautnet.models.Regressor")
    data = build(composed["data"], "data")
    from tautnet.models import Regressor

    model = Regressor(composed | {"input_shape": list(data.input_shape), "num_outputs": 1})
    trainer = trainer_with(tmp_path, Certification([0.1], []))
    with pytest.raises(MisconfigurationException, match="for classification, the data is for regression"):
        trainer.test(model, data, verbose=False)


def test_data_without_a_unit_is_refused(trained, tmp_path):
    model, data = trained()
    with pytest.raises(MisconfigurationException, match="data module"):
        trainer_with(tmp_path, Certification([0.1], [])).test(model, data.test_dataloader(), verbose=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.2, 0.1], []), r"epsilons_l2=\[0.2, 0.1\]: "),
        (([], [-0.1]), r"epsilons_linf=\[-0.1\]: "),
        (([], [float("inf")]), "epsilons_linf="),
        (([], []), r"epsilons_l2=\[\]: "),
        (([0.1], [], 0), "num_samples=0: "),
        (([0.1], [], 5, 0), "num_steps=0: "),
        (([0.1], [], 5, 5, 0), "num_restarts=0: "),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Certification(*arguments)


def test_settings_compose_to_the_default_callbacks_and_certification(settings):
    callbacks = build(settings("callbacks=certify")["callbacks"], "callbacks")
    assert set(settings()["callbacks"]) | {"certify"} == set(callbacks)
    assert isinstance(callbacks["certify"], Certification)


def test_figure_has_a_panel_for_each_norm():
    figure = accuracy_figure([Row("l2", 0.1, 0.9, 0.8, 0.7), Row("linf", 0.1, 0.9, 0.5, 0.0)])
    assert [axes.get_title() for axes in figure.axes] == ["l2", "linf"]
    assert figure.axes[0].lines[2].get_ydata().tolist() == [0.9, 0.7]


# --- units ------------------------------------------------------------------------------------------------------------


def test_scale_of_digits_takes_inputs_back_to_pixels_from_0_to_1(settings):
    from sklearn.datasets import load_digits

    data = build(settings("data=digits")["data"], "data")
    assert data.input_scale.shape == (1,)
    raw = (data.splits.train.inputs.double() - data.splits.train.inputs.min()) * data.input_scale
    assert raw.min() == 0
    assert raw.max() == pytest.approx(1.0, abs=1e-5)
    assert {round(value * 16, 3) for value in raw.unique().tolist()} <= {float(i) for i in range(17)}
    assert load_digits().data.max() == 16


def test_scale_of_images_takes_differences_back_to_the_range_of_pixels():
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.integers(0, 256, (60, 3, 4, 4), dtype=np.uint8)) // torch.tensor([1, 2, 5]).view(3, 1, 1)
    y = torch.arange(60) % 3
    splits, _ = image_splits(ImageArrays(x, y, x[:9], y[:9], None), Augmentation(), 0.2, 0)
    inputs, _ = splits.test.start_epoch(torch.arange(9), rng)(slice(0, 9))
    raw = inputs.double() * torch.tensor(splits.preparation.scale, dtype=torch.float64).view(3, 1, 1)
    torch.testing.assert_close(raw - raw[:1], (x[:9].double() - x[:1].double()) / 255, rtol=1e-4, atol=1e-6)


def test_scale_of_tables_is_that_of_each_column(settings):
    from sklearn.datasets import load_wine

    data = build(settings("data=wine")["data"], "data")
    raw = (data.splits.test.inputs.double() - data.splits.test.inputs[:1]) * data.input_scale
    table = torch.from_numpy(load_wine().data)
    steps = table.unsqueeze(1) - table
    nearest = torch.stack([(steps - row).abs().amax(-1).min() for row in raw[:5]])  # each is a difference of two rows
    assert nearest.max() < 1e-3


def test_data_as_it_is_has_the_unit_1(settings):
    assert build(settings("data=two_gaussians")["data"], "data").input_scale.tolist() == [1.0] * 10


def test_the_constant_column_of_a_table_keeps_a_finite_unit(tmp_path):
    rows = "\n".join(f"{i},7,{i % 2}" for i in range(30))
    (tmp_path / "t.csv").write_text(f"a,b,y\n{rows}\n")
    data = Table(str(tmp_path / "t.csv"), "y", batch_size=4)
    assert data.input_scale[1] == 1
    assert data.input_scale[0] > 1
    assert data.preparation.scale[1] == 0
    assert data.splits.train.inputs[:, 1].tolist() == [0.0] * len(data.splits.train)
