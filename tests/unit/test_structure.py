"""The shape of the code itself: import directions, sizes, and a package that stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "tautnet"
FILES = sorted(SOURCE.rglob("*.py"))

# Who may import whom, by the first name below tautnet. Everyone may import itself.
ALLOWED = {
    "__init__": {"errors", "export", "trained"},
    "factories": set(),
    "logkeys": set(),
    "config": {"errors", "origin", "spelling", "targets"},
    "errors": set(),
    "quoting": set(),
    "spelling": set(),
    "__main__": {"cli", "errors"},
    "cli": {
        *("activations", "backbones", "kernels", "normalizers", "config", "data", "errors", "evaluation", "export"),
        *("lipschitz", "logkeys", "models", "callbacks", "report", "run_directory", "splines", "sweeps"),
        *("targets", "trained"),
    },
    "trained": {"checkpoints", "config", "data", "models", "run_directory", "targets"},
    "export": {
        *("activations", "backbones", "data", "errors", "factories", "functional", "kernels", "lipschitz"),
        *("models", "normalizers", "splines", "targets", "trained"),
    },
    "evaluation": {"config", "data", "errors", "factories", "lipschitz", "models", "spelling", "trained"},
    "report": {
        *("activations", "callbacks", "checkpoints", "data", "errors", "factories", "lipschitz", "logkeys", "models"),
        *("normalizers", "run_directory", "spelling", "splines", "sweeps", "targets", "trained"),
    },
    "guard": {"errors", "origin"},
    "origin": {"errors"},
    "targets": set(),
    "functional": {"kernels"},
    "kernels": set(),
    "activations": {"functional", "factories", "kernels"},
    "normalizers": {"functional", "factories", "kernels"},
    "backbones": {"factories"},
    "lipschitz": {"functional", "factories", "backbones", "activations"},
    "regularizers": {"functional", "factories", "activations", "lipschitz", "normalizers"},
    "losses": {"lipschitz", "factories", "activations"},
    "sweeps": {"command_line", "config", "layout", "logkeys", "run_directory"},
    "slnn": {"activations", "backbones", "factories", "functional", "lipschitz", "normalizers"},
    "splines": {"functional", "activations", "factories"},
    "optim": {"factories", "config"},
    "models": {
        "activations",
        "config",
        "factories",
        "backbones",
        "normalizers",
        "optim",
        "regularizers",
        "losses",
        "logkeys",
    },
    "callbacks": {
        "backbones",
        "factories",
        "functional",
        "lipschitz",
        "normalizers",
        "splines",
        "regularizers",
        "activations",
        "models",
        "logkeys",
        "slnn",
        "checkpoint_io",
        "distributed",
        "evaluation",
    },
    "checkpoints": set(),
    "checkpoint_io": {"checkpoints"},
    "run_directory": {"errors", "quoting", "resume"},
    "run_state": {"models"},
    "stopping": {"callbacks"},
    "data": {"factories"},
    "command_line": {
        *("guard", "config", "distributed", "layout", "quoting", "resume", "run_directory", "spelling", "worker"),
    },
    "resume": {"checkpoints", "config"},
    "app": {
        "origin",
        "targets",
        "config",
        "distributed",
        "job",
        "layout",
        "optim",
        "resume",
        "run_directory",
        "worker",
    },
    "app_callbacks": {"callbacks", "errors"},
    "distributed": {"config", "layout"},
    "job": {
        *("app_callbacks", "callbacks", "checkpoint_io", "config", "distributed", "factories", "known_messages"),
        *("layout", "logkeys", "models", "results", "run_directory", "run_state", "stopping"),
    },
    "known_messages": set(),
    "layout": {"config"},
    "worker": {"targets", "config", "distributed", "job"},
    "results": {"logkeys"},
}
KNOW_LIGHTNING = {
    *("models", "callbacks", "data", "app_callbacks", "checkpoint_io", "distributed", "job", "results"),
    *("evaluation", "run_state", "stopping"),
}
KNOW_HYDRA = {"guard", "sweeps", "app", "app_callbacks", "command_line", "config", "resume", "results", "worker"}


def unit_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported_modules(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_follow_the_directions(path):
    unit = unit_of(path)
    for name in imported_modules(path):
        top, *rest = name.split(".")
        if top == "tautnet":
            assert rest[0] in ALLOWED[unit] | {unit}, f"{unit} imports {name}"
        if top in ("pytorch_lightning", "lightning_fabric"):
            assert unit in KNOW_LIGHTNING, f"{unit} imports {name}"
        if top in ("hydra", "omegaconf"):
            assert unit in KNOW_HYDRA, f"{unit} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_files_and_functions_stay_short(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 250
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            doc = ast.get_docstring(node, clean=False)
            body = node.end_lineno - node.lineno + 1 - (doc.count("\n") + 1 if doc else 0)
            assert body <= 60, f"{node.name}: {body} lines"


def test_no_dependency_needs_torchvision():
    """A torchvision beside another build of torch breaks the import of torchmetrics and Lightning."""
    from importlib.metadata import requires

    assert not any("torchvision" in line for line in requires("tautnet"))


def test_the_command_line_imports_neither_torch_nor_lightning():
    code = "import sys, train; assert not {'torch', 'pytorch_lightning'} & set(sys.modules), 'heavy'"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
