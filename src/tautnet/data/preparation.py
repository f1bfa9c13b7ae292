"""What stands between raw values and a network: how its inputs were standardised, and what its outputs mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Preparation:
    """A network's input is (raw - offset) / scale, by dimension 1 of a batch; checkpoints keep it with the weights.

    Raw units are those of certificates: of images the range of pixel values, 0 to 1, of tables each column's own.

    Attributes:
        offset: of each channel or column.
        scale: of each channel or column, positive; 0 where all training rows are alike, and the input is 0.
        columns: names of a table's columns, ``name=value`` where a column of text was spread out; None for others.
        classes: names of the classes in the order of the outputs; None: their numbers.
        target_offset: a regression's output y means y * target_scale + target_offset.
        target_scale: positive, or 0.
    """

    offset: Sequence[float]
    scale: Sequence[float]
    columns: Sequence[str] | None = None
    classes: Sequence[str] | None = None
    target_offset: float = 0.0
    target_scale: float = 1.0

    def __post_init__(self) -> None:
        for name, kind in (("offset", float), ("scale", float), ("columns", str), ("classes", str)):
            values = getattr(self, name)  # as plain lists, which checkpoints and JSON can hold
            object.__setattr__(self, name, None if values is None else [kind(value) for value in values])

    @staticmethod
    def none(num_channels: int) -> Preparation:
        """Of data that a network gets as they are."""
        return Preparation([0.0] * num_channels, [1.0] * num_channels)

    @staticmethod
    def of_pixels(mean_C: Tensor, deviation_C: Tensor, largest: float, classes: Sequence[str] | None) -> Preparation:
        """Of images whose values from 0 to ``largest`` are standardised by mean and deviation."""
        return Preparation((mean_C / largest).tolist(), (deviation_C / largest).tolist(), classes=classes)

    def prepared(self, raw: Tensor) -> Tensor:
        """The network's input, (N, C, *), from raw values, in the default floating dtype."""
        offset, scale = (self._by_channel(values, raw) for values in (self.offset, self.scale))
        x = torch.where(scale > 0, (raw.double() - offset) / scale, 0.0)
        return x.to(torch.get_default_dtype())

    def units(self) -> Tensor:
        """What a unit of the network's input is in raw units, float64 (C,); 1 where all training rows are alike."""
        scale = torch.tensor(self.scale, dtype=torch.float64)
        return torch.where(scale > 0, scale, 1.0)

    def class_name(self, number: int) -> str:
        """What an output stands for."""
        return str(number) if self.classes is None else self.classes[number]

    @staticmethod
    def _by_channel(values: Sequence[float], x: Tensor) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=x.device).view(-1, *[1] * (x.dim() - 2))
