"""tautnet: neural networks with learned non-linearities and controlled behaviour.

The package itself imports nothing heavy, so that the command line answers at once; import what you need from
``tautnet.activations``, ``tautnet.normalizers``, ``tautnet.lipschitz`` and the other sub-packages. ``tautnet.load``
brings back what a run has trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def load(path: Path | str, which: str = "last", allow: Sequence[str] = ()) -> nn.Module:
    """The network of a run, in eval mode on the CPU; nothing in the run's files is executed.

    It takes inputs as it was trained on them, standardised; ``tautnet.trained.open_trained`` also says how.

    Args:
        path: of a run's directory or of a checkpoint.
        which: checkpoint of a directory: ``last``, the weights that were tested, or ``best``, ``sparse``, …
        allow: packages or modules of your own whose classes the run's settings may name.

    Raises:
        tautnet.errors.ConfigError: no such run or file, or one that cannot be used.
    """
    from tautnet.trained import open_trained  # torch, Lightning

    return open_trained(path, which, allow).model.net
