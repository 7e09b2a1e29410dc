"""A module in ONNX operators, in float32, with a marker wherever it rounds an activation."""

from __future__ import annotations

import copy
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, fx, nn

from eqsat_deploy.deployment import Signature, deployment
from eqsat_deploy.engines.onnx.attention import OPSET, functions_of
from eqsat_deploy.engines.onnx.graph import DOMAIN, Exported, all_values
from eqsat_deploy.engines.onnx.writing import made, type_of, value_of
from eqsat_deploy.engines.program import export_program
from eqsat_deploy.engines.writer import Region, Writer
from eqsat_deploy.engines.writing import Functions, Written
from eqsat_deploy.errors import EngineError
from eqsat_deploy.language.shapes import BATCH
from eqsat_deploy.quantization.fake_quantize import FakeQuantize, swapped

if TYPE_CHECKING:
    import onnx_ir as ir

# A graph node's, under the path of a module or of a module whose only node it is.
NAME = re.compile(r"[\w.]+(/\w+)?")
PRODUCER = "eqsat-deploy"
MARKER = "FakeQuantize"
# ONNX Runtime 1.22 and TensorRT 10.13 read IR version 10 (onnx 1.16); newer files add nothing used here.
IR_VERSION = 10
SMALL = 1024  # bytes of constants that are looked up by what they hold


def written(module: fx.GraphModule, signature: Signature, opset: int) -> Exported:
    """`module`, which is prepared, as an ONNX graph whose nodes and values are named after the module's nodes.

    Raises:
        EngineError: a node has no ONNX form at `opset`, or modules are not written in that.
    """
    import onnx_ir as ir

    check_opset(opset)
    inputs = [
        ir.Value(name=s.name, type=ir.TensorType(type_of(s.dtype)), shape=_shape(s.shape))
        for s in signature.inputs
    ]
    graph = ir.Graph(inputs, [], nodes=[], opset_imports={"": opset, DOMAIN: 1}, name="model")
    model = ir.Model(graph, ir_version=IR_VERSION, producer_name=PRODUCER)
    exported = Exported(model, [], {})
    writer = _Writer(module, exported, opset)
    for index, result in enumerate(writer.outputs(inputs, signature.inputs)):
        writer.give(result, f"output_{index}")
    _name(model)
    return exported


def check_opset(opset: int) -> None:
    """`EngineError` where modules are not written in that."""
    from onnx import __version__, defs

    newest = defs.onnx_opset_version()
    if not OPSET <= opset <= newest:
        raise EngineError(
            f"opset {opset}: modules are written in {OPSET} to {newest}, which onnx {__version__} has"
        )


class _Writer(Writer):
    """Puts operators into the graph, node by node, and the constants that they read."""

    def __init__(self, module: fx.GraphModule, exported: Exported, opset: int) -> None:
        functions = functions_of(opset)
        rounding = partial(_Rounding, functions=functions, activations=exported.activations)
        super().__init__(swapped(module, rounding), functions, _Rounding)
        self.exported, self.opset = exported, opset
        self.sources = _names(module)
        self.paths = {id(t): n for n, t in (*module.named_parameters(), *module.named_buffers())}
        self.constants: dict[Any, tuple[ir.Value, Any]] = {}

    def finished(self, node: str, results: list[Written]) -> None:
        """Append what was written since the last node, each after what it reads."""
        for result in results:
            self._append(result.value, self.sources[node])
            if isinstance(result.like, Tensor):
                result.value.shape = _shape(result.like.shape)
                result.value.dtype = type_of(result.like.dtype)

    def give(self, result: Any, name: str) -> None:
        """Return `result` as `name`: by an operator of its own where it is read or returned otherwise, too."""
        graph = self.exported.graph
        value: ir.Value = value_of(result)
        if value.const_value is not None:
            value = self._constant(value, name)
        if value.producer() is None or value.is_graph_output():
            known, value = value, made("Identity", value)
            value.shape, value.type = known.shape, known.type
            self._append(value, "")
        value.name = name
        graph.outputs.append(value)

    def converted(self, region: Region) -> list[Any]:
        """By torch's ONNX exporter."""
        import onnx_ir as ir

        program = export_program(region.module, region.examples(), region.dynamic)
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = torch.onnx.export(
                    program,
                    dynamo=True,
                    opset_version=self.opset,
                    external_data=False,
                    optimize=False,
                    verbose=False,
                )
        except Exception as error:  # the exporter's errors have no common base
            nodes, reason = ", ".join(region.nodes), _reason(error)
            raise EngineError(f"{nodes}: no ONNX form at opset {self.opset}: {reason}") from error
        assert found is not None
        graph: ir.Graph = found.model.graph
        _fold_constants(found.model)
        for value in all_values(graph):
            value.metadata_props.clear()
            if value.shape is not None:  # in symbols of its own
                value.shape = ir.Shape(
                    [n if isinstance(n, int) else ir.SymbolicDim(None) for n in value.shape]
                )
        self.exported.graph.opset_imports.update(
            {d: v for d, v in graph.opset_imports.items() if d not in self.exported.graph.opset_imports}
        )
        results = list(graph.outputs)
        graph.outputs.clear()
        for value, given in zip(list(graph.inputs), region.read, strict=True):
            ir.convenience.replace_all_uses_with(value, given.value)
            results = [given.value if result is value else result for result in results]
        graph.remove(list(graph))
        return results

    def _append(self, value: ir.Value, source: str) -> None:
        """Append the node that computes `value`, after those that it waits for."""
        pending = [value.producer()]
        while pending:
            node = pending[-1]
            if node is None or node.graph is not None:
                pending.pop()
                continue
            producers = (operand.producer() for operand in node.inputs if operand is not None)
            waiting = [each for each in producers if each is not None and each.graph is None]
            pending += waiting
            if not waiting:
                self._put(node, source)

    def _put(self, node: ir.Node, source: str) -> None:
        graph = self.exported.graph
        for place, operand in enumerate(node.inputs):
            if operand is not None and operand.const_value is not None and operand.graph is not graph:
                node.replace_input_with(place, self._constant(operand, source))
        node.metadata_props.clear()
        node.doc_string = source  # which `_name` reads
        graph.append(node)

    def _constant(self, value: ir.Value, source: str) -> ir.Value:
        """`value` among the graph's initializers, once."""
        import onnx_ir as ir

        tensor, order, quantizer = (value.meta.get(key) for key in ("tensor", "order", "quantizer"))
        stored = cast("ir.TensorProtocol", value.const_value)
        key: Any = id(value)
        if tensor is not None:
            key = id(tensor), str(order), id(quantizer)
        elif stored.nbytes <= SMALL:
            key = stored.dtype, str(stored.shape), stored.tobytes()
        if key not in self.constants:
            path = self.paths.get(id(tensor)) or f"{source}:{'x'.join(map(str, stored.shape)) or 'value'}"
            name = self._free(f"{path}_transposed" if order else path)
            made = ir.val(name, const_value=ir.Tensor(stored.numpy(), name=name))
            self.exported.graph.register_initializer(made)
            if quantizer is not None:
                self.exported.weights[name] = _along(quantizer, order)
            self.constants[key] = made, (value, tensor)  # whose numbers stay theirs
        return self.constants[key][0]

    def _free(self, name: str) -> str:
        taken, number = self.exported.graph.initializers, 1
        free = name
        while free in taken:
            free, number = f"{name}_{number}", number + 1
        return free


class _Rounding(nn.Module):
    """A marker for what a FakeQuantize does; a weight's initializer says which rounds it."""

    def __init__(self, fake: FakeQuantize, functions: Functions, activations: list[FakeQuantize]) -> None:
        super().__init__()
        self.fake, self.functions, self.activations = [fake], functions, activations  # a list is no submodule

    def forward(self, values: Any) -> Written:
        """`values` in the steps of the grid."""
        import onnx_ir as ir

        fake, value = self.fake[0], value_of(values)
        like = values.like if isinstance(values, Written) else values.to("meta")
        if fake.axis is None:
            self.activations.append(fake)
            marked = ir.node(MARKER, [value], {"index": len(self.activations) - 1}, domain=DOMAIN)
            return Written(self.functions, marked.outputs[0], like)
        if value.const_value is None:
            raise EngineError("a quantizer rounds per channel what is not a constant; only weights can be")
        value.meta["quantizer"] = fake
        return Written(self.functions, value, like)


def _along(quantizer: FakeQuantize, order: Sequence[int] | None) -> FakeQuantize:
    """`quantizer` of a weight whose axes are in that order."""
    if order is None:
        return quantizer
    turned = copy.copy(quantizer)
    turned.axis = list(order).index(cast(int, quantizer.axis))
    return turned


def _shape(sizes: Sequence[int | None]) -> ir.Shape:
    """`batch` where the batch stands, how many times it, and nothing where a size comes of it otherwise."""
    import onnx_ir as ir

    def dim(size: int | None) -> int | ir.SymbolicDim:
        if size is None or size == BATCH:
            return ir.SymbolicDim("batch")
        if size < BATCH // 64:
            return size
        return ir.SymbolicDim(None if size % BATCH else f"{size // BATCH}*batch")

    return ir.Shape(list(map(dim, sizes)))


def _reason(error: BaseException) -> str:
    """The first line of the innermost cause: the exporter wraps it into pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"


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


def _name(model: ir.Model) -> None:
    """Names nodes after their graph nodes, which their texts say, and values after nodes; several of one graph node
    carry their kind as well."""
    import onnx_ir as ir

    public = {id(value) for value in (*model.graph.inputs, *model.graph.outputs)}
    nodes = list(ir.traversal.RecursiveGraphIterator(model.graph))
    sources = [node.doc_string or "" for node in nodes]
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
            if id(value) not in public:
                value.name = f"{node.name}:{index}" if index else node.name


def _fold_constants(model: ir.Model) -> None:
    """Evaluates what depends on constants alone."""
    from onnxscript import optimizer

    optimizer.optimize_ir(model, onnx_shape_inference=False, inline=False, output_size_limit=2**31)
