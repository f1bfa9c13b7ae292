"""Running statistics that are recomputed for the final weights."""

import copy
import json
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from hub_files import write_shards
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from tautnet.activations import Slaf
from tautnet.backbones import Residual
from tautnet.callbacks.recalibration import Recalibration, _training_inputs, recalibrate_, with_statistics
from tautnet.data.augment import Augmentation
from tautnet.data.image_stream import ImageStream
from tautnet.lipschitz import lipschitz_bound
from tautnet.models.base import AbstractModel
from tautnet.normalizers import Aon, BatchNorm, Spectral, Unitize

SMALL = (
    *("trainer=cpu", "trainer.enable_progress_bar=false", "logger=none", "model=mlp", "model.net.widths=[8]"),
    *("norm=none", "callbacks=recalibrate"),
)
SLAF = ("activation=slaf", "activation.degree=3")


def batches(count, size=50, features=3):
    return [3 * torch.randn(size, features) - 1 for _ in range(count)]


@pytest.mark.usefixtures("float64")
def test_a_first_layer_gets_the_statistics_of_the_data():
    net, xs = Slaf(3, degree=3), batches(4)
    assert recalibrate_(net, xs) == 4
    x = torch.cat(xs)
    powers_NF = torch.stack([x, x**2, x**3], dim=2).flatten(1)
    means_BF = torch.stack([part.mean(0) for part in powers_NF.split(50)])
    within_F = torch.stack([part.var(0) for part in powers_NF.split(50)]).mean(0)
    torch.testing.assert_close(net.batch_norm.running_mean, powers_NF.mean(0), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(net.batch_norm.running_var, within_F, rtol=1e-8, atol=1e-8)
    # with what lies between the batches it is that of all data
    total_F = (within_F * 49 / 50) + means_BF.var(0, unbiased=False)
    torch.testing.assert_close(total_F, powers_NF.var(0, unbiased=False), rtol=1e-8, atol=1e-8)


@pytest.mark.usefixtures("float64")
def test_a_later_layer_gets_those_of_batches_that_the_earlier_ones_normalised():
    net, xs = nn.Sequential(BatchNorm(3), nn.Linear(3, 2), Unitize(2), nn.Linear(2, 4), Slaf(4, degree=2)), batches(3)
    twin = copy.deepcopy(net).train()
    recalibrate_(net, xs)
    sums = torch.zeros(8)
    for x in xs:
        hidden = twin[:4](x)
        sums += torch.cat([hidden.mean(0), (hidden**2).mean(0)]).view(2, 4).T.flatten()
    torch.testing.assert_close(net[4].batch_norm.running_mean, sums / 3, rtol=1e-10, atol=1e-10)
    recalibrate_(twin, xs)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), twin.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    "norm",
    [BatchNorm, Unitize, nn.BatchNorm1d, lambda c: Slaf(c, normalize="input"), lambda c: Slaf(c, normalize="maxabs")],
)
def test_twice_is_once_and_modes_momenta_and_all_else_stay(norm):
    net = nn.Sequential(
        nn.Linear(3, 4), norm(4), nn.Dropout(), Spectral()(nn.Linear(4, 4)), Aon()(nn.Linear(4, 4)), norm(4)
    )
    net[1].eval()
    net[5].momentum = 0.25
    flags, before = [m.training for m in net.modules()], copy.deepcopy(net.state_dict())
    xs, random = batches(3), torch.get_rng_state()
    recalibrate_(net, xs)
    once = copy.deepcopy(net.state_dict())
    recalibrate_(net, iter(xs))
    assert all(torch.equal(value, once[name]) for name, value in net.state_dict().items())
    changed = {name for name, value in once.items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if "running" in name or "num_batches_tracked" in name}
    assert [m.training for m in net.modules()] == flags
    assert all(m.momentum is not None for m in with_statistics(net))
    assert net[5].momentum == 0.25
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.usefixtures("float64")
def test_running_maxima_become_means_of_the_batches_maxima():
    net, xs = Slaf(3, normalize="maxabs", momentum=0.3), batches(4)
    recalibrate_(net, xs)
    torch.testing.assert_close(net.running_max, torch.stack([x.abs().amax(0) for x in xs]).mean(0))
    assert net.momentum == 0.3


@pytest.mark.usefixtures("float64")
def test_a_layer_used_twice_and_a_bound_afterwards():
    norm = BatchNorm(3)
    net, xs = nn.Sequential(norm, Residual(norm, nn.Identity())), batches(2)
    recalibrate_(net, xs)
    first = torch.stack([x.mean(0) for x in xs]).mean(0)
    torch.testing.assert_close(norm.batch_norm.running_mean, first / 2)  # what comes second has mean 0
    x, y = torch.cat(xs), torch.randn(100, 3)
    net.eval()
    with torch.no_grad():
        moved = (net(x) - net(y)).norm(dim=1) / (x - y).norm(dim=1)
    assert moved.max().item() <= lipschitz_bound(net, (3,), 2).total


def test_no_batch_is_refused_and_changes_nothing():
    net = BatchNorm(2)
    net.batch_norm.running_mean.fill_(5)
    with pytest.raises(ValueError, match=r"batches=\[\]: one or more"):
        recalibrate_(net, [])
    assert (net.batch_norm.running_mean == 5).all()


# --- in training ------------------------------------------------------------------------------------------------------


def state(path):
    return torch.load(path, weights_only=True)["state_dict"]


def test_the_recalibrated_network_is_tested_and_saved(command, tmp_path, capsys):
    slow = (
        "activation.momentum=1e-6",
        "activation.init=official",
        "trainer.max_epochs=3",
    )  # no use at all in eval mode
    run = tmp_path / "run"
    assert command(*SMALL, *SLAF, *slow, f"hydra.run.dir={run}") == 0
    folder = run / "checkpoints"
    last, recalibrated = state(folder / "last.ckpt"), state(folder / "recalibrated.ckpt")
    changed = {name for name, value in last.items() if not torch.equal(value, recalibrated[name])}
    assert changed == {name for name in last if "running" in name or "num_batches_tracked" in name} != set()
    before, after = ({v.item() for n, v in w.items() if "tracked" in n}.pop() for w in (last, recalibrated))
    assert before == 3 * after > 0  # of one epoch, all of it
    metrics = json.loads((run / "result.json").read_text())["metrics"]
    tested = []
    for name in ("last", "recalibrated"):
        again = tmp_path / name
        loaded = (f"ckpt={folder / name}.ckpt", "trainer.enable_progress_bar=false", "logger=none", "trainer=cpu")
        assert command("run=[test]", *loaded, f"hydra.run.dir={again}") == 0
        tested.append(json.loads((again / "result.json").read_text())["metrics"]["test/loss"])
    assert tested[1] == pytest.approx(metrics["test/loss"], rel=1e-6)
    assert tested[1] < 0.8 * tested[0]


def test_averaged_weights_get_statistics_of_their_own(command, tmp_path):
    run = tmp_path / "run"
    averaged = ("callbacks=[recalibrate,ema]", "callbacks.ema.decay=0.9", "trainer.max_epochs=2")
    assert command(*SMALL, *SLAF, *averaged, f"hydra.run.dir={run}") == 0
    folder = run / "checkpoints"
    last, recalibrated = state(folder / "last.ckpt"), state(folder / "recalibrated.ckpt")  # both of averaged weights
    assert all(torch.equal(value, recalibrated[name]) for name, value in last.items() if name.endswith("weight"))
    assert not all(torch.equal(value, recalibrated[name]) for name, value in last.items() if "running" in name)


class Inputs(pl.Callback):
    """What a recalibration would go through."""

    def on_fit_end(self, trainer, model):
        self.found = list(_training_inputs(trainer))
        assert trainer.training


def test_a_stream_begins_anew_too(tmp_path):
    write_shards(tmp_path / "s", "train", [30, 22], num_classes=10)
    write_shards(tmp_path / "s", "test", [20], num_classes=10)
    settings = {"image_size": 6, "num_train": 52, "batch_size": 8, "shuffle_buffer": 16, "num_workers": 0}
    data, inputs = ImageStream(str(tmp_path / "s"), augmentation=Augmentation(flip=True), **settings), Inputs()
    trainer = pl.Trainer(
        max_steps=8, accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=inputs,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(Small(), data)  # ends inside its second epoch
    assert [len(x) for x in inputs.found] == 6 * [8]


class Small(pl.LightningModule):
    """A line."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(108, 10))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def test_what_has_no_effect_is_refused(command, tmp_path, capsys):
    where = f"hydra.run.dir={tmp_path / 'run'}"
    assert command(*SMALL, "activation=relu", where) == 2
    assert "error: callbacks.recalibrate: the network has no running statistics" in capsys.readouterr().err
    both = ("activation=spline", "norm=batch", "callbacks=[sparsify,recalibrate]")
    assert command(*SMALL, *both, where) == 2
    assert "error: callbacks.recalibrate: before sparsify, callbacks=[recalibrate,sparsify]" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


class Stub(AbstractModel):
    """A model that is nothing but its network."""

    def __init__(self, net):
        pl.LightningModule.__init__(self)
        self.net = net

    def task_loss(self, batch, stage):
        raise NotImplementedError


class Shuffled(RandomSampler):
    """Draws from the global random state and notes its epochs."""

    epoch = None

    def set_epoch(self, epoch):
        self.epoch = epoch


def test_the_pass_at_the_end_is_of_an_epoch_of_its_own_and_leaves_chance_alone():
    samples, net = TensorDataset(torch.randn(12, 3)), BatchNorm(3)
    sampler = Shuffled(samples)
    trainer = SimpleNamespace(
        train_dataloader=DataLoader(samples, 4, sampler=sampler), current_epoch=3, num_training_batches=2,
        strategy=SimpleNamespace(root_device=torch.device("cpu"), batch_to_device=lambda batch: batch), training=True,
        precision_plugin=SimpleNamespace(train_step_context=nullcontext, convert_input=lambda batch: batch),
    )  # fmt: skip
    state = torch.get_rng_state()
    Recalibration().on_fit_end(trainer, Stub(net))
    assert torch.equal(torch.get_rng_state(), state)
    assert sampler.epoch == 4
    assert net.batch_norm.num_batches_tracked == 2
