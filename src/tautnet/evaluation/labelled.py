"""Tables with the true values beside the inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tautnet.errors import ConfigError
from tautnet.evaluation.inputs import pieces
from tautnet.evaluation.tables import TableFile, as_number
from tautnet.trained import Trained

_AT_ONCE = 1024  # rows


class LabelledTable:
    """Batches of raw values (N, D) float64, and their classes (N,) int64 or values (N, 1) float64.

    Classes are known by name, whatever number they would get in this file.

    Args:
        path: see ``TableFile``.
        target: name of the column with the true values.
        trained: whose columns and classes count.

    Raises:
        ConfigError: a file that cannot be used, or a value in it.
    """

    def __init__(self, path: Path, target: str, trained: Trained) -> None:
        self.table = TableFile(path, trained.preparation.columns, trained.model.input_shape[0], target)
        self._classes: dict[str, int] | None = None
        if trained.model.task == "classification":
            num_classes = trained.settings["num_outputs"]
            self._classes = {trained.preparation.class_name(number): number for number in range(num_classes)}

        rows = ((values, self._target(number, cell)) for number, (values, cell) in enumerate(self.table.rows(), 1))
        self._batches = [self._batch(piece) for piece in pieces(rows, _AT_ONCE)]

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self._batches)

    def _batch(self, rows: Sequence[tuple[list[float], float | int]]) -> tuple[Tensor, Tensor]:
        x = torch.tensor([values for values, _ in rows], dtype=torch.float64)
        targets = [target for _, target in rows]
        return x, torch.tensor(targets) if self._classes else torch.tensor(targets, dtype=torch.float64)[:, None]

    def _target(self, number: int, cell: Any) -> float | int:
        where = f"{self.table.path}: row {number}: column {self.table.target!r}"
        if self._classes is None:
            return as_number(cell, where)
        if isinstance(cell, str) and cell in self._classes:
            return self._classes[cell]
        known = ", ".join(list(self._classes)[:20])
        try:
            name = f"{as_number(cell, where):g}"  # as classes that are numbers are called
        except ConfigError:
            name = str(cell)
        if name not in self._classes:
            raise ConfigError(f"{where}: {name!r} is no class; the network knows {known}")
        return self._classes[name]
