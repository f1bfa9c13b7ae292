"""Tables: one sample a row, one column to predict."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

import numpy as np

from tautnet.data import hub_access
from tautnet.data.base import AbstractTensorData, Splits
from tautnet.data.formats.table import Array, read_table, table_of
from tautnet.data.formats.table import Table as RawTable
from tautnet.data.split import check_fractions, table_splits
from tautnet.factories import Task

Kind = Literal["classification", "regression"]


class Table(AbstractTensorData):
    """A CSV or parquet table, split (by class), standardised by its training part.

    Classes are numbered in the order of their values. Text columns become features of 0 and 1.

    Args:
        path: of the file (``.csv``, ``.parquet``), or owner/set of a set of tables on the public hub, whose parts are
            put together.
        target: name of the column to predict.
        task: ``classification`` or ``regression``.
        batch_size: samples a batch.
        seed: of the training order.
        shuffle: False keeps one training order.
        val_fraction: share of all samples for validation.
        test_fraction: share of all samples for the test.
        split_seed: of the split, apart from ``seed`` so that seeds are compared on the same split.

    Shape:
        inputs (N, D) float32; targets (N,) int64, or (N, 1) float32 for a regression.

    Raises:
        ValueError: an argument out of range, or a file that cannot be used.
    """

    def __init__(
        self,
        path: str,
        target: str,
        task: Kind = "classification",
        batch_size: int = 64,
        seed: int = 0,
        shuffle: bool = True,
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
        split_seed: int = 0,
    ) -> None:
        if task not in get_args(Kind):
            raise ValueError(f"task={task}: one of {', '.join(get_args(Kind))}")
        check_fractions(val_fraction, test_fraction)
        self.path, self.target, self._task = path, target, task
        self.val_fraction, self.test_fraction, self.split_seed = val_fraction, test_fraction, split_seed
        super().__init__(batch_size, seed, shuffle)

    @property
    def task(self) -> Task:
        """As asked for."""
        return self._task

    @property
    def num_outputs(self) -> int:
        """Classes, or the one target value."""
        return self._num_outputs

    def load(self) -> Splits:
        """Read, number the classes, split, standardise."""
        table = self._read()
        classes = None
        if self._task == "classification":
            target, classes = self._classes(table.target)
        else:
            target = self._numbers(table.target)
        self._num_outputs = len(classes) if classes else 1
        fractions = (self.val_fraction, self.test_fraction)
        return table_splits(table.features, target, self._task, *fractions, self.split_seed, table.names, classes)

    def _read(self) -> RawTable:
        path = Path(self.path).expanduser()
        on_hub = self.path.count("/") == 1 and not path.suffix and not path.exists()
        if not on_hub:
            return read_table(path, self.target)
        try:
            return table_of(hub_access.open_table(self.path), self.path, self.target)
        except hub_access.HubError as error:
            raise ValueError(f"path={self.path}: no such file, and as a set of the hub: {error}") from error

    def _classes(self, target: Array) -> tuple[Array, list[str]]:
        """Number and name of each class."""
        values, classes, counts = np.unique(target, return_inverse=True, return_counts=True)
        if len(values) < 2:
            raise ValueError(f"target={self.target}: one value only ({values[0]}); a classification needs two classes")
        if len(values) > len(target) / 3:
            raise ValueError(
                f"target={self.target}: {len(values)} different values in {len(target)} rows are no classes; "
                "use data=table_regression"
            )
        if counts.min() < 3:
            raise ValueError(
                f"target={self.target}: {values[counts.argmin()]} in {counts.min()} rows only; 3 are needed, one a part"
            )
        names = [value if isinstance(value, str) else f"{value:g}" for value in values]
        return classes.astype(np.int64), names

    def _numbers(self, target: Array) -> Array:
        if target.dtype == object:
            raise ValueError(f"target={self.target}: text; a regression needs numbers (data=table classifies)")
        return target
