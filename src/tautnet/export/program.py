"""A network as a graph of torch's own operators, and as a .pt2 file that torch alone loads."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from tautnet.errors import ConfigError

METADATA = "tautnet.json"  # among the extra files of a .pt2
_NAMESPACES = ("aten", "_operator", "prims")


@torch.no_grad()
def traced(net: nn.Module, input_shape: Sequence[int]) -> ExportedProgram:
    """The graph of a plain network for batches of any size, without traces of where it was made.

    Args:
        net: as ``plain_net`` gives it.
        input_shape: of one sample.

    Raises:
        ConfigError: what torch.export cannot trace, or operators that torch alone does not have.
    """
    try:
        with _quiet():
            program = torch.export.export(net, (torch.zeros(2, *input_shape),), dynamic_shapes=({0: Dim("batch")},))
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"torch.export cannot trace this network: {reason}") from error
    for node in list(program.graph.nodes):
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            program.graph.erase_node(node)  # it would bind the graph to this processor
        elif node.op == "call_function" and _namespace(node.target) not in _NAMESPACES:
            raise ConfigError(f"{node.target}: an operator that torch alone does not have")
        node.meta.pop("stack_trace", None)  # names files of this machine
    return program


def _namespace(target: Any) -> str:
    return target.namespace if isinstance(target, torch._ops.OpOverload) else str(target.__module__)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without a warning about torch's own use of what it deprecates."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*LeafSpec.*", FutureWarning)
        yield


def write_pt2(program: ExportedProgram, metadata: Mapping[str, Any], path: Path) -> Callable[[Tensor], Tensor]:
    """Write a .pt2 file with the metadata beside the graph, and load it again.

    Args:
        program: see ``traced``.
        metadata: plain; becomes the extra file ``METADATA``, JSON.
        path: of the file.
    """
    text = json.dumps(metadata, indent=1, allow_nan=False)
    with _quiet():
        torch.export.save(program, path, extra_files={METADATA: text})
        loaded = torch.export.load(path)
    return loaded.module()
