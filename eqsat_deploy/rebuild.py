"""Rebuilding: the chosen form as an `fx.GraphModule` with readable code, stable names and folded parameters."""

from __future__ import annotations

import operator as python_operator
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn

from eqsat_deploy.attention import rebuild_attention
from eqsat_deploy.deployment import InputSpec, PlacedKernel, Placement, Quantizer
from eqsat_deploy.freeze import CONCAT, CONSTANT, QUANTIZE, ENode, Space
from eqsat_deploy.language.operator import Evaluate, interpreted_by
from eqsat_deploy.language.pointwise import BINARY, unary
from eqsat_deploy.language.shapes import BATCH, axis, batch_size
from eqsat_deploy.lower import Hole, Term
from eqsat_deploy.price import Priced, is_launch
from eqsat_extraction import Solution


@dataclass(frozen=True)
class Rebuilt:
    """The chosen form: its graph over a root module, and where INT8 is placed in it."""

    root: nn.Module
    graph: fx.Graph
    placement: Placement
    inputs: tuple[InputSpec, ...]


class _Proxy(fx.Proxy):
    """A proxy that knows its rank, so that operator bodies can turn slots into axes."""

    rank: int

    def dim(self) -> int:
        return self.rank


def rebuild(priced: Priced, solution: Solution) -> Rebuilt:
    """Emit the chosen e-nodes in order; constant classes are evaluated once, in float64, from the parameters."""
    return _Rebuilder(priced, solution).rebuilt()


class _Rebuilder:
    def __init__(self, priced: Priced, solution: Solution) -> None:
        self.priced, self.space, self.solution = priced, priced.space, solution
        self.graph = fx.Graph()
        self.tracer = fx.proxy.GraphAppendingTracer(self.graph)
        self.root = nn.Module()
        self.constants = Constants(self.space)
        self.values: dict[int, _Proxy] = {}
        self.modules: dict[Any, str] = {}
        self.attributes: dict[int, str] = {}
        self.paths: dict[str, str] = {}
        self.quantizers: dict[int, str] = {}
        self.readers: dict[str, dict[str, None]] = {}
        self.kernels: list[PlacedKernel] = []
        self.size: fx.Proxy | None = None

    def rebuilt(self) -> Rebuilt:
        lowered = self.space.lowered
        inputs = self._inputs()
        with torch.no_grad(), interpreted_by(Evaluate()), batch_size(_LazyBatch(self)):
            for index in self.solution.order(self.priced.egraph):
                number, node = self.space.choices[index]
                if number not in self.values and node.kind != CONSTANT:
                    self._emit(number, node, float(self.priced.costs[index]))
            outputs = [self._value(self.space.row_class[o.row]).node if isinstance(o, Term) else o
                       for o in lowered.outputs]  # fmt: skip
        self.graph.output(pytree.tree_unflatten(outputs, lowered.captured.out_spec))
        for emitted in reversed(list(self.graph.nodes)):
            if not emitted.users and emitted.op not in ("placeholder", "output"):
                self.graph.erase_node(emitted)
        quantizers = tuple(Quantizer(t, tuple(r)) for t, r in self.readers.items())
        alive = {n.name for n in self.graph.nodes}
        kernels = tuple(k for k in self.kernels if k.anchor in alive)
        return Rebuilt(self.root, self.graph, Placement(quantizers, kernels), inputs)

    # -- inputs --------------------------------------------------------------------------------------------

    def _inputs(self) -> tuple[InputSpec, ...]:
        """One placeholder per argument of the original's forward; nested arguments are taken apart by index."""
        lowered = self.space.lowered
        captured = lowered.captured
        leaves = iter(captured.inputs)
        numbers = {
            row.args[0]: number for number, row in enumerate(lowered.rows) if row.operator.name == "input"
        }
        specs: list[InputSpec] = []
        for name, structure in captured.arguments:
            placeholder = self._proxy(self.graph.placeholder(name), 0)
            for path in structure:
                leaf = next(leaves)
                proxy = placeholder
                for key in path:
                    proxy = self._proxy(
                        self.graph.call_function(python_operator.getitem, (proxy.node, key)), 0
                    )
                index = captured.inputs.index(leaf)
                if index not in numbers:
                    continue
                row = numbers[index]
                known = self.space.classes[self.space.row_class[row]]
                shape = known.shape or ()
                proxy.rank = len(shape)
                self.values[self.space.row_class[row]] = proxy
                spec = captured.input_specs[index]
                assert spec is not None
                specs.append(spec)
                if self.size is None and any(d == BATCH for d in shape):
                    self.batched = (proxy, shape.index(BATCH))
        return tuple(specs)

    def batch(self, factor: int = 1) -> fx.Proxy:
        """The batch size at run time, asked of the first input that has it, times `factor`."""
        if self.size is None:
            proxy, position = self.batched
            with self.graph.inserting_after(proxy.node):
                self.size = fx.Proxy(self.graph.call_method("size", (proxy.node, position)), self.tracer)
        if factor == 1:
            return self.size
        return fx.Proxy(self.graph.call_function(python_operator.mul, (self.size.node, factor)), self.tracer)

    # -- nodes ---------------------------------------------------------------------------------------------

    def _proxy(self, node: fx.Node, rank: int) -> _Proxy:
        proxy = _Proxy(node, self.tracer)
        proxy.rank = rank
        return proxy

    def _rank(self, number: int) -> int:
        return len(self.space.classes[number].shape or ())

    def _value(self, number: int) -> _Proxy:
        """What stands for a class in the graph: its node, or the parameter that holds its constant."""
        if number not in self.values:
            self.values[number] = self._proxy(
                self.graph.get_attr(self._attribute(number)), self._rank(number)
            )
        return self.values[number]

    def _scalar(self, number: int) -> Any:
        """A number for a scalar class, else its node."""
        term = self.space.terms.get(number)
        if self.space.classes[number].constant and term is not None and term.kind == "scalar":
            return float(term.attributes[0])
        return self._value(number)

    def _emit(self, number: int, node: ENode, cost: float) -> None:
        if node.kind == QUANTIZE:
            (source,) = node.operands
            self.values[number] = self._value(source)
            self.quantizers[number] = self._value(source).node.name
            return
        anchor = self._anchor(number, node)
        self._read(node.operands if node.integer else (), anchor)
        value, names = anchor, [anchor.node.name]
        for step in node.steps:
            if step.operand is None:
                before = next(reversed(self.graph.nodes))
                value = unary(step.function, value)
                names += _names_between(before, value.node)
            else:
                other = self._scalar(step.operand)
                left, right = (value, other) if step.side == 0 else (other, value)
                value = BINARY[step.function](left, right)
                if step.quantized:
                    self._read((step.operand,), value)
            names.append(value.node.name)
        self.values[number] = self._proxy(value.node, self._rank(number))
        quantized = self.space.classes[number].quantized_of is not None
        if quantized and (node.steps or not self._hands_on(node)):
            self.quantizers[number] = value.node.name
        if not is_launch(node):
            return
        floating = self.priced.model.float_dtype
        precision = "int8" if node.integer else floating
        output = "int8" if quantized else floating
        self.kernels.append(PlacedKernel(anchor.node.name, tuple(names), precision, output, cost))

    def _hands_on(self, node: ENode) -> bool:
        return node.operator is not None and node.operator.integer == "commute"

    def _read(self, classes: tuple[int, ...], reader: fx.Proxy) -> None:
        for number in classes:
            if number in self.quantizers:
                self.readers.setdefault(self.quantizers[number], {})[reader.node.name] = None

    def _anchor(self, number: int, node: ENode) -> _Proxy:
        rank = self._rank(number)
        if node.kind == "opaque":
            return self._opaque(number, node)
        assert node.operator is not None
        if node.kind == CONCAT:
            parts = [self._value(o).node for o in node.operands]
            joined = self.graph.call_function(torch.cat, (parts,), {"dim": axis(node.attributes[0], rank)})
            return self._proxy(joined, rank)
        target = self._module(node)
        if target is not None:
            data = [self._value(o).node for o in node.operands[: node.operator.module_operands]]
            return self._proxy(self.graph.call_module(target, tuple(data)), rank)
        operands = [self._scalar(o) if node.kind == "binary" else self._value(o) for o in node.operands
                    ] if node.operator.bias is None else self._with_bias(node)  # fmt: skip
        emitted = node.operator.body(*node.operator.join(tuple(operands), node.attributes))
        return self._proxy(emitted.node, rank)

    def _with_bias(self, node: ENode) -> list[Any]:
        assert node.operator is not None
        assert node.operator.bias is not None
        position = node.operator.operand_names.index(node.operator.bias)
        bias = node.operands[position]
        none = self.space.classes[bias].constant and not self.constants[bias].any()
        return [None if i == position and none else self._value(o) for i, o in enumerate(node.operands)]

    def _opaque(self, number: int, node: ENode) -> _Proxy:
        call = self.space.lowered.calls[node.attributes[0]]
        rank = self._rank(number) if self.space.classes[number].shape is not None else 0
        if "multihead_attention" in str(call.target):
            return self._whole_attention(call, node)

        def fill(leaf: Any) -> Any:
            if isinstance(leaf, Hole):
                return self._value(node.operands[leaf.index]).node
            if isinstance(leaf, int) and not isinstance(leaf, bool) and leaf and leaf % BATCH == 0:
                factor = leaf // BATCH
                return self.batch(factor).node
            return leaf

        args, kwargs = pytree.tree_map(fill, (call.args, call.kwargs))
        return self._proxy(self.graph.call_function(call.target, args, kwargs), rank)

    def _whole_attention(self, call: Any, node: ENode) -> _Proxy:
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
                values[name] = self._value(node.operands[leaf.index]).node if isinstance(leaf, Hole) else leaf
        key = ("multihead_attention", repr(given), node.operands)
        if key not in self.modules:
            self.modules[key] = self._add_module(_path_of(call.node, self.space), rebuild_attention(values))
        arguments = tuple(values[n] for n in ("query", "key", "value"))
        options = {n: values[n] for n in ("key_padding_mask", "attn_mask", "need_weights", "average_attn_weights",
                                          "is_causal")}  # fmt: skip
        return self._proxy(self.graph.call_module(self.modules[key], arguments, options), 0)

    # -- modules and parameters ----------------------------------------------------------------------------

    def _module(self, node: ENode) -> str | None:
        operator = node.operator
        assert operator is not None
        if operator.module is None:
            return None
        held = node.operands[operator.module_operands :]
        if not all(self.space.classes[o].constant for o in held):
            return None
        key = (operator.name, held, node.attributes, *(() if held else (node.operands,)))
        if key not in self.modules:
            module = operator.module(*(self.constants[o] for o in held), *node.attributes)
            if module is None:
                return None
            path = module_path(self.space, held[0]) if held else self._beside(node)
            self.modules[key] = self._add_module(path, module)
        return self.modules[key]

    def _beside(self, node: ENode) -> str:
        """Where a module without parameters goes: next to the module that computes its input."""
        producer = self._value(node.operands[0]).node
        parent = str(producer.target).rpartition(".")[0] if producer.op == "call_module" else ""
        name = "norm" if node.kind == "standardize" else "attention"
        return f"{parent}.{name}" if parent else name

    def _add_module(self, path: str, module: nn.Module) -> str:
        path = self._unique(path)
        *parents, leaf = path.split(".")
        container = self.root
        for name in parents:
            if not hasattr(container, name):
                container.add_module(name, nn.Module())
            container = getattr(container, name)
        container.add_module(leaf, module)
        return path

    def _attribute(self, number: int) -> str:
        if number not in self.attributes:
            name = leading_parameter(self.space, number) or f"constant_{number}"
            path = self._unique(name)
            *parents, leaf = path.split(".")
            container = self.root
            for part in parents:
                if not hasattr(container, part):
                    container.add_module(part, nn.Module())
                container = getattr(container, part)
            value = self.constants[number]
            if value.is_floating_point():
                container.register_parameter(leaf, nn.Parameter(value))
            else:
                container.register_buffer(leaf, value)
            self.attributes[number] = path
        return self.attributes[number]

    def _unique(self, path: str) -> str:
        """A dotted path that names nothing yet, on a branch that holds no module of its own."""
        path = self._beside_modules(path)
        candidate, count = path, 0
        while self._taken(candidate):
            count += 1
            candidate = f"{path}_{count}"
        return candidate

    def _beside_modules(self, path: str) -> str:
        """`a.b.c` as `a.b_c` where `a.b` is a module of its own, which holds nothing else."""
        container: Any = self.root
        parts = path.split(".")
        for depth, name in enumerate(parts[:-1]):
            container = getattr(container, name, None)
            if container is None:
                return path
            if type(container) is not nn.Module:
                return ".".join([*parts[:depth], "_".join(parts[depth:])])
        return path

    def _taken(self, path: str) -> bool:
        container: Any = self.root
        for name in path.split("."):
            container = getattr(container, name, None)
            if container is None:
                return False
        return True


def _names_between(first: fx.Node, last: fx.Node) -> list[str]:
    """What a function of several operators wrote before its result."""
    names: list[str] = []
    node = last.prev
    while node is not first:
        names.append(node.name)
        node = node.prev
    return names[::-1]


class _LazyBatch:
    """Stands for the batch size in operator bodies; the graph asks for it only where it is used."""

    def __init__(self, rebuilder: _Rebuilder) -> None:
        self.rebuilder = rebuilder

    def __rmul__(self, factor: int) -> Any:
        return self.rebuilder.batch(factor)

    def __fx_create_arg__(self, tracer: Any) -> fx.Node:
        return self.rebuilder.batch().node


class Constants:
    """Values of constant classes, each evaluated once in float64 and rounded to its class's dtype."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self._exact: dict[int, Tensor] = {}

    def __getitem__(self, number: int) -> Tensor:
        known = self.space.classes[number]
        value = self._evaluate(number)
        dtype = known.dtype if known.shape != () or known.dtype != torch.float64 else value.dtype
        return value.to(dtype or value.dtype).clone()

    def _evaluate(self, number: int) -> Tensor:
        if number not in self._exact:
            self._exact[number] = self._compute(self.space.terms[number])
        return self._exact[number]

    def _compute(self, term: ENode) -> Tensor:
        if term.kind == "parameter":
            stored: Tensor = self.space.lowered.parameters[term.attributes[0]][1].detach()
            return stored.double() if stored.is_floating_point() else stored
        assert term.operator is not None
        operands = tuple(self._evaluate(o) for o in term.operands)
        value: Tensor = term.operator.body(*term.operator.join(operands, term.attributes))
        return value.double() if value.is_floating_point() else value


def leading_parameter(space: Space, number: int) -> str | None:
    """The name of the first parameter in the term of a constant class, depth first."""
    term = space.terms[number]
    if term.kind == "parameter":
        name: str = space.lowered.parameters[term.attributes[0]][0]
        return name
    return next((n for n in (leading_parameter(space, o) for o in term.operands) if n is not None), None)


def module_path(space: Space, weight: int) -> str:
    """Where the module that holds a weight lives: `layer1.0.conv1` for `layer1.0.conv1.weight`, and
    `self_attention.in_proj` for `self_attention.in_proj_weight`."""
    name = leading_parameter(space, weight) or "constant"
    parent, _, leaf = name.rpartition(".")
    own = leaf.removesuffix("weight").rstrip("_")
    return ".".join(part for part in (parent, own) if part) or leaf


def _path_of(node: str, space: Space) -> str:
    return next((path for name, path in space.lowered.origin.values() if name == node and path), node)
