"""`lower`: every node of a captured graph becomes rows, or an opaque call."""

from __future__ import annotations

import operator as python_operator
from typing import Any

import torch
from torch import Tensor, fx

from eqsat_deploy.capture import Captured
from eqsat_deploy.capture.functional import is_mutable
from eqsat_deploy.errors import CaptureError
from eqsat_deploy.language import input_, result
from eqsat_deploy.language.operator import Unsupported, interpreted_by
from eqsat_deploy.lower.imports import import_call, importer_of
from eqsat_deploy.lower.opaque import Opaque, mapped
from eqsat_deploy.lower.rows import UNKNOWN, Lowered, Row, Rows, Term
from eqsat_deploy.lower.sizes import Sizes, check_sizes
from eqsat_deploy.stages import no_collection
from eqsat_extraction.cautions import caution


@no_collection()
def lower(captured: Captured) -> Lowered:
    """Lower every node of the graph; what the language does not model becomes an opaque row.

    Warns where a node is left opaque for a reason a user can act on. Constant calls that no operator models are
    evaluated once, here.

    Raises:
        CaptureError: the graph has control flow, or a size that would be taken for the batch.
    """
    check_sizes(captured.graph)
    rows = Rows()
    lowering = _Lowering(captured, rows)
    nodes = _alive(captured.graph)
    with torch.no_grad(), interpreted_by(rows):
        for node in nodes:
            lowering.visit(node)
    for message in lowering.opaque.warnings:
        caution(message)
    calls = sum(node.op == "call_function" for node in nodes)
    return rows.lowered(captured, lowering.outputs, nodes=calls, warnings=lowering.opaque.warnings)


def _alive(graph: fx.Graph) -> list[fx.Node]:
    """Nodes that a result depends on, in order: inputs, mutations, and what is read."""
    alive: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if node.op != "call_function" or is_mutable(node) or any(user in alive for user in node.users):
            alive.add(node)
    return [node for node in graph.nodes if node in alive]


class _Lowering:
    """Visits FX nodes in order; `values` has a term, a number or a tuple for each.

    The result of an in-place operator is the tensor that it changed: `changed` says which node that is, and there its
    newest value is kept.
    """

    def __init__(self, captured: Captured, rows: Rows) -> None:
        self.captured, self.rows = captured, rows
        self.sizes = Sizes(captured.batch_symbol)
        self.opaque = Opaque(rows, self.sizes)
        self.values: dict[fx.Node, Any] = {}
        self.changed: dict[fx.Node, fx.Node] = {}
        self.outputs: list[Any] = []

    def visit(self, node: fx.Node) -> None:
        """Lower one node."""
        self.rows.current = (node.name, _module_path(node))
        if node.op == "placeholder":
            self.values[node] = self._placeholder(node)
        elif node.op == "output":
            self.outputs = [self._output(node, a) for a in node.args[0]]  # type: ignore[union-attr]
        elif node.op == "call_function":
            self.values[self._written(node)] = self._call(node)
        else:
            raise CaptureError(
                f"node {node.name!r} ({node.op} {node.target}) has control flow, which is not supported"
            )

    def _written(self, node: fx.Node) -> fx.Node:
        """The node whose value a call is: itself, or the tensor that it changes in place."""
        if not is_mutable(node):
            return node
        base: Any = node.args[0]
        self.changed[node] = self.changed.get(base, base)
        return self.changed[node]

    def _read(self, node: fx.Node) -> Any:
        return self.values[self.changed.get(node, node)]

    def _placeholder(self, node: fx.Node) -> Any:
        if node.name in self.captured.constants:
            return self.rows.parameter(*self.captured.constants[node.name])
        value = node.meta.get("val")
        if not isinstance(value, Tensor):
            return value
        meta = self.sizes.known_meta(value)
        if meta is None:
            self.opaque.warnings.append(
                f"input {node.name!r} has free sizes besides the batch: what depends on them stays as it is, in float, "
                "and no engine can be built. For lengths of sequences, buckets= makes a form for each"
            )
        return self.rows.add(Row(input_, (self.captured.inputs.index(node.name),)), meta, constant=False)

    def _output(self, node: fx.Node, value: Any) -> Any:
        if not isinstance(value, fx.Node):
            return value
        term = self._read(value)
        if isinstance(value.meta.get("val"), Tensor) and not isinstance(term, Term):
            raise CaptureError(f"output {value.name!r} is {term!r}, not a tensor")
        return term

    def _call(self, node: fx.Node) -> Any:
        value = node.meta.get("val")
        if node.target is python_operator.getitem:
            return self._getitem(node)
        args, kwargs = mapped((node.args, node.kwargs), self._argument)
        if not _has_tensor(value):
            return self._number(node, args, kwargs, value)
        if _has_unknown((args, kwargs)):
            return self.opaque.call(node, args, kwargs, UNKNOWN)
        importer = importer_of(node.target)
        if importer is None:
            return self.opaque.call(node, args, kwargs, "the language has no such operator")
        before = len(self.rows.rows)
        try:
            return self._checked(node, import_call(importer, node.target, args, kwargs), value)
        except Unsupported as unsupported:
            self.rows.forget(before)  # what it was half taken apart into
            return self.opaque.call(node, args, kwargs, unsupported.reason)

    def _argument(self, leaf: Any) -> Any:
        return self._read(leaf) if isinstance(leaf, fx.Node) else leaf

    def _getitem(self, node: fx.Node) -> Any:
        source, index = node.args
        value = self._read(source)  # type: ignore[arg-type]
        if isinstance(value, tuple):
            return value[index]  # type: ignore[index]
        return self.rows.add(
            Row(result, (value.row, index)), self.sizes.known_meta(node.meta["val"]), value.constant
        )

    def _checked(self, node: fx.Node, terms: Any, value: Any) -> Any:
        """What an importer returned, if every result that is read has the shape and dtype that torch reports."""
        several = isinstance(terms, tuple)
        read = {u.args[1] for u in node.users if u.users} if several else {0}
        for index, term in enumerate(terms if several else (terms,)):
            if index not in read:
                continue
            expected = self.sizes.meta(
                value[index] if several else value
            )  # Unsupported where it is not known
            if term is None:
                name = str(node.target).split(".default")[0]
                raise Unsupported(f"{name} is left whole: its result {index} is read")
            if tuple(expected.shape) != term.shape or expected.dtype != term.dtype:
                raise Unsupported(f"its result is {expected.dtype}{list(expected.shape)}")
        return terms

    def _number(self, node: fx.Node, args: Any, kwargs: Any, value: Any) -> Any:
        """A number: a multiple of the batch as an integer, one not known before the model runs as an opaque call."""
        if isinstance(value, torch.SymInt):
            try:
                return self.sizes.size(value)
            except Unsupported as unsupported:
                return self.opaque.call(node, args, kwargs, unsupported.reason)
        if isinstance(value, torch.SymFloat | torch.SymBool):
            return self.opaque.call(node, args, kwargs, UNKNOWN)
        return value


def _has_tensor(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, list | tuple) and any(map(_has_tensor, value)))


def _has_unknown(arguments: Any) -> bool:
    found: list[Any] = []
    mapped(
        arguments, lambda leaf: found.append(leaf) if isinstance(leaf, Term) and leaf.meta is None else None
    )
    return bool(found)


def _module_path(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values()]
    return paths[-1] if paths else ""
