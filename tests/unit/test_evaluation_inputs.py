"""Images, tables and arrays as batches in raw units, and what a network says of them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tautnet.data.preparation import Preparation
from tautnet.errors import ConfigError
from tautnet.evaluation import inputs as module
from tautnet.evaluation.arrays import ArrayFile
from tautnet.evaluation.inputs import Chunk, Inputs
from tautnet.evaluation.predictions import Predictor
from tautnet.lipschitz import certified_at
from tautnet.models import Classifier, Denoiser, Regressor
from tautnet.trained import Trained


@pytest.fixture
def network(settings):
    """An untrained classifier of inputs of a shape."""

    def make(shape, num_classes=3, model=Classifier, data=None, preparation=None):
        config = settings("model=mlp", "norm=none", "activation=relu", "model.net.widths=[5]")
        if model is Denoiser:
            config = settings("model=dncnn", "norm=none", "activation=relu", "model.net.depth=3", "model.net.width=2")
        config |= {"input_shape": list(shape), "num_outputs": num_classes, "data": data or {}}
        preparation = preparation or Preparation.none(shape[0])
        return Trained(Path("a.ckpt"), config, model(config).eval(), preparation, 0, 0)

    return make


def image(path, *shape):
    path.parent.mkdir(exist_ok=True)
    pixels = np.random.default_rng(len(path.name)).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def read(trained, *files, resize=False):
    return list(Inputs(files, trained, resize))


# --- images -----------------------------------------------------------------------------------------------------------


def test_images_of_folders_and_files_come_in_order_and_together(network, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_SAMPLES_AT_ONCE", 2)
    pixels = {name: image(tmp_path / name, 4, 4) for name in ("b.png", "a.png")}
    below = image(tmp_path / "sub" / "c.png", 4, 4)
    (tmp_path / "note.txt").write_text("no image")
    chunks = read(network((1, 4, 4)), tmp_path, tmp_path / "b.png")
    assert [[path.name for path, row in chunk.origins] for chunk in chunks] == [["a.png", "b.png"], ["c.png", "b.png"]]
    raw = torch.cat([chunk.raw for chunk in chunks])
    expected = np.stack([pixels["a.png"], pixels["b.png"], below, pixels["b.png"]])
    assert torch.equal(raw, torch.from_numpy(expected).double()[:, None] / 255)


def test_colours_become_what_the_network_takes(network, tmp_path):
    image(tmp_path / "gray.png", 4, 4)
    image(tmp_path / "rgb.png", 4, 4, 3)
    for channels in (1, 3):
        (chunk,) = read(network((channels, 4, 4)), tmp_path)
        assert chunk.raw.shape == (2, channels, 4, 4)
    assert torch.equal(chunk.raw[0, 0], chunk.raw[0, 2])


def test_sizes_are_brought_to_the_networks_where_asked_or_trained_so(network, tmp_path):
    pixels = np.full((8, 12), 51, np.uint8)
    pixels[:, [0, 1, 10, 11]] = 255  # what is cut off
    Image.fromarray(pixels).save(tmp_path / "a.png")
    with pytest.raises(ConfigError, match=r"a.png: 8x12 gray, the network takes 4x4 gray; --resize"):
        read(network((1, 4, 4)), tmp_path)
    for trained, resize in ((network((1, 4, 4)), True), (network((1, 4, 4), data={"image_size": 4}), False)):
        (chunk,) = read(trained, tmp_path, resize=resize)
        assert chunk.raw.shape == (1, 1, 4, 4)
        assert (chunk.raw[..., 1:3] == 0.2).all()  # the border shines into its neighbours


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("none.png", (1, 4, 4), "none.png: no such file or folder"),
        ("empty", (1, 4, 4), "empty: no images in this folder or below"),
        ("bad.png", (1, 4, 4), "bad.png: not a readable image"),
        ("t.csv", (1, 4, 4), "t.csv: the network takes images of 4x4 gray, no tables"),
        ("bad.png", (4,), "bad.png: the network takes 4 numbers, no images"),
        ("t.txt", (4,), "t.txt: of unknown kind; accepted are folders of images and .png"),
    ],
)
def test_what_is_no_input_is_refused(network, tmp_path, name, shape, message):
    (tmp_path / "empty").mkdir()
    for file in ("bad.png", "t.csv", "t.txt"):
        (tmp_path / file).write_text("a,b\n1,2\n")
    with pytest.raises(ConfigError, match=message):
        read(network(shape), tmp_path / name)


# --- arrays and tables ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 4, 4), (2, 1, 4, 4), (2, 4, 4, 1)])
def test_arrays_of_bytes_are_pixels_of_255_and_floats_of_1(network, tmp_path, shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.save(tmp_path / "bytes.npy", pixels)
    np.savez(tmp_path / "floats.npz", x_test=pixels / 255, y_test=np.zeros(2))
    chunks = read(network((1, 4, 4)), tmp_path / "bytes.npy", tmp_path / "floats.npz")
    assert [[row for _, row in chunk.origins] for chunk in chunks] == [[1, 2], [1, 2]]
    for chunk in chunks:
        torch.testing.assert_close(chunk.raw, torch.from_numpy(pixels.reshape(2, 1, 4, 4) / 255))


def test_a_single_sample_and_channels_in_the_last_place(tmp_path):
    x = np.random.default_rng(0).random((5, 4, 6, 3))
    np.save(tmp_path / "x.npy", x)
    assert np.array_equal(ArrayFile(tmp_path / "x.npy", (3, 4, 6)).raw(slice(1, 3)), np.moveaxis(x[1:3], 3, 1))
    np.save(tmp_path / "one.npy", x[0, 0, 0])
    assert len(ArrayFile(tmp_path / "one.npy", (3,))) == 1


@pytest.mark.parametrize(
    ("values", "shape", "message"),
    [
        (np.zeros((2, 5)), (4,), r"an array of shape \(2, 5\); the network takes \(samples, 4\)"),
        (np.array([{}]), (1,), "not a readable array"),
        (np.zeros((2, 4), complex), (4,), "an array of complex128; numbers"),
        (np.zeros((2, 4, 4), np.int64), (1, 4, 4), "int64; images are uint8"),
        (np.array([[0, 0], [0, np.nan]]), (2,), r"row 2: nan at \[1\]; a finite number"),
        (np.full((1, 4, 4), 17.0), (1, 4, 4), r"row 1: 17 at \[0, 0, 0\]; pixels as floats of 0 to 1"),
    ],
)
def test_arrays_that_cannot_be_used_are_refused(tmp_path, values, shape, message):
    np.save(tmp_path / "x.npy", values)
    with pytest.raises(ConfigError, match=message):
        ArrayFile(tmp_path / "x.npy", shape).raw(slice(0, 9))


def test_archives_that_cannot_be_used_are_refused(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.zeros((1, 4)), b=np.zeros((1, 4)))
    with pytest.raises(ConfigError, match=r"x\.npz: a, b; one array, or x or"):
        ArrayFile(tmp_path / "x.npz", (4,))
    for name in ("y.npz", "y.npy"):
        (tmp_path / name).write_bytes((tmp_path / "x.npz").read_bytes()[:200])
        with pytest.raises(ConfigError, match=f"{name}: not "):
            ArrayFile(tmp_path / name, (4,))


def test_tables_say_which_row_and_what_they_ignore(network, tmp_path, capsys):
    (tmp_path / "t.csv").write_text("b,note,a\n1,x,2\n3,y,4\n")
    trained = network((2,), preparation=Preparation([0, 0], [1, 1], columns=["a", "b"]))
    (chunk,) = read(trained, tmp_path / "t.csv")
    assert chunk.raw.tolist() == [[2, 1], [4, 3]]
    assert chunk.origins == [(tmp_path / "t.csv", 1), (tmp_path / "t.csv", 2)]
    assert "t.csv: not asked for: note" in capsys.readouterr().err


# --- predictions ------------------------------------------------------------------------------------------------------

PREPARATION = Preparation([1.0, -2.0], [0.5, 0.0], classes=["cat", "dog\x1b", "fox"])


def chunk(rows):
    return Chunk([(Path("t.csv"), i + 1) for i in range(len(rows))], torch.tensor(rows, dtype=torch.float64))


def test_predictions_are_the_networks_and_radii_hold_in_raw_units(network):
    trained = network((2,), preparation=PREPARATION)
    rows = chunk([[0.3, -2.0], [4.0, 7.0], [-1.0, 3.0]])
    found = Predictor(trained, "l2").classified(rows, top=3)
    logits = trained.model.net(PREPARATION.prepared(rows.raw)).detach().double()
    for sample, row in zip(found, logits, strict=True):
        order = row.argsort(descending=True)
        assert list(sample.classes) == [["cat", "dog ", "fox"][k] for k in order]
        torch.testing.assert_close(torch.tensor(sample.probabilities).double(), row.softmax(0)[order])
        assert sample.margin == pytest.approx(float(row[order[0]] - row[order[1]]), rel=1e-4)
    raw_net = nn.Sequential(nn.Linear(2, 2), trained.model.net).double()  # the preparation as a layer
    with torch.no_grad():
        raw_net[0].weight.copy_(torch.diag(torch.tensor([2.0, 0.0])))
        raw_net[0].bias.copy_(torch.tensor([-2.0, 0.0]))
    labels = raw_net(rows.raw).argmax(1)
    for number, sample in enumerate(found):
        assert sample.radius > 0
        one = rows.raw[number : number + 1], labels[number : number + 1]
        assert certified_at(raw_net, *one, sample.radius * 0.999)
    trained.model.net.float()


def test_asked_radii_are_reached_where_local_bounds_prove_them(network):
    trained = network((2,), preparation=PREPARATION)
    rows = chunk([[0.3, 0.0], [4.0, 7.0], [-3.0, 0.0]])
    plain = [sample.radius for sample in Predictor(trained, "linf").classified(rows)]
    tried = [sample.radius for sample in Predictor(trained, "linf", [max(plain) * 1.01, 1e6, 0.0]).classified(rows)]
    assert tried[plain.index(max(plain))] in (max(plain), max(plain) * 1.01)
    assert all(radius in (own, max(plain) * 1.01) for own, radius in zip(plain, tried, strict=True))
    assert tried != plain


def test_values_have_the_unit_of_the_target_and_images_are_bytes(network):
    preparation = Preparation([0, 0], [1, 1], target_offset=10.0, target_scale=3.0)
    trained = network((2,), 1, Regressor, preparation=preparation)
    rows = chunk([[0.5, 1.0]])
    expected = float(trained.model.net(rows.raw.float()).detach()) * 3 + 10
    assert Predictor(trained, None).values(rows) == [[pytest.approx(expected, rel=1e-5)]]
    denoiser = network((1, 4, 4), 1, Denoiser)
    raw = torch.linspace(-0.2, 1.2, 30, dtype=torch.float64).view(1, 1, 6, 5)
    expected = (denoiser.model.net(raw.float()).detach() * 255).clamp(0, 255).round()
    (seen,) = Predictor(denoiser, None).images(Chunk([(Path("a"), None)], raw))
    assert seen.dtype == torch.uint8
    assert (seen - expected[0]).abs().max() <= 1


def test_an_output_that_is_not_finite_is_named(network):
    trained = network((2,), preparation=Preparation([0, 0], [1e-3, 1e-3]))
    with pytest.raises(ConfigError, match=r"t.csv: row 2: the network's output is not finite"):
        Predictor(trained, "l2").classified(chunk([[0.0, 0.0], [1e308, -1e308]]))
