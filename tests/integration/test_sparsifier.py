"""The sparsifying callback in training, and the bound of what it does to the network's output."""

import copy
import json

import pytest
import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from torch import nn

from tautnet.activations import LinearSpline
from tautnet.backbones import LayerFactory, Residual, cifar_resnet, convnet, mlp
from tautnet.callbacks import SplineSparsifier
from tautnet.callbacks.output_change import output_change_bound
from tautnet.callbacks.spline_sparsifier import largest_by_bisection, last_before_failure
from tautnet.config import build
from tautnet.models import Classifier
from tautnet.normalizers import BatchNorm, no_output_norm, no_weight_norm
from tautnet.splines import sparsify_

QUIET = ("trainer.enable_progress_bar=false", "trainer=cpu", "logger=none")
SMALL = ("debug=fast", "model.net.widths=[4,4]", "activation.num_knots=9")


# --- change of the output ---------------------------------------------------------------------------------------------


def spline(num_channels):
    return LinearSpline(num_channels, 9, 1.0)


NETS = {
    "dense": lambda norm: (mlp(LayerFactory(spline, norm, no_weight_norm), (5,), 3, widths=(6, 4)), (5,)),
    "conv": lambda norm: (convnet(LayerFactory(spline, norm, no_weight_norm), (2, 5, 5), 3, widths=(3, 2)), (2, 5, 5)),
    "residual": lambda norm: (
        cifar_resnet(LayerFactory(spline, norm, no_weight_norm), (1, 6, 6), 3, depth=8, width=2),
        (1, 6, 6),
    ),
    "layer": lambda norm: (
        nn.Sequential(nn.Conv2d(1, 3, 3), LinearSpline(3, 9, 1.0, sharing="layer"), nn.Flatten(), nn.Linear(27, 2)),
        (1, 5, 5),
    ),
}


@torch.no_grad()
def randomised(net):
    for module in net.modules():
        if isinstance(module, LinearSpline):
            module.coefficients.normal_()
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.running_var.uniform_(0.5, 2.0)
    return net.eval()


@pytest.mark.usefixtures("float64_on_one_thread")
@pytest.mark.parametrize("norm", [no_output_norm, BatchNorm])
@pytest.mark.parametrize("name", NETS)
def test_no_output_moves_further_than_the_bound(name, norm):
    for threshold in (5.0, 10.0, 40.0):
        before, shape = NETS[name](norm)
        after = copy.deepcopy(randomised(before))
        sparsify_(after, threshold, "refit")
        batches = [2 * torch.randn(20, *shape) for _ in range(2)]
        bound = output_change_bound(before, after, batches)
        with torch.no_grad():
            moved = max((after(x) - before(x)).norm(dim=1).max().item() for x in batches)
        assert 0 < moved <= bound < float("inf")


@pytest.mark.usefixtures("float64")
def test_the_bound_is_attained_by_one_layer_and_grows_with_the_next():
    before = nn.Sequential(LinearSpline(1, 5, 2.0, init="absolute"), nn.Linear(1, 1))
    nn.init.constant_(before[1].weight, -3.0)
    after = copy.deepcopy(before)
    after[0].set_values_(torch.tensor([[2.0, 1.5, 0.0, 1.0, 2.0]]))  # 0.5 more at -1
    x = torch.tensor([[-4.0], [-1.0], [1.7]])
    assert output_change_bound(before[:1], after[:1], [x]) == 1.0  # at -4: the border line is less steep by 0.5
    assert output_change_bound(before[:1], after[:1], [x[1:]]) == 0.5
    assert output_change_bound(before, after, [x[1:2], x[2:]]) == pytest.approx(1.5, rel=1e-9)
    assert output_change_bound(before, after, [x[2:]]) == 0.0
    between = torch.tensor([[-1.4], [-0.4]])  # the largest change lies at a knot that no input met
    assert output_change_bound(before[:1], after[:1], [between]) == 0.5


@pytest.mark.usefixtures("float64")
def test_positions_and_branches_add_up():
    before = Residual(nn.Identity(), LinearSpline(2, 5, 2.0, init="identity"))
    after = copy.deepcopy(before)
    after.shortcut.set_values_(after.shortcut.points()[1] + 1.0)
    x = torch.zeros(1, 2, 3, 3)
    assert output_change_bound(before, after, [x]) == pytest.approx(18**0.5, rel=1e-12)
    twice = nn.Sequential(before, before), nn.Sequential(after, after)
    # first 18^0.5, then (1 + 1) of that through both branches and 18^0.5 anew
    assert output_change_bound(*twice, [x]) == pytest.approx(3 * 18**0.5, rel=1e-12)


class Unknown(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = LinearSpline(1)

    def forward(self, x):
        return self.inner(x)


class UnknownNorm(nn.LayerNorm):
    """A subclass may compute something else."""


def test_what_cannot_be_bounded_is_infinite_or_refused():
    x = torch.randn(4, 1)
    hidden = Unknown()
    assert output_change_bound(hidden, copy.deepcopy(hidden), [x]) == float("inf")
    before = nn.Sequential(LinearSpline(1), UnknownNorm(1))
    after = copy.deepcopy(before)
    assert output_change_bound(before, after, [x]) == 0.0
    after[0].set_values_(after[0].points()[1] + 1)
    assert output_change_bound(before, after, [x]) == float("inf")
    after[1].weight.data.fill_(2.0)
    with pytest.raises(ValueError, match="after: weight of a UnknownNorm differs"):
        output_change_bound(before, after, [x])
    with pytest.raises(ValueError, match="after: "):
        output_change_bound(before, before[:1], [x])
    with pytest.raises(ValueError, match="inputs: "):
        output_change_bound(before, before, [])
    hooked = nn.Sequential(LinearSpline(1))
    hooked[0].register_forward_hook(lambda *_: None)
    assert output_change_bound(hooked, hooked, [x]) == float("inf")


# --- search -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", range(6))
@pytest.mark.parametrize("limit", [-1.0, 0.0, 2.5, 9.0])
def test_searches_find_the_last_accepted_value(count, limit):
    ascending = [float(value) for value in range(count)]
    expected = max((value for value in ascending if value <= limit), default=0.0)
    for search in (largest_by_bisection, last_before_failure):
        tried = []
        assert search(ascending, lambda value, tried=tried: tried.append(value) or value <= limit) == expected
    assert last_before_failure([0.0, 1.0, 2.0], lambda value: value != 1.0) == 0.0


# --- in training ------------------------------------------------------------------------------------------------------


class Dense(pl.Callback):
    """The weights as training and averaging leave them."""

    def on_fit_end(self, trainer, model):
        self.weights = copy.deepcopy(model.net.state_dict())
        self.random = torch.get_rng_state()


def trained(settings, tmp_path, *overrides, epochs=6, **arguments):
    composed = settings("model.net.widths=[8]", "callbacks=none", *overrides)
    pl.seed_everything(0, verbose=False)
    model = Classifier(composed | {"input_shape": [1, 8, 8], "num_outputs": 10})
    dense, sparsifier = Dense(), SplineSparsifier("val/acc", folder=str(tmp_path), **arguments)
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[dense, sparsifier],
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    data = build(composed["data"], "data")
    trainer.fit(model, data)
    return trainer, model, data, dense


@pytest.mark.parametrize("method", ["threshold", "refit", "merge"])
def test_the_fewest_knots_within_the_budget(settings, tmp_path, method):
    trainer, model, data, dense = trained(settings, tmp_path, method=method, budget=0.02)
    found = {name: value.item() for name, value in trainer.callback_metrics.items()}
    assert torch.equal(torch.get_rng_state(), dense.random)
    assert found["sparsify/metric_before"] == pytest.approx(found["val/acc"], abs=1e-7)
    assert found["sparsify/metric_after"] >= found["val/acc"] - 0.02 - 1e-7
    assert 0 < found["sparsify/knots_after"] < found["sparsify/knots_before"] <= 8 * 49
    assert found["sparsify/sup_change"] > 0
    assert 0 < found["sparsify/output_change_bound"] < float("inf")
    splines = [module for module in model.net if isinstance(module, LinearSpline)]
    assert sum(spline.num_active_knots(1e-4) for spline in splines) == found["sparsify/knots_after"]

    sparse = Classifier.load_from_checkpoint(tmp_path / "sparse.ckpt", weights_only=True)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in sparse.state_dict().items())
    changed = {name for name, value in model.net.state_dict().items() if not torch.equal(value, dense.weights[name])}
    assert changed == {name for name in dense.weights if name.endswith("coefficients")}
    x, y = data.splits.val.inputs, data.splits.val.targets
    before = copy.deepcopy(sparse.net)
    before.load_state_dict(dense.weights)
    with torch.no_grad():
        outputs, moved = sparse.eval()(x), sparse(x) - before.eval()(x)
    assert (outputs.argmax(1) == y).float().mean().item() == pytest.approx(found["sparsify/metric_after"], abs=1e-7)
    assert moved.norm(dim=1).max() <= found["sparsify/output_change_bound"]


def test_a_larger_budget_gives_no_more_knots_and_a_budget_of_everything_none(settings, tmp_path):
    kept = [
        trained(settings, tmp_path, epochs=2, budget=budget)[0].callback_metrics["sparsify/knots_after"].item()
        for budget in (0.0, 0.05, 1.0)
    ]
    assert kept[0] >= kept[1] >= kept[2] == 0


def test_what_has_no_effect_is_refused(settings, tmp_path):
    with pytest.raises(MisconfigurationException, match=r"callbacks\.sparsify: the network has no spline"):
        trained(settings, tmp_path, "activation=relu", epochs=1)
    with pytest.raises(ValueError, match=r"^budget=-1: "):
        SplineSparsifier("val/acc", budget=-1)
    with pytest.raises(ValueError, match=r"^method=fast: one of threshold, refit, merge"):
        SplineSparsifier("val/acc", method="fast")


def test_a_metric_that_is_not_measured_ends_training_at_once(command, tmp_path, capsys):
    wrong = ("callbacks=sparsify", "callbacks.sparsify.metric=val/psnr")
    assert command(*QUIET, *SMALL, *wrong, f"hydra.run.dir={tmp_path / 'run'}") == 2
    assert "callbacks.sparsify.metric=val/psnr: measured are val/acc, val/loss" in capsys.readouterr().err


def test_averaged_weights_are_what_is_sparsified_and_tested(command, tmp_path):
    run = tmp_path / "run"
    choice = ("callbacks=[ema,sparsify]", "callbacks.ema.decay=0.5", "callbacks.sparsify.budget=0")
    assert command(*QUIET, *SMALL, *choice, f"hydra.run.dir={run}") == 0
    averaged = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    sparse = torch.load(run / "checkpoints" / "sparse.ckpt", weights_only=True)["state_dict"]
    for name, value in averaged["state_dict"].items():
        if isinstance(value, torch.Tensor) and name.startswith("net") and not name.endswith("coefficients"):
            assert torch.equal(sparse[name], value)
    assert not torch.equal(sparse["net.0.weight"], averaged["current_model_state"]["net.0.weight"])
    measured = json.loads((run / "result.json").read_text())["metrics"]
    assert measured["spline/active_knots"] <= measured["sparsify/knots_after"]


def test_the_command_of_the_readme(command, tmp_path, capsys):
    """What it leaves, and a test of the sparse checkpoint alone."""
    run, alone = tmp_path / "run", tmp_path / "alone"
    assert command(*QUIET, "callbacks=sparsify", *SMALL, f"hydra.run.dir={run}") == 0
    printed = capsys.readouterr().out
    assert "Sparsified: " in printed
    measured = json.loads((run / "result.json").read_text())["metrics"]
    assert measured["sparsify/knots_after"] < measured["sparsify/knots_before"]
    assert {"sparsify/metric_before", "sparsify/metric_after", "sparsify/sup_change"} < measured.keys()
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt", "sparse.ckpt"}
    ckpt = f"ckpt={run / 'checkpoints' / 'sparse.ckpt'}"
    assert command(*QUIET, "run=[test]", ckpt, f"hydra.run.dir={alone}") == 0
    again = json.loads((alone / "result.json").read_text())["metrics"]
    for name in ("test/acc", "test/loss", "spline/active_knots", "lipschitz/bound_p2"):
        assert again[name] == measured[name]


def test_a_change_is_passed_on_by_the_changed_layer():
    before = nn.Sequential(LinearSpline(1, 5, 2.0, init="identity"), LinearSpline(1, 5, 2.0, init="zero"))
    after = copy.deepcopy(before)
    after[0].set_values_(after[0].points()[1] + 1.0)
    after[1].set_values_(before[0].points()[1])
    x = torch.tensor([[-1.0], [1.0]])
    assert (after(x) - before(x)).norm(dim=1).max() == 2.0
    assert output_change_bound(before, after, [x]) == pytest.approx(2.0, rel=1e-6)


def test_a_network_that_diverged_is_left_as_it_is(command, tmp_path, capsys):
    run = tmp_path / "run"
    arguments = ["data=area", "model=mlp", "trainer.max_epochs=1", "callbacks=sparsify", "optimizer.lr=1e30"]
    quiet = ("trainer.enable_progress_bar=false", "logger=none", "~callbacks.divergence")  # which would stop it
    assert command(*arguments, *quiet, f"hydra.run.dir={run}") == 0
    assert "Not sparsified: the trained weights are not finite." in capsys.readouterr().out
    assert "sparsify/knots_after" not in json.loads((run / "result.json").read_text())["metrics"]


def test_a_fit_that_validated_nothing_is_refused_in_one_line(command, tmp_path, capsys):
    arguments = ["data=area", "model=mlp", "trainer.max_epochs=1", "callbacks=sparsify", "logger=none"]
    assert (
        command(
            *arguments, "+trainer.check_val_every_n_epoch=3", "~callbacks.best", f"hydra.run.dir={tmp_path / 'run'}"
        )
        == 2
    )
    assert "callbacks.sparsify: nothing was validated" in capsys.readouterr().err
