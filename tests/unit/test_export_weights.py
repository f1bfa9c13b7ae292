"""A network as safetensors and JSON: the same again, bit for bit, and nothing else is believed."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open

import tautnet
from tautnet.errors import ConfigError
from tautnet.export.weights import load_exported, write_weights
from tautnet.models.network import build_net

SETTINGS = {
    "model": {"net": {"_target_": "tautnet.backbones.mlp", "widths": [4]}},
    "activation": {"_target_": "tautnet.activations.LinearSpline", "_partial_": True, "grid_range": "auto"},
    "norm": {
        "output": {"_target_": "tautnet.normalizers.Unitize", "_partial_": True},
        "weight": {"_target_": "tautnet.normalizers.Spectral"},
    },
    "input_shape": [3],
    "num_outputs": 2,
    "data": {"root": "/home/somebody"},
}


@pytest.fixture
def trained():
    model = SimpleNamespace(net=build_net(SETTINGS))
    for name, value in model.net.state_dict().items():
        if name.endswith("_extra_state"):  # the range that data have given
            value.fill_(2.5)
        elif value.is_floating_point():
            value.add_(0.1 * torch.rand_like(value))
    states = {**model.net.state_dict(), "3._extra_state": torch.tensor(2.5, dtype=torch.float64)}
    model.net.load_state_dict(states)
    return SimpleNamespace(model=model, settings=SETTINGS)


@pytest.fixture
def folder(trained, tmp_path) -> Path:
    write_weights(trained, {"task": "classification", "columns": ["é"]}, tmp_path)
    return tmp_path


def test_the_same_network_bit_for_bit(folder, trained):
    x, random = torch.randn(7, 3), torch.get_rng_state()
    net = tautnet.load(folder)
    assert torch.equal(torch.get_rng_state(), random)
    assert not net.training
    assert torch.equal(net(x), trained.model.net.eval()(x))
    assert net[3].grid_range == 2.5
    assert torch.equal(tautnet.load(folder / "model.safetensors")(x), net(x))


def test_others_can_read_it_and_find_the_network_alone(folder):
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert json.loads(file.metadata()["columns"]) == ["é"]
        assert "6.bias" in file.keys() or "4.bias" in file.keys()  # noqa: SIM118
    document = json.loads((folder / "config.json").read_text())
    assert document["about"] == {"task": "classification", "columns": ["é"]}
    assert "somebody" not in json.dumps(document)


def test_a_flipped_bit_is_noticed(folder):
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"model\.safetensors: not the weights that .*config\.json was written with"):
        load_exported(folder)


def changed(folder: Path, change) -> str:
    """What is said when the settings' file has been changed."""
    path = folder / "config.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(ConfigError) as refused:
        tautnet.load(folder)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.update(format="other"), "config.json: format: tautnet network is needed"),
        (lambda d: d.update(version=2), "version 2: this tautnet reads version 1"),
        (lambda d: d.pop("sha256"), "settings and sha256 are needed"),
        (lambda d: d["settings"]["model"]["net"].update(_target_="os.getcwd"), "_target_=os.getcwd: not a class"),
        (lambda d: d["settings"]["activation"].update(_target_="torch.load"), "_target_=torch.load: not a class"),
        (lambda d: d["settings"]["activation"].update(_target_="torch.hub.load"), "_target_=torch.hub.load: not"),
        (lambda d: d["settings"].update(model=[1]), "not the settings of a network"),
        (lambda d: d["settings"].pop("norm"), "not the settings of a network"),
        (lambda d: d["settings"].update(input_shape=[-3]), "input_shape=[-3] num_outputs=2: integers"),
        (lambda d: d["settings"].update(num_outputs=True), "num_outputs=True: integers"),
        (lambda d: d["settings"]["model"]["net"].update(widths=[5]), "its weights do not fit the settings in"),
        (lambda d: d["settings"]["model"]["net"].update(widths=["a"]), "widths=['a']"),
        (lambda d: d["settings"]["activation"].update(grid_range=3.0), "its weights do not fit the settings in"),
        (lambda d: d["settings"].update(input_shape=[10**15]), "config.json: "),
    ],
)
def test_changed_settings_are_refused_in_a_line(folder, change, said):
    assert said in changed(folder, change)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.json", b"", "no JSON"),
        ("config.json", b"\xff\xfe", "no JSON"),
        ("config.json", b"[" * 100_000, "no JSON"),
        ("config.json", b"[]", "format: tautnet network is needed"),
        ("config.json", b" " * (2**24 + 1), "larger than"),
        ("model.safetensors", None, "No such file"),
    ],
)
def test_damaged_files_are_refused_in_a_line(folder, name, content, said):
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(ConfigError) as refused:
        load_exported(folder)
    assert str(refused.value).startswith(f"{folder / name}: ")
    assert said in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"\xff" * 8 + b"{}", b"\x02" + b"\0" * 7 + b"[]", b"cos\nsystem\n."])
def test_weights_that_are_none_are_refused(folder, content):
    import hashlib

    (folder / "model.safetensors").write_bytes(content)
    said = changed(folder, lambda d: d.update(sha256=hashlib.sha256(content).hexdigest()))
    assert "model.safetensors: not a file of safetensors" in said


def test_which_has_no_effect_on_an_export(folder):
    with pytest.raises(ConfigError, match="which=best: chooses among the checkpoints of a run"):
        tautnet.load(folder, "best")
