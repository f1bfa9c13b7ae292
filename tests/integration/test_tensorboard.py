"""TensorBoard's own pages of a finished run, in a browser."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from browser import Visit, a_page

SMALL = (
    *("model=mlp", "model.net.widths=[8]", "activation=spline", "norm=none", "trainer=cpu", "trainer.progress=none"),
    *("trainer.max_epochs=2", "callbacks.splines.figure_every_n_epochs=1", "callbacks.lipschitz.num_samples=8"),
    *("callbacks=certify", "callbacks.certify.num_samples=16", "callbacks.certify.num_steps=1", "seed=5"),
    *("callbacks.certify.epsilons_l2=[0.25]", "callbacks.certify.epsilons_linf=[0.05]", "optimizer.lr=0.05"),
    *("callbacks.certify.folder=null", "callbacks.lipschitz.folder=null", "callbacks.splines.folder=null"),
    *("callbacks.certify.num_restarts=1", "callbacks.lipschitz.num_steps=2", "data.batch_size=480"),
)


@contextmanager
def tensorboard(folder: Path) -> Iterator[str]:
    """The address of a server that shows a folder."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--host", "127.0.0.1", "--port", "0"]
    server = subprocess.Popen([*command, "--load_fast", "false"], stderr=subprocess.PIPE, text=True)
    try:
        said = []
        for line in server.stderr:
            said.append(line)
            if found := re.search(r"http://127\.0\.0\.1:\d+/", line):
                yield found.group()
                break
        else:
            raise RuntimeError("".join(said))
    finally:
        server.terminate()
        server.wait(20)
        server.stderr.close()


def show(visit: Visit, tab: str, *texts: str) -> None:
    """Go to a page and wait until it shows texts."""
    visit.page.get_by_role("tab", name=tab, exact=True).click()
    for text in texts:
        visit.page.get_by_text(text).locator("visible=true").first.wait_for()


def test_the_pages_show_what_belongs_together(command_that_draws, tmp_path):
    run = tmp_path / "run"
    assert command_that_draws(*SMALL, f"hydra.run.dir={run}") == 0
    metrics = json.loads((run / "result.json").read_text())["metrics"]
    with tensorboard(run) as address, a_page(1400, 1500) as visit:
        visit.page.goto(address)
        for look in (_time_series, _scalars, _custom_scalars, _images, _hparams):
            look(visit, metrics)
            visit.page.screenshot(path=tmp_path / f"{look.__name__.strip('_')}.png")
    assert visit.errors == []
    assert visit.elsewhere(address) == []


def _time_series(visit, metrics):
    """The last values stand in tables below the curves."""
    search = visit.page.locator("input[placeholder='Filter tags (regex)']")
    search.fill("^(val/acc|lipschitz/bound_p2)$")
    search.press("Escape")
    for name in ("val/acc", "lipschitz/bound_p2"):
        card = visit.page.locator("card-view", has_text="/" + name.partition("/")[2])
        card.get_by_text(f"{metrics[name]:.4f}".rstrip("0")).first.wait_for()


def _scalars(visit, metrics):
    show(visit, "scalars", "certified", "lipschitz", "loss", "spline", "val")


def _custom_scalars(visit, metrics):
    """Charts in the layout's order, none of them without a curve."""
    show(visit, "Custom Scalars", "terms of the training loss", "Matches (5)")
    visit.page.wait_for_function("() => !document.body.innerText.includes('Matches (0)')")
    text = visit.text()
    titles = (
        *("bound and observed, p = 2", "bound / observed, p = 2", "accuracy certified and under attack"),
        *("active knots", "TV2", "terms of the training loss"),
    )
    places = [text.index(title) for title in titles]
    assert places == sorted(places)
    assert "p = 1" not in text
    assert "R2" not in text
    assert "Matches (0)" not in text


def _images(visit, metrics):
    """The learned activation can be stepped through time."""
    show(visit, "images", "activation/3")
    card = "tf-image-loader:has-text('activation/3')"
    steps = []
    for _ in range(2):
        steps.append(int(re.search(r"step (\d+)", visit.text(card)).group(1)))
        image = visit.page.locator(card).first.locator("img")
        assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") > 100
        visit.page.locator(card).first.get_by_role("slider").press("ArrowLeft")
    assert steps == [4, 2]


def _hparams(visit, metrics):
    """What the command line has set comes first, and beside it the final metrics, what is compared first of all."""
    show(visit, "hparams", "activation", "LinearSpline")
    heads, row = visit.text().partition("Trial ID")[2].split("tensorboard ")[:2]
    assert heads.split()[2:5] == ["activation", "callbacks.certify.epsilons_l2", "callbacks.certify.epsilons_linf"]
    assert heads.split()[-5:-2] == ["final/val/acc", "final/test/acc", "final/lipschitz/bound_p2"]
    values = [float(value) for value in row.split()[5:10]]
    assert values[:3] == pytest.approx([metrics[name] for name in ("val/acc", "test/acc", "lipschitz/bound_p2")], 1e-3)
