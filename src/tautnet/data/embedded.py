"""Small tables that ship with scikit-learn."""

from __future__ import annotations

from typing import Literal, get_args

from tautnet.data.base import AbstractTensorData, Splits
from tautnet.data.split import check_fractions, table_splits
from tautnet.factories import Task

Table = Literal["breast_cancer", "wine", "iris", "diabetes"]


class Embedded(AbstractTensorData):
    """One of scikit-learn's tables, split (by class), standardised by its training part.

    breast_cancer: 569 samples, 30 features, 2 classes; wine: 178, 13, 3; iris: 150, 4, 3; diabetes: 442, 10, and a real
    target, standardised too.

    Source: the UCI tables of these names and Efron et al. (2004) for diabetes, through ``sklearn.datasets``.

    Args:
        table: which one.
        batch_size: samples a batch.
        seed: of the training order.
        shuffle: False keeps one training order.
        val_fraction: share of all samples for validation.
        test_fraction: share of all samples for the test.
        split_seed: of the split, apart from ``seed`` so that seeds are compared on the same split.

    Shape:
        inputs (N, D) float32; targets (N,) int64, or (N, 1) float32 for diabetes.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        table: Table,
        batch_size: int = 32,
        seed: int = 0,
        shuffle: bool = True,
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
        split_seed: int = 0,
    ) -> None:
        if table not in get_args(Table):
            raise ValueError(f"table={table}: one of {', '.join(get_args(Table))}")
        check_fractions(val_fraction, test_fraction)
        self.table, self.val_fraction, self.test_fraction = table, val_fraction, test_fraction
        self.split_seed = split_seed
        super().__init__(batch_size, seed, shuffle)

    @property
    def task(self) -> Task:
        """Regression for diabetes."""
        return "regression" if self.table == "diabetes" else "classification"

    @property
    def num_outputs(self) -> int:
        """Classes, or the one target value."""
        return {"breast_cancer": 2, "wine": 3, "iris": 3, "diabetes": 1}[self.table]

    def load(self) -> Splits:
        """Read, split, standardise."""
        from sklearn import datasets  # slow to import: bad arguments are answered before

        bunch = getattr(datasets, f"load_{self.table}")()
        classes = [str(name) for name in bunch.target_names] if self.task == "classification" else None
        columns = [str(name) for name in bunch.feature_names]
        fractions = (self.val_fraction, self.test_fraction)
        return table_splits(bunch.data, bunch.target, self.task, *fractions, self.split_seed, columns, classes)
