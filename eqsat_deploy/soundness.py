"""Soundness of a whole e-graph: after saturating a real model, every e-node of every e-class is evaluated.

Each e-class gets its value from one e-node, the model's own where there is one, and every other e-node of the class
must compute the same from the values of its operands. So an error shows in the class where a rule made it and not in
those that read it. Evaluation is in float64, at two batch sizes: a rule that is right for one batch only is caught.
"""

from __future__ import annotations

import time
import warnings
from collections import deque
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.export import ExportedProgram

from eqsat_deploy.capture import Captured, capture
from eqsat_deploy.choices import Member
from eqsat_deploy.errors import RuleError
from eqsat_deploy.freeze import Space, freeze
from eqsat_deploy.inputs import example_arguments
from eqsat_deploy.kernels import CONSTANT, QUANTIZE, ENode, applied, value_of
from eqsat_deploy.language import cast, input_, opaque, parameter
from eqsat_deploy.language.operator import Evaluate, interpreted_by
from eqsat_deploy.language.shapes import BATCH, batch_size
from eqsat_deploy.lower import Hole, Lowered, lower
from eqsat_deploy.rules import EgglogRule, select
from eqsat_deploy.saturate import Budget, Saturation, saturate
from eqsat_deploy.selection import registered_rules
from eqsat_extraction.arguments import checked, finite, whole

BATCHES = (2, 3)
TOLERANCE = 1e-9


@dataclass(frozen=True)
class Disagreement:
    """An e-node that computes something else than the rest of its e-class.

    `reference` and `e_node` are in words, `origin` is the node of the model that the class came from, `rules` are
    those that acted on the class, and `error` is max|a - b| / max|a| (infinite where shapes or dtypes differ).
    """

    e_class: int
    origin: str
    reference: str
    e_node: str
    rules: tuple[str, ...]
    batch: int
    error: float

    def __str__(self) -> str:
        where = f" (from {self.origin})" if self.origin else ""
        rules = ", ".join(self.rules) or "no rule"
        return (
            f"e-class {self.e_class}{where}: {self.e_node} differs from {self.reference} by {self.error:.3g} at batch "
            f"{self.batch}; rules that acted there: {rules}"
        )


@dataclass
class SoundnessReport:
    """What was evaluated, and every e-class that disagrees with itself.

    `approximate` counts e-nodes that are not meant to be equal (INT8 kernels and what reads INT8); `unreached` names
    e-nodes whose operands never got a value, which is an error in the e-graph; `errors` has that of every e-node that
    was compared.
    """

    model: str
    e_classes: int
    e_nodes: int
    approximate: int
    batches: tuple[int, ...]
    tolerance: float
    stopped: str
    worst: float = 0.0
    disagreements: list[Disagreement] = field(default_factory=list)
    unreached: list[str] = field(default_factory=list)
    seconds: float = 0.0
    errors: dict[Member, float] = field(default_factory=dict, repr=False)

    @property
    def ok(self) -> bool:
        """Whether every e-node was evaluated and agrees with its e-class."""
        return not self.disagreements and not self.unreached

    def suspects(self) -> list[str]:
        """Rules that acted on a class that disagrees, the most frequent first."""
        counts: dict[str, int] = {}
        for disagreement in self.disagreements:
            for name in disagreement.rules:
                counts[name] = counts.get(name, 0) + 1
        return sorted(counts, key=lambda name: (-counts[name], name))

    def check(self) -> SoundnessReport:
        """The report itself.

        Raises:
            RuleError: an e-class disagrees; the message names e-nodes and rules.
        """
        if not self.ok:
            raise RuleError(str(self))
        return self

    def __str__(self) -> str:
        head = (
            f"{self.model}: {self.e_nodes} e-nodes of {self.e_classes} e-classes evaluated at batches "
            f"{', '.join(map(str, self.batches))}, {self.approximate} approximate ones left out"
        )
        if self.ok:
            return f"{head}: all agree, worst relative error {self.worst:.1e}"
        lines = [f"{head}: {len(self.disagreements)} disagree", *map(str, self.disagreements[:20])]
        return "\n".join([*lines, *(f"never evaluated: {node}" for node in self.unreached[:20])])


@checked
def check_egraph(
    model: nn.Module | ExportedProgram,
    example_inputs: Any = None,
    *,
    rules: str | Iterable[str | EgglogRule] | None = None,
    tolerance: float = TOLERANCE,
    budget: Budget | None = None,
    seed: int = 0,
) -> SoundnessReport:
    """Saturate `model` and evaluate every exact e-node of every e-class on real inputs.

    Args:
        model: what `optimize` takes. Untrained parameters hide errors (a head of zeros makes everything equal).
        example_inputs: as for `optimize`; inferred when missing.
        rules: as for `optimize`, but taken literally: only these are run.
        tolerance: largest allowed max|a - b| / max|a|, in float64.
        budget: limits on saturation.
        seed: of the inputs.

    Raises:
        RuleError: a rule joined tensors of different shapes, which stops saturation.
    """
    start = time.perf_counter()
    finite("tolerance", tolerance)
    whole("seed", seed, least=0)
    known = registered_rules()
    chosen = list(known) if rules is None else select(known, [rules] if isinstance(rules, str) else rules)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        args, kwargs = example_arguments(model, example_inputs)
        captured = capture(model, args, kwargs)
        lowered = lower(captured)
    saturation = saturate(lowered, chosen, budget=budget)
    space = freeze(lowered, saturation)
    report = check_space(
        lowered, saturation, space, tolerance=tolerance, seed=seed, name=type(model).__name__
    )
    report.seconds = round(time.perf_counter() - start, 3)
    return report


def check_space(
    lowered: Lowered, saturation: Saturation, space: Space, *, tolerance: float = TOLERANCE, seed: int = 0,
    name: str = "model", members: Container[Member] | None = None,
) -> SoundnessReport:  # fmt: skip
    """`check_egraph` for a model whose e-graph is frozen already; of `members` alone, if given, and the model's own."""
    exact, approximate = _exact_nodes(space)
    if members is not None:
        exact = [member for member in exact if member in members or member in space.original]
    classes = len({number for number, _ in exact})
    report = SoundnessReport(name, classes, len(exact), approximate, BATCHES, tolerance, saturation.stopped)
    for batch in BATCHES:
        _Evaluation(lowered, saturation, space, exact, batch, seed, report).run()
    return report


def _exact_nodes(space: Space) -> tuple[list[Member], int]:
    """E-nodes that must agree, the model's own first, in the order of its rows; and how many are approximate."""
    kernels = [(c, n) for c, n in space.choices if n.operator not in (CONSTANT, QUANTIZE)]

    def approximate(number: int, node: ENode) -> bool:
        return node.integer or any(
            space.classes[c].quantized_of is not None for c in (number, *node.children)
        )

    candidates = dict.fromkeys([*space.nodes, *kernels])
    exact = [pair for pair in candidates if not approximate(*pair)]
    rank = {number: row for row, number in reversed(list(enumerate(space.row_class)))}
    last = len(rank)
    exact.sort(key=lambda p: (p not in space.original, rank.get(p[0], last), p[0], p[1].sort_key))
    return exact, len(candidates) - len(exact)


class _Evaluation:
    """One pass over all e-nodes at one batch size. A value is dropped once nothing will read it again."""

    def __init__(
        self, lowered: Lowered, saturation: Saturation, space: Space, nodes: list[Member], batch: int, seed: int,
        report: SoundnessReport,
    ) -> None:  # fmt: skip
        self.lowered, self.saturation, self.space = lowered, saturation, space
        self.nodes, self.batch, self.report = nodes, batch, report
        self.inputs = _inputs(lowered.captured, batch, seed)
        self.values: dict[int, Any] = {}
        self.references: dict[int, ENode] = {}
        self.pending: dict[int, int] = {}
        self.readers: dict[int, list[int]] = {}
        self.missing: list[int] = []
        for index, (number, node) in enumerate(nodes):
            operands = set(node.children)
            self.missing.append(len(operands))
            for operand in operands:
                self.readers.setdefault(operand, []).append(index)
            for c in (number, *operands):
                self.pending[c] = self.pending.get(c, 0) + 1

    def run(self) -> None:
        ready = deque(i for i, count in enumerate(self.missing) if not count)
        done = [False] * len(self.nodes)
        with torch.no_grad(), interpreted_by(Evaluate()), batch_size(self.batch):
            while ready:
                index = ready.popleft()
                number, node = self.nodes[index]
                done[index] = True
                try:
                    value = value_of(node, self.values.__getitem__, self._anchor)
                except (RuntimeError, IndexError, ValueError) as error:  # operands that the operator refuses
                    reference = f"what it should be: {str(error).splitlines()[0]}"
                    self._note(number, node, float("inf"), reference)
                    continue
                if number in self.values:
                    self._compare(number, node, pytree.tree_map(_double, value))
                else:
                    value = pytree.tree_map(_double, value)
                    self._check_shape(number, node, value)
                    self.values[number], self.references[number] = value, node
                    ready.extend(self._reached(number))
                for c in (number, *set(node.children)):
                    self.pending[c] -= 1
                    if not self.pending[c]:
                        self.values[c] = None
        if self.batch == BATCHES[0]:
            self.report.unreached += [
                _words(n, c) for (c, n), seen in zip(self.nodes, done, strict=True) if not seen
            ]

    def _reached(self, number: int) -> Iterator[int]:
        for reader in self.readers.get(number, ()):
            self.missing[reader] -= 1
            if not self.missing[reader]:
                yield reader

    # -- values --------------------------------------------------------------------------------------------

    def _anchor(self, node: ENode) -> Any:
        if node.operator is input_:
            return self.inputs[node.attributes[0]]
        if node.operator is parameter:
            return self.lowered.parameters[node.attributes[0]][1].detach()
        if node.operator is opaque:
            return self._call(node, tuple(self.values[o] for o in node.operands))
        if node.operator is cast:
            value, target = self.values[node.operands[0]], getattr(torch, node.attributes[0])
            return value if value.is_floating_point() and target.is_floating_point else value.to(target)
        return applied(node, self.values.__getitem__)

    def _call(self, node: ENode, operands: tuple[Any, ...]) -> Any:
        call = self.lowered.calls[node.attributes[0]]

        def fill(leaf: Any, double: bool) -> Any:
            if isinstance(leaf, Hole):
                value = operands[leaf.index]
                dtype = self.space.classes[node.operands[leaf.index]].dtype
                return value if double or dtype is None or not isinstance(value, Tensor) else value.to(dtype)
            if isinstance(leaf, int) and not isinstance(leaf, bool) and leaf and leaf % BATCH == 0:
                return leaf // BATCH * self.batch
            return leaf

        for double in (True, False):  # in the model's own precision where a call insists on it
            torch.manual_seed(node.attributes[0])
            args, kwargs = pytree.tree_map(lambda leaf, d=double: fill(leaf, d), (call.args, call.kwargs))
            try:
                return call.target(*args, **kwargs)
            except RuntimeError:
                if not double:
                    raise
        raise AssertionError

    # -- agreement -----------------------------------------------------------------------------------------

    def _compare(self, number: int, node: ENode, value: Any) -> None:
        expected = [t for t in pytree.tree_leaves(self.values[number]) if isinstance(t, Tensor)]
        actual = [t for t in pytree.tree_leaves(value) if isinstance(t, Tensor)]
        error = (
            max(map(_error, expected, actual), default=0.0) if len(expected) == len(actual) else float("inf")
        )
        self._note(number, node, error, str(self.references[number]))

    def _check_shape(self, number: int, node: ENode, value: Any) -> None:
        shape = self.space.classes[number].shape
        if shape is None or not isinstance(value, Tensor):
            return
        expected = [d // BATCH * self.batch if d and d % BATCH == 0 else d for d in shape]
        if list(value.shape) != expected:
            self._note(number, node, float("inf"), f"the shape {expected} that the e-graph derives")

    def _note(self, number: int, node: ENode, error: float, reference: str) -> None:
        self.report.worst = max(self.report.worst, error)
        self.report.errors[number, node] = max(error, self.report.errors.get((number, node), 0.0))
        if error <= self.report.tolerance:
            return
        origin = self.space.classes[number].origin
        rules = tuple(self.saturation.rules[i].name for i in self.space.fired.get(number, ()))
        self.report.disagreements.append(Disagreement(
            number, origin[0] if origin else "", reference, _words(node, number), rules, self.batch, error,
        ))  # fmt: skip


def _words(node: ENode, number: int) -> str:
    reads = ", ".join(f"#{c}" for c in node.children)
    attributes = " ".join(map(str, node.attributes))
    return f"{node}({reads})" + (f" [{attributes}]" if attributes else "") + f" in #{number}"


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _error(expected: Tensor, actual: Tensor) -> float:
    """max|a - b| / max|a|, the same values being no number on both sides; infinite where shapes differ."""
    if expected.shape != actual.shape or expected.dtype.is_floating_point != actual.dtype.is_floating_point:
        return float("inf")
    a, b = expected.double(), actual.double()
    if not a.numel():
        return 0.0
    same = (a == b) | (a.isnan() & b.isnan())
    if bool(same.all()):
        return 0.0
    difference = float((a - b)[~same].abs().max())
    finite = a[a.isfinite()]
    scale = float(finite.abs().max()) if finite.numel() else 0.0
    return difference / scale if scale and difference == difference else float("inf")


def _inputs(captured: Captured, batch: int, seed: int) -> list[Any]:
    """Samples drawn from the example inputs with replacement; floats moved, so that no two samples are alike."""
    generator = torch.Generator().manual_seed(seed)
    values = []
    for leaf, axis in zip(captured.tensors, captured.batch_axes, strict=True):
        value = leaf.detach().cpu()
        if axis is not None:
            rows = torch.randint(value.shape[axis], (batch,), generator=generator)
            value = value.index_select(axis, rows)
        if value.is_floating_point():
            noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
            value = value.double() * (1 + 0.3 * noise) if value.any() else noise
        values.append(value)
    return values
