"""Muon for the weights of dense and convolutional layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

_State = Mapping[Tensor, dict[str, Any]]


class Muon(Optimizer):
    """Momentum whose step is made near-orthogonal: torch's Muon, with kernels of any shape read as matrices.

    For a weight W of shape (O, *), read as a matrix with O rows: B <- momentum B + (1 - momentum) dL/dW, then
    W <- (1 - lr weight_decay) W - lr s NS(B), where NS drives all singular values towards 1 by a Newton-Schulz
    iteration and s is the scale that ``adjust_lr_fn`` names. With ``nesterov`` the step is that of B looked ahead once
    more. ``torch.optim.Muon`` makes the step; what is added is the reading of kernels as matrices.

    Source: Jordan et al. (2024), cited from torch's documentation; "match_rms_adamw" from Liu et al. (2025), likewise.
    Convolution kernels as C_out x rest is the usual choice, recalled, not checked against the authors' code; the scale
    s is taken from that matrix.

    Args:
        params: weights of two or more dimensions, or parameter groups of them.
        lr: learning rate, at least 0.
        weight_decay: at least 0, decoupled.
        momentum: at least 0, below 1.
        nesterov: look ahead.
        ns_steps: Newton-Schulz iterations, 0 to 99.
        adjust_lr_fn: "original": s = sqrt(max(1, rows / columns)); "match_rms_adamw": s = 0.2 sqrt(max(rows, columns)),
            made for learning rates and decays found with AdamW.

    Raises:
        ValueError: an argument out of range, a parameter with fewer than two dimensions, or a torch without Muon.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        adjust_lr_fn: Literal["original", "match_rms_adamw"] = "original",
    ) -> None:
        for name, value in (("lr", lr), ("weight_decay", weight_decay)):
            if not value >= 0:
                raise ValueError(f"{name}={value}: at least 0")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum={momentum}: at least 0, below 1")
        if not 0 <= ns_steps < 100:
            raise ValueError(f"ns_steps={ns_steps}: from 0 to 99")
        if adjust_lr_fn not in ("original", "match_rms_adamw"):
            raise ValueError(f"adjust_lr_fn={adjust_lr_fn}: original or match_rms_adamw")
        _torch_muon()
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "nesterov": nesterov,
            "ns_steps": ns_steps,
            "adjust_lr_fn": adjust_lr_fn,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of weights; see the class."""
        super().add_param_group(param_group)
        for weight in self.param_groups[-1]["params"]:
            if weight.dim() < 2:
                self.param_groups.pop()  # leave no half-made group behind
                raise ValueError(f"a parameter of shape {tuple(weight.shape)}: Muon needs two or more dimensions")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of every weight that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if weights:
                _step(weights, {name: group[name] for name in self.defaults}, self.state)
        return loss


def _step(weights: list[Tensor], options: dict[str, Any], state: _State) -> None:
    """Let torch step matrices that share weights and momentum with ours."""
    matrices = [weight.detach().flatten(1) for weight in weights]
    inner = _torch_muon()(matrices, **options)
    for weight, matrix in zip(weights, matrices, strict=True):
        assert weight.grad is not None
        matrix.grad = weight.grad.flatten(1)
        if "momentum_buffer" not in state[weight]:
            state[weight]["momentum_buffer"] = torch.zeros_like(weight, memory_format=torch.contiguous_format)
        inner.state[matrix]["momentum_buffer"] = state[weight]["momentum_buffer"].view(matrix.shape)
    inner.step()
    for weight, matrix in zip(weights, matrices, strict=True):
        if weight.data_ptr() != matrix.data_ptr():  # a kernel in another memory format was copied
            weight.copy_(matrix.view(weight.shape))


def _torch_muon() -> type[Optimizer]:
    if "Muon" not in torch.optim.__all__:
        raise ValueError(f"torch {torch.__version__} has no Muon; another optimizer, for example optimizer=adamw")
    return torch.optim.Muon
