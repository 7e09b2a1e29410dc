"""ONNX export: one module, one file per lane, because runtimes disagree on how INT8 is written.

The module is exported once in float32, with a marker wherever it rounds an activation, and turned into the lane's
encoding afterwards, on the ONNX graph. Weights are stored as int8. ONNX nodes carry the path of the original's module
that they are from, and lead back to the graph node: `layer1.0.conv1` is of `layer1_0_conv1`, `layer1.0.relu/relu_3` of
`relu_3`. Several of one graph node carry their kind as well: `fc:MatMul`, `fc:Add`, and `fc:Add:1` where there are two.
"""

from __future__ import annotations

import importlib.util
import re
import tempfile
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx, nn

from eqsat_deploy.deployment import DEFAULT_BATCH, Batch, Signature, deployment, flat_outputs
from eqsat_deploy.engines.onnx.graph import DOMAIN, Exported, all_values
from eqsat_deploy.engines.onnx.lane import Lane
from eqsat_deploy.engines.onnx.qdq import absorb_weight_transposes
from eqsat_deploy.engines.program import export_program, node_origins, prepared
from eqsat_deploy.errors import EngineError
from eqsat_deploy.quantization import (
    FakeQuantize,
    QuantizedConv2d,
    QuantizedConvTranspose2d,
    QuantizedLinear,
)

if TYPE_CHECKING:
    import onnx_ir as ir

# A graph node's, under the path of a module or of a module whose only node it is.
NAME = re.compile(r"[\w.]+(/\w+)?")
PRODUCER = "eqsat-deploy"
MARKER = "FakeQuantize"
# Before opset 23 the exporter writes attention as MatMul, Softmax, MatMul with the scale on query and key,
# which is the form TensorRT's fusion asks for; from 23 on it is one Attention node, which TensorRT reads from
# 10.14 on.
OPSET = 21
ATTENTION_OPSET = 23
# ONNX Runtime 1.22 and TensorRT 10.13 read IR version 10 (onnx 1.16); newer files add nothing used here.
IR_VERSION = 10
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
        opset: ONNX opset, 21 unless given; 23 keeps attention as one operator.

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
    exported = _export_float(graph, signature.wide, opset or OPSET)
    absorb_weight_transposes(exported)
    _fold_constants(exported.model)
    _name(exported.model, exported.inputs)
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


class _Marker(nn.Module):
    """Becomes a node of a private ONNX domain that says which quantizer rounds the value."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.index = index

    def forward(self, values: Tensor) -> Tensor:
        marked: Tensor = torch.onnx.ops.symbolic(
            f"{DOMAIN}::{MARKER}",
            (values,),
            {"index": self.index},
            dtype=values.dtype,
            shape=values.shape,
            version=1,
        )
        return marked


def _export_float(graph: fx.GraphModule, signature: Signature, opset: int) -> Exported:
    activations, weights = _replace_quantizers(graph)
    program = export_program(graph, signature)
    origins, names = node_origins(program.graph), _names(graph)
    for node in program.graph.nodes:
        # The ONNX exporter keeps a node's stack trace, and nothing else that is ours to set.
        node.meta["stack_trace"] = names.get(origins.get(node.name, ""), "")
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            converted = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=opset,
                input_names=[spec.name for spec in signature.inputs],
                output_names=[f"output_{index}" for index in range(len(flat_outputs(graph)))],
                external_data=False,
                optimize=False,
                verbose=False,
            )
    except Exception as error:  # the exporter's errors have no common base
        raise EngineError(f"the module has no ONNX form at opset {opset}: {_reason(error)}") from error
    assert converted is not None
    model = converted.model
    model.ir_version = IR_VERSION
    model.producer_name = PRODUCER
    model.producer_version = None
    for initializer in list(model.graph.initializers.values()):
        initializer.name = str(initializer.name).removeprefix("module.")
    return Exported(model, [spec.name for spec in signature.inputs], activations, weights)


def _reason(error: BaseException) -> str:
    """The first line of the innermost cause: the exporter wraps it into pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"


def _replace_quantizers(graph: fx.GraphModule) -> tuple[list[FakeQuantize], dict[str, FakeQuantize]]:
    """Markers for activation quantizers; weight quantizers are taken out, and returned by parameter name."""
    activations: list[FakeQuantize] = []
    weights: dict[str, FakeQuantize] = {}
    for name, module in list(graph.named_modules()):
        match module:
            case QuantizedConv2d() | QuantizedConvTranspose2d() | QuantizedLinear():
                weights[f"{name}.weight"] = module.weight_quantizer
                module.weight_quantizer = nn.Identity()  # type: ignore[assignment]
                # A parameter of its own, even where a float layer shares it.
                module.weight = nn.Parameter(module.weight.detach(), requires_grad=False)
    for node in graph.graph.nodes:
        if node.op != "call_module":
            continue
        quantizer = graph.get_submodule(str(node.target))
        if isinstance(quantizer, FakeQuantize):
            graph.add_submodule(str(node.target), _Marker(len(activations)))
            activations.append(quantizer)
    return activations, weights


def _names(graph: fx.GraphModule) -> dict[str, str]:
    """What to call the graph nodes, as `nodes_of` reads it: the path of the original's module, and of the node itself
    what that does not say. What is from no module is under that of the last of its operands."""
    modules = deployment(graph).modules
    order = {node: position for position, node in enumerate(graph.graph.nodes)}
    paths: dict[str, str] = {}
    for node in order:
        last = max(node.all_input_nodes, key=order.__getitem__, default=None)
        path = modules.get(node.name, "" if last is None else paths[last.name])
        paths[node.name] = re.sub(r"[^\w.]", "_", path)
    return {
        name: path if path.replace(".", "_") == name else f"{path}/{name}".removeprefix("/")
        for name, path in paths.items()
    }


def _name(model: ir.Model, inputs: list[str]) -> None:
    """Names nodes after their graph nodes and the batch size `batch`; drops metadata, which has paths."""
    import onnx_ir as ir

    for value, name in zip(model.graph.inputs, inputs, strict=True):
        value.name = name  # exporter and optimizer rename an input that is an output, too
    public = {value.name for value in (*model.graph.inputs, *model.graph.outputs)}
    nodes = list(ir.traversal.RecursiveGraphIterator(model.graph))
    sources = [node.metadata_props.get("pkg.torch.onnx.stack_trace", "") for node in nodes]
    several = Counter(sources)
    counts: Counter[str] = Counter()
    for node, source in zip(nodes, sources, strict=True):
        if not NAME.fullmatch(source):
            name = node.op_type
        elif several[source] > 1:
            name = f"{source}:{node.op_type}"
        else:
            name = source
        node.name = f"{name}:{counts[name]}" if counts[name] else name
        counts[name] += 1
        node.metadata_props.clear()
        node.doc_string = None
        for index, value in enumerate(node.outputs):
            if value.name not in public:
                value.name = f"{node.name}:{index}" if index else node.name
    for value in all_values(model.graph):
        value.metadata_props.clear()
        value.doc_string = None
        if value.shape is not None:
            dims = [
                size if isinstance(size, int) else ir.SymbolicDim(_size_name(size)) for size in value.shape
            ]
            value.shape = ir.Shape(dims)
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.graph.name = "model"


def _size_name(size: ir.SymbolicDim) -> str | None:
    """`batch` for the symbol of the batch; sizes computed from it keep their formula over it."""
    return re.sub(r"\bs\d+\b", "batch", str(size.value)) if size.value is not None else None


def _fold_constants(model: ir.Model) -> None:
    """Evaluates what depends on constants alone: small results, and transposed float weights."""
    from onnxscript import optimizer

    named = set(model.graph.initializers)
    for node in model.graph:
        weight = node.inputs[0] if node.op_type == "Transpose" else None
        if (
            weight is not None
            and weight.is_initializer()
            and (name := f"{weight.name}_transposed") not in named
        ):
            node.outputs[0].name = name
            named.add(name)
    optimizer.optimize_ir(
        model,
        onnx_shape_inference=False,
        inline=False,
        output_size_limit=2**31,
        should_fold=lambda node: node.op_type == "Transpose" or None,
    )


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
