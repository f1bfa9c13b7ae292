"""Single layers as the bounds see them, and their Jacobians, from the layers themselves."""

from __future__ import annotations

import math
from math import inf

import torch
from torch import Tensor, nn

from tautnet.lipschitz.rules import leaf_constant
from tautnet.lipschitz.structure import Leaf, read

EXPONENTS = (1, 2, inf)


def leaf_of(layer: nn.Module, *shape: int) -> Leaf:
    (leaf,) = read(layer, shape)
    return leaf


def constant(layer: nn.Module, p: float, *shape: int) -> float:
    return leaf_constant(leaf_of(layer, *shape), p)


def norms(matrices: Tensor, p: float) -> Tensor:
    """Operator norms of matrices (*, outputs, inputs)."""
    return torch.linalg.matrix_norm(matrices, ord=p)


@torch.no_grad()
def matrix(layer: nn.Module, *shape: int) -> Tensor:
    """Of an affine layer: the images of the unit vectors."""
    size = math.prod(shape)
    images = torch.cat([layer(unit.view(1, *shape)) for unit in torch.cat([torch.zeros(1, size), torch.eye(size)])])
    images = images.reshape(size + 1, -1)
    return (images[1:] - images[:1]).mT


def jacobians(layer: nn.Module, x: Tensor) -> Tensor:
    """Of every sample, (N, outputs, inputs)."""
    x = x.clone().requires_grad_()
    outputs = layer(x).flatten(1)
    rows = [torch.autograd.grad(column.sum(), x, retain_graph=True)[0].flatten(1) for column in outputs.unbind(1)]
    return torch.stack(rows, dim=1)


def largest_after_ascent(layer: nn.Module, x: Tensor, p: float, num_steps: int = 60, rate: float = 0.05) -> float:
    """Largest ||J||_p met while every sample climbs along the gradient of its own."""
    x = x.clone().requires_grad_()
    optimizer, largest = torch.optim.Adam([x], lr=rate), 0.0
    for _ in range(num_steps):
        outputs = layer(x).flatten(1)
        rows = [torch.autograd.grad(column.sum(), x, create_graph=True)[0].flatten(1) for column in outputs.unbind(1)]
        values = norms(torch.stack(rows, dim=1), p)
        largest = max(largest, float(values.detach().max()))
        optimizer.zero_grad()
        (-values.sum()).backward()
        optimizer.step()
    return largest


def randomised(layer: nn.Module, scale: float = 1.0) -> nn.Module:
    """Random parameters and running statistics, eval mode."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=scale)
        for name, buffer in layer.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_()
            elif name.endswith("running_var"):
                buffer.uniform_(0.1, 2.0)
    return layer.eval()
