"""LipschitzMonitor: what it logs, warns of and draws, and that training does not notice."""

import math
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.trainer.states import TrainerFn
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from tautnet.activations import LinearSpline
from tautnet.callbacks import LipschitzMonitor
from tautnet.config import build
from tautnet.lipschitz import lipschitz_bound, lipschitz_lower, paper_bound
from tautnet.models import Classifier

SMALL = ("model=mlp", "norm=batch", "model.net.widths=[6,6]", "activation.num_knots=9")


@pytest.fixture
def run(settings, tmp_path):
    """Train on the digits, or validate the model as it is, with one monitor; gives trainer, model and monitor."""

    def run(*overrides, epochs=1, change=None, logger=False, callbacks=(), **arguments):
        composed = settings(*SMALL, *overrides)
        pl.seed_everything(0, verbose=False)
        data = build(composed["data"], "data")
        model = Classifier(composed | {"input_shape": [1, 8, 8], "num_outputs": 10})
        if change is not None:
            change(model.net)
        monitor = LipschitzMonitor(**arguments)
        trainer = pl.Trainer(
            max_epochs=max(1, epochs), accelerator="cpu", logger=logger, enable_checkpointing=False,
            callbacks=[monitor, *callbacks], enable_progress_bar=False, enable_model_summary=False,
            default_root_dir=tmp_path, limit_train_batches=2, limit_val_batches=2, num_sanity_val_steps=0,
            log_every_n_steps=1,
        )  # fmt: skip
        if epochs:
            trainer.fit(model, data)
        else:
            trainer.validate(model, data, verbose=False)
        return trainer, model, monitor

    return run


def roughen(net):
    """Steep pieces of the activations that few samples meet."""
    with torch.no_grad():
        for module in net:
            if isinstance(module, LinearSpline):
                module.coefficients.normal_()


def quantities(trainer):
    """What was logged under ``lipschitz/``, layers apart."""
    return {
        key.removeprefix("lipschitz/"): value.item()
        for key, value in trainer.callback_metrics.items()
        if key.startswith("lipschitz/") and not key.startswith("lipschitz/layer/")
    }


@pytest.mark.parametrize(("p", "suffix"), [(1, "p1"), (2, "p2"), (math.inf, "pinf")])
def test_all_quantities_are_logged_and_agree_with_the_report(run, p, suffix):
    trainer, model, _ = run(p=p)
    found = quantities(trainer)
    names = {"bound", "product", "folded", "lower", "tightness", "log10_bound", "log10_lower"}
    names |= {"lmi"} if p == 2 else set()
    assert set(found) == {f"{name}_{suffix}" for name in names}
    report = lipschitz_bound(model.net, (1, 8, 8), p)
    bound, lower = found[f"bound_{suffix}"], found[f"lower_{suffix}"]
    assert report.total <= bound <= report.total * (1 + 2e-7)
    assert math.exp(report.log_product) <= found[f"product_{suffix}"] * (1 + 1e-12)
    assert found[f"log10_bound_{suffix}"] == pytest.approx(math.log10(report.total), rel=1e-6)
    assert 0 < lower <= bound
    assert found[f"log10_lower_{suffix}"] == pytest.approx(math.log10(lower), rel=1e-5)
    assert found[f"tightness_{suffix}"] == pytest.approx(bound / lower, rel=1e-5)
    for layer in report.layers:
        if layer.value != 1:
            assert trainer.callback_metrics[f"lipschitz/layer/{layer.path}"] == pytest.approx(layer.value)


def test_the_papers_bound_is_logged_for_dense_nets(run):
    trainer, _, _ = run("norm=none")
    found = quantities(trainer)
    assert found["bound_p2"] <= found["paper_p2"]


def test_the_papers_bound_is_that_of_the_exponent(run):
    trainer, model, _ = run("norm=none", epochs=0, p=math.inf)
    expected = paper_bound(model.net, (1, 8, 8), math.inf).value
    assert quantities(trainer)["paper_pinf"] == pytest.approx(expected, rel=1e-6)
    assert expected < 0.9 * paper_bound(model.net, (1, 8, 8), 1).value


def test_samples_are_spread_evenly_over_each_batch():
    monitor, x = LipschitzMonitor(num_samples=4), torch.arange(8.0).view(8, 1)
    for _ in range(2):
        monitor._keep(x, 2)
    assert torch.cat(monitor._samples)[:, 0].tolist() == [0, 4, 0, 4]


def test_a_stream_without_an_end_gives_one_sample_a_batch_until_there_are_enough():
    monitor = LipschitzMonitor(num_samples=2)
    for batch in range(4):
        monitor._keep(torch.full((8, 1), float(batch)), math.inf)
    assert torch.cat(monitor._samples)[:, 0].tolist() == [0, 1]


def test_nothing_is_looked_at_before_training(monkeypatch):
    """The validation batches that Lightning runs to see whether it can."""
    monitor = LipschitzMonitor()
    monitor._keep(torch.zeros(3, 1), 1)
    monkeypatch.setattr(monitor, "_look", lambda model: pytest.fail("looked"))
    trainer = SimpleNamespace(state=SimpleNamespace(fn=TrainerFn.FITTING), current_epoch=0, sanity_checking=True)
    monitor.on_validation_epoch_end(trainer, None)
    assert monitor._samples == []


def test_neither_layers_nor_files_unless_wanted(run, tmp_path):
    trainer, _, _ = run(per_layer=False)
    assert not any(key.startswith("lipschitz/layer/") for key in trainer.callback_metrics)
    assert not list(tmp_path.rglob("lipschitz.*"))


def test_without_steps_the_lower_value_is_that_of_the_samples(run):
    class Samples(pl.Callback):
        def __init__(self):
            self.seen = []

        def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
            self.seen.append(batch[0])

    samples = Samples()
    trainer, model, _ = run(epochs=0, change=roughen, num_steps=0, num_samples=10_000, callbacks=[samples])
    found = quantities(trainer)["lower_p2"]
    assert found == pytest.approx(lipschitz_lower(model.net, torch.cat(samples.seen)), rel=1e-6)
    climbed, _, _ = run(epochs=0, change=roughen, num_steps=30, num_samples=10_000)
    assert quantities(climbed)["lower_p2"] > 1.05 * found


def test_pairs_climb_on_in_the_next_look(run):
    trainer, _, monitor = run(epochs=0, change=roughen)
    values = [quantities(trainer)["lower_p2"]]
    for _ in range(5):
        trainer.validate(trainer.lightning_module, trainer.val_dataloaders, verbose=False)
        values.append(quantities(trainer)["lower_p2"])
    assert max(values) > values[0]
    ((x, y),) = monitor._pairs.values()
    assert x.shape == y.shape == (4, 1, 8, 8)


def power_iterated(net):
    for module in net:
        if isinstance(module, nn.Linear):
            nn.utils.parametrizations.spectral_norm(module)  # a forward in training mode moves its buffers


@pytest.mark.parametrize(("p", "change"), [(1, None), (2, power_iterated), (math.inf, roughen)])
def test_training_is_the_same_with_and_without(run, p, change):
    """Against a monitor that looks at nothing; parameters, buffers, gradients and random state."""

    def state(**arguments):
        _, model, _ = run(epochs=2, change=change, **arguments)
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        return [*model.state_dict().values(), *gradients, torch.get_rng_state()]

    looked, not_looked = state(p=p), state(every_n_epochs=100)
    assert len(looked) == len(not_looked)
    assert all(torch.equal(*pair) for pair in zip(looked, not_looked, strict=True))


class Grow(pl.Callback):
    """Multiply the first weight at the end of each training epoch."""

    def __init__(self, factor):
        self.factor = factor

    def on_validation_epoch_start(self, trainer, pl_module):
        with torch.no_grad():
            next(module for module in pl_module.net if isinstance(module, nn.Linear)).weight.mul_(self.factor)


class Odd(nn.Module):
    """A layer that nothing is known of."""

    def forward(self, x):
        return x


def messages(caplog):
    return [r.getMessage() for r in caplog.records if r.name == "tautnet.callbacks.lipschitz_monitor"]


@pytest.mark.parametrize(("factor", "epochs", "warned"), [(30.0, 4, 1), (1.0, 4, 0), (200.0, 1, 0), (1e30, 4, 1)])
def test_an_exploding_bound_is_warned_of_once(run, caplog, factor, epochs, warned):
    run("norm=none", "optimizer.lr=1e-9", epochs=epochs, callbacks=[Grow(factor)])
    found = messages(caplog)
    assert len(found) == warned
    if factor == 30:
        assert found[0].startswith("The Lipschitz bound has grown 10^3.0-fold to 10^")
        assert "by epoch 3; " in found[0]


def test_warn_factor_is_the_limit(run, caplog):
    run("norm=none", "optimizer.lr=1e-9", epochs=3, callbacks=[Grow(3.0)], warn_factor=2.0)
    assert len(messages(caplog)) == 1


def test_layers_without_a_bound_are_named_once(run, caplog):
    trainer, _, _ = run(epochs=2, change=lambda net: net.append(Odd()))
    (message,) = messages(caplog)
    assert "(Odd" in message
    found = quantities(trainer)
    assert found["bound_p2"] == found["log10_bound_p2"] == found["tightness_p2"] == math.inf
    assert 0 < found["lower_p2"] < math.inf


def test_a_bound_beyond_float32_is_inf_and_its_logarithm_is_not(run):
    def scale(net):
        with torch.no_grad():
            for layer in net:
                if isinstance(layer, nn.Linear):
                    layer.weight.mul_(1e20)

    logarithms = []
    for change in (None, scale):
        trainer, _, _ = run(epochs=0, change=change)
        found = quantities(trainer)
        logarithms.append(found["log10_bound_p2"])
    assert found["bound_p2"] == math.inf
    assert logarithms[1] - logarithms[0] == pytest.approx(60, rel=1e-6)


def test_a_diverged_net_has_no_lower_value_and_training_goes_on(run):
    def diverge(net):
        nn.init.constant_(next(module for module in net if isinstance(module, nn.Linear)).weight, math.nan)

    trainer, _, _ = run(change=diverge)
    found = quantities(trainer)
    assert math.isnan(found["lower_p2"])
    assert found["bound_p2"] == math.inf


@pytest.mark.parametrize(("epochs", "every", "drawn"), [(3, 2, 2), (2, 2, 1), (1, 10, 1)])
def test_table_and_figure_every_n_epochs_and_at_the_end(run, tmp_path, epochs, every, drawn):
    logger, folder = TensorBoardLogger(tmp_path, "board", ""), tmp_path / "pictures"
    _, model, _ = run(epochs=epochs, logger=logger, figure_every_n_epochs=every, folder=str(folder))
    logger.finalize("success")
    events = EventAccumulator(logger.log_dir, size_guidance={"images": 0, "tensors": 0}).Reload()
    assert len(events.Images("lipschitz/layers")) == drawn
    (tag,) = (tag for tag in events.Tags()["tensors"] if tag.startswith("lipschitz/layers"))
    texts = [event.tensor_proto.string_val[0].decode() for event in events.Tensors(tag)]
    assert len(texts) == drawn
    assert (folder / "lipschitz.png").stat().st_size > 0
    assert (folder / "lipschitz.md").read_text() == texts[-1]
    report = lipschitz_bound(model.net, (1, 8, 8))
    for layer in report.layers:
        assert f"| {layer.path} | {layer.kind} | {layer.value:.6g} |" in texts[-1]
    assert f"{report.total:.6g}" in texts[-1]


def test_figures_show_layers_that_are_zero_or_unbounded(run, tmp_path):
    def change(net):
        nn.init.zeros_(next(layer for layer in net if isinstance(layer, nn.Linear)).weight)
        net.append(Odd())

    run(change=change, folder=str(tmp_path / "pictures"))
    assert (tmp_path / "pictures" / "lipschitz.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"num_samples": 0}, "num_samples=0: at least 1"),
        ({"every_n_epochs": 0}, "every_n_epochs=0: at least 1"),
        ({"figure_every_n_epochs": 0}, "figure_every_n_epochs=0: at least 1"),
        ({"num_steps": -1}, "num_steps=-1: at least 0, at most 10000"),
        ({"p": 3}, "p=3: 1, 2 or inf"),
        ({"warn_factor": 1.0}, r"warn_factor=1\.0: above 1"),
        ({"warn_factor": math.nan}, "warn_factor=nan: above 1"),
    ],
)
def test_bad_arguments_are_named(argument, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        LipschitzMonitor(**argument)
