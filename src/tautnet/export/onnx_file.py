"""A network as an ONNX file of standard operators, which its runtime has tried."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from tautnet.errors import ConfigError

if TYPE_CHECKING:
    import onnx

OPSET = 18
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_NOISE = "torch.onnx._internal.exporter._registration"  # says which operators of torchvision it leaves out


def check_packages() -> None:
    """Raise ConfigError unless what ONNX needs is installed."""
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        cure = "pip install 'tautnet[export]', or choose other formats"
        raise ConfigError(f"--format onnx: needs {', '.join(missing)}, not installed; {cure}")


def write_onnx(program: ExportedProgram, metadata: Mapping[str, Any], path: Path) -> Callable[[Tensor], Tensor]:
    """Write an ONNX file of the standard operators alone, and give it to its runtime.

    The input is ``input``, the output ``output``, their first dimension ``batch``.

    Args:
        program: see ``traced``.
        metadata: plain; each entry becomes a metadata property, its value JSON.
        path: of the file.

    Raises:
        ConfigError: an operator that ONNX does not have, or a model of 2 GiB or more.
    """
    import onnx
    import onnxruntime  # type: ignore[import-untyped]

    model = _converted(program)
    _check_operators(model)
    _strip_(model)
    model.producer_name = "tautnet"
    onnx.helper.set_model_props(model, {name: json.dumps(value, allow_nan=False) for name, value in metadata.items()})
    if model.ByteSize() >= 2**31:
        raise ConfigError(f"--format onnx: {model.ByteSize()} bytes, a single file holds less than 2 GiB")
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(x: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["output"], {"input": x.numpy()})[0])

    return run


def _converted(program: ExportedProgram) -> onnx.ModelProto:
    try:
        with _quiet():
            converted = torch.onnx.export(
                program, dynamo=True, opset_version=OPSET, input_names=["input"], output_names=["output"], verbose=False
            )
    except (torch.onnx.OnnxExporterError, NotImplementedError) as error:
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        raise ConfigError(f"--format onnx: this network has no ONNX form: {reason}") from error
    assert converted is not None
    return converted.model_proto


def _check_operators(model: onnx.ModelProto) -> None:
    others = {f"{node.domain}.{node.op_type}" for node in model.graph.node if node.domain not in ("", "ai.onnx")}
    others |= {f"{function.domain}.{function.name}" for function in model.functions}
    if others:
        raise ConfigError(f"--format onnx: {', '.join(sorted(others))}: no standard operators of ONNX")


def _strip_(model: onnx.ModelProto) -> None:
    """Remove what the exporter noted about the program that made it, paths of this machine among it."""
    graph = model.graph
    graph.ClearField("value_info")
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"


@contextmanager
def _quiet() -> Iterator[None]:
    logger = logging.getLogger(_NOISE)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*LeafSpec.*", FutureWarning)
            yield
    finally:
        logger.setLevel(level)
