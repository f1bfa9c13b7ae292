"""``tautnet export``: from a run to files that run elsewhere."""

import json
import subprocess
import sys
import zipfile

import pytest
import torch
import yaml
from architectures import trained_a_little
from conftest import CONF, options
from forked import finish, start, train
from torch import nn

import tautnet
from tautnet.__main__ import main
from tautnet.backbones.blocks import Concatenation
from tautnet.config import build
from tautnet.export import plain_net
from tautnet.export.onnx_file import write_onnx
from tautnet.export.program import METADATA, traced, write_pt2
from tautnet.splines import load_tables
from tautnet.trained import open_trained

CHANNELS = 4
SHAPE = (CHANNELS, 3, 2)
PARTS = [(group, option) for group in ("activation", "norm/output") for option in options(group)]
FILES = {(group, option): CONF / group / f"{option}.yaml" for group, option in PARTS}
DIFFERENT = [part for part, path in FILES.items() if "defaults:" not in path.read_text()]
JOB = ("data=iris", "model=mlp", "debug=fast", "logger=none", "trainer.enable_progress_bar=false")
NAMES = ["config.json", "model.onnx", "model.pt2", "model.safetensors", "splines.json", "splines.npz"]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """Of two batches of iris."""
    folder = tmp_path_factory.mktemp("exported")
    done = finish(start(train, *JOB, f"hydra.run.dir={folder}/run", folder=folder), folder)
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.fixture(scope="module")
def exported(run_dir):
    """All formats, with raw inputs."""
    assert main(["export", str(run_dir), "--raw"]) == 0
    return run_dir / "export"


def refused(capsys, status, *arguments) -> str:
    """The one line that a command says."""
    assert main(["export", *map(str, arguments)]) == status
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    return said.err


def test_all_formats_are_there_and_nothing_else(exported):
    assert sorted(path.name for path in exported.iterdir()) == NAMES


PT2 = """
import sys
sys.modules["tautnet"] = sys.modules["pytorch_lightning"] = None  # importing them fails
import torch
extra = {"tautnet.json": ""}
net = torch.export.load(sys.argv[1], extra_files=extra).module()
x = torch.load(sys.argv[2], weights_only=True)
torch.save({"y": net(x), "extra": extra}, sys.argv[3])
"""


def test_pt2_needs_torch_alone(exported, run_dir, tmp_path):
    trained, x = open_trained(run_dir), 4 * torch.rand(9, 4)
    torch.save(x, tmp_path / "x")
    code = [sys.executable, "-W", "ignore", "-c", PT2]
    subprocess.run([*code, exported / "model.pt2", tmp_path / "x", tmp_path / "y"], check=True)
    found = torch.load(tmp_path / "y", weights_only=True)
    torch.testing.assert_close(found["y"], trained.model.net(trained.preparation.prepared(x)), rtol=1e-5, atol=1e-6)
    about = json.loads(found["extra"]["tautnet.json"])
    assert about["classes"] == ["setosa", "versicolor", "virginica"]
    assert len(about["columns"]) == len(about["input_scale"]) == 4


def test_onnx_takes_raw_values_and_knows_the_bound(exported, run_dir):
    import onnxruntime

    from tautnet.lipschitz import lipschitz_bound

    trained, x = open_trained(run_dir), 4 * torch.rand(9, 4)
    session = onnxruntime.InferenceSession(exported / "model.onnx", providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(None, {"input": x.numpy()})[0])
    torch.testing.assert_close(found, trained.model.net(trained.preparation.prepared(x)), rtol=1e-5, atol=1e-6)
    about = {name: json.loads(v) for name, v in session.get_modelmeta().custom_metadata_map.items()}
    assert (about["input_units"], about["lipschitz_units"], about["task"]) == ("raw", "raw", "classification")
    standardised = lipschitz_bound(trained.model.net, (4,)).total
    first = next(layer for layer in trained.model.net if isinstance(layer, nn.Linear))
    with torch.no_grad():
        first.weight.div_(torch.tensor(trained.preparation.scale))  # the network of raw values, but for a shift
    assert about["lipschitz_bound_p2"] == pytest.approx(lipschitz_bound(trained.model.net, (4,)).total, rel=1e-5)
    assert about["lipschitz_bound_p2"] != pytest.approx(standardised, rel=0.1)
    assert json.loads((exported / "config.json").read_text())["about"]["lipschitz_bound_p2"] == standardised


def test_safetensors_gives_the_network_back(exported, run_dir):
    x = torch.randn(9, 4)
    assert torch.equal(tautnet.load(exported)(x), tautnet.load(run_dir)(x))
    assert "unused" not in (exported / "config.json").read_text()


def test_splines_are_tables(exported):
    assert load_tables(exported / "splines.json") == load_tables(exported / "splines.npz")


def test_what_is_there_stays_unless_asked_for(exported, run_dir, capsys):
    before = (exported / "splines.npz").read_bytes()
    said = refused(capsys, 2, run_dir, "--format", "splines")
    assert "splines.json: is there already; --overwrite replaces it" in said
    assert main(["export", str(run_dir), "--format", "splines", "--overwrite"]) == 0
    assert (exported / "splines.npz").read_bytes() == before
    told = capsys.readouterr().out
    assert f"{exported}/splines.json: " in told
    assert "Lipschitz bound (p=2, standardised inputs): " in told


def test_one_that_differs_leaves_nothing(run_dir, tmp_path, monkeypatch, capsys):
    from tautnet.export import files

    plain_net = files.plain_net

    def a_little_off(net):
        plain = plain_net(net)
        plain[1].bias.add_(1e-3)
        return plain

    monkeypatch.setattr(files, "plain_net", a_little_off)
    said = refused(capsys, 1, run_dir, "--output", tmp_path / "new" / "out", "--format", "safetensors", "pt2")
    assert said.startswith("error: model.pt2: its outputs differ from the network's by ")
    assert not (tmp_path / "new" / "out").exists()


def test_a_mistake_is_told_in_a_line(run_dir, tmp_path, capsys):
    checkpoint = tmp_path / "alone.ckpt"
    checkpoint.write_bytes((run_dir / "checkpoints" / "last.ckpt").read_bytes())
    assert "--output: where to?" in refused(capsys, 2, checkpoint)
    assert "--raw: has no effect on splines" in refused(capsys, 2, run_dir, "--raw", "--format", "splines")
    assert "not a folder" in refused(capsys, 2, run_dir, "--output", checkpoint)
    assert "nowhere: no such run" in refused(capsys, 2, tmp_path / "nowhere")
    assert "Not a directory" in refused(capsys, 2, run_dir, "--output", checkpoint / "x", "--format", "splines")


# --- everything in conf/ ----------------------------------------------------------------------------------------------


def settings_of(group: str, option: str) -> dict:
    """What a file of conf/ says, with those that it builds on; composing takes ten times as long."""
    said = yaml.safe_load((CONF / group / f"{option}.yaml").read_text())
    made = {}
    for base in said.pop("defaults", []):
        made |= settings_of(group, base)
    return made | said.get("activation", said)


DIFFERENT = [
    (group, option) for group, option in PARTS if "defaults:" not in (CONF / group / f"{option}.yaml").read_text()
]


def side_by_side(parts: list[tuple[str, str]]) -> nn.Module:
    """Each activation and each normalizer in a branch of its own."""
    torch.manual_seed(0)
    branches = [build(settings_of(group, option), group)(CHANNELS) for group, option in parts]
    return trained_a_little(Concatenation(*branches), *SHAPE)


@pytest.fixture(scope="module")
def all_of_conf() -> nn.Module:
    """Without what only changes the numbers of another one, for the sake of time."""
    return side_by_side(DIFFERENT)


@pytest.fixture(scope="module")
def program(all_of_conf):
    return traced(plain_net(all_of_conf), SHAPE)


def assert_every_branch_equal(exported, net, parts) -> None:
    for batch in (1, 5):
        x = 2 * torch.randn(batch, *SHAPE)
        with torch.no_grad():
            pairs = zip(exported(x).split(CHANNELS, 1), net(x).split(CHANNELS, 1), parts, strict=True)
        for found, expected, part in pairs:
            error = (found - expected).abs().max() / expected.abs().max()
            assert error <= 1e-5, f"{part}: {error}"


def test_everything_in_conf_becomes_plain():
    net = side_by_side(PARTS)
    assert_every_branch_equal(plain_net(net), net, PARTS)


def test_everything_in_conf_becomes_pt2(all_of_conf, program, tmp_path):
    exported = write_pt2(program, {"task": "none"}, tmp_path / "model.pt2")
    assert_every_branch_equal(exported, all_of_conf, DIFFERENT)
    extra = {METADATA: ""}
    torch.export.load(tmp_path / "model.pt2", extra_files=extra)
    assert json.loads(extra[METADATA]) == {"task": "none"}
    with zipfile.ZipFile(tmp_path / "model.pt2") as archive:
        graph = archive.read("model/models/model.json")
    assert b".py" not in graph  # no paths of this machine


def test_everything_in_conf_becomes_onnx(all_of_conf, program, tmp_path, capfd, recwarn):
    import onnx

    exported = write_onnx(program, {"classes": ["a", "b"]}, tmp_path / "model.onnx")
    assert_every_branch_equal(exported, all_of_conf, DIFFERENT)
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list
    model = onnx.load(tmp_path / "model.onnx")
    assert {node.domain for node in model.graph.node} == {""}
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 18)]
    assert not model.functions
    assert not any(node.metadata_props for node in model.graph.node)  # notes about the program that made it
    assert {prop.key: json.loads(prop.value) for prop in model.metadata_props} == {"classes": ["a", "b"]}
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert b".py" not in (tmp_path / "model.onnx").read_bytes()


@pytest.mark.parametrize("option", options("norm/weight"))
def test_parametrised_weights_are_baked(option):
    layer = build(settings_of("norm/weight", option), "norm/weight")(nn.Conv2d(4, 6, 3, padding=1))
    net = trained_a_little(nn.Sequential(layer), *SHAPE)
    plain = plain_net(net)
    assert [*plain.state_dict()] == ["weight", "bias"]
    x = torch.randn(5, *SHAPE)
    torch.testing.assert_close(plain(x), net(x).detach(), rtol=1e-5, atol=1e-6)
