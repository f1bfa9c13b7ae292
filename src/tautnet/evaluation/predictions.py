"""What a trained network says of samples in raw units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tautnet.errors import ConfigError
from tautnet.evaluation.certificates import NORMS, in_raw_units
from tautnet.evaluation.inputs import Chunk
from tautnet.evaluation.writing import printable
from tautnet.lipschitz.certify import Certifier, margins, two_logits
from tautnet.trained import Trained


@dataclass(frozen=True)
class Classified:
    """What is known of one sample.

    Attributes:
        classes: names of the likeliest classes, best first.
        probabilities: of them, the softmax of the logits.
        margin: logit of the first class less that of the second.
        radius: of the open ball around the sample, in raw units, in which the class provably stays the same; may be
            inf.
    """

    classes: Sequence[str]
    probabilities: Sequence[float]
    margin: float
    radius: float


class Predictor:
    """A network that takes raw values, in float64: what it says is what its certificates hold for.

    Args:
        trained: the network with its preparation.
        norm: of the certified radius, ``l2`` or ``linf``; None for no radii, as of other tasks than classification.
        epsilons: radii to try with local bounds too, which reach farther and take longer.
    """

    def __init__(self, trained: Trained, norm: str | None, epsilons: Sequence[float] = ()) -> None:
        self.preparation, self.epsilons = trained.preparation, sorted(epsilons, reverse=True)
        offset = torch.tensor(self.preparation.offset, dtype=torch.float64)
        scale = torch.tensor(self.preparation.scale, dtype=torch.float64)
        column = (-1, *[1] * (len(trained.model.input_shape) - 1))
        self._offset, self._constant = offset.view(column), (scale == 0).view(column)
        self._net = in_raw_units(trained.model.net, self.preparation.units())
        self._certifier = Certifier(self._net, trained.model.input_shape, NORMS[norm]) if norm else None
        num_logits = max(2, trained.settings["num_outputs"])
        self.classes = [printable(self.preparation.class_name(number)) for number in range(num_logits)]

    def classified(self, chunk: Chunk, top: int = 1) -> list[Classified]:
        """Classes of samples, the ``top`` likeliest ones.

        Raises:
            ConfigError: an output that is not finite.
        """
        x = self._shifted(chunk.raw)
        logits_NK = two_logits(self._outputs(chunk, x))
        best_NT = logits_NK.topk(top).indices
        labels_N = best_NT[:, 0]
        probabilities_NT = logits_NK.softmax(1).gather(1, best_NT).tolist()
        margins_N = margins(logits_NK, labels_N).tolist()
        radii_N = self._radii(x, labels_N).tolist()
        names = [[self.classes[number] for number in row] for row in best_NT.tolist()]
        return [Classified(*found) for found in zip(names, probabilities_NT, margins_N, radii_N, strict=True)]

    def values(self, chunk: Chunk) -> list[list[float]]:
        """Outputs of a regression, in the unit of its target.

        Raises:
            ConfigError: an output that is not finite.
        """
        outputs_NK = self._outputs(chunk, self._shifted(chunk.raw))
        return (outputs_NK * self.preparation.target_scale + self.preparation.target_offset).tolist()

    def images(self, chunk: Chunk) -> Tensor:
        """Outputs of a denoiser, (N, C, H, W) uint8, cut off below 0 and above 255.

        Raises:
            ConfigError: an output that is not finite.
        """
        outputs_NCHW = self._outputs(chunk, self._shifted(chunk.raw))
        return (outputs_NCHW * 255).round().clamp(0, 255).to(torch.uint8)

    def _radii(self, x: Tensor, labels_N: Tensor) -> Tensor:
        assert self._certifier is not None
        radii_N = self._certifier.radii(x, labels_N)
        for eps in self.epsilons:
            (open_M,) = (radii_N < eps).nonzero(as_tuple=True)  # a larger ball holds the smaller one
            if len(open_M):
                proved_M = open_M[self._certifier.certified(x[open_M], labels_N[open_M], eps)]
                radii_N[proved_M] = eps
        return radii_N

    def _shifted(self, raw: Tensor) -> Tensor:
        """Raw values less their offset; what was constant in the training says nothing."""
        return torch.where(self._constant, 0.0, raw - self._offset)

    @torch.no_grad()
    def _outputs(self, chunk: Chunk, x: Tensor) -> Tensor:
        outputs: Tensor = self._net(x.clone())  # a layer may work in place
        finite = outputs.isfinite().flatten(1).all(1)
        if not finite.all():
            path, row = chunk.origins[int((~finite).nonzero()[0, 0])]
            where = path if row is None else f"{path}: row {row}"
            raise ConfigError(
                f"{where}: the network's output is not finite; the values are far from those of the training"
            )
        return outputs
