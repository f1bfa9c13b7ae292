"""One job without training: what is left behind, when settings are written down, what a trial of a batch touches."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tautnet import app, job
from tautnet.app_callbacks import settings_writer
from tautnet.config import ConfigError


@pytest.fixture
def run_dir(monkeypatch, tmp_path):
    """The directory that Hydra made for a job without overrides."""
    hydra = SimpleNamespace(
        runtime=SimpleNamespace(output_dir=str(tmp_path / "run")), overrides=SimpleNamespace(task=[])
    )
    monkeypatch.setattr(app, "HydraConfig", SimpleNamespace(get=lambda: hydra))
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


# --- what is left behind ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ConfigError, RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("started", [False, True])
def test_a_directory_stays_from_the_moment_on_when_nothing_refused_the_settings(monkeypatch, run_dir, error, started):
    def prepare(_):
        (run_dir / "checkpoints").mkdir()
        if started:
            (run_dir / app.SETTINGS).write_text("seed: 0")
        raise error("why")

    monkeypatch.setattr(app, "_checked", prepare)
    with pytest.raises(error, match="why"):
        app.run({})
    assert run_dir.exists() == started


def test_a_finished_run_is_left_alone(monkeypatch, run_dir):
    name = "result.json"
    monkeypatch.setattr(app, "plain", lambda config: {"ckpt": None, "resume": None, "run_dir": str(run_dir)})
    monkeypatch.setattr(app, "_try_parts", lambda settings: pytest.fail("went on"))
    (run_dir / name).write_text("mine")
    with pytest.raises(ConfigError, match="holds a run already"):
        app.run({})
    assert (run_dir / name).read_text() == "mine"


@pytest.mark.parametrize("first", [True, False])
def test_settings_are_written_by_the_first_process_when_fit_or_test_begins(tmp_path, first):
    path, trainer = tmp_path / "config.yaml", SimpleNamespace(is_global_zero=first)
    writer = settings_writer({"seed": 3}, path)
    writer.setup(trainer, None, "fit")  # where callbacks refuse
    assert not path.exists()
    for begin in (writer.on_fit_start, writer.on_test_start):
        begin(trainer, None)
        assert path.exists() == first
        if first:
            assert path.read_text() == "seed: 3\n"
            path.unlink()


# --- trials -----------------------------------------------------------------------------------------------------------


def test_a_callback_without_its_stage_is_refused(monkeypatch):
    for name in ("build", "role_settings", "check_steps"):
        monkeypatch.setattr(app, name, lambda *_, **__: lambda _: None)
    rest = {"activation": {}, "scheduler": {}, "optimizer": {}, "compile": False}
    settings = rest | {"trainer": {"max_epochs": 1, "devices": 1, "num_nodes": 1}}
    for name, stage, other in (("sparsify", "fit", "test"), ("ics", "fit", "test"), ("certify", "test", "fit")):
        app._try_parts(settings | {"run": [stage], "callbacks": {name: {}}})
        with pytest.raises(ConfigError, match=rf"^callbacks={name}: .* run=\['{other}'\] has no {stage}"):
            app._try_parts(settings | {"run": [other], "callbacks": {name: {}}})


def test_a_trial_of_a_batch_touches_neither_the_network_nor_chance():
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)).eval()
    model = SimpleNamespace(net=net, task="regression", check_targets=lambda targets: None)
    before, chance = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    job._try_batch(model, (torch.randn(5, 4, generator=torch.Generator()), torch.zeros(5, 3)), {"data": {}})
    assert torch.equal(torch.get_rng_state(), chance)
    assert not any(module.training for module in net.modules())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
