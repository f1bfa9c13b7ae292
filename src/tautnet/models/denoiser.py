"""Image denoising."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

from torch import Tensor
from torch.nn import functional as F
from torchmetrics.image import PeakSignalNoiseRatio

from tautnet import logkeys
from tautnet.factories import Task
from tautnet.models.base import AbstractModel
from tautnet.models.stage_metrics import stage_metrics


class Denoiser(AbstractModel):
    """From a noisy image to the clean one: mean squared error, with the PSNR of each image as metric.

    Pixels are in [0, 1], the peak is 1; outputs are not clipped.

    Args:
        config: see ``AbstractModel``; ``num_outputs`` is the number of image channels.
    """

    task: ClassVar[Task] = "denoising"

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        self.psnrs = stage_metrics(
            partial(PeakSignalNoiseRatio, data_range=1.0, reduction="elementwise_mean", dim=(1, 2, 3))
        )

    def task_loss(self, batch: tuple[Tensor, Tensor], stage: str) -> Tensor:
        """Mean squared error over the batch of noisy and clean images, (N, C, H, W) both."""
        noisy, clean = batch
        outputs = self(noisy)
        self.log_metric(logkeys.psnr(stage), self.psnrs[f"{stage}_"], outputs, clean)
        return F.mse_loss(outputs, clean)
