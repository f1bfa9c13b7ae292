"""ChanceMonitor: who is warned of, who is not, and that it is said once."""

import copy
from math import sqrt

import pytest
import pytorch_lightning as pl
import torch
from conftest import settings_with
from torch.utils.data import DataLoader, TensorDataset

from tautnet.callbacks.chance_monitor import ChanceMonitor
from tautnet.models import Classifier


def classifier(rate=0.1, loss=None):
    settings = copy.deepcopy(settings_with("model", "mlp"))
    settings["model"]["net"]["widths"] = [8]
    settings["model"]["loss"] = loss
    settings |= copy.deepcopy({key: settings_with("optimizer", "sgd")[key] for key in ("optimizer",)})
    for role in settings["optimizer"]["roles"].values():
        role["lr"] = rate
    return Classifier(settings | {"input_shape": [2], "num_outputs": 3})


def points(learnable, num_batches=10, shares=(0.5, 0.3, 0.2)):
    generator = torch.Generator().manual_seed(0)
    y = torch.multinomial(torch.tensor(shares), 16 * num_batches, replacement=True, generator=generator)
    x = torch.randn(len(y), 2, generator=generator)
    x[:, 0] += 3.0 * y * learnable
    return DataLoader(TensorDataset(x, y), batch_size=16)


def warnings_of(caplog, model, batches, monitor, epochs, **arguments):
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, limit_val_batches=0,
        enable_model_summary=False, max_epochs=epochs, callbacks=[monitor], **arguments,
    )  # fmt: skip
    trainer.fit(model, batches, batches)
    name = "tautnet.callbacks.chance_monitor"
    return [record.getMessage() for record in caplog.records if record.name == name]


def test_collapse_is_told_once(caplog):
    model, batches = classifier(rate=0.0), points(learnable=False)
    with torch.no_grad():  # always the same answer
        for parameter in model.net.parameters():
            parameter.zero_()
        model.net[-1].bias[1] = 1.0
    monitor = ChanceMonitor(20)
    told = warnings_of(caplog, model, batches, monitor, epochs=6)
    classes = torch.cat([y for _, y in batches])
    right, chance = ((classes == k).double().mean() for k in (1, 0))
    assert len(told) == 1
    assert told[0].startswith(
        f"train/acc={right:.4f} over the last 20 steps is not above chance, the most frequent class has a share of "
        f"{chance:.4f}: "
    )
    assert monitor.state_dict() == {"warned": True}


def test_learning_is_not_told(caplog):
    assert not warnings_of(caplog, classifier(), points(learnable=True), ChanceMonitor(20), epochs=6)


@pytest.mark.parametrize(("epochs", "told"), [(3, 0), (4, 1)])
def test_steps_of_several_epochs_count_together(caplog, epochs, told):
    """Ten batches, accumulated by two: five steps an epoch."""
    found = warnings_of(caplog, classifier(0.0), points(False), ChanceMonitor(20), epochs, accumulate_grad_batches=2)
    assert len(found) == told


def test_a_checkpoint_remembers_that_it_was_told(caplog):
    monitor = ChanceMonitor(10)
    monitor.load_state_dict({"warned": True})
    assert not warnings_of(caplog, classifier(0.0), points(False), monitor, epochs=2)


def test_without_a_task_loss_the_labels_mean_nothing(caplog):
    model = classifier(0.0)
    plain = model.task_loss
    model.task_loss = lambda batch, stage: 0 * plain(batch, stage)
    assert not warnings_of(caplog, model, points(False), ChanceMonitor(10), epochs=2)


@pytest.mark.parametrize("above", [1.9, 2.1])
def test_chance_has_two_standard_errors(caplog, above):
    seen_K = torch.tensor([40, 60])
    ChanceMonitor()._judge(60 + above * sqrt(100 * 0.6 * 0.4), seen_K, steps=100)
    assert len(caplog.records) == (above < 2)


def test_more_batches_than_are_counted_at_once(caplog):
    batches = points(False, num_batches=150)
    found = warnings_of(caplog, classifier(0.0), batches, ChanceMonitor(), epochs=1)
    share = (torch.cat([y for _, y in batches]) == 0).double().mean()
    assert f"has a share of {share:.4f}" in found[0]


def test_bad_argument():
    with pytest.raises(ValueError, match=r"^num_steps=0: at least 1$"):
        ChanceMonitor(0)
