"""What the variance constancy loss does to each layer."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tautnet import logkeys
from tautnet.models.base import AbstractModel
from tautnet.models.ranks import gathered, log_alike, num_ranks, of_first_rank, rank, summed
from tautnet.regularizers.variance import VarianceConstancy


class VarianceMonitor(pl.Callback):
    """Logs each layer's variance constancy term and beta, and the kurtosis of what enters the layer in evaluation.

    Of the terms the mean and the largest one over units and steps of an epoch, before weighting. Of beta the range at
    its end. The kurtosis, central fourth moment over squared variance, of each unit over all validation or test
    samples; logged are the medians over a layer's units and over all units. Units that are constant have none. All of
    it is over the ranks too, each of which has terms of its own, from its part of the batch.

    See ``logkeys.vcl`` for the names. The model needs a ``VarianceConstancy``, whose weight may be 0.
    """

    def __init__(self) -> None:
        self._regularizer: VarianceConstancy | None = None
        self._sums: dict[str, Tensor] = {}  # of the means over units, by path
        self._largest: dict[str, Tensor] = {}
        self._num_steps = 0
        self._moments: dict[str, Moments] = {}
        self._handles: list[RemovableHandle] = []

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Find the penalty."""
        assert isinstance(pl_module, AbstractModel)
        found = [each for each in pl_module.regularizers.values() if isinstance(each, VarianceConstancy)]
        if len(found) != 1:
            raise MisconfigurationException(
                f"callbacks.variance: needs one regularizer.variance, there are {len(found)}"
            )
        self._regularizer = found[0]

    @property
    def _penalty(self) -> VarianceConstancy:
        assert self._regularizer is not None
        return self._regularizer

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin with no steps."""
        self._sums, self._largest, self._num_steps = {}, {}, 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add the step; a batch too small for the loss does not count."""
        terms = self._penalty.unit_terms
        self._num_steps += bool(terms)
        for path, terms_U in terms.items():
            mean, largest = terms_U.mean(), terms_U.max()
            self._sums[path] = mean + self._sums[path].to(mean) if path in self._sums else mean
            self._largest[path] = torch.maximum(largest, self._largest.get(path, largest).to(largest))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log terms and betas."""
        for path, total in self._sums.items():
            pl_module.log(logkeys.vcl(path), total / self._num_steps, sync_dist=True)
            pl_module.log(logkeys.vcl(path, "max"), self._largest[path], sync_dist=True, reduce_fx="max")
        for path, beta in self._penalty.betas().items():
            for quantity, value in zip(("beta_min", "beta_max"), beta.detach().aminmax(), strict=True):
                log_alike(pl_module, logkeys.vcl(path, quantity), value)

    def state_dict(self) -> dict[str, Any]:
        """Sums of each rank over the epoch under way; all ranks have to call it."""
        return {"ranks": gathered((_on_cpu(self._sums), _on_cpu(self._largest), self._num_steps))}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with this rank's sums; with another number of ranks they begin anew."""
        if len(state_dict["ranks"]) == num_ranks():
            self._sums, self._largest, self._num_steps = state_dict["ranks"][rank()]

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin with no samples."""
        self._moments = {}

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Watch the layers during this batch."""
        assert isinstance(pl_module, AbstractModel)
        seen: set[str] = set()
        for path in self._penalty.betas():
            layer = pl_module.net.get_submodule(path)
            self._handles.append(layer.register_forward_pre_hook(self._recorder(path, seen)))

    def _recorder(self, path: str, seen: set[str]) -> Any:
        def record(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if path not in seen:  # losses may call an activation again, on the ends of boxes
                seen.add(path)
                self._moments.setdefault(path, Moments()).add(inputs[0].detach())

        return record

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stop watching: a Lipschitz bound does not hold for layers with hooks."""
        self._forget_hooks()

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the kurtosis."""
        kurtoses = {path: moments.of_all_ranks().kurtosis() for path, moments in self._moments.items()}
        for path, kurtosis in kurtoses.items():
            log_alike(pl_module, logkeys.vcl(path, "kurtosis"), kurtosis.nanmedian())
        if kurtoses:
            units = torch.cat([each.flatten() for each in kurtoses.values()])
            log_alike(pl_module, logkeys.VCL_KURTOSIS, units.nanmedian())

    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """As in validation."""
        self.on_validation_epoch_start(trainer, pl_module)

    def on_test_batch_start(self, *args: Any, **kwargs: Any) -> None:
        """As in validation."""
        self.on_validation_batch_start(*args, **kwargs)

    def on_test_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """As in validation."""
        self._forget_hooks()

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """As in validation."""
        self.on_validation_epoch_end(trainer, pl_module)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave no hook behind."""
        self._forget_hooks()

    def _forget_hooks(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []


def _on_cpu(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {path: value.detach().cpu() for path, value in values.items()}


class Moments:
    """Sums of powers of each unit over all samples, in float64 around the first batch's mean."""

    def __init__(self) -> None:
        self.count = 0
        self._shift: Tensor | None = None
        self._sums: Sequence[Tensor] = ()

    def add(self, x: Tensor) -> None:
        """Samples (N, *)."""
        x = x.double()
        if self._shift is None:
            self._shift = x.mean(0)
            self._sums = [torch.zeros_like(self._shift) for _ in range(4)]
        deviations = x - self._shift
        powers, power = [], deviations
        for total in self._sums:
            powers.append(total + power.sum(0))
            power = power * deviations
        self.count += len(x)
        self._sums = powers

    def of_all_ranks(self) -> Moments:
        """The sums over the samples of all ranks, around the first rank's first mean; all ranks have some."""
        if num_ranks() == 1:
            return self
        assert self._shift is not None
        found = Moments()
        found._shift = of_first_rank(self._shift)
        sums, gap = [torch.full_like(self._shift, self.count), *self._sums], self._shift - found._shift  # by power
        moved = [sum((comb(k, j) * gap ** (k - j) * sums[j] for j in range(k)), sums[k]) for k in range(5)]
        counts, *found._sums = summed(torch.stack(moved)).unbind()
        found.count = int(counts.flatten()[0])
        return found

    def kurtosis(self) -> Tensor:
        """Fourth central moment over squared variance of each unit; NaN for a unit that is constant up to rounding."""
        assert self._shift is not None
        mean, second, third, fourth = (total / self.count for total in self._sums)
        variance = second - mean**2
        central = fourth - 4 * mean * third + 6 * mean**2 * second - 3 * mean**4
        constant = variance <= (1e-6 * self._shift.abs()) ** 2
        return (central / variance**2).masked_fill(constant, torch.nan)
