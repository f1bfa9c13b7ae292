"""Installed packages: their versions, and whether they can be imported."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from importlib.util import find_spec

from tautnet.cli.examine.finding import NOTE, OK, PROBLEM, Finding

EXTRAS = {"data": "the public hub, parquet, tables", "sweep": "a search by Optuna, jobs side by side and on SLURM"}
MALICIOUS = {name: ("2.6.2", "2.6.3") for name in ("lightning", "pytorch-lightning")}
TORCH_WORKS = Finding(OK, "import torch", "works")
# In this order: torchmetrics, and with it Lightning, imports a torchvision that is merely there.
MODULES = (
    *("torch", "torchvision", "torchmetrics", "pytorch_lightning", "torch.utils.tensorboard"),
    *("hydra", "sklearn", "matplotlib", "rich", "safetensors.torch", "PIL"),
)
_SECONDS = 120  # for the imports; a cold network disk takes long
_REINSTALL = "reinstall tautnet into a new virtual environment: pip install -e ."
_CHILD = """
import importlib, sys
for name in sys.argv[1:]:
    print("begin", name, flush=True)
    try:
        importlib.import_module(name)
    except BaseException as error:
        print("failed", name, *f"{type(error).__name__}: {error}".split(), flush=True)
    else:
        print("done", name, flush=True)
"""


def versions() -> Iterator[Finding]:
    """Python and the needed packages against the ranges that tautnet declares."""
    from packaging.specifiers import SpecifierSet  # hydra-core needs packaging: without it more is missing

    try:
        needed = metadata("tautnet")["Requires-Python"]
    except PackageNotFoundError:
        yield Finding(PROBLEM, "tautnet", "not installed, though it can be imported", "pip install -e .")
        return
    yield Finding(OK, "tautnet", version("tautnet"))
    fits = SpecifierSet(needed or "").contains(platform.python_version(), prereleases=True)
    cure = "" if fits else f"make a virtual environment with python {needed}"
    yield Finding(OK if fits else PROBLEM, "python", f"{platform.python_version()} ({sys.executable})", cure)
    for name, specifier in _needed(""):
        yield _compared(name, specifier)


def _needed(extra: str) -> list[tuple[str, str]]:
    """Names and ranges of what the package needs, or with an extra of what that adds."""
    from packaging.requirements import Requirement

    found = []
    for line in requires("tautnet") or ():
        requirement = Requirement(line)
        core = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        chosen = requirement.marker is None or requirement.marker.evaluate({"extra": extra})
        if core if extra == "" else chosen and not core:
            found.append((requirement.name, str(requirement.specifier)))
    return found


def _compared(name: str, specifier: str) -> Finding:
    from packaging.specifiers import SpecifierSet

    cure = f"pip install '{name}{specifier}'"
    try:
        found = version(name)
    except PackageNotFoundError:
        return Finding(PROBLEM, name, f"not installed, {specifier or 'any version'} is needed", cure)
    if SpecifierSet(specifier).contains(found, prereleases=True):
        return Finding(OK, name, found)
    return Finding(PROBLEM, name, f"{found}, {specifier} is needed", cure)


def malicious() -> Iterator[Finding]:
    """Uploads of Lightning that stole credentials, and a second Lightning beside the one in use."""
    for name, bad in MALICIOUS.items():
        found = _version_of(name)
        if found in bad:
            cure = f"pip uninstall {name}, and change every password and token that this machine has held"
            yield Finding(PROBLEM, name, f"{found} was a malicious upload, run when it is imported", cure)
        elif found and name == "lightning":
            text = f"{found} is installed beside pytorch-lightning; the classes of one are none of the other's"
            yield Finding(NOTE, name, text, "pip uninstall lightning, unless something else needs it")


def extras() -> Iterator[Finding]:
    """What is optional, and whether it is there."""
    if _version_of("tautnet") is None:
        return
    for extra, use in EXTRAS.items():
        compared = [_compared(name, specifier) for name, specifier in _needed(extra)]
        installed = [finding for finding in compared if _version_of(finding.subject)]
        yield from (finding for finding in installed if finding.mark == PROBLEM)
        missing = [finding.subject for finding in compared if finding not in installed]
        subject = f"extra {extra}"
        if missing:
            yield Finding(
                NOTE, subject, f"{', '.join(missing)} not installed; for {use}: pip install 'tautnet[{extra}]'"
            )
        else:
            yield Finding(OK, subject, ", ".join(f"{finding.subject} {finding.text}" for finding in installed))


def _version_of(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def imports() -> Iterator[Finding]:
    """Import them in another process, which a broken one may end; a failure that repeats is told once."""
    names = [name for name in MODULES if name != "torchvision" or find_spec(name) is not None]
    try:
        child = subprocess.run(
            [sys.executable, "-c", _CHILD, *names], capture_output=True, text=True, errors="replace", timeout=_SECONDS
        )
        status, written = child.returncode, child.stdout
    except subprocess.TimeoutExpired as late:
        status, written = None, (late.stdout or b"").decode(errors="replace")
    last, done, told = "", [], set()
    for event, name, *words in (line.split() for line in written.splitlines() if len(line.split()) > 1):
        if event == "begin":
            last = name
        elif event == "done":
            done.append(name)
        elif event == "failed" and (reason := " ".join(words)) not in told:
            told.add(reason)
            yield _failed(name, reason)
    if status != 0:
        how = f"ends the process (status {status})" if status else f"takes more than {_SECONDS} seconds"
        yield Finding(PROBLEM, f"import {last}", f"{how}; later ones were not tried", _cure(last))
    if "torch" in done:
        yield TORCH_WORKS
    others = [name for name in done if name != "torch"]
    if others:
        yield Finding(OK, "import", ", ".join(others))


def _failed(name: str, reason: str) -> Finding:
    text = reason
    if name == "torchvision":
        text = f"built for another torch, which breaks the import of torchmetrics and Lightning ({reason})"
    return Finding(PROBLEM, f"import {name}", text, _cure(name))


def _cure(name: str) -> str:
    if name == "torchvision":
        return "pip uninstall torchvision (tautnet needs none), or install the build that belongs to this torch"
    return _REINSTALL
