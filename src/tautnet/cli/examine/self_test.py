"""A short self-test: the kernels against their reference, a few training steps, a checkpoint and back.

torch is imported by the time these run.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tautnet.cli.examine.finding import NOTE, OK, PROBLEM, Finding, Mark

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tautnet.kernels import Backend

_REINSTALL = "reinstall torch (pip install --force-reinstall torch); else please report this line"
_STEPS = 40
_CLOSE = 1e-4  # of float32 results that are about 1, and of sums over hundreds of them relative to the largest


def kernels() -> Iterator[Finding]:
    """Whether the fused spline can be used here and computes what the reference does."""
    import torch

    on_gpu = torch.cuda.is_available()
    # With a GPU the splines of the training do not run on the CPU.
    yield _kernel("cpu", "cpu", NOTE if on_gpu else PROBLEM, "install g++ or set CXX to a C++ compiler that works")
    if on_gpu:
        yield _kernel("cuda", "triton", PROBLEM, "pip install 'triton>=3.4', and gcc, which it needs")


def _kernel(device: str, backend: Backend, mark: Mark, cure: str) -> Finding:
    subject = f"splines, {device}"
    with _log() as said:
        try:
            found = _spline(device, backend)
        except ValueError as error:
            reason = " ".join(said) or str(error)
            return Finding(mark, subject, f"run in plain torch: {reason}", cure)
    errors = [
        float((a - b).abs().max() / b.abs().max().clamp(min=1))
        for a, b in zip(found, _spline(device, "reference"), strict=True)
    ]
    if not max(errors) <= _CLOSE:
        cure = "activation.backend=reference (train.py), and please report this line"
        return Finding(PROBLEM, subject, f"the backend {backend} is off by {max(errors):.1e}", cure)
    return Finding(OK, subject, f"run on the backend {backend}; the reference gives the same")


def _spline(device: str, backend: Backend) -> tuple[Tensor, ...]:
    """Values and gradients."""
    import torch

    from tautnet.kernels import linear_spline

    x = torch.linspace(-1.5, 1.5, 4 * 3 * 49, device=device).view(4, 3, 7, 7).requires_grad_()
    coefficients = torch.linspace(-9.0, 9.0, 3 * 21, device=device).sin().view(3, 21).requires_grad_()
    y = linear_spline(x, coefficients, 1.0, backend)
    torch.autograd.backward(y.square().sum())
    assert x.grad is not None
    assert coefficients.grad is not None
    return y.detach(), x.grad, coefficients.grad


@contextmanager
def _log() -> Iterator[list[str]]:
    """What the library says, instead of on the terminal."""
    said: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    log, listener = logging.getLogger("tautnet"), Listener(logging.WARNING)
    propagated, log.propagate = log.propagate, False
    log.addHandler(listener)
    try:
        yield said
    finally:
        log.removeHandler(listener)
        log.propagate = propagated


def training() -> Iterator[Finding]:
    """Whether a small network of splines and Unitize learns to tell noisy patterns apart."""
    import torch
    from torch.nn.functional import cross_entropy

    for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net, patterns = _net().to(device), torch.randn(10, 1, 8, 8, device=device)
            optimizer, losses = torch.optim.Adam(net.parameters(), lr=2e-2), []
            for step in range(_STEPS):
                targets = (torch.arange(50, device=device) + step) % 10
                loss = cross_entropy(net(patterns[targets] + torch.randn(50, 1, 8, 8, device=device) / 2), targets)
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
                losses.append(loss.item())
        text = f"the loss of {_STEPS} steps goes from {losses[0]:.2f} to {losses[-1]:.2f}"
        learns = losses[-1] < losses[0] / 2
        cure = "" if learns else _REINSTALL
        yield Finding(OK if learns else PROBLEM, f"training, {device}", text, cure)


def checkpoint() -> Iterator[Finding]:
    """Whether weights come back from a file as they were."""
    import torch

    with tempfile.TemporaryDirectory(prefix="tautnet-") as folder, torch.random.fork_rng():
        torch.manual_seed(0)
        net, other, path = _net(), _net(), Path(folder, "doctor.ckpt")
        torch.save(net.state_dict(), path)
        other.load_state_dict(torch.load(path, weights_only=True))
        x = torch.randn(4, 1, 8, 8)
        same = torch.equal(net.eval()(x), other.eval()(x))
    cure = "" if same else "reinstall torch (pip install --force-reinstall torch); else please report this line"
    yield Finding(
        OK if same else PROBLEM, "checkpoint", "gives the same network" if same else "gives another one", cure
    )


def _net() -> nn.Module:
    from tautnet.activations import LinearSpline
    from tautnet.backbones import LayerFactory, convnet
    from tautnet.normalizers import Unitize, no_weight_norm

    return convnet(LayerFactory(LinearSpline, Unitize, no_weight_norm), (1, 8, 8), 10, widths=(8, 16))
