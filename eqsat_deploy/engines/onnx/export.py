"""ONNX export: one module, one file per lane, because runtimes disagree on how INT8 is written.

The module is written once in float32, with a marker wherever it rounds an activation, and turned into the lane's
encoding afterwards, on the ONNX graph. Weights are stored as int8. ONNX nodes carry the path of the original's module
that they are from, and lead back to the graph node: `layer1.0.conv1` is of `layer1_0_conv1`, `layer1.0.relu/relu_3` of
`relu_3`. Several of one graph node carry their kind as well: `fc:MatMul`, `fc:Add`, and `fc:Add:1` where there are two.
"""

from __future__ import annotations

import importlib.util
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from torch import fx

from eqsat_deploy.deployment import DEFAULT_BATCH, Batch, Signature
from eqsat_deploy.engines.onnx.attention import OPSET
from eqsat_deploy.engines.onnx.graph import Exported
from eqsat_deploy.engines.onnx.lane import Lane
from eqsat_deploy.engines.onnx.model import NAME, written
from eqsat_deploy.engines.program import prepared
from eqsat_deploy.errors import EngineError

LARGEST = 2**31 - 2**20  # bytes of weights in one file, whose protobuf ends at 2 GiB


@dataclass(frozen=True)
class OnnxFile:
    """A serialized ONNX model, how the module is called that it is of, and what it computes otherwise on purpose, a
    sentence each."""

    model: bytes
    signature: Signature
    changes: tuple[str, ...]


@dataclass(frozen=True)
class SavedOnnx:
    """The files of an ONNX model, the one to open last, and of what, as in `OnnxFile`."""

    files: tuple[Path, ...]
    signature: Signature
    changes: tuple[str, ...]


def missing_packages() -> str | None:
    """What has to be installed before a module can be exported; None when nothing is missing."""
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    return f"{' and '.join(missing)} not installed: pip install {' '.join(missing)}" if missing else None


def export_onnx(
    module: fx.GraphModule, *, lane: Lane, batch: Batch = DEFAULT_BATCH, opset: int | None = None
) -> OnnxFile:
    """`module` as a serialized ONNX model for `lane`; always the same bytes.

    Inputs and outputs have the module's shapes and dtypes, and a symbolic `batch` dimension. Inputs are named
    as in its record, outputs `output_0`, `output_1`, ... in the order of `flat_outputs`.
    Quantizers become what the lane has an encoding for: symmetric int8 for TensorRT, uint8 for ONNX Runtime.
    `module` is left as it is.

    Args:
        module: a rebuilt or quantized module.
        lane: the runtime that will read the file.
        batch: the typical size must be one the module accepts.
        opset: ONNX opset, 21, the oldest, unless given; 23 keeps attention as one operator.

    Raises:
        EngineError: the module has no ONNX form (the message names the operator), or exceeds the 2 GB of one
        file.
    """
    exported, signature = convert(module, lane, batch, opset)
    if (size := _drop_unused(exported)) > LARGEST:
        raise EngineError(
            f"the ONNX file would hold {size / 2**30:.1f} GB; one file holds 2: see `save_onnx`"
        )
    return OnnxFile(_serialized(exported), signature, tuple(exported.changes))


def save_onnx(
    module: fx.GraphModule,
    path: Path,
    *,
    lane: Lane,
    batch: Batch = DEFAULT_BATCH,
    opset: int | None = None,
    largest: int = LARGEST,
) -> SavedOnnx:
    """Write what `export_onnx` gives to `path`; weights of over `largest` bytes to a file of their own beside it,
    called as it with `.data` added. Both files are there when it returns, or neither is changed.

    Raises:
        EngineError: the module has no ONNX form, or `path` cannot be written.
    """
    import onnx_ir as ir

    exported, signature = convert(module, lane, batch, opset)
    outside = f"{path.name}.data" if _drop_unused(exported) > largest else None
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as folder:
            if outside is None:
                Path(folder, path.name).write_bytes(_serialized(exported))
            else:
                ir.save(exported.model, Path(folder, path.name), external_data=outside)
            names = [outside, path.name] if outside else [path.name]  # the file that reads the other one last
            files = tuple(Path(folder, name).replace(path.parent / name) for name in names)
    except OSError as error:
        raise EngineError(f"cannot write {path}: {error}") from error
    return SavedOnnx(files, signature, tuple(exported.changes))


def convert(
    module: fx.GraphModule, lane: Lane, batch: Batch, opset: int | None
) -> tuple[Exported, Signature]:
    """`module` as the ONNX graph of `lane`, and how it is called."""
    if (reason := missing_packages()) is not None:
        raise EngineError(f"ONNX export needs packages: {reason}")
    graph, signature = prepared(module, batch)
    exported = written(graph, signature.wide, opset or OPSET)
    lane.finalize(exported)
    return exported, signature


def nodes_of(layer: str) -> tuple[str, ...]:
    """The graph nodes named in a runtime's `layer` name, in its order.

    Runtimes join ONNX node names ("conv1 + relu") and append to them ("conv1_token_7"); names of conversions
    and of layers that the runtime made up are left out.
    """
    pieces = re.split(r" \+ |[\[\],\x1e]|ONNX Layer: ", layer)
    names = (re.sub(r"(_token_\d+|(_mul)?_nchwc|/duplicated)+$", "", piece.strip()) for piece in pieces)
    conversion = ("_quantize", "_dequantize", "_half", "_float")
    computing = (re.sub(r"(:\w+)+$", "", name) for name in names if not name.endswith(conversion))
    found = (name.rpartition("/")[2].replace(".", "_") for name in computing if NAME.fullmatch(name))
    return tuple(dict.fromkeys(found))


def _drop_unused(exported: Exported) -> int:
    """Takes out weights that nothing reads; bytes of those that are left."""
    graph = exported.graph
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]
    values = graph.initializers.values()
    return sum(value.const_value.nbytes for value in values if value.const_value is not None)


def _serialized(exported: Exported) -> bytes:
    import onnx_ir as ir

    serialized: bytes = ir.to_proto(exported.model).SerializeToString(deterministic=True)
    return serialized
