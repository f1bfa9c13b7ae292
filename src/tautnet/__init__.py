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


def load(path: Path | str, which: str = "tested", allow: Sequence[str] = ()) -> nn.Module:
    """The network of a run or of an export, in eval mode on the CPU; nothing in the files is executed.

    It takes inputs as it was trained on them, standardised; ``tautnet.trained.open_trained`` also says how, and so
    does ``about`` in the ``config.json`` of an export.

    Args:
        path: of a run's directory, of a checkpoint, or of a folder with the ``model.safetensors`` and ``config.json``
            of ``tautnet export``.
        which: checkpoint of a run's directory: ``tested``, the weights that the run's own test had, or ``last``,
            ``best``, ``sparse``, ``recalibrated``.
        allow: packages or modules of your own whose classes the settings may name.

    Raises:
        tautnet.errors.ConfigError: no such run or file, or one that cannot be used.
    """
    path = Path(path)
    path = path.parent if path.name == "model.safetensors" else path
    if path.is_dir() and not (path / "checkpoints").is_dir() and (path / "config.json").exists():
        from tautnet.export.weights import load_exported  # torch, Lightning

        if which != "tested":
            from tautnet.errors import ConfigError

            raise ConfigError(f"which={which}: chooses among the checkpoints of a run; {path} is an export")
        return load_exported(path, allow)
    from tautnet.trained import open_trained  # torch, Lightning

    return open_trained(path, which, allow).model.net
