"""Certificates of a trained classifier, held against attacks."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from math import ceil, inf, isinf
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from matplotlib.figure import Figure
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor, nn

from tautnet import logkeys
from tautnet.lipschitz.attack import attack
from tautnet.lipschitz.certify import Certifier, margins
from tautnet.lipschitz.input_scale import InputScale
from tautnet.models.base import AbstractModel
from tautnet.models.ranks import joined, log_alike, spread

_log = logging.getLogger(__name__)
NORMS = {"l2": 2.0, "linf": inf}


@dataclass(frozen=True)
class Row:
    """Shares of the samples that are right: clean, under attack, and provably whatever the perturbation."""

    norm: str
    eps: float
    clean: float
    attacked: float
    certified: float


class Certification(pl.Callback):
    """Certifies predictions of the tested network, attacks them, and reports the shares that remain right.

    At the end of a test, for some test samples and every eps: the share certified (see ``Certifier``), the share that
    survives projected gradient descent, and the share right without either; certified <= attacked <= clean. An attack
    that flips a certified prediction would disprove a certificate, and stops the program. All on a copy in float64,
    with the input in raw units; perturbations are not confined to the range of valid pixels, by certificates and
    attacks alike. On several ranks each examines all of these samples, which it gets from the others.

    Args:
        epsilons_l2: radii in the Euclidean norm, rising, at least 0, in the raw units of the data's ``input_scale``.
        epsilons_linf: radii in the maximum norm.
        num_samples: how many samples, evenly spread over the test, at least 1; at least one a batch.
        num_steps: of each attack.
        num_restarts: starts of each attack.
        seed: of the starts.
        folder: where ``certificates.csv``, ``.json`` and ``.png`` go, made when needed; None for nowhere.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        epsilons_l2: Sequence[float],
        epsilons_linf: Sequence[float],
        num_samples: int = 128,
        num_steps: int = 40,
        num_restarts: int = 2,
        seed: int = 0,
        folder: str | None = None,
    ) -> None:
        self.epsilons = {"l2": list(epsilons_l2), "linf": list(epsilons_linf)}
        for norm, values in self.epsilons.items():
            if values != sorted(set(values)) or not all(0 <= eps < inf for eps in values):
                raise ValueError(f"epsilons_{norm}={values}: rising finite numbers of at least 0")
        if not any(self.epsilons.values()):
            raise ValueError("epsilons_l2=[]: at least one radius, here or in epsilons_linf")
        for name, count in {"num_samples": num_samples, "num_steps": num_steps, "num_restarts": num_restarts}.items():
            if count < 1:
                raise ValueError(f"{name}={count}: at least 1")
            if name != "num_samples" and count > 10_000:  # of samples there are as many as the test has
                raise ValueError(f"{name}={count}: at most 10000")
        self.num_samples, self.num_steps, self.num_restarts = num_samples, num_steps, num_restarts
        self.seed, self.folder = seed, folder
        self._samples: list[tuple[Tensor, ...]] = []
        self._num_kept = 0  # by all ranks

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse what has no classes, before training."""
        assert isinstance(pl_module, AbstractModel)
        if pl_module.task != "classification":
            raise MisconfigurationException(f"callbacks.certify: for classification, the data is for {pl_module.task}")

    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin without samples."""
        self._samples, self._num_kept = [], 0

    def on_test_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep the batch's share of the samples, evenly spread over it: data may be sorted."""
        num_batches = sum(trainer.num_test_batches)
        if isinf(num_batches) and self._num_kept >= self.num_samples:
            return
        share = max(1, ceil(self.num_samples / num_batches))  # a stream may not know how many batches it has
        (x, targets), count = spread((batch[0], batch[1]), share)
        self._num_kept += count
        self._samples.append((x, targets if targets.dim() == 1 else targets.argmax(1)))

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Certify, attack, compare, report."""
        assert isinstance(pl_module, AbstractModel)
        if trainer.datamodule is None:  # type: ignore[attr-defined]
            raise MisconfigurationException("callbacks.certify: needs a data module, which knows the unit of the data")
        scale_C: Tensor = trainer.datamodule.input_scale  # type: ignore[attr-defined]
        samples = joined(self._samples)
        with torch.inference_mode(False):  # Lightning tests in it, and nothing can be differentiated there
            inputs, labels = (torch.cat([pair[i] for pair in samples]).clone() for i in (0, 1))
            net = nn.Sequential(InputScale(scale_C.to(inputs.device)), deepcopy(pl_module.net)).double().eval()
            column = (-1, *[1] * (inputs.dim() - 2))
            x = inputs.double() * scale_C.to(inputs.device, torch.float64).view(column)
            found = {norm: self._examine(net, x, labels, norm) for norm in NORMS if self.epsilons[norm]}
        self._samples = []
        rows = [row for norm_rows, _ in found.values() for row in norm_rows]
        log_alike(pl_module, logkeys.CERTIFIED_CLEAN, rows[0].clean)
        for row in rows:
            log_alike(pl_module, logkeys.certified(row.norm, row.eps), row.certified)
            log_alike(pl_module, logkeys.attacked(row.norm, row.eps), row.attacked)
        if trainer.is_global_zero:
            self._write(rows, {norm: radii for norm, (_, radii) in found.items()})
            figure = accuracy_figure(rows)
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    logger.experiment.add_figure("certified/accuracy", figure, trainer.global_step, close=False)

    def _examine(self, net: nn.Module, x: Tensor, labels: Tensor, norm: str) -> tuple[list[Row], list[float]]:
        """The shares at every eps, and the certified radius of every sample, as far as it is known."""
        epsilons, certifier = self.epsilons[norm], Certifier(net, x.shape[1:], NORMS[norm])
        radii, clean = certifier.radii(x, labels), self._right(net, x, labels)
        certified = [certifier.certified(x, labels, eps) for eps in epsilons]
        surviving, rows = clean, []
        for i, eps in enumerate(epsilons):
            proved = torch.stack(certified[i:]).any(0)  # a larger ball holds the smaller one
            radii = torch.where(proved, radii.clamp(min=eps), radii)
            points = attack(net, x, labels, eps, NORMS[norm], self.num_steps, self.num_restarts, self.seed)
            surviving = surviving & self._right(net, points, labels)
            broken = (proved & ~surviving).nonzero().flatten().tolist()
            if broken:
                raise RuntimeError(
                    f"an attack at {norm} eps={eps} flips the certified predictions of the samples {broken}, as kept "
                    "for certification: the certificate is wrong, please report this"
                )
            shares = (float(right.double().mean()) for right in (clean, surviving, proved))
            rows.append(Row(norm, eps, *shares))
        return rows, radii.tolist()

    @staticmethod
    @torch.no_grad()
    def _right(net: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
        """Which predictions are right; a tie is not."""
        return margins(net(x.clone()), labels) > 0

    def _write(self, rows: Sequence[Row], radii: dict[str, list[float]]) -> None:
        if self.folder is None:
            return
        folder = Path(self.folder)
        folder.mkdir(parents=True, exist_ok=True)
        table = [asdict(row) for row in rows]
        with Path(folder, "certificates.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(table[0]))
            writer.writeheader()
            writer.writerows(table)
        finite = {norm: [None if isinf(radius) else radius for radius in values] for norm, values in radii.items()}
        text = json.dumps({"rows": table, "radii": finite}, indent=1)  # null: without limit
        Path(folder, "certificates.json").write_text(text + "\n")
        accuracy_figure(rows).savefig(folder / "certificates.png", dpi=120)


def accuracy_figure(rows: Sequence[Row]) -> Figure:
    """Clean, attacked and certified share over eps, one panel for each norm."""
    norms = list(dict.fromkeys(row.norm for row in rows))
    figure = Figure(figsize=(4.2 * len(norms), 3.4), layout="constrained")
    for axes, norm in zip(figure.subplots(1, len(norms), squeeze=False)[0], norms, strict=True):
        points = [row for row in rows if row.norm == norm]
        epsilons = [0.0, *(row.eps for row in points)]
        axes.axhline(points[0].clean, color="0.6", linestyle=":", label="clean")
        for name, style in (("attacked", "s--"), ("certified", "o-")):
            axes.plot(epsilons, [points[0].clean, *(getattr(row, name) for row in points)], style, label=name)
        axes.set(title=norm, xlabel="eps, raw units", ylabel="accuracy", ylim=(-0.02, 1.02))
        axes.legend(fontsize=7)
        axes.grid(linewidth=0.3)
    return figure
