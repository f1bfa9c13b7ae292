"""What a run leaves, opened again without conf/."""

from pathlib import Path

import pytest
import torch
from forked import finish, start, train

import tautnet
from tautnet import checkpoints
from tautnet.errors import ConfigError
from tautnet.trained import open_trained

JOB = ("data=iris", "model=mlp", "debug=fast", "logger=none", "trainer.enable_progress_bar=false")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """Of two batches of iris."""
    folder = tmp_path_factory.mktemp("trained")
    done = finish(start(train, *JOB, f"hydra.run.dir={folder}/run", folder=folder), folder)
    assert done.returncode == 0, done.stderr
    return folder / "run"


def test_is_the_tested_model(run_dir):
    trained = open_trained(run_dir)
    saved = checkpoints.read(run_dir / "checkpoints" / "last.ckpt")["state_dict"]
    for name, value in trained.model.net.state_dict().items():
        torch.testing.assert_close(value, saved[f"net.{name}"], rtol=0, atol=0)
    assert not trained.model.training
    assert trained.run == run_dir
    assert (trained.epochs, trained.step > 0) == (1, True)
    assert trained.preparation.classes == ["setosa", "versicolor", "virginica"]


def test_load_gives_the_network(run_dir):
    net, x = tautnet.load(run_dir), torch.randn(3, 4)
    assert torch.equal(net(x), open_trained(run_dir / "checkpoints" / "last.ckpt").model.net(x))


def test_data_of_another_shape_are_refused(run_dir):
    with pytest.raises(ConfigError, match=r"data: input_shape \[13\]; .* trained with \[4\]"):
        open_trained(run_dir).data(table="wine")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s["model"].update(_target_="os.system"), "model._target_=os.system: not a class or function"),
        (lambda s: s["model"]["net"].update(_target_="os.getcwd"), "model.net._target_=os.getcwd: not a class"),
        (lambda s: s.pop("preparation"), "not a checkpoint of tautnet, or of an earlier version"),
        (lambda s: s["preparation"].update(offset=[0.0]), "not a checkpoint of tautnet, or of an earlier version"),
        (lambda s: s["preparation"].update(scale=[1.0, 1.0, 1.0, -1.0]), "not a checkpoint of tautnet"),
        (lambda s: s["preparation"].update(classes=["setosa"]), "not a checkpoint of tautnet"),
        (lambda s: s.update(data=None), "not a checkpoint of tautnet"),
        (lambda s: s.update(seed="0"), "not a checkpoint of tautnet"),
        (lambda s: s["model"]["net"].update(widths=[7]), "its weights do not fit its settings"),
        (lambda s: s["model"].update(_target_="torch.nn.Linear"), "model"),
    ],
)
def test_settings_that_were_changed_are_refused(run_dir, tmp_path, change, said):
    saved = checkpoints.read(run_dir / "checkpoints" / "last.ckpt")
    change(saved["hyper_parameters"]["config"])
    checkpoints.write(saved, tmp_path / "changed.ckpt")
    with pytest.raises(ConfigError) as refused:
        open_trained(tmp_path / "changed.ckpt")
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("name", "which", "said"),
    [
        ("nowhere", "tested", "nowhere: no such run or checkpoint"),
        (".", "tested", "not a run's directory, or one without checkpoints"),
        ("run", "sparse", "no checkpoint sparse; there are "),
        ("run/checkpoints/last.ckpt", "best", "a checkpoint itself"),
        ("run/config.yaml", "tested", "not a checkpoint of tautnet"),
    ],
)
def test_what_is_no_run_is_told_in_a_line(run_dir, name, which, said):
    with pytest.raises(ConfigError) as refused:
        open_trained(Path(run_dir.parent, name), which)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
