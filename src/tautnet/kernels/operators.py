"""The operators that torch knows: how they are traced, differentiated and batched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, library

from tautnet.kernels import dispatch, reference


def linear_spline(x: Tensor, coefficients_CK: Tensor, grid_range: float, backend: str = "auto") -> Tensor:
    r"""Value of spline c at ``x[:, c]``, or of the only one everywhere.

    With step = 2 grid_range / (K - 1), position p = (x + grid_range) / step and cell k = floor(p), kept in [0, K - 2]:
    y = c_k + (c_{k+1} - c_k) (p - k). NaN gives NaN; the derivative at a knot is the right-hand slope. Saved for the
    backward pass are ``x`` and the coefficients alone. The gradient of the coefficients has the same bits in every run.

    Args:
        x: points, shape (N, C, *), float32, float64, bfloat16 or float16, any strides.
        coefficients_CK: values at the knots, shape (C, K) or (1, K), float64 for float64 points, else float32, in which
            positions are computed.
        grid_range: half-width of the knot interval, in the unit of x.
        backend: ``reference`` (plain torch, any device), ``cpu`` (compiled C++), ``triton`` (CUDA), or the best there
            is, ``auto``.

    Raises:
        ValueError: shapes or dtypes that do not fit, or a backend that does not run here.
    """
    if torch.compiler.is_compiling():
        return _operator(x, coefficients_CK, grid_range, backend)
    if torch._C._are_functorch_transforms_active():
        return _transformed(x, coefficients_CK, grid_range, backend)
    # The memory of a subclass, of a view marked as negated or of nothing at all is not its values.
    plain = all(type(t) in (Tensor, torch.nn.Parameter) and not t.is_neg() for t in (x, coefficients_CK))
    if plain and x.device.type != "meta" and torch._C._len_torch_dispatch_stack() == 0:  # nothing but autograd watches
        return _eager(x, coefficients_CK, grid_range, backend)
    return _operator(x, coefficients_CK, grid_range, backend)


class _Eager(torch.autograd.Function):
    """The operator without its dispatch, whose 50 microseconds (both ways) outweigh a small layer."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, coefficients_CK: Tensor, grid_range: float, backend: str) -> Tensor:
        ctx.save_for_backward(x, coefficients_CK)
        ctx.settings = (grid_range, backend)
        return dispatch.forward(x, coefficients_CK, grid_range, backend)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        functorch = torch._C._functorch
        batched = functorch.is_batchedtensor(grad) or functorch.is_legacy_batchedtensor(grad)
        if torch.is_grad_enabled() or batched:  # to be differentiated again, or several gradients at once
            return _backward(ctx, grad)
        wanted = ctx.needs_input_grad[1]
        x, coefficients_CK = ctx.saved_tensors
        grid_range, backend = ctx.settings
        grad = grad.resolve_neg()
        grad_x, grad_coefficients = dispatch.gradients(grad, x, coefficients_CK, grid_range, backend, wanted)
        return grad_x, grad_coefficients if wanted else None, None, None


class _Transformed(torch.autograd.Function):
    """The operator under torch.func, which cannot differentiate custom operators by their registered formula."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, coefficients_CK: Tensor, grid_range: float, backend: str) -> Tensor:
        return _operator(x, coefficients_CK, grid_range, backend)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _save_inputs(ctx, inputs, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad[1]
        grad_x, grad_coefficients = _transformed_gradients(grad, *ctx.saved_tensors, *ctx.settings, wanted)
        return grad_x, grad_coefficients if wanted else None, None, None


class _TransformedGradients(torch.autograd.Function):
    """The same for the gradients."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor]:
        return _backward_operator(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        _save_inputs(ctx, inputs, output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _double_backward(ctx, *grads)


_eager: Callable[..., Tensor] = _Eager.apply
_transformed: Callable[..., Tensor] = _Transformed.apply
_transformed_gradients: Callable[..., tuple[Tensor, Tensor]] = _TransformedGradients.apply

_operator = library.custom_op("tautnet::linear_spline", dispatch.forward, mutates_args=())
_backward_operator = library.custom_op("tautnet::linear_spline_backward", dispatch.gradients, mutates_args=())


@_operator.register_fake
def _(x: Tensor, coefficients_CK: Tensor, grid_range: float, backend: str = "auto") -> Tensor:
    return torch.empty_like(x)


@_backward_operator.register_fake
def _(
    grad: Tensor, x: Tensor, coefficients_CK: Tensor, grid_range: float, backend: str, with_coefficients: bool
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), coefficients_CK.new_empty(coefficients_CK.shape if with_coefficients else (0,))


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    tensors = [value for value in inputs if isinstance(value, Tensor)]
    ctx.save_for_backward(*tensors)
    ctx.settings = inputs[len(tensors) :]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, coefficients_CK = ctx.saved_tensors
    grid_range, backend = ctx.settings
    with_coefficients = ctx.needs_input_grad[1]
    grad_x, grad_coefficients = _backward_operator(grad, x, coefficients_CK, grid_range, backend, with_coefficients)
    return grad_x, grad_coefficients if with_coefficients else None, None, None


def _double_backward(ctx: Any, grad_of_grad_x: Tensor, grad_of_grad_coefficients: Tensor) -> tuple[Tensor | None, ...]:
    grad, x, coefficients_CK = ctx.saved_tensors
    grid_range, _, _ = ctx.settings
    gradients = reference.double_backward(
        grad_of_grad_x, grad_of_grad_coefficients, grad, x, coefficients_CK, grid_range
    )
    return *gradients, None, None, None


library.register_autograd(_operator, _backward, setup_context=_save_inputs)
library.register_autograd(_backward_operator, _double_backward, setup_context=_save_inputs)


def _batch_first(tensor: Tensor, dim: int | None, batch_size: int) -> Tensor:
    return tensor.expand(batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def _as_samples(x: Tensor, one_curve: bool) -> Tensor:
    """(batch, N, C, *) to (batch * N, C, *); a single curve takes any shape."""
    return x.flatten() if one_curve else x.flatten(0, 1)


def _as_channels(x: Tensor, one_curve: bool) -> Tensor:
    """(batch, N, C, *) to (N, batch * C, *), or for a single curve to (1, batch, elements)."""
    return x.flatten(1).unsqueeze(0) if one_curve else x.movedim(0, 1).flatten(1, 2)


def _from_channels(x: Tensor, shape: torch.Size, one_curve: bool) -> Tensor:
    """Undo ``_as_channels``."""
    return x.reshape(shape) if one_curve else x.reshape(shape[1], shape[0], *shape[2:]).movedim(1, 0)


def _vmap(
    info: Any, in_dims: tuple[int | None, ...], x: Tensor, coefficients_CK: Tensor, grid_range: float, backend: str
) -> tuple[Tensor, int]:
    one_curve = coefficients_CK.shape[_of_sample(in_dims[1], 0)] == 1
    x = _batch_first(x, in_dims[0], info.batch_size)
    if in_dims[1] is None:  # the batch becomes samples
        y = _operator(_as_samples(x, one_curve), coefficients_CK, grid_range, backend)
        return y.reshape(x.shape), 0
    coefficients_CK = coefficients_CK.movedim(in_dims[1], 0).flatten(0, 1)
    y = _operator(_as_channels(x, one_curve), coefficients_CK, grid_range, backend)
    return _from_channels(y, x.shape, one_curve), 0


def _backward_vmap(
    info: Any,
    in_dims: tuple[int | None, ...],
    grad: Tensor,
    x: Tensor,
    coefficients_CK: Tensor,
    grid_range: float,
    backend: str,
    with_coefficients: bool,
) -> tuple[tuple[Tensor, Tensor], tuple[int, int | None]]:
    one_curve = coefficients_CK.shape[_of_sample(in_dims[2], 0)] == 1
    grad, x = (_batch_first(t, dim, info.batch_size) for t, dim in zip((grad, x), in_dims[:2], strict=True))
    if in_dims[2] is None and not with_coefficients:  # the batch becomes samples
        grad_x, nothing = _backward_operator(
            _as_samples(grad, one_curve), _as_samples(x, one_curve), coefficients_CK, grid_range, backend, False
        )
        return (grad_x.reshape(x.shape), nothing), (0, None)
    coefficients_BCK = _batch_first(coefficients_CK, in_dims[2], info.batch_size)
    grad_x, sums = _backward_operator(
        _as_channels(grad, one_curve),
        _as_channels(x, one_curve),
        coefficients_BCK.flatten(0, 1),
        grid_range,
        backend,
        with_coefficients,
    )
    grad_x = _from_channels(grad_x, x.shape, one_curve)
    if not with_coefficients:
        return (grad_x, sums), (0, None)
    return (grad_x, sums.view(coefficients_BCK.shape)), (0, 0)


def _of_sample(batch_dim: int | None, dim: int) -> int:
    """Where dimension ``dim`` of a sample is in the batched tensor."""
    return dim if batch_dim is None or batch_dim > dim else dim + 1


library.register_vmap(_operator, _vmap)
library.register_vmap(_backward_operator, _backward_vmap)
