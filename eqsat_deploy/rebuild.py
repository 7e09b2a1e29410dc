"""Rebuilding: the chosen form as an `fx.GraphModule` with readable code, stable names and folded parameters."""

from __future__ import annotations

import operator as python_operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import takewhile
from math import isfinite
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import fx, nn

from eqsat_deploy.attention import rebuild_attention
from eqsat_deploy.calling import InputSpec, plain_structure
from eqsat_deploy.constants import Constants
from eqsat_deploy.deployment import PlacedKernel, Placement, Quantizer
from eqsat_deploy.errors import InputError
from eqsat_deploy.freeze import Space
from eqsat_deploy.kernels import CONSTANT, QUANTIZE, ENode, Step, applied, realized
from eqsat_deploy.language import binary, input_, opaque, scalar, unary
from eqsat_deploy.language.operator import Evaluate, Operator, interpreted_by
from eqsat_deploy.language.shapes import BATCH, batch_size
from eqsat_deploy.lower import Call, Hole, Lowered, Term
from eqsat_deploy.names import Tree
from eqsat_deploy.price import kernel_of, specs_of
from eqsat_deploy.provenance import computed
from eqsat_deploy.scales import Applied, Read, free_scales
from eqsat_deploy.search import Search
from eqsat_deploy.stages import no_collection
from eqsat_extraction.kernel import CostModel, Kernel


@dataclass(frozen=True)
class Rebuilt:
    """The chosen form: its graph over a root module, where INT8 is placed in it, and for nodes that are from a module
    of the original, the path of that."""

    root: nn.Module
    graph: fx.Graph
    placement: Placement
    modules: Mapping[str, str]
    inputs: tuple[InputSpec, ...]


@no_collection()
def rebuild(found: Search) -> Rebuilt:
    """Emit the chosen e-nodes in order; constant classes are evaluated once, in float64, from the parameters."""
    emitter = Emitter(found.lowered, found.space, found.priced.model, found.priced.batch)
    inputs = emitter.placeholders()
    with torch.no_grad(), interpreted_by(Evaluate()), batch_size(_LazyBatch(emitter)):
        for index in found.chosen:
            number, node = found.space.choices[index]
            if number not in emitter.values and node.operator is not CONSTANT:
                emitter.emit(number, node, float(found.priced.costs[index]))
        outputs = [emitter.value(found.space.row_class[o.row]).node if isinstance(o, Term) else o
                   for o in found.lowered.outputs]  # fmt: skip
    graph = emitter.graph
    graph.output(plain_structure(found.lowered.captured.call.outputs, iter(outputs)))
    for emitted in reversed(list(graph.nodes)):
        if not emitted.users and emitted.op not in ("placeholder", "output"):
            graph.erase_node(emitted)
    return Rebuilt(emitter.tree.root, graph, emitter.placed.placement(graph), emitter.paths, inputs)


class _Proxy(fx.Proxy):
    """A proxy that knows its rank, so that operator bodies can turn slots into axes."""

    rank: int

    def dim(self) -> int:
        return self.rank


@dataclass
class _Placed:
    """Where INT8 is, as it comes out: the graph node that every INT8 class is the codes of, and who reads them.

    `grids` has for every INT8 class the quantized tensors whose codes are found in it, `products` those sets of them
    that a kernel reads which cannot tell them apart.
    """

    quantizers: dict[int, str] = field(default_factory=dict)
    costs: dict[str, float] = field(default_factory=dict)
    grids: dict[int, frozenset[str]] = field(default_factory=dict)
    products: set[frozenset[str]] = field(default_factory=set)
    readers: dict[str, dict[str, None]] = field(default_factory=dict)
    kernels: list[PlacedKernel] = field(default_factory=list)
    applied: dict[str, Applied] = field(default_factory=dict)

    def quantize(self, number: int, tensor: fx.Node, cost: float = 0.0) -> None:
        self.quantizers[number] = tensor.name
        self.costs[tensor.name] = cost
        self.grids[number] = frozenset((tensor.name,))

    def hand_on(self, number: int, codes: tuple[int, ...]) -> None:
        self.grids[number] = frozenset().union(*(self.grids[operand] for operand in codes))

    def read(self, number: int, reader: fx.Node, by: Operator) -> None:
        if number in self.grids and by.integer not in ("scale", "commute"):
            self.products.add(self.grids[number])
        if number in self.quantizers:
            self.readers.setdefault(self.quantizers[number], {})[reader.name] = None

    def placement(self, graph: fx.Graph) -> Placement:
        alive = {node.name for node in graph.nodes}
        quantizers = tuple(
            Quantizer(tensor, tuple(readers), self.costs[tensor]) for tensor, readers in self.readers.items()
        )
        kernels = tuple(kernel for kernel in self.kernels if kernel.anchor in alive)
        tensors = [quantizer.tensor for quantizer in quantizers]
        shared, joined = (_groups(sets, tensors) for sets in (self.products, self.grids.values()))
        users = {node.name: len(node.users) for node in graph.nodes}
        scales = free_scales(self.applied, users, self.readers)
        return Placement(quantizers, kernels, shared, joined, scales)


def _groups(sets: Iterable[frozenset[str]], tensors: list[str]) -> tuple[tuple[str, ...], ...]:
    """Groups of `tensors` that are found in one another's company, in one of the sets or over several."""
    groups: list[frozenset[str]] = []
    for found in sets:
        met = [group for group in groups if group & found]
        groups = [*(group for group in groups if group not in met), found.union(*met)]
    ordered = [tuple(t for t in tensors if t in group) for group in groups]
    return tuple(sorted(group for group in ordered if len(group) > 1))


class Emitter:
    """Writes graph nodes for e-nodes; `values` has what stands for every e-class so far."""

    def __init__(self, lowered: Lowered, space: Space, model: CostModel, batch: int) -> None:
        self.space, self.lowered = space, lowered
        self.model, self.floating = model, model.float_dtype
        self.specs = specs_of(space, model, batch)
        self.graph = fx.Graph()
        self.tracer = fx.proxy.GraphAppendingTracer(self.graph)
        self.tree = Tree()
        self.constants = Constants(self.lowered, self.space)
        self.placed = _Placed()
        self.values: dict[int, _Proxy] = {}
        self.modules: dict[Any, str] = {}
        self.paths: dict[str, str] = {}
        self.anchors: dict[Any, _Proxy] = {}
        self.size: fx.Proxy | None = None
        self.batched: tuple[fx.Proxy, int] | None = None

    # -- inputs --------------------------------------------------------------------------------------------

    def placeholders(self) -> tuple[InputSpec, ...]:
        """One placeholder per tensor among the arguments of the original's forward."""
        rows = {row.args[0]: i for i, row in enumerate(self.lowered.rows) if row.operator is input_}
        specs = self.lowered.captured.call.inputs
        for index, spec in enumerate(specs):
            self.input(self.space.row_class[rows[index]], self.graph.placeholder(spec.name))
        return specs

    def input(self, number: int, node: fx.Node) -> None:
        """Let `node` stand for a class that is given."""
        shape = self.space.classes[number].shape or ()
        self.values[number] = self._proxy(node, len(shape))
        if self.batched is None and BATCH in shape:
            self.batched = (self.values[number], shape.index(BATCH))

    def batch(self, factor: int = 1) -> fx.Proxy:
        """The batch size at run time, asked of the first input that has it, times `factor`."""
        if self.size is None:
            if self.batched is None:  # which is of no input whose other sizes are fixed
                raise InputError(
                    "dynamic_shapes: the model reads the size of the batch, which no input with otherwise fixed sizes "
                    "has: free the batch alone; for lengths of sequences, use buckets="
                )
            proxy, position = self.batched
            with self.graph.inserting_after(proxy.node):
                self.size = fx.Proxy(self.graph.call_method("size", (proxy.node, position)), self.tracer)
        if factor == 1:
            return self.size
        return fx.Proxy(self.graph.call_function(python_operator.mul, (self.size.node, factor)), self.tracer)

    # -- values --------------------------------------------------------------------------------------------

    def value(self, number: int) -> _Proxy:
        """What stands for a class in the graph: its node, or the attribute that holds its constant."""
        if number not in self.values:
            name = next(iter(self.constants.names(number)), f"constant_{number}")
            path = self.tree.add_tensor(name, self.constants[number])
            self.values[number] = self._proxy(self.graph.get_attr(path), self._rank(number))
        return self.values[number]

    def _value_or_number(self, number: int) -> Any:
        term = self.space.terms.get(number)
        if self.space.classes[number].constant and term is not None and term.operator is scalar:
            return float(term.attributes[0])
        return self.value(number)

    def _proxy(self, node: fx.Node, rank: int) -> _Proxy:
        proxy = _Proxy(node, self.tracer)
        proxy.rank = rank
        return proxy

    def _rank(self, number: int) -> int:
        return len(self.space.classes[number].shape or ())

    # -- kernels -------------------------------------------------------------------------------------------

    def emit(self, number: int, node: ENode, cost: float) -> None:
        """Write a kernel's nodes, and note where it reads and writes INT8."""
        if node.operator is QUANTIZE:
            self.values[number] = self.value(node.operands[0])
            self.placed.quantize(number, self.values[number].node, cost)
            return
        names: list[str] = []
        last = next(iter(reversed(self.graph.nodes)), None)
        before: fx.Node | None = None
        values = realized(node, self._value_or_number, lambda _: self._shared(number, node))
        tensors = (computed(self.space, (number, node)) or [(number, node)])[-1 - len(node.steps) :]
        for (step, value), (tensor, _) in zip(values, tensors, strict=True):
            written = value.node
            self._note_modules(last, tensor)
            names += [new.name for new in self._written_after(last)] if step else [written.name]
            last = next(iter(reversed(self.graph.nodes)))
            self._note(number, node, step, before, written)
            before = written
            for operand in _codes_read(node, step):
                self.placed.read(operand, written, node.operator if step is None else binary)
        self.values[number] = self._proxy(written, self._rank(number))
        codes = self.space.classes[number].quantized_of is not None
        if codes and (node.steps or node.operator.integer != "commute"):
            self.placed.quantize(number, written)
        elif codes:
            self.placed.hand_on(number, node.operands)
        if node.is_launch:
            precision, output = "int8" if node.integer else self.floating, "int8" if codes else self.floating
            kernel = kernel_of(self.specs, number, node)
            in_float = kernel.floating(self.floating)
            self.placed.kernels.append(
                PlacedKernel(
                    names[0],
                    tuple(names),
                    precision,
                    output,
                    cost,
                    node.operator.channels,
                    float_cost=self._price(in_float) if node.integer else None,
                    wide_cost=self._price(kernel.writing(self.floating)) if codes else None,
                    float_wide_cost=self._price(in_float.writing(self.floating))
                    if codes and node.integer
                    else None,
                )
            )

    def _note(
        self, number: int, node: ENode, step: Step | None, before: fx.Node | None, written: fx.Node
    ) -> None:
        """Note what a graph node computes: a kernel's anchor, or what a step makes of what was written before."""
        if step is None or before is None:
            operator, attributes = node.operator, node.attributes
            operands = [self._read(operand, None) for operand in node.operands]
        else:
            operator, attributes = (unary if step.operand is None else binary), (step.function,)
            operands = [self._read(number, before)]
            if step.operand is not None:
                operands.insert(1 - step.side, self._read(step.operand, None))
        known = [read for read in operands if read is not None]
        if operator.shape is None or len(known) < len(operands) or any(r.node == written.name for r in known):
            return
        args = operator.join(tuple(known), attributes)
        self.placed.applied.setdefault(written.name, Applied.of(operator, args))

    def _read(self, number: int, node: fx.Node | None) -> Read | None:
        """An operand, which is of the e-class `number`; None where its shape is not known before the model runs."""
        known = self.space.classes[self.space.exact(number)]
        if known.shape is None or known.dtype is None:
            return None
        if node is None and not known.constant:
            node = self.value(number).node
        return Read(None if node is None else node.name, known.shape, known.dtype)

    def _price(self, kernel: Kernel) -> float | None:
        cost = self.model.price(kernel)
        return float(cost) if isfinite(cost) else None

    def _written_after(self, last: fx.Node | None) -> list[fx.Node]:
        """What a step wrote: its result, after what else a function of several operators takes."""
        new = takewhile(lambda node: node is not last, reversed(self.graph.nodes))
        return [node for node in new if node.op != "get_attr"][::-1]

    def _note_modules(self, last: fx.Node | None, tensor: int) -> None:
        """Note which modules of the original the nodes after `last` are from, which compute the e-class `tensor`."""
        origin = self.space.classes[tensor].origin
        for node in self._written_after(last):
            target = str(node.target)
            if node.op == "call_module" and [*self.tree.root.get_submodule(target).parameters()]:
                self.paths[node.name] = target  # its parameters are where the original has them
            elif origin is not None:
                self.paths[node.name] = origin[1]

    def _shared(self, number: int, node: ENode) -> _Proxy:
        """The anchor's value, which kernels that differ in what they do with it have in common: an engine computes once
        what is written twice, and then so does the module."""
        key = (node.operator, node.args, node.integer)
        if key not in self.anchors:
            self.anchors[key] = self._anchor(number, node)
        return self.anchors[key]

    def _anchor(self, number: int, node: ENode) -> _Proxy:
        if node.operator is opaque:
            emitted = self._opaque(node)
        elif (module := self._module(node)) is not None:
            data = [self.value(o).node for o in node.operands[: node.operator.module_operands]]
            emitted = self.graph.call_module(module, tuple(data))
        elif node.operator.bias is not None:
            emitted = node.operator(*node.operator.join(self._with_bias(node), node.attributes)).node
        else:
            emitted = applied(node, self._value_or_number if node.operator is binary else self.value).node
        return self._proxy(emitted, self._rank(number))

    def _with_bias(self, node: ENode) -> tuple[Any, ...]:
        position = node.operator.operand_names.index(str(node.operator.bias))
        bias = node.operands[position]
        none = self.space.classes[bias].constant and not self.constants[bias].any()
        return tuple(None if i == position and none else self.value(o) for i, o in enumerate(node.operands))

    # -- modules -------------------------------------------------------------------------------------------

    def _module(self, node: ENode) -> str | None:
        """The path of the module that computes the anchor; None where it is called as a function."""
        operator = node.operator
        held = node.operands[operator.module_operands :]
        if operator.module is None or not all(self.space.classes[o].constant for o in held):
            return None
        key = (operator, held, node.attributes, *(() if held else (node.operands,)))
        if key not in self.modules:
            module = operator.module(*(self.constants[o] for o in held), *node.attributes)
            if module is None:
                return None
            _share(module, [self.constants[o] for o in held])
            path = self.constants.path(held[0]) if held else self._beside(node, operator)
            self.modules[key] = self.tree.add_module(path, module)
        return self.modules[key]

    def _beside(self, node: ENode, operator: Operator) -> str:
        """Where a module without parameters goes: next to the module that computes its input."""
        producer = self.value(node.operands[0]).node
        parent = str(producer.target).rpartition(".")[0] if producer.op == "call_module" else ""
        name = operator.kind.name.lower().removeprefix("whole_").replace("normalization", "norm")
        return f"{parent}.{name}" if parent else name

    # -- what no operator models ---------------------------------------------------------------------------

    def _opaque(self, node: ENode) -> fx.Node:
        call = self.lowered.calls[node.attributes[0]]
        if "multihead_attention" in str(call.target):
            return self._whole_attention(call, node)

        def fill(leaf: Any) -> Any:
            if isinstance(leaf, Hole):
                return self.value(node.operands[leaf.index]).node
            if isinstance(leaf, int) and not isinstance(leaf, bool) and leaf and leaf % BATCH == 0:
                return self.batch(leaf // BATCH).node
            return leaf

        args, kwargs = pytree.tree_map(fill, (call.args, call.kwargs))
        return self.graph.call_function(call.target, args, kwargs)

    def _whole_attention(self, call: Call, node: ENode) -> fx.Node:
        """An attention that no rule takes apart comes back as `nn.MultiheadAttention`."""
        names = [a.name for a in call.target._schema.arguments]
        given = dict(zip(names, call.args, strict=False)) | call.kwargs
        runtime = ("query", "key", "value", "key_padding_mask", "attn_mask")
        values: dict[str, Any] = {}
        for name in names:
            leaf = given.get(name)
            if isinstance(leaf, Hole) and name not in runtime:
                values[name] = self.constants[node.operands[leaf.index]]
            else:
                values[name] = self.value(node.operands[leaf.index]).node if isinstance(leaf, Hole) else leaf
        key = ("multihead_attention", repr(given), node.operands)
        if key not in self.modules:
            module = rebuild_attention(values)
            _share(module, [v for v in values.values() if isinstance(v, nn.Parameter)])
            self.modules[key] = self.tree.add_module(_path_of(call.node, self.lowered.origin), module)
        arguments = tuple(values[n] for n in ("query", "key", "value"))
        options = {n: values[n] for n in ("key_padding_mask", "attn_mask", "need_weights", "average_attn_weights",
                                          "is_causal")}  # fmt: skip
        return self.graph.call_module(self.modules[key], arguments, options)


class _LazyBatch:
    """Stands for the batch size in operator bodies; the graph asks for it only where it is used."""

    def __init__(self, emitter: Emitter) -> None:
        self.emitter = emitter

    def __rmul__(self, factor: int) -> Any:
        return self.emitter.batch(factor)

    def __fx_create_arg__(self, tracer: Any) -> fx.Node:
        return self.emitter.batch().node


def _codes_read(node: ENode, step: Step | None) -> tuple[int, ...]:
    """E-classes that a kernel's anchor, or one of its steps, reads as INT8."""
    if step is None:
        return node.operands if node.integer else ()
    return (step.operand,) if step.quantized and step.operand is not None else ()


def _share(module: nn.Module, constants: list[Any]) -> None:
    """Let `module`, made of `constants`, hold these very tensors: two modules of one weight train it together."""
    known = {value.data_ptr(): value for value in constants if value.numel()}
    for owner in module.modules():
        for name, parameter in list(owner.named_parameters(recurse=False)):
            same = known.get(parameter.data_ptr())
            if same is None or same.shape != parameter.shape:
                continue
            if isinstance(same, nn.Parameter):
                setattr(owner, name, same)
            else:
                parameter.requires_grad_(False)


def _path_of(node: str, origins: Mapping[int, tuple[str, str]]) -> str:
    return next((path for name, path in origins.values() if name == node and path), node)
