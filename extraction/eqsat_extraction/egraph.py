"""An e-graph as arrays: what every extractor reads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import CostError, EGraphError

if TYPE_CHECKING:
    import networkx

Ints = NDArray[np.int32]
Offsets = NDArray[np.int64]
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


def as_floats(name: str, values: ArrayLike) -> Floats:
    """`values` as a contiguous float64 array; `CostError` where they are no numbers."""
    try:
        return np.ascontiguousarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise CostError(f"{name}: {error}") from error


@dataclass(frozen=True, eq=False)
class EGraph:
    """E-nodes in compressed rows of child e-classes.

    `node_class` (n,) int32 is the e-class of every e-node; the children of e-node `i` are
    `children[child_ptr[i]:child_ptr[i + 1]]`, e-classes in operand order, duplicates allowed;
    `roots` are the e-classes that must be extracted. `ops`, `node_ids` (n) and `class_ids` (n_classes) are
    names, each possibly empty. An e-class may have no e-node (then nothing can provide it).
    Raises `EGraphError` when the arrays disagree.
    """

    node_class: Ints
    child_ptr: Offsets
    children: Ints
    roots: Ints
    n_classes: int
    ops: tuple[str, ...] = ()
    node_ids: tuple[str, ...] = ()
    class_ids: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, dtype in (
            ("node_class", np.int32),
            ("child_ptr", np.int64),
            ("children", np.int32),
            ("roots", np.int32),
        ):
            array = np.ascontiguousarray(getattr(self, name), dtype=dtype)
            if array.ndim != 1:
                raise EGraphError(f"{name} has {array.ndim} dimensions; pass a flat array")
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        n = self.n_nodes
        if len(self.child_ptr) != n + 1 or self.child_ptr[0] != 0 or self.child_ptr[-1] != len(self.children):
            raise EGraphError("child_ptr must have one entry more than node_class, from 0 to len(children)")
        if np.any(np.diff(self.child_ptr) < 0):
            raise EGraphError("child_ptr decreases")
        for name in ("node_class", "children", "roots"):
            array = getattr(self, name)
            bad = np.flatnonzero((array < 0) | (array >= self.n_classes))
            if len(bad):
                raise EGraphError(
                    f"{name}[{bad[0]}] is e-class {array[bad[0]]}, but there are {self.n_classes} e-classes"
                )
        for name, size in (("ops", n), ("node_ids", n), ("class_ids", self.n_classes)):
            if len(getattr(self, name)) not in (0, size):
                raise EGraphError(f"{name} has {len(getattr(self, name))} entries; expected none or {size}")

    @classmethod
    def build(
        cls,
        nodes: Sequence[tuple[int, Sequence[int]]],
        roots: Iterable[int],
        n_classes: int | None = None,
        ops: Iterable[str] = (),
        node_ids: Iterable[str] = (),
        class_ids: Iterable[str] = (),
    ) -> EGraph:
        """An e-graph from `(e-class, child e-classes)` pairs, one per e-node.

        `n_classes` is one more than the largest e-class named when it is not given.
        """
        roots = list(roots)
        children = [child for _, operands in nodes for child in operands]
        if n_classes is None:
            n_classes = 1 + max([-1, *(head for head, _ in nodes), *children, *roots])
        sizes = [len(operands) for _, operands in nodes]
        return cls(
            node_class=np.array([head for head, _ in nodes], dtype=np.int32),
            child_ptr=np.concatenate(([0], np.cumsum(sizes, dtype=np.int64))).astype(np.int64),
            children=np.array(children, dtype=np.int32),
            roots=np.array(roots, dtype=np.int32),
            n_classes=n_classes,
            ops=tuple(ops),
            node_ids=tuple(node_ids),
            class_ids=tuple(class_ids),
        )

    @property
    def n_nodes(self) -> int:
        """Number of e-nodes."""
        return len(self.node_class)

    @cached_property
    def class_nodes(self) -> tuple[Offsets, Ints]:
        """The e-nodes of every e-class: offsets (n_classes + 1,) and e-nodes (n,), ascending in a class."""
        order = np.argsort(self.node_class, kind="stable").astype(np.int32)
        counts = np.bincount(self.node_class, minlength=self.n_classes)
        return _offsets(counts), order

    @cached_property
    def parents(self) -> tuple[Offsets, Ints]:
        """The e-nodes that read every e-class: offsets (n_classes + 1,) and e-nodes, once per operand."""
        readers = np.repeat(np.arange(self.n_nodes, dtype=np.int32), np.diff(self.child_ptr))
        order = np.argsort(self.children, kind="stable")
        counts = np.bincount(self.children, minlength=self.n_classes)
        return _offsets(counts), readers[order]

    def children_of(self, node: int) -> Ints:
        """The child e-classes of one e-node, in operand order."""
        return self.children[self.child_ptr[node] : self.child_ptr[node + 1]]

    def nodes_of(self, eclass: int) -> Ints:
        """The e-nodes of one e-class, ascending."""
        ptr, nodes = self.class_nodes
        return nodes[ptr[eclass] : ptr[eclass + 1]]

    def node_name(self, node: int) -> str:
        """How messages call an e-node: its number and, where known, its identifier and operator."""
        names = [repr(names[node]) for names in (self.node_ids, self.ops) if names]
        return f"e-node {node}" + (f" ({', '.join(names)})" if names else "")

    def class_name(self, eclass: int) -> str:
        """How messages call an e-class: its number and, where known, its identifier."""
        return f"e-class {eclass}" + (f" ({self.class_ids[eclass]!r})" if self.class_ids else "")

    def subset(self, keep: ArrayLike) -> tuple[EGraph, Ints]:
        """The e-graph with only the e-nodes of the mask `keep` (n,); e-classes keep their numbers.

        Also returns the old number of every kept e-node.
        """
        mask = np.asarray(keep, dtype=bool)
        if mask.shape != (self.n_nodes,):
            raise EGraphError(f"keep has shape {mask.shape}; expected ({self.n_nodes},)")
        kept = np.flatnonzero(mask).astype(np.int32)
        sizes = np.diff(self.child_ptr)
        smaller = EGraph(
            node_class=self.node_class[kept],
            child_ptr=_offsets(sizes[kept]),
            children=self.children[np.repeat(mask, sizes)],
            roots=self.roots,
            n_classes=self.n_classes,
            ops=tuple(self.ops[i] for i in kept) if self.ops else (),
            node_ids=tuple(self.node_ids[i] for i in kept) if self.node_ids else (),
            class_ids=self.class_ids,
        )
        return smaller, kept

    def check_costs(self, costs: ArrayLike) -> Floats:
        """`costs` as float64 (n,); `CostError` for another shape, a NaN or a negative entry."""
        array = as_floats("costs", costs)
        if array.shape != (self.n_nodes,):
            raise CostError(
                f"costs have shape {array.shape}; expected ({self.n_nodes},), one cost per e-node "
                "(for vectors of costs pass weights= or budget= through `scalarize`)"
            )
        bad = np.flatnonzero(~(array >= 0))
        if len(bad):
            what = "not a number" if np.isnan(array[bad[0]]) else f"negative ({array[bad[0]]:g})"
            raise CostError(
                f"the cost of {self.node_name(int(bad[0]))} is {what}; costs must be >= 0, "
                "and infinite where the e-node may not be chosen"
            )
        return array

    def to_networkx(self, costs: ArrayLike | None = None) -> networkx.MultiDiGraph:
        """A bipartite graph: `("class", c)` to its members `("node", n)`, those to their operand e-classes.

        Operand edges carry `operand`; e-nodes carry `op`, `id` and (when given) `cost`; e-classes carry
        `id` and `root`.
        """
        import networkx

        graph: Any = networkx.MultiDiGraph()
        roots = set(self.roots.tolist())
        for c in range(self.n_classes):
            graph.add_node(("class", c), id=self.class_ids[c] if self.class_ids else str(c), root=c in roots)
        prices = None if costs is None else np.asarray(costs, dtype=np.float64)
        for n, head in enumerate(self.node_class.tolist()):
            graph.add_node(
                ("node", n),
                op=self.ops[n] if self.ops else "",
                id=self.node_ids[n] if self.node_ids else str(n),
                **({} if prices is None else {"cost": float(prices[n])}),
            )
            graph.add_edge(("class", head), ("node", n))
            for operand, child in enumerate(self.children_of(n).tolist()):
                graph.add_edge(("node", n), ("class", child), operand=operand)
        return graph


def _offsets(counts: NDArray[np.integer[Any]]) -> Offsets:
    """Compressed-row offsets of rows with these lengths."""
    ptr = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=ptr[1:])
    return ptr
