"""The polynomials of a network of SLAF, for people to read."""

from __future__ import annotations

from pathlib import Path

import pytorch_lightning as pl
from lightning_fabric.utilities.exceptions import MisconfigurationException

from tautnet.models.base import AbstractModel
from tautnet.slnn import degree_of, polynomial_of, term


class PolynomialWriter(pl.Callback):
    """Writes what the network computes in eval mode as polynomials in its inputs, a term a line.

    After the fit and after a test, of the weights in force then; x1, x2, ... are the entries of the network's input,
    for tables the standardised columns. The first rank writes.

    Args:
        path: of the text file.
        tolerance: terms of a coefficient up to this size are left out, at least 0.
        max_terms: networks whose polynomials could have more terms are refused, at least 1.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(self, path: str, tolerance: float = 1e-6, max_terms: int = 100_000) -> None:
        if not tolerance >= 0:
            raise ValueError(f"tolerance={tolerance}: at least 0")
        if max_terms < 1:
            raise ValueError(f"max_terms={max_terms}: at least 1")
        self.path, self.tolerance, self.max_terms = path, tolerance, max_terms

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Look whether the network is a polynomial, and a small one.

        Raises:
            MisconfigurationException: it is not.
        """
        assert isinstance(pl_module, AbstractModel)
        try:
            degree_of(pl_module.net, pl_module.input_shape, self.max_terms)
        except ValueError as error:
            reason = str(error)
            key = "callbacks.polynomial." if reason.startswith("max_terms=") else "callbacks=polynomial: "
            raise MisconfigurationException(key + reason) from error

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write."""
        self._write(trainer, pl_module)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write, for a checkpoint is tested without a fit."""
        self._write(trainer, pl_module)

    def _write(self, trainer: pl.Trainer, model: pl.LightningModule) -> None:
        assert isinstance(model, AbstractModel)
        if not trainer.is_global_zero:
            return
        lines = []
        for number, polynomial in enumerate(
            polynomial_of(model.net, model.input_shape, self.tolerance, self.max_terms), start=1
        ):
            terms = polynomial.terms.items()
            lines.append(f"y{number}: {len(terms)} terms above {self.tolerance:g}, degree {polynomial.degree}")
            lines += [f"  {term(powers, coefficient)}" for powers, coefficient in terms]
        Path(self.path).parent.mkdir(parents=True, exist_ok=True)
        Path(self.path).write_text("\n".join(lines) + "\n")
