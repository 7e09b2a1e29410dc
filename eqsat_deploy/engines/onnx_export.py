"""ONNX export: one quantized module, one file per lane, because runtimes disagree on how INT8 is written.

The module is exported once in float32, with a marker wherever it rounds an activation, and turned into the
lane's encoding afterwards, on the ONNX graph:

- `tensorrt`: symmetric int8 with zero point 0, and everything else in FP16, scales included. Under strong
  typing a DequantizeLinear returns the type of its scale: float32 scales would make all else float32.
- `onnxruntime`: float32, uint8 activations, every operand of a residual sum quantized, no bias in a matrix
  product. ONNX Runtime runs in float what deviates from that.

Weights are stored as int8 in both. ONNX nodes carry the names of the graph nodes they come from (`conv1`,
`conv1:1`).
"""

from __future__ import annotations

import copy
import importlib.util
import itertools
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn

from eqsat_deploy.deployment import DEFAULT_BATCH, Batch, Signature, flat_outputs
from eqsat_deploy.engines.program import export_program, node_origins
from eqsat_deploy.errors import EngineError, UnknownNameError
from eqsat_deploy.quantization import (
    FakeQuantize,
    QuantizedConv2d,
    QuantizedConvTranspose2d,
    QuantizedLinear,
)

if TYPE_CHECKING:
    import onnx_ir as ir

Array = npt.NDArray[Any]

PRODUCER = "eqsat-deploy"
MARKER = "FakeQuantize"
DOMAIN = "eqsat_deploy"
# Before opset 23 the exporter writes attention as MatMul, Softmax, MatMul with the scale on query and key,
# which is the form TensorRT's fusion asks for; from 23 on it is one Attention node, which TensorRT reads from
# 10.14 on.
OPSET = 21
ATTENTION_OPSET = 23
# ONNX Runtime 1.22 and TensorRT 10.13 read IR version 10 (onnx 1.16); newer files add nothing used here.
IR_VERSION = 10
LARGEST_HALF = float(np.finfo(np.float16).max)
# A value that passes these has the codes it had before: quantization commutes with them.
MOVEMENT = frozenset(
    {"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Split", "Identity", "MaxPool"}
)
# These inputs stay float32 whatever the tensors are, by the operator's specification.
FLOAT32_INPUTS = {"Resize": (1, 2)}


def missing_packages() -> str | None:
    """What has to be installed before a module can be exported; None when nothing is missing."""
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    return f"{' and '.join(missing)} not installed: pip install {' '.join(missing)}" if missing else None


def export_onnx(
    module: fx.GraphModule, *, lane: str, batch: Batch = DEFAULT_BATCH, opset: int | None = None
) -> bytes:
    """`module` as a serialized ONNX model for `lane` ("tensorrt", "onnxruntime"); always the same bytes.

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
        file. UnknownNameError: there is no such lane.
    """
    if lane not in LANES:
        raise UnknownNameError("ONNX lane", lane, LANES)
    if (reason := missing_packages()) is not None:
        raise EngineError(f"ONNX export needs packages: {reason}")
    exported = _export_float(module, batch, opset or OPSET)
    _absorb_weight_transposes(exported)
    _fold_constants(exported.model)
    _name(exported.model, exported.inputs)
    LANES[lane](exported)
    return _serialize(exported)


def nodes_of(layer: str) -> tuple[str, ...]:
    """The graph nodes named in a runtime's `layer` name, in its order.

    Runtimes join ONNX node names ("conv1 + relu") and append to them ("conv1_token_7"); names of conversions
    and of layers that the runtime made up are left out.
    """
    pieces = re.split(r" \+ |[\[\],\x1e]|ONNX Layer: ", layer)
    names = (re.sub(r"(_token_\d+|/duplicated|:\w+)+$", "", piece.strip()) for piece in pieces)
    conversion = ("_quantize", "_dequantize", "_half", "_float")
    found = (name for name in names if name.isidentifier() and not name.endswith(conversion))
    return tuple(dict.fromkeys(found))


@dataclass
class _Exported:
    """A float32 ONNX graph with markers, its input names, and the quantizers by marker and by initializer."""

    model: ir.Model
    inputs: list[str]
    activations: list[FakeQuantize]
    weights: dict[str, FakeQuantize]

    @property
    def graph(self) -> ir.Graph:
        return self.model.graph


# --- torch to float32 ONNX with markers
# ---------------------------------------------------------------------------


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


def _export_float(module: fx.GraphModule, batch: Batch, opset: int) -> _Exported:
    signature = Signature.of(module, batch)
    graph = copy.deepcopy(module).cpu().eval()
    activations, weights = _replace_quantizers(graph)
    program = export_program(graph, signature)
    origins = node_origins(program)
    for node in program.graph.nodes:
        # The ONNX exporter keeps a node's stack trace, and nothing else that is ours to set.
        node.meta["stack_trace"] = origins.get(node.name, "")
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
    return _Exported(model, [spec.name for spec in signature.inputs], activations, weights)


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


def _name(model: ir.Model, inputs: list[str]) -> None:
    """Names nodes after their graph nodes and the batch size `batch`; drops metadata, which has paths."""
    import onnx_ir as ir

    for value, name in zip(model.graph.inputs, inputs, strict=True):
        value.name = name  # exporter and optimizer rename an input that is an output, too
    public = {value.name for value in (*model.graph.inputs, *model.graph.outputs)}
    counts: dict[str, int] = {}
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        source = node.metadata_props.get("pkg.torch.onnx.stack_trace") or node.op_type
        source = source if source.isidentifier() else node.op_type
        count = counts[source] = counts.get(source, -1) + 1
        node.name = f"{source}:{count}" if count else source
        node.metadata_props.clear()
        node.doc_string = None
        for index, value in enumerate(node.outputs):
            if value.name not in public:
                value.name = f"{node.name}:{index}" if index else node.name
    for value in _values(model.graph):
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


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    import onnx_ir as ir

    seen: set[int] = set()
    candidates = itertools.chain(
        graph.inputs,
        graph.initializers.values(),
        (value for node in ir.traversal.RecursiveGraphIterator(graph) for value in node.outputs),
    )
    for value in candidates:
        if id(value) not in seen:
            seen.add(id(value))
            yield value


def _fold_constants(model: ir.Model) -> None:
    """Evaluates what depends on constants alone: small results, and transposed float weights."""
    from onnxscript import optimizer

    optimizer.optimize_ir(
        model,
        onnx_shape_inference=False,
        inline=False,
        output_size_limit=2**31,
        should_fold=lambda node: node.op_type == "Transpose" or None,
    )


# --- Q/DQ
# ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Encoding:
    """Codes of an activation: `value = (code - zero_point) * scale`, stored as int8 or uint8."""

    scale: float
    zero_point: int
    unsigned: bool

    @property
    def low(self) -> float:
        return ((0 if self.unsigned else -128) - self.zero_point) * self.scale

    @property
    def high(self) -> float:
        return ((255 if self.unsigned else 127) - self.zero_point) * self.scale


def _encoding(quantizer: FakeQuantize) -> _Encoding:
    return _Encoding(float(quantizer.step), int(quantizer.zero_point), quantizer.unsigned)


def _symmetric(encoding: _Encoding) -> _Encoding:
    """The narrowest int8 encoding with zero point 0 that covers `encoding`."""
    if encoding.zero_point == 0 and not encoding.unsigned:
        return encoding
    return _Encoding(max(-encoding.low, encoding.high) / 127, 0, False)


def _absorb_weight_transposes(exported: _Exported) -> None:
    """Stores a quantized weight the way its reader wants it, so that nothing stands between the two."""
    graph = exported.graph
    for name in list(exported.weights):
        if name not in graph.initializers:
            raise EngineError(f"the exporter lost the quantized weight {name!r}")
        readers = graph.initializers[name].consumers()
        if len(readers) == 1 and readers[0].op_type == "Transpose":
            permutation = [int(axis) for axis in readers[0].attributes["perm"].as_ints()]
            _replace(readers[0], _transposed(exported, name, permutation))


def _transposed(exported: _Exported, name: str, permutation: list[int]) -> ir.Value:
    """The quantized weight `name` with its axes permuted, as an initializer of its own."""
    quantizer = copy.copy(exported.weights[name])
    quantizer.axis = permutation.index(cast(int, quantizer.axis))
    exported.weights[f"{name}_transposed"] = quantizer
    array = _array(exported.graph.initializers[name]).transpose(permutation)
    return _constant(exported.graph, f"{name}_transposed", array)


def _quantize_activations(
    exported: _Exported, encode: Callable[[ir.Node, _Encoding], _Encoding], scale: type
) -> None:
    """Replaces markers by QuantizeLinear and DequantizeLinear; `scale` is the NumPy type of scales."""
    for node in list(exported.graph):
        if node.domain != DOMAIN:
            continue
        source, quantizer = node.inputs[0], exported.activations[node.attributes["index"].as_int()]
        assert source is not None
        if quantizer.axis is not None:
            _quantize_constant(exported, node, quantizer, scale)
        else:
            replacement = _insert_pair(
                exported.graph, source, encode(node, _encoding(quantizer)), node, scale
            )
            _replace(node, replacement)
    exported.graph.opset_imports.pop(DOMAIN, None)


def _quantize_weights(exported: _Exported, scale: type) -> None:
    graph = exported.graph
    for name, quantizer in exported.weights.items():
        weight = graph.initializers.get(name)
        if weight is None or not weight.uses():  # replaced by its transpose
            continue
        uses = [(use.node, use.idx) for use in weight.uses()]
        stored = _dequantized(graph, name, _array(weight), quantizer, uses[0][0], scale)
        for reader, position in uses:
            reader.replace_input_with(position, stored)


def _quantize_constant(exported: _Exported, marker: ir.Node, quantizer: FakeQuantize, scale: type) -> None:
    """A weight that reaches its reader through a marker: of a functional call."""
    source = marker.inputs[0]
    if source is None or source.const_value is None:
        raise EngineError(f"{marker.name!r} rounds per channel what is not a constant; only weights can be")
    name = str(source.name)
    _replace(marker, _dequantized(exported.graph, name, _array(source), quantizer, marker, scale))
    if not source.uses():
        exported.graph.initializers.pop(name, None)


def _dequantized(
    graph: ir.Graph, name: str, weight: Array, quantizer: FakeQuantize, reader: ir.Node, scale: type
) -> ir.Value:
    """An int8 initializer and its DequantizeLinear, before `reader`."""
    assert quantizer.axis is not None
    axis = quantizer.axis % weight.ndim
    step = _positive(quantizer.step.cpu().numpy().astype(np.float64), scale, up=True)
    shape = [-1 if dim == axis else 1 for dim in range(weight.ndim)]
    codes = np.clip(np.rint(weight / step.astype(np.float64).reshape(shape)), -128, 127).astype(np.int8)
    inputs = [
        _constant(graph, f"{name}_int8", codes),
        _constant(graph, f"{name}_scale", step),
        _constant(graph, f"{name}_zero_point", np.zeros(step.shape, np.int8)),
    ]
    return _insert(graph, reader, "DequantizeLinear", inputs, f"{name}_dequantize", {"axis": axis})


def _insert_pair(
    graph: ir.Graph, source: ir.Value, encoding: _Encoding, before: ir.Node, scale: type
) -> ir.Value:
    name = str(source.name)
    step = _constant(graph, f"{name}_scale", _positive(np.array(encoding.scale), scale))
    zero = np.array(encoding.zero_point, np.uint8 if encoding.unsigned else np.int8)
    zero_point = _constant(graph, f"{name}_zero_point", zero)
    codes = _insert(graph, before, "QuantizeLinear", [source, step, zero_point], f"{name}_quantize")
    return _insert(graph, before, "DequantizeLinear", [codes, step, zero_point], f"{name}_dequantize")


def _positive(scale: Array, dtype: type, *, up: bool = False) -> Array:
    """`scale` in `dtype`, never 0, which runtimes refuse; `up` rounds up, so that no code is clipped."""
    rounded: Array = scale.astype(dtype)
    if up:
        rounded = np.where(rounded < scale, np.nextafter(rounded, dtype(np.inf)), rounded).astype(dtype)
    return np.asarray(np.maximum(rounded, np.finfo(dtype).smallest_subnormal), dtype=dtype)


# --- lanes
# ---------------------------------------------------------------------------------------------------------


def _finalize_tensorrt(exported: _Exported) -> None:
    _quantize_weights(exported, np.float16)
    _quantize_activations(exported, lambda marker, encoding: _symmetric(encoding), np.float16)
    _to_half(exported.model)  # last: weights are rounded once


def _finalize_onnxruntime(exported: _Exported) -> None:
    _split_bias(exported)
    _quantize_weights(exported, np.float32)
    _quantize_activations(exported, _unsigned, np.float32)
    _quantize_residual_edges(exported.graph)


def _unsigned(marker: ir.Node, encoding: _Encoding) -> _Encoding:
    """uint8 throughout, which ONNX Runtime's x86 kernels are for.

    After a ReLU the same scale covers 0..255, so that nothing is lost and the ReLU in front goes. Elsewhere the
    codes move up by 128. Left to itself ONNX Runtime does that, too, but 1.32 then rejects its own graph where it
    also moved a DequantizeLinear over a reshape ("output_dtype INT8 does not match y_zero_point type UINT8").
    """
    if encoding.unsigned:
        return encoding
    if encoding.zero_point == 0 and _never_negative(marker.inputs[0]):
        return _Encoding(encoding.scale, 0, True)
    return _Encoding(encoding.scale, encoding.zero_point + 128, True)


def _never_negative(value: ir.Value | None) -> bool:
    producer = value.producer() if value is not None else None
    if producer is None:
        return False
    return producer.op_type == "Relu" or (
        producer.op_type in MOVEMENT and _never_negative(producer.inputs[0])
    )


def _split_bias(exported: _Exported) -> None:
    """A quantized Gemm becomes MatMul and Add: ONNX Runtime has no integer Gemm with a float bias."""
    graph = exported.graph
    for name in [name for name in exported.weights if name in graph.initializers]:
        weight = graph.initializers[name]
        for node in [reader for reader in weight.consumers() if reader.op_type == "Gemm"]:
            # The exporter writes x @ w.T + b, with alpha and beta 1.
            stored = _transposed(exported, name, [1, 0])
            result = _insert(graph, node, "MatMul", [node.inputs[0], stored], f"{node.name}:matmul")
            if len(node.inputs) > 2:
                result = _insert(graph, node, "Add", [result, node.inputs[2]], f"{node.name}:bias")
            _replace(node, result)


def _quantize_residual_edges(graph: ir.Graph) -> None:
    """Quantizes a convolution that adds to a quantized tensor where the sum is quantized, too.

    ONNX Runtime runs a convolution in integers only if its result is quantized. The range follows from the
    others: a term outside [low(sum) - high(other), high(sum) - low(other)] is clipped in the sum whatever it
    is.
    """
    for node in list(graph):
        if node.op_type != "Add" or (total := _encoding_after(node.outputs[0])) is None:
            continue
        for position, other in ((0, 1), (1, 0)):
            term, partner = node.inputs[position], node.inputs[other]
            producer = term.producer() if term is not None else None
            if producer is None or producer.op_type != "Conv" or len(term.uses()) != 1:  # type: ignore[union-attr]
                continue
            if (known := _encoding_before(partner)) is None:
                continue
            low, high = total.low - known.high, total.high - known.low
            scale = (high - low) / 255
            encoding = _Encoding(scale, round(-low / scale), True)
            node.replace_input_with(position, _insert_pair(graph, term, encoding, node, np.float32))  # type: ignore[arg-type]


def _encoding_after(value: ir.Value) -> _Encoding | None:
    """The encoding that `value` is stored in, at once or after a ReLU."""
    for reader in value.consumers():
        if reader.op_type == "QuantizeLinear":
            return _read_encoding(reader)
    readers = value.consumers()
    return (
        _encoding_after(readers[0].outputs[0]) if len(readers) == 1 and readers[0].op_type == "Relu" else None
    )


def _encoding_before(value: ir.Value | None) -> _Encoding | None:
    producer = value.producer() if value is not None else None
    return (
        _read_encoding(producer) if producer is not None and producer.op_type == "DequantizeLinear" else None
    )


def _read_encoding(node: ir.Node) -> _Encoding:
    scale, zero_point = (_array(cast("ir.Value", value)) for value in node.inputs[1:3])
    return _Encoding(float(scale), int(zero_point), zero_point.dtype == np.uint8)


# --- FP16
# ----------------------------------------------------------------------------------------------------------


def _to_half(model: ir.Model) -> None:
    """Every float32 tensor becomes FP16, between casts at the inputs and outputs, which keep their types."""
    import onnx_ir as ir

    graph = model.graph
    public = {id(value) for value in (*graph.inputs, *graph.outputs)}
    for value in _values(graph):
        if value.dtype == ir.DataType.FLOAT and id(value) not in public:
            value.type = ir.TensorType(ir.DataType.FLOAT16)
        if value.is_initializer() and value.const_value is not None:
            value.const_value = _halved(value.const_value)
    for node in list(ir.traversal.RecursiveGraphIterator(graph)):
        for name, attribute in list(node.attributes.items()):
            if attribute.type == ir.AttributeType.TENSOR:
                node.attributes[name] = ir.AttrTensor(name, _halved(attribute.as_tensor()))
            elif name == "value_float" or name == "value_floats":
                floats = np.asarray(attribute.value, np.float32)
                node.attributes["value"] = ir.AttrTensor("value", _halved(ir.Tensor(floats)))
                del node.attributes[name]
            elif name in ("to", "dtype") and attribute.as_int() == int(ir.DataType.FLOAT):
                node.attributes[name] = ir.AttrInt64(name, int(ir.DataType.FLOAT16))
        for position in FLOAT32_INPUTS.get(node.op_type, ()):
            operand = node.inputs[position] if position < len(node.inputs) else None
            if operand is not None and operand.name:
                cast_name = f"{node.name}:float{position}"
                node.replace_input_with(
                    position, _insert(graph, node, "Cast", [operand], cast_name, {"to": 1})
                )
    _cast_interface(graph)


def _cast_interface(graph: ir.Graph) -> None:
    import onnx_ir as ir

    first = graph[0]
    for value in graph.inputs:
        uses = list(value.uses())
        if value.dtype != ir.DataType.FLOAT or not uses:
            continue
        narrow = _insert(
            graph, first, "Cast", [value], f"{value.name}_half", {"to": int(ir.DataType.FLOAT16)}
        )
        for use in uses:
            use.node.replace_input_with(use.idx, narrow)
    for index, value in enumerate(graph.outputs):
        if value.dtype != ir.DataType.FLOAT or value.is_graph_input():
            continue
        wide = ir.node("Cast", [value], {"to": int(ir.DataType.FLOAT)}, name=f"{value.name}_float")
        wide.outputs[0].name, wide.outputs[0].shape = value.name, value.shape
        wide.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        value.name, value.type = f"{value.name}_half", ir.TensorType(ir.DataType.FLOAT16)
        graph.append(wide)
        graph.outputs[index] = wide.outputs[0]


def _halved(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """`tensor` in FP16 if it is float32; finite values beyond the FP16 range (masks) become its greatest."""
    import onnx_ir as ir

    if tensor.dtype != ir.DataType.FLOAT:
        return tensor
    values = tensor.numpy()
    clipped = np.where(np.isfinite(values), np.clip(values, -LARGEST_HALF, LARGEST_HALF), values)
    return ir.Tensor(clipped.astype(np.float16), name=tensor.name)


# --- graph editing
# -------------------------------------------------------------------------------------------------


def _constant(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    """An initializer called `name`, which is reused when it exists."""
    import onnx_ir as ir

    if name in graph.initializers:
        return graph.initializers[name]
    value = ir.val(name, const_value=ir.Tensor(np.ascontiguousarray(array).reshape(array.shape), name=name))
    graph.register_initializer(value)
    return value


def _insert(
    graph: ir.Graph,
    before: ir.Node,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    name: str,
    attributes: Mapping[str, int] | None = None,
) -> ir.Value:
    import onnx_ir as ir

    node = ir.node(op_type, inputs, attributes or {}, name=name)
    node.outputs[0].name = name
    graph.insert_before(before, node)
    return node.outputs[0]


def _replace(node: ir.Node, value: ir.Value) -> None:
    """Reads `value` wherever `node`'s result was read, and removes `node`."""
    import onnx_ir as ir

    graph = cast("ir.Graph", node.graph)
    old = node.outputs[0]
    if old.is_graph_output():
        if value.producer() is None or value.is_graph_output():
            value = _insert(graph, node, "Identity", [value], f"{node.name}:value")
        name, value.shape, value.type = old.name, old.shape, old.type
        old.name, value.name = f"{name}:old", name
    ir.convenience.replace_all_uses_with(old, value, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def _array(value: ir.Value) -> Array:
    assert value.const_value is not None
    array: Array = value.const_value.numpy()
    return array


def _serialize(exported: _Exported) -> bytes:
    import onnx_ir as ir

    graph = exported.graph
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]
    size = sum(
        value.const_value.nbytes for value in graph.initializers.values() if value.const_value is not None
    )
    if size > 2**31 - 2**20:
        raise EngineError(f"the ONNX file would hold {size / 2**30:.1f} GB; one file holds 2")
    serialized: bytes = ir.to_proto(exported.model).SerializeToString(deterministic=True)
    return serialized


LANES: dict[str, Callable[[_Exported], None]] = {
    "tensorrt": _finalize_tensorrt,
    "onnxruntime": _finalize_onnxruntime,
}
