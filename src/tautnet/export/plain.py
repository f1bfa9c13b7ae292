"""A trained network without its training: weights baked, factors folded, learned functions in plain operations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tautnet.activations.linear_spline import LinearSpline
from tautnet.activations.slaf import Slaf
from tautnet.export.curves import Clips, Lookup, Powers, Sines
from tautnet.export.layers import Affine, InverseNorm
from tautnet.factories import may_be_changed_by_hooks
from tautnet.functional.bases import frequencies, is_polynomial, to_powers
from tautnet.normalizers.batch import BatchNorm, inverse_deviation
from tautnet.normalizers.rms import RmsNorm
from tautnet.normalizers.unitize import Unitize
from tautnet.splines.tables import curve_table

FEW_KNOTS = 8  # up to which clips are faster than looking up
_WIDE_ABOVE = 7  # degree from which ``tautnet.functional.basis_sum`` computes in float64
_LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NOTHING = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


@torch.no_grad()
def plain_net(net: nn.Module) -> nn.Module:
    """A network of plain torch operations that computes what ``net`` does in eval mode, up to rounding.

    The weights are those that parametrizations give; what multiplies and shifts the channels behind a dense layer or a
    convolution (batch normalisation, the running statistics of ``Unitize``) is multiplied into it in float64. Splines
    of few knots become maxima, minima and products, others a table; SLAFs their polynomials. Of layers that are not
    known here copies stay.

    Args:
        net: in float32, left as it is.

    Raises:
        ValueError: numbers in another precision, or a layer with hooks, which the result would not have.
    """
    for path, tensor in net.state_dict().items():
        other = isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.dtype != torch.float32
        if other and not path.endswith("_extra_state"):
            raise ValueError(f"{path}: numbers in {tensor.dtype}; networks in torch.float32 alone are exported")
    return _plain(net, "").requires_grad_(False).eval()


def _plain(module: nn.Module, path: str) -> nn.Module:
    if may_be_changed_by_hooks(module):
        raise ValueError(f"{path or 'net'}: a {type(module).__name__} with hooks, which an export would not have")
    kind = parametrize.type_before_parametrizations(module)
    if kind is nn.Sequential:
        return _in_a_row(_plain(part, f"{path}.{name}".lstrip(".")) for name, part in module._modules.items() if part)
    if kind in _LINEAR:
        return _with_weights(module, module.weight, module.bias)  # type: ignore[arg-type]
    if kind in _MAKERS:
        return _MAKERS[kind](module)
    copied = deepcopy(module)
    copied._forward_pre_hooks.clear()  # those that only look
    copied._forward_hooks.clear()
    for name, part in module._modules.items():
        if part is not None:
            copied.add_module(name, _plain(part, f"{path}.{name}".lstrip(".")))
    return copied


def _in_a_row(parts: Iterator[nn.Module]) -> nn.Module:
    """One after the other, what multiplies and shifts joined with what is in front of it."""
    row: list[nn.Module] = []
    for part in parts:
        for layer in part if isinstance(part, nn.Sequential) else [part]:
            if isinstance(layer, _NOTHING):
                continue
            row[-1:] = _joined(row[-1], layer) if row else [layer]
    return row[0] if len(row) == 1 else nn.Sequential(*row)


def _joined(first: nn.Module, second: nn.Module) -> list[nn.Module]:
    if type(second) is not Affine or second.neurons:
        return [first, second]
    factor_C, shift_C = second.factor.double(), second.shift.double()
    if type(first) is Affine and not first.neurons:
        return [Affine(first.factor * factor_C, first.shift * factor_C + shift_C)]
    if type(first) not in _LINEAR or len(factor_C) not in (1, len(first.weight)):  # type: ignore[arg-type]
        return [first, second]
    assert isinstance(first.weight, Tensor)
    bias_C = shift_C if first.bias is None else first.bias.double() * factor_C + shift_C  # type: ignore[operator]
    weight = first.weight.double() * factor_C.view(-1, *[1] * (first.weight.dim() - 1))
    return [_with_weights(first, weight, bias_C.expand(len(weight)))]


def _with_weights(layer: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """A stock layer like this one. Made without storage: an initialisation would draw random numbers."""
    fresh: nn.Module
    if isinstance(layer, nn.Linear):
        fresh = nn.Linear(layer.in_features, layer.out_features, bias is not None, device="meta")
    else:
        kind = parametrize.type_before_parametrizations(layer)
        sizes = (layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, layer.dilation)
        settings = {"groups": layer.groups, "bias": bias is not None, "padding_mode": layer.padding_mode}
        fresh = kind(*sizes, **settings, device="meta")
    fresh.weight = nn.Parameter(weight.detach().float().clone(memory_format=torch.contiguous_format))
    if bias is not None:
        fresh.bias = nn.Parameter(bias.detach().float().clone())
    return fresh


def _batch_norm(norm: BatchNorm) -> nn.Module:
    factor_C, _ = norm.slope_range()
    assert norm.batch_norm.running_mean is not None
    return Affine(factor_C, norm.batch_norm.bias.double() - factor_C * norm.batch_norm.running_mean.double())


def _unitize(norm: Unitize) -> nn.Module:
    """Batch normalisation, then the mixture; where alpha is 0 both multiply."""
    alpha_C = norm.mixing().double()
    weight_C = alpha_C.new_ones(1) if norm.weight is None else norm.weight.double()
    bias_C = alpha_C.new_zeros(1) if norm.bias is None else norm.bias.double()
    inverse_C = inverse_deviation(norm.batch_norm)
    assert norm.batch_norm.running_mean is not None
    mean_C = norm.batch_norm.running_mean.double()
    if not alpha_C.any():
        factor_C = weight_C * inverse_C
        return Affine(factor_C, bias_C - factor_C * mean_C)
    mixture = (weight_C * (1 - alpha_C), weight_C * alpha_C, bias_C)
    unitized = InverseNorm(*mixture, norm.norm_axes, norm.norm_scale, norm.norm_divisor, norm.eps)
    return nn.Sequential(Affine(inverse_C, -mean_C * inverse_C), unitized)


def _rms_norm(norm: RmsNorm) -> nn.Module:
    return InverseNorm(norm.weight.new_zeros(1), norm.weight, norm.bias, "sample", "rms", 1.0, norm.eps)


def _neurons(layer: LinearSpline | Slaf) -> Sequence[int]:
    return (layer.num_channels, *layer.spatial_shape) if layer.sharing == "neuron" else ()


def _spline(spline: LinearSpline) -> nn.Module:
    table = curve_table(spline)
    if max(len(curve.knots) for curve in table.curves) > FEW_KNOTS:
        return Lookup(*spline.points(), _neurons(spline))
    few = table.relu_sum()
    if few.knots.shape[1] == 0:
        return Affine(few.slopes[:, 0], few.value_at_0, _neurons(spline))
    return Clips(few.knots, few.slopes, few.value_at_0, _neurons(spline))


def _slaf(slaf: Slaf) -> nn.Module:
    function, neurons = slaf.function(), _neurons(slaf)
    placed = (function.factor_C, function.shift_C)
    if not is_polynomial(slaf.basis):
        numbers = (function.weights_CK, function.constant_C, *placed)
        return Sines(*numbers, frequencies(slaf.degree), function.with_relu, neurons)
    powers_CP = function.weights_CK @ to_powers(slaf.basis, slaf.degree)
    powers_CP[:, 0] += function.constant_C
    wide = torch.float64 if slaf.degree > _WIDE_ABOVE else torch.float32
    return Powers(powers_CP.to(wide), *placed, function.with_relu, neurons)


_MAKERS: dict[type[nn.Module], Callable[..., nn.Module]] = {
    **{BatchNorm: _batch_norm, Unitize: _unitize, RmsNorm: _rms_norm},
    **{LinearSpline: _spline, Slaf: _slaf},
}
