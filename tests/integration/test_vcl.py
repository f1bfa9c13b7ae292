"""Variance constancy through the application: composed, logged, resumed, tested, in two processes."""

import json

import pytest
import torch
import torch.distributed as dist
from ranks import grouped, in_ranks
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tautnet.regularizers.variance import VarianceConstancy

QUIET = ("trainer=cpu", "trainer.enable_progress_bar=false", "logger=none", "callbacks.lipschitz.every_n_epochs=100")
SMALL = ("norm=none", "activation=elu", "data=wine", "model=mlp", "model.net.widths=[6,6]", "data.batch_size=20")


def metrics(run):
    return json.loads((run / "result.json").read_text())["metrics"]


def weights(run, name="last"):
    return torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)["state_dict"]


def test_the_callback_alone_trains_with_it_and_watches(command, tmp_path):
    run = tmp_path / "run"
    assert command(*QUIET, *SMALL, "callbacks=variance", "trainer.max_epochs=3", f"hydra.run.dir={run}") == 0
    found = metrics(run)
    for path in ("3", "6"):
        assert 0 < found[f"vcl/{path}"] < found[f"vcl/max/{path}"]
        assert found[f"vcl/beta_min/{path}"] < 1 < found[f"vcl/beta_max/{path}"] + 0.1
        assert 1 < found[f"vcl/kurtosis/{path}"] < 20
    assert found["vcl/kurtosis"] > 1
    assert found["loss/variance"] == pytest.approx(0.01 * (found["vcl/3"] + found["vcl/6"]), rel=0.05)
    assert found["lipschitz/bound_p2"] < float("inf")
    assert weights(run)["regularizers.variance.beta"].shape == (12,)


def test_no_trace_of_the_test_set(command, tmp_path):
    """Evaluation gives beta no gradient: trained in the same way with and without it, all is the same."""
    found = []
    for number, evaluated in enumerate(("trainer.limit_val_batches=1.0", "trainer.limit_val_batches=1")):
        run = tmp_path / str(number)
        arguments = ("callbacks=variance", "~callbacks.best", "~callbacks.lipschitz", evaluated, "trainer.max_epochs=3")
        assert command(*QUIET[:-1], *SMALL, *arguments, f"hydra.run.dir={run}") == 0
        found.append(weights(run))
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_a_continued_run_is_the_run_in_one_go(command, tmp_path):
    whole, first, second = (tmp_path / name for name in ("whole", "first", "second"))
    settings = (*SMALL, "callbacks=variance", "regularizer.variance.weight=0.1", "scheduler=none")
    assert command(*QUIET, *settings, "trainer.max_epochs=2", f"hydra.run.dir={whole}") == 0
    assert command(*QUIET, *settings, "trainer.max_epochs=1", f"hydra.run.dir={first}") == 0
    ckpt = f"ckpt={first / 'checkpoints' / 'last.ckpt'}"
    resumed = ("callbacks=variance", "logger=none", "trainer.max_epochs=2", f"hydra.run.dir={second}")
    assert command(ckpt, *resumed) == 0
    assert weights(second).keys() == weights(whole).keys()
    assert all(torch.equal(value, weights(whole)[name]) for name, value in weights(second).items())
    assert (weights(second)["regularizers.variance.beta"] != weights(first)["regularizers.variance.beta"]).any()


def test_a_checkpoint_is_tested_with_any_callbacks(command, tmp_path):
    run = tmp_path / "run"
    assert command(*QUIET, *SMALL, "callbacks=variance", "trainer.max_epochs=1", f"hydra.run.dir={run}") == 0
    plain = tmp_path / "plain"
    assert command(*QUIET, *SMALL, "trainer.max_epochs=1", f"hydra.run.dir={plain}") == 0
    few = ("callbacks=certify", "callbacks.certify.num_samples=3", "callbacks.certify.num_steps=1")
    cases = ((run, ()), (run, ("callbacks=variance",)), (run, few), (plain, ("callbacks=variance",)))
    for number, (trained, callbacks) in enumerate(cases):
        test = tmp_path / str(number)
        ckpt = ("run=[test]", f"ckpt={trained / 'checkpoints' / 'last.ckpt'}", *callbacks)
        assert command(*ckpt, "logger=none", f"hydra.run.dir={test}") == 0
        assert metrics(test)["test/acc"] == metrics(trained)["test/acc"]


def test_it_composes_with_a_normalizer_other_penalties_and_averaged_weights(command, tmp_path):
    run = tmp_path / "run"
    settings = ("norm=unitize", "activation=spline", "activation.num_knots=9", "regularizer=lipschitz")
    more = ("callbacks=[variance,ema]", "trainer.accumulate_grad_batches=2", "regularizer.variance.pairs=all")
    command_line = (*QUIET, *SMALL[2:], *settings, *more, "regularizer.variance.beta_from_data=true")
    assert command(*command_line, "trainer.max_epochs=2", f"hydra.run.dir={run}") == 0
    found = metrics(run)
    assert found["loss/variance"] > 0
    assert found["loss/lipschitz"] >= 0
    assert {"loss/tv2", "vcl/3", "vcl/6"} <= found.keys()


def test_the_penalty_alone_and_both_named(command, tmp_path):
    for number, settings in enumerate((("regularizer=variance",), ("regularizer=variance", "callbacks=variance"))):
        run = tmp_path / str(number)
        assert command(*QUIET, *SMALL, *settings, "trainer.max_epochs=1", f"hydra.run.dir={run}") == 0
        assert metrics(run)["loss/variance"] > 0


def test_what_the_penalty_refuses_is_one_line(command, capsys, tmp_path):
    for setting, message in (
        ("regularizer.variance.sample_size=1", "regularizer.variance.sample_size=1: at least 2"),
        ("regularizer.variance.include=[9]", "regularizer.variance.include=9: matches none of the layers 3, 6"),
        ("~regularizer.variance", "callbacks.variance: needs one regularizer.variance"),
    ):
        assert command(*QUIET, *SMALL, "callbacks=variance", setting, f"hydra.run.dir={tmp_path / 'bad'}") == 2
        assert message in capsys.readouterr().err


class Both(nn.Module):
    """A network and its penalty, as one training step runs them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.net = nn.Sequential(nn.Linear(3, 4), nn.ELU(), nn.Linear(4, 2)).double()
        self.penalty = VarianceConstancy(sample_size=3)
        self.penalty.attach(self.net, (3,))

    def forward(self, x):
        return self.net(x).square().mean() + self.penalty()


def batches():
    x = torch.randn(16, 3, generator=torch.Generator().manual_seed(4)).double()
    return x[:8], x[8:], x[:2]  # the last is too small for the penalty


def trained():
    model = Both()
    parallel = DistributedDataParallel(model)
    found = []
    for parts in (batches()[:2], (batches()[0], batches()[2])):
        parallel.zero_grad()
        parallel(parts[dist.get_rank()]).backward()
        found.append([parameter.grad.clone() for parameter in model.parameters()])
    return found


def test_two_processes_average_their_own_terms(tmp_path):
    found = in_ranks(grouped, 2, tmp_path, trained)[0]
    for number, parts in enumerate((batches()[:2], (batches()[0], batches()[2]))):
        model = Both()
        (sum(model(part) for part in parts) / 2).backward()
        expected = [parameter.grad for parameter in model.parameters()]
        torch.testing.assert_close(found[number], expected)


def test_the_projection_of_the_experiment_goes_where_the_theorem_says(command, tmp_path):
    short = (
        "data.num_points=20000",
        "data.batch_size=1000",
        "trainer.max_epochs=15",
        *QUIET[:-1],
        "~callbacks.lipschitz",
    )
    for prior, aligned in ((0.5, True), (0.1, False)):
        run = tmp_path / str(prior)
        assert command("experiment=vcl_two_gaussians", *short, f"data.prior={prior}", f"hydra.run.dir={run}") == 0
        found = metrics(run)
        if aligned:
            assert found["discriminant/alignment"] > 0.99
            assert found["discriminant/ratio"] > 0.98
        else:
            assert found["discriminant/ratio"] < 0.05
        assert found["loss/task"] == 0


def test_the_discriminant_needs_one_projection(command, capsys, tmp_path):
    wide = ("experiment=vcl_two_gaussians", "model.net.widths=[2]", f"hydra.run.dir={tmp_path / 'run'}")
    assert command(*QUIET, *wide) == 2
    assert "callbacks.discriminant: for vectors and a first layer of one output" in capsys.readouterr().err


def test_the_kurtosis_falls_with_the_weight(command, tmp_path):
    found = []
    for weight in (0, 1):
        run = tmp_path / str(weight)
        settings = ("experiment=vcl_kurtosis", f"regularizer.variance.weight={weight}", "trainer.max_epochs=15")
        assert command(*QUIET[:-1], "~callbacks.lipschitz", *settings, f"hydra.run.dir={run}") == 0
        found.append(metrics(run)["vcl/kurtosis"])
    assert found[1] < found[0] - 0.4
