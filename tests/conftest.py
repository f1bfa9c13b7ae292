"""Composing the application's settings inside the test process."""

import logging
import os
import runpy
import sys
from collections.abc import Callable, Iterator
from functools import cache
from itertools import count
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two processes of tests: more threads than cores slow both down badly
import torch  # reads the number of threads when it is imported
import yaml
from hydra import compose, initialize_config_dir
from matplotlib.figure import Figure

from tautnet.command_line import register_schema
from tautnet.config import plain
from tautnet.kernels import native

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"

# Before the caches below are moved: a font cache of its own would cost every process of the tests seconds.
_CACHES = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
os.environ.setdefault("MPLCONFIGDIR", str(_CACHES / "matplotlib"))
os.environ["HF_HUB_OFFLINE"] = "1"  # read when the package datasets is imported: no test uses the network


# OmegaConf's loader is made from this one at every file; the same grammar in C.
yaml.SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests outside unit/, whole files in turn, at the beginnings of the list's two halves.

    Each of two processes starts with a half. What one takes from the other's end in the end is short then, and no file
    is torn whose tests share a run.
    """
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    long = [path for path in files if path.parent.name != "unit"]
    short = [item for path in files if path.parent.name == "unit" for item in files[path]]
    first, second = ([item for path in long[start::2] for item in files[path]] for start in (0, 1))
    rest = max(0, len(items) // 2 - len(first))
    items[:] = [*first, *short[:rest], *second, *short[rest:]]


def options(group: str) -> list[str]:
    """The options of a config group, as Hydra finds them."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


@cache
def settings_with(group: str, option: str) -> dict:
    """The settings with one option, composed once; not to be changed."""
    register_schema()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return plain(compose("train", overrides=["run_dir=none", f"{group}={option}"]))


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Callable[..., dict]]:
    """Compose conf/train.yaml with overrides into plain settings."""
    register_schema()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield lambda *overrides: plain(compose("train", overrides=[f"run_dir={tmp_path}", *overrides]))


@pytest.fixture
def command_that_draws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """Run train.py as a script in this process and return its exit status."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> int:
        monkeypatch.setitem(os.environ, "HYDRA_FULL_ERROR", "0")  # train.py sets it
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        level = logging.root.level
        try:
            with pytest.raises(SystemExit) as left:
                runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
        finally:  # Hydra's level, and its log file, which may be gone with its directory when another test logs
            logging.root.setLevel(level)
            for handler in [h for h in logging.root.handlers if isinstance(h, logging.FileHandler)]:
                logging.root.removeHandler(handler)
                handler.close()
        return left.value.code

    return run


@pytest.fixture
def command(command_that_draws: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The same with blank pictures, made and kept as ever: drawing takes most of the time of a short run."""
    for drawn in ("spline_monitor.plot_activation", "lipschitz_monitor._figure"):
        monkeypatch.setattr(f"tautnet.callbacks.{drawn}", lambda *_: Figure(figsize=(1, 1)))
    return command_that_draws


# The compiled kernels are the exception: they depend on nothing that a test changes, and compiling takes seconds.
_KERNELS = Path(native._library()._name) if native.available() else None


@pytest.fixture(scope="session")
def _caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """New folders; pytest's own counting reads the names of all former ones for each."""
    root = tmp_path_factory.mktemp("caches")

    def folders() -> Iterator[Path]:
        for number in count():
            folder = root / str(number)
            folder.mkdir()
            yield folder

    return folders()


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, _caches: Iterator[Path]) -> None:
    """Nothing is found in, or left in, the caches of the user or of another test."""
    folder = str(next(_caches))
    monkeypatch.setenv("XDG_CACHE_HOME", folder)
    if _KERNELS and _KERNELS.exists():
        Path(folder, _KERNELS.parent.name).symlink_to(_KERNELS.parent)
    monkeypatch.setenv("HF_DATASETS_CACHE", folder)
    if "datasets" in sys.modules:  # it read the environment when it was imported
        monkeypatch.setattr(sys.modules["datasets"].config, "HF_DATASETS_CACHE", folder)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    if torch.cuda.is_available():
        torch.manual_seed(0)
    else:  # the same, without notes for devices that may come: each takes the whole stack down, a millisecond a test
        torch.default_generator.manual_seed(0)


@pytest.fixture
def float64() -> Iterator[None]:
    """Double precision by default."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def float64_on_one_thread(float64: None) -> Iterator[None]:
    """Many small matrices: threads slow them down, badly so on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
