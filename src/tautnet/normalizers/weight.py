"""What the parametrizations of a weight share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from math import prod, sqrt

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

# A parametrised layer is of another type, and so refused.
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


def check_constant(constant: float) -> None:
    """Raise ValueError unless ``constant`` is positive and finite."""
    if not 0 < constant < float("inf"):
        raise ValueError(f"constant={constant}: above 0, finite")


def check_iterations(name: str, value: int) -> None:
    """Raise ValueError unless ``value`` is from 1 to 1000: more would take the whole training's time for nothing."""
    if not 1 <= value <= 1000:
        raise ValueError(f"{name}={value}: an integer from 1 to 1000")


def check_layer(layer: nn.Module) -> None:
    """Raise ValueError unless the layer is dense or a zero-padded convolution, not parametrised yet."""
    check_kind(layer)
    check_padding(layer)


def check_kind(layer: nn.Module) -> None:
    """Raise ValueError unless the layer is dense or a convolution, not parametrised yet."""
    if type(layer) not in LAYERS:
        raise ValueError(
            f"layer={type(layer).__name__}: nn.Linear, nn.Conv1d, nn.Conv2d or nn.Conv3d, not parametrised yet"
        )


def check_padding(layer: nn.Module) -> None:
    """Raise ValueError if the layer pads with other values than zeros."""
    if isinstance(layer, Convolution) and layer.padding_mode != "zeros":
        raise ValueError(f"padding_mode={layer.padding_mode}: zeros; others repeat pixels, which may exceed the norm")


def groups_of(layer: nn.Module) -> int:
    """Channel groups of a convolution, 1 of a dense layer."""
    return layer.groups if isinstance(layer, Convolution) else 1


def without_autocast(weight: Tensor) -> AbstractContextManager[object]:
    """Keeps the products of matrices in the weight's own type."""
    device = weight.device.type  # the meta device has no autocast; entering where none is on takes time for nothing
    on = device != "meta" and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if on else nullcontext()


def parametrised(layer: nn.Module, weight: nn.Module) -> nn.Module:
    """The layer, its weight now that which the module ``weight`` makes of it."""
    parametrize.register_parametrization(layer, "weight", weight)
    return layer


def parametrised_layers(net: nn.Module) -> list[nn.Module]:
    """Those whose weights are computed from others."""
    return [module for module in net.modules() if parametrize.is_parametrized(module)]


@contextmanager
def weights_at_once(layers: list[nn.Module]) -> Iterator[None]:
    """Compute the weights of parametrised layers now, one after the other, for all that reads them inside.

    Between two convolutions the same short operations take several times as long: the caches hold images by then. Their
    gradients come one after the other too, at the end of the backward pass.
    """
    with parametrize.cached():
        for layer in layers:
            assert isinstance(layer.parametrizations, nn.ModuleDict)
            for name in layer.parametrizations:
                getattr(layer, name)
        yield


def rounding_margin(weight: Tensor, groups: int) -> float:
    r"""By how much rounding every entry of a layer's weight to its type can raise its spectral norm, as a factor.

    Entries move by eps / 2 of themselves, so the kernel's E = W' - W has ||E||_F <= eps / 2 ||W||_F. A convolution with
    T taps has norm at most sqrt(T) ||E||_F, and ||W||_F^2, the mean over frequencies of the squared singular values of
    the channel matrices, is at most min(O, I T) times the square of the norm.
    """
    taps = prod(weight.shape[2:])
    rank = min(weight.shape[0] // groups, weight.shape[1] * taps)
    return 1 + torch.finfo(weight.dtype).eps * (1 + sqrt(taps * rank))
