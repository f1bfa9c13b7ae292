"""The pages of docs/: their Python runs, their parts train, their links lead somewhere, the settings are up to date."""

import importlib.util
import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import CONF, ROOT

import tautnet
from tautnet.__main__ import _parser
from tautnet.lipschitz import lipschitz_bound, lipschitz_lower

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted(DOCS.glob("*.md"))]
TEXTS = {page.name: page.read_text() for page in PAGES}
PYTHON = re.compile(r"^```python\n(.*?)^```", re.M | re.S)
FILE = re.compile(r"^`([\w/.]+)`\n```(?:python|yaml)\n(.*?)^```", re.M | re.S)
EXTENDING = TEXTS["extending.md"]


def slug(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-")


def blocks() -> list[tuple[str, str]]:
    """Heading and code of every Python block that is no file of its own."""
    found = []
    for name in ("library.md", "tutorial.md"):
        for section in re.split(r"^## ", TEXTS[name], flags=re.M)[1:]:
            found += [(f"{name}-{section.splitlines()[0]}", code) for code in PYTHON.findall(section)]
    return found


@pytest.mark.parametrize(("title", "code"), [b for b in blocks() if "tautnet.load" not in b[1]])
def test_python_runs_as_it_stands(title, code, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, title, "exec"), {})
    said = capsys.readouterr().out
    assert said if "print(" in code else not said
    assert "nan" not in said


@pytest.fixture(scope="module")
def own_parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of extending.md."""
    folder = tmp_path_factory.mktemp("own")
    files = dict(FILE.findall(EXTENDING))
    assert len(files) == 8
    for name, text in {"myparts/__init__.py": "", **files}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_parts_of_ones_own_train_together(own_parts, command, monkeypatch):
    """By the page's command; the bound of the trained net is finite and is not passed."""
    monkeypatch.syspath_prepend(own_parts)
    monkeypatch.chdir(own_parts)
    (line,) = re.findall(r"^python train\.py (.*)$", EXTENDING, re.M)
    try:
        assert command(*shlex.split(line), "debug=fast", "hydra.run.dir=run") == 0
        metrics = json.loads((own_parts / "run" / "result.json").read_text())["metrics"]
        assert metrics["lipschitz/lower_p2"] <= metrics["lipschitz/bound_p2"] < float("inf")
        net = tautnet.load(own_parts / "run", allow=["myparts"])
        kinds = {type(module).__name__ for module in net.modules()}
        assert {"Softsign", "Centre", "Residual"} <= kinds
        x = torch.randn(64, 2)
        for p in (1, float("inf")):
            assert lipschitz_lower(net, x, p=p, num_steps=5) <= lipschitz_bound(net, (2,), p=p).total < float("inf")
    finally:
        for name in [name for name in sys.modules if name.startswith("myparts")]:
            del sys.modules[name]


def test_what_the_own_parts_say_of_boxes_is_true(own_parts, monkeypatch, float64):
    monkeypatch.syspath_prepend(own_parts)
    try:
        from myparts.centre import Centre
        from myparts.softsign import Softsign

        lo, hi = -torch.rand(20, 3) + 0.3, torch.rand(20, 3) + 0.3
        x = (lo + (hi - lo) * torch.rand(20, 3)).requires_grad_()
        softsign = Softsign(3)
        for layer in (softsign, Centre(3)):
            low, high = layer.interval(lo, hi)
            assert ((low - 1e-12 <= layer(x)) & (layer(x) <= high + 1e-12)).all()
        (slope,) = torch.autograd.grad(softsign(x).sum(), x)
        least, most = softsign.local_slope_range(lo, hi)
        assert ((least - 1e-12 <= slope) & (slope <= most + 1e-12)).all()
    finally:
        for name in [name for name in sys.modules if name.startswith("myparts")]:
            del sys.modules[name]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), target
        if anchor:
            assert anchor in {slug(heading) for heading in re.findall(r"^#+ (.*)$", path.read_text(), re.M)}, target


def test_every_page_is_named_in_readme():
    assert [page.name for page in DOCS.glob("*.md") if f"(docs/{page.name})" not in TEXTS["README.md"]] == []
    assert len(TEXTS["README.md"].splitlines()) <= 100


def test_the_picture_is_small():
    pictures = list((DOCS / "pictures").iterdir())
    assert pictures
    for picture in pictures:
        assert picture.read_bytes()[:4] == b"\x89PNG"
        assert picture.stat().st_size < 60_000
        assert any(f"pictures/{picture.name})" in text for text in TEXTS.values())


@pytest.fixture(scope="module")
def configuration():
    spec = importlib.util.spec_from_file_location("configuration", DOCS / "configuration.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["configuration"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["configuration"]


def test_the_settings_are_those_of_conf(configuration):
    """If not: python docs/configuration.py."""
    assert configuration.page() == TEXTS["configuration.md"], "run python docs/configuration.py"


def keys(tree: dict, path: str) -> set[str]:
    """Those with a value of their own."""
    found = set()
    for name, value in tree.items():
        if name not in ("defaults", "_partial_"):
            key = f"{path}.{name}".lstrip(".")
            found |= keys(value, key) if isinstance(value, dict) and value else {key}
    return found


def test_no_setting_is_left_out(configuration):
    for path in CONF.rglob("*.yaml"):
        package = re.search(r"# @package (\S+)", path.read_text())
        group = ".".join(path.parent.relative_to(CONF).parts)
        package = group if package is None else package[1].replace("_global_", "")
        wanted = {
            k for k in keys(yaml.safe_load(path.read_text()) or {}, package) if not k.startswith(configuration._SILENT)
        }
        shown = {key: value for key, value, _ in configuration.read(path).rows}
        inline = tuple(f"{key}." for key, value in shown.items() if value.startswith("{"))
        assert {key for key in wanted - shown.keys() if not key.startswith(inline)} == set(), path
        assert all(shown[key] for key in wanted & shown.keys()), path


TAUTNET = re.compile(r"^(?:python -m )?tautnet (.*?)(?:\s+#.*)?$", re.M)


@pytest.mark.parametrize("line", sorted({line for text in TEXTS.values() for line in TAUTNET.findall(text)}))
def test_commands_are_understood(line):
    """What they do is in their own tests."""
    arguments = shlex.split(line.replace("<", "").replace(">", ""))
    assert _parser().parse_args(arguments).command == arguments[0]
