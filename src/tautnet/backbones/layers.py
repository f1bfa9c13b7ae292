"""The factory that every backbone is built from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from tautnet.factories import ActivationFactory, OutputNormFactory, WeightNorm

LARGEST_DEPTH = 10_000  # layers; building more would take minutes and gigabytes before anything fails


def check_widths(name: str, widths: Sequence[int], least: int) -> None:
    """Raise ValueError unless ``widths`` are at least ``least`` positive integers."""
    if len(widths) < least or any(width < 1 for width in widths):
        raise ValueError(f"{name}={list(widths)}: {least} or more integers of at least 1")


def check_least(name: str, value: int, least: int) -> None:
    """Raise ValueError unless ``value`` is at least ``least``."""
    if value < least:
        raise ValueError(f"{name}={value}: at least {least}")


def check_depth(name: str, value: int, least: int) -> None:
    """Raise ValueError unless ``value`` counts layers that can be built, from ``least`` to 10000."""
    check_least(name, value, least)
    if value > LARGEST_DEPTH:
        raise ValueError(f"{name}={value}: at most {LARGEST_DEPTH}")


def check_probability(name: str, value: float) -> None:
    """Raise ValueError unless ``value`` is a probability below 1."""
    if not 0 <= value < 1:
        raise ValueError(f"{name}={value}: from 0 to below 1")


def check_image_shape(backbone: str, input_shape: Sequence[int], least: int = 1) -> None:
    """Raise ValueError unless ``input_shape`` is (channels, height, width) with sides of at least ``least``."""
    if len(input_shape) != 3:
        raise ValueError(
            f"{backbone} takes images (channels, height, width), the data has shape {tuple(input_shape)}; use model=mlp"
        )
    if min(input_shape[1:]) < least:
        raise ValueError(
            f"{backbone} takes images of at least {least} x {least}, the data has shape {tuple(input_shape)}"
        )


@dataclass(frozen=True)
class LayerFactory:
    """Makes layers with the chosen activation, output normalizer and weight normalizer.

    Weights start He-normal (He, Zhang, Ren, Sun 2015; variance 2 / fan_in, the gain of ReLU-like activations), biases
    at 0. A layer in front of a normalizer has no bias, since the normalizer shifts.

    Args:
        activation: num_channels -> module.
        output_norm: num_channels -> module; an ``nn.Identity`` means none.
        weight_norm: layer -> the same layer with its weight parametrised.
    """

    activation: ActivationFactory
    output_norm: OutputNormFactory
    weight_norm: WeightNorm

    def __post_init__(self) -> None:
        for name in ("activation", "output_norm", "weight_norm"):
            value = getattr(self, name)
            if isinstance(value, nn.Module) or not callable(value):
                raise ValueError(f"{name}={value!r}: a factory is needed (in a config: _partial_: true)")

    def linear(self, in_features: int, out_features: int, *, bias: bool = True) -> nn.Module:
        """A dense layer (N, I) -> (N, O)."""
        return self._finish(nn.Linear(in_features, out_features, bias=bias))

    def conv(
        self, in_channels: int, out_channels: int, kernel_size: int = 3, *, stride: int = 1, bias: bool = True
    ) -> nn.Module:
        """A 2-D convolution, zero padded so that stride 1 keeps the image size.

        An even kernel k is padded by k / 2 - 1 in front and k / 2 behind.
        """
        after = kernel_size // 2
        if kernel_size % 2 == 1:
            return self._finish(nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=after, bias=bias))
        conv = self._finish(nn.Conv2d(in_channels, out_channels, kernel_size, stride, bias=bias))
        # padding="same" of the convolution itself warns that it copies its input
        return nn.Sequential(nn.ZeroPad2d((after - 1, after, after - 1, after)), conv)

    def bias_before_norm(self, num_channels: int) -> bool:
        """Whether a layer that a normalizer follows has a bias: only where the normalizer is none."""
        return isinstance(self.output_norm(num_channels), nn.Identity)

    def norm_act(self, num_channels: int) -> list[nn.Module]:
        """Normalizer, activation."""
        return [self.output_norm(num_channels), self.activation(num_channels)]

    def linear_norm_act(self, in_features: int, out_features: int) -> list[nn.Module]:
        """Dense layer, normalizer, activation."""
        norm = self.output_norm(out_features)
        linear = self.linear(in_features, out_features, bias=isinstance(norm, nn.Identity))
        return [linear, norm, self.activation(out_features)]

    def conv_norm(
        self, in_channels: int, out_channels: int, kernel_size: int = 3, *, stride: int = 1
    ) -> list[nn.Module]:
        """Convolution, normalizer."""
        norm = self.output_norm(out_channels)
        bias = isinstance(norm, nn.Identity)
        return [self.conv(in_channels, out_channels, kernel_size, stride=stride, bias=bias), norm]

    def conv_norm_act(
        self, in_channels: int, out_channels: int, kernel_size: int = 3, *, stride: int = 1
    ) -> list[nn.Module]:
        """Convolution, normalizer, activation."""
        return [
            *self.conv_norm(in_channels, out_channels, kernel_size, stride=stride),
            self.activation(out_channels),
        ]

    def _finish(self, layer: nn.Linear | nn.Conv2d) -> nn.Module:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
        return self.weight_norm(layer)
