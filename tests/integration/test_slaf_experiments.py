"""The experiments of SLAF, shortened, and the polynomial that a run leaves behind."""

import json

import pytest

QUIET = ("trainer=cpu", "trainer.enable_progress_bar=false", "logger=none", "callbacks.lipschitz.every_n_epochs=100")
SMALL = ("experiment=slaf_polynomials", "data.num_points=400", "data.num_features=3", "model.net.widths=[6]")


def metrics(run):
    return json.loads((run / "result.json").read_text())["metrics"]


def coefficients(path):
    """By the name of the monomial."""
    first, *lines = path.read_text().splitlines()
    assert first == f"y1: {len(lines)} terms above 1e-06, degree 2"
    return {" ".join(name): float(value) for value, *name in (line.split(maxsplit=1) for line in lines)}


def test_slaf_is_ahead_on_polynomials_after_few_epochs(command, tmp_path):
    errors = []
    for number, arguments in enumerate(((), ("activation=tanh", "norm=batch"))):
        run = tmp_path / str(number)
        short = ("trainer.max_epochs=3", "callbacks=none", f"hydra.run.dir={run}")
        assert command("experiment=slaf_polynomials", *QUIET[:3], *short, *arguments) == 0
        errors.append(1 - metrics(run)["test/r2"])
    assert errors[0] < 0.1
    assert errors[1] > 3 * errors[0]


def test_the_polynomial_is_written_and_is_that_of_the_tested_network(command, tmp_path):
    run, tested = tmp_path / "run", tmp_path / "tested"
    assert command(*SMALL, *QUIET, "callbacks=polynomial", "trainer.max_epochs=2", f"hydra.run.dir={run}") == 0
    found = coefficients(run / "polynomial.txt")
    assert list(map(abs, found.values())) == sorted(map(abs, found.values()), reverse=True)
    assert found.keys() == {"", "x1", "x2", "x3", "x1^2", "x2^2", "x3^2", "x1 x2", "x1 x3", "x2 x3"}
    ckpt = f"ckpt={run / 'checkpoints' / 'last.ckpt'}"
    assert command("run=[test]", ckpt, "logger=none", "callbacks=polynomial", f"hydra.run.dir={tested}") == 0
    assert (tested / "polynomial.txt").read_text() == (run / "polynomial.txt").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("activation=relu",), "callbacks=polynomial: net=3 (ReLU): affine layers and SLAF, the rest is no polynomial"),
        (
            ("activation=slaf", "model.net.widths=[6,6]", "callbacks.polynomial.max_terms=500"),
            "callbacks.polynomial.max_terms=500: polynomials of degree 16 in 3 inputs have 969",
        ),
        (("callbacks.polynomial.tolerance=-1",), "callbacks.polynomial.tolerance=-1: at least 0"),
    ],
)
def test_what_is_no_small_polynomial_is_refused(command, tmp_path, capsys, arguments, message):
    run = tmp_path / "run"
    assert command(*SMALL, *QUIET, "callbacks=polynomial", *arguments, f"hydra.run.dir={run}") != 0
    assert message in capsys.readouterr().err
    assert not run.exists()


def test_spirals_clip_and_run(command, tmp_path):
    run = tmp_path / "run"
    short = ("data.num_points=2000", "trainer.max_epochs=6", "callbacks=none", f"hydra.run.dir={run}")
    assert command("experiment=slaf_spirals", *QUIET[:3], *short, "data.turns=1") == 0
    assert metrics(run)["test/acc"] > 0.8
