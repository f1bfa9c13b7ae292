"""A real run, moved to a hostile name, as pictures and as a page that is looked at in a browser."""

import csv
import json
import re
import shutil
from pathlib import Path

import browser
import forked
import pytest
import torch
import yaml

from tautnet import checkpoints
from tautnet.__main__ import main
from tautnet.report import learned, look
from tautnet.report.records import read_record
from tautnet.report.run_page import run_page
from tautnet.splines import evaluate
from tautnet.splines.curves import curve_values

HOSTILE = "<script>alert(1)<|script> $\\frac{1}$ &amp; é"  # of a file name all that is allowed
SETTINGS = (
    *(
        "data=iris",
        "model=mlp",
        "model.net.widths=[5,5]",
        "callbacks=[sparsify,certify,ics,spectrum,variance]",
        "regularizer=variance",
    ),
    *("activation.num_knots=11", "trainer.max_epochs=3", "trainer.enable_progress_bar=false"),
    *("callbacks.certify.num_samples=8", "callbacks.certify.num_steps=2", "callbacks.ics.every_n_steps=2"),
    *("callbacks.sparsify.method=threshold", "activation.grid_range=auto"),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    done = forked.finish(forked.start(forked.train, *SETTINGS, "hydra.run.dir=run", folder=folder), folder)
    assert done.returncode == 0, done.stderr
    return (folder / "run").rename(folder / HOSTILE)


@pytest.fixture(scope="module")
def pages(run, tmp_path_factory):
    """Of the run and of two runs as a sweep."""
    folder = tmp_path_factory.mktemp("pages")
    sweep = folder / "sweep"
    for seed in (0, 1):
        shutil.copytree(run, sweep / str(seed))
        for name, read, write in (("result.json", json.loads, json.dumps), ("config.yaml", yaml.safe_load, yaml.dump)):
            file = sweep / str(seed) / name
            file.write_text(write(read(file.read_text()) | {"seed": seed, "overrides": [f"data=<b>{seed}</b>"]}))
    for source, name in ((run, "run.html"), (sweep, "sweep.html")):
        assert main(["report", str(source), "--output", str(folder / name)]) == 0
    return folder


@pytest.mark.parametrize("name", ["run.html", "sweep.html"])
def test_a_page_in_a_browser(run, pages, name):
    with browser.a_page(360, dark=True) as visit:
        visit.page.goto((pages / name).as_uri())
        visit.page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
        for width in (360, 1280):
            visit.page.set_viewport_size({"width": width, "height": 800})
            assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
        text = visit.text()
        metrics = json.loads((run / "result.json").read_text())["metrics"]
        assert f"{float(metrics['lipschitz/bound_p2']):.4g}" in text
        for key, value in metrics.items() if name == "run.html" else ():
            assert key in text
            assert f"{float(value):.6g}" in text
        assert ("Formulas of " in text) is (name == "run.html")
        assert (HOSTILE if name == "run.html" else "data=<b>1</b>") in text
        unnamed = "[...document.querySelectorAll('[role=img], [role=region]')].filter(e => !e.ariaLabel).length"
        assert visit.page.evaluate(unnamed) == 0
        assert "\N{REPLACEMENT CHARACTER}" not in text
        assert visit.page.locator("svg").count() > 5
        twice = "(ids => ids.length - new Set(ids).size)([...document.querySelectorAll('[id]')].map(e => e.id))"
        assert visit.page.evaluate(twice) == 0
        dangling = """[...document.querySelectorAll('use, nav a')]
            .map(e => e.getAttribute('href') || e.getAttribute('xlink:href'))
            .filter(href => !document.getElementById(href.slice(1))).length"""
        assert visit.page.evaluate(dangling) == 0
        assert visit.page.evaluate("document.title").count("tautnet") == 1
    assert visit.errors == []
    assert visit.elsewhere() == []
    assert len(visit.requests) == 1


def test_a_page_holds_no_script_and_little_else(pages):
    for name in ("run.html", "sweep.html"):
        text = (pages / name).read_text()
        assert len(text) < 1_000_000
        assert not re.search(r"<(script|link|img|iframe|object)\b", text)
        assert not re.search(r"(src|href)=\"(?!#)|@import|url\((?!#)", text)


def test_a_report_replaces_a_report_and_nothing_else(run, pages, capsys):
    (pages / "mine.txt").write_text("mine")
    for output in (pages / "mine.txt", pages, pages / "nowhere" / "x.html"):
        assert main(["report", str(run), "--output", str(output)]) == 2
        assert capsys.readouterr().err.startswith("error: ")
    assert (pages / "mine.txt").read_text() == "mine"


def test_the_curves_before_training_are_those_it_began_with(run, monkeypatch):
    """A training of no length leaves what the job has built; the grid's range comes out of the data."""
    from tautnet import job

    seen = {}
    monkeypatch.setattr(job, "_execute", lambda settings, trainer, model, *_: seen.update(model.net.state_dict()))
    settings = yaml.safe_load((run / "config.yaml").read_text())
    torch.manual_seed(5)
    job.prepared(settings)()
    opened = learned.open_learned(run)
    assert opened.notes == []
    before = opened.before.state_dict()
    assert before.keys() == seen.keys()
    assert all(torch.equal(before[name], seen[name]) for name in seen)
    assert opened.sparse is not None
    assert opened.visited.keys() == learned.activations_of(opened.sparse).keys()


def test_pictures(run, tmp_path, capsys, monkeypatch):
    drawn = {}

    def save(figure, folder, name):
        drawn[name] = figure
        return [folder / f"{name}.png"]

    monkeypatch.setattr(look, "save", save)
    assert main(["plot", str(run), "--output", str(tmp_path / "pictures")]) == 0
    activations = {f"activation_{path}" for path in learned.activations_of(learned.open_learned(run).before)}
    stems = {"spectra", "lipschitz_layers", "loss", "acc", "lipschitz_p2", "knots", "tv2", "ics", "vcl", "certificates"}
    assert len(activations) == 2
    assert activations | stems <= drawn.keys()
    before, after, sparse = (line.get_ydata() for line in drawn[min(activations)].axes[0].lines[::2])
    assert len(before) == len(after) == len(sparse) == 11 + 2
    assert not (before == after).all()
    said = capsys.readouterr().out
    assert f"{len(drawn)} pictures" in said
    with (tmp_path / "pictures" / "formulas.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    opened = learned.open_learned(run)
    splines = learned.activations_of(opened.sparse)
    assert [row["layer"] for row in rows] == [
        path for path, spline in splines.items() for _ in range(spline.num_curves)
    ]
    fitting = 0
    for row in rows:
        lo, hi = opened.visited[row["layer"]]
        assert (float(row["from"]), float(row["to"])) == (pytest.approx(lo, rel=1e-3), pytest.approx(hi, rel=1e-3))
        x = torch.linspace(lo, hi, 101, dtype=torch.float64)
        y = curve_values(splines[row["layer"]], x.unsqueeze(0))[int(row["curve"])]
        error = float((evaluate(row["formula"], x) - y).square().mean().sqrt() / y.std())
        assert error == pytest.approx(float(row["relative error"]), rel=0.2, abs=1e-3)
        fitting += row["fit"] != "none; nearest"
    assert f"formulas.csv: formulas of {fitting} of {len(rows)} learned curves" in said
    assert main(["plot", str(run), "--tolerance", "2"]) == 2
    assert capsys.readouterr().err == "error: --tolerance 2: above 0, at most 1\n"


def test_what_an_unfinished_run_has(run, tmp_path):
    """Without result, logs and checkpoints, one after the other; each time there is a page that says so."""
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    (copy / "result.json").unlink()
    (copy / "certificates" / "certificates.json").write_text('{"rows": [{"norm": "l2"}]}')
    shutil.rmtree(copy / "tensorboard")
    text = run_page(read_record(copy))
    assert "has not finished" in text
    assert "certificates are not as they were written" in text
    assert "Activation" in text
    checkpoint = copy / "checkpoints" / "last.ckpt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    with pytest.raises(checkpoints.DamagedError):
        checkpoints.read(checkpoint)
    text = run_page(read_record(copy))
    assert "The weights are not shown" in text
    assert "<svg" not in text
    assert "python train.py" in text
