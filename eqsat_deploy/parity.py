"""Parity: an engine computes what its module computes, on real inputs, at the typical batch size and at another.

INT8 outputs agree to 40 dB: rounding ties fall differently in another order of summation, everything else is equal.
A network that amplifies a single code that fell differently agrees with itself no better when it is computed in
float64; then that is the measure, 10 dB less. (ResNet-18 with random weights: one of 16,000 codes of the fifth
activation differs, and the logits agree at 38 dB, in OpenVINO's static and its dynamic compilation alike, but not in
the same codes: the two agree with each other at 43 dB.) Float outputs agree within verification's tolerance.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import inf, log10

import torch
from torch import Tensor, fx

from eqsat_deploy.deployment import InputSpec, Signature, deployment
from eqsat_deploy.engines.base import Engine
from eqsat_deploy.engines.program import flat_module
from eqsat_deploy.verify import ROUNDING_FACTOR, TOLERANCE, relative_error

DECIBELS = 40.0
SLACK = 10.0  # decibels below what a network agrees with itself at

Reference = Callable[[Sequence[Tensor]], Sequence[Tensor]]


@dataclass(frozen=True)
class Departure:
    """Where an engine computes something else: the flat output, the batch size, and by how much, in words."""

    output: int
    batch: int
    measured: str

    def __str__(self) -> str:
        return f"output {self.output} at batch {self.batch}: {self.measured}"


@dataclass(frozen=True)
class Parity:
    """How an engine compares with its module: departures, and the lowest signal-to-noise ratio seen, in dB."""

    departures: tuple[Departure, ...]
    decibels: float

    @property
    def holds(self) -> bool:
        """Whether the engine computes what the module computes."""
        return not self.departures


def compare(
    engine: Engine, module: fx.GraphModule, *, integer: bool, asked: Reference | None = None
) -> Parity:
    """Compare `engine` with `module`, or with what it was `asked` to compute where that is something else on purpose.

    `integer` says whether `module` is quantized. `module` is not changed.
    """
    flat = flat_module(copy.deepcopy(module).cpu().eval())
    reference = asked or _runner(flat)
    doubled = None if asked else _runner(_double(flat))
    departures: list[Departure] = []
    lowest = inf
    for size, inputs in _batches(module, engine.signature):
        expected, found = reference(inputs), [value.cpu() for value in engine.flat(inputs)]
        own = _own(doubled, inputs, expected)
        for index, (wanted, got) in enumerate(zip(expected, found, strict=True)):
            exact = own[index] if own else wanted
            lowest = min(lowest, decibels(wanted, got))
            if (words := _departs(wanted, got, exact, integer, engine.computes)) is not None:
                departures.append(Departure(index, size, words))
    return Parity(tuple(departures), lowest)


def decibels(expected: Tensor, found: Tensor) -> float:
    """Signal-to-noise ratio of `found`: infinite where equal, minus that where shapes or non-finite values differ."""
    if expected.shape != found.shape:
        return -inf
    a, b = expected.double(), found.double()
    finite = torch.isfinite(a)
    if not torch.equal(finite, torch.isfinite(b)) or not torch.equal(
        a[~finite].nan_to_num(), b[~finite].nan_to_num()
    ):
        return -inf
    signal, noise = float((a[finite] ** 2).sum()), float(((a - b)[finite] ** 2).sum())
    if noise == 0:
        return inf
    return 10 * log10(signal / noise) if signal else -inf


def inputs_of(module: fx.GraphModule, size: int) -> tuple[Tensor, ...]:
    """Inputs of batch `size`: the samples that the module's record keeps, repeated or cut, or else random ones."""
    specs = deployment(module).inputs
    kept: tuple[Tensor, ...] = getattr(deployment(module), "samples", ())
    if kept:
        return tuple(_sized(spec, value, size) for spec, value in zip(specs, kept, strict=True))
    generator = torch.Generator().manual_seed(0)
    return tuple(_random(spec, size, generator) for spec in specs)


def _batches(module: fx.GraphModule, signature: Signature) -> Iterator[tuple[int, tuple[Tensor, ...]]]:
    batch = signature.batch
    sizes = [batch.typical]
    if any(None in spec.shape for spec in signature.inputs):
        others = (size for size in (batch.typical + 1, batch.typical - 1) if size >= batch.minimum)
        sizes += [size for size in others if batch.maximum is None or size <= batch.maximum][:1]
    for size in sizes:
        yield size, inputs_of(module, size)


def _sized(spec: InputSpec, value: Tensor, size: int) -> Tensor:
    if None not in spec.shape:
        return value
    axis = spec.shape.index(None)
    return value.index_select(axis, torch.arange(size) % value.shape[axis])


def _random(spec: InputSpec, size: int, generator: torch.Generator) -> Tensor:
    shape = [size if length is None else length for length in spec.shape]
    if spec.dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(spec.dtype)
    return torch.randint(0, 2, shape, generator=generator).to(spec.dtype)


def _runner(flat: fx.GraphModule) -> Reference:
    def run(inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        with torch.no_grad():
            return [value.detach() for value in flat(*inputs)]

    return run


def _double(flat: fx.GraphModule) -> fx.GraphModule:
    doubled = copy.deepcopy(flat).double()
    doubled.meta = {}
    return doubled


def _own(doubled: Reference | None, inputs: Sequence[Tensor], expected: Sequence[Tensor]) -> Sequence[Tensor]:
    """What the module computes in float64, its dtypes kept; nothing where it mixes in tensors of a fixed dtype."""
    if doubled is None:
        return ()
    try:
        exact = doubled([value.double() if value.is_floating_point() else value for value in inputs])
    except RuntimeError:
        return ()
    return [value.to(wanted.dtype) for value, wanted in zip(exact, expected, strict=True)]


def _departs(
    expected: Tensor, found: Tensor, exact: Tensor, integer: bool, computes: torch.dtype
) -> str | None:
    if integer and expected.is_floating_point():
        measured, itself = decibels(expected, found), decibels(expected, exact)
        needed = min(DECIBELS, itself - SLACK)
        return None if measured >= needed else f"{measured:.1f} dB, where {needed:.1f} are needed"
    error, rounding = relative_error([expected], [found]), relative_error([expected], [exact])
    tolerance = max(
        TOLERANCE.get(expected.dtype, 0.0), TOLERANCE[computes] if expected.is_floating_point() else 0.0
    )
    allowed = max(tolerance, ROUNDING_FACTOR * min(rounding, 1.0))
    return (
        None
        if error <= allowed
        else f"differs by {error:.3g} of its largest value, where {allowed:.3g} is allowed"
    )


def first_departure(
    build: Callable[[fx.GraphModule], Engine], module: fx.GraphModule, *, integer: bool
) -> str | None:
    """The node at which an engine of `module` departs first, found by halving; None where no part of it does alone."""
    nodes = _tensors(module)
    low, high = 0, len(nodes)
    while low < high:
        middle = (low + high) // 2
        part = _until(module, nodes[middle])
        if compare(build(part), part, integer=integer).holds:
            low = middle + 1
        else:
            high = middle
    return nodes[low].name if low < len(nodes) else None


def _tensors(module: fx.GraphModule) -> list[fx.Node]:
    """The computing nodes whose result is one floating tensor, in order."""
    found: list[fx.Node] = []

    class Watch(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            result = super().run_node(n)
            if n.op.startswith("call") and isinstance(result, Tensor) and result.is_floating_point():
                found.append(n)
            return result

    with torch.no_grad():
        Watch(copy.deepcopy(module).cpu().eval()).run(*inputs_of(module, 2))
    names = {node.name for node in found}
    return [node for node in module.graph.nodes if node.name in names]


def _until(module: fx.GraphModule, last: fx.Node) -> fx.GraphModule:
    """`module` up to `last`, which it returns; parameters are shared with it."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in module.graph.nodes:
        if node.op != "output":
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(copies[last])
    part = fx.GraphModule(module, graph)
    part.graph.eliminate_dead_code(is_impure_node=lambda node: node.op == "placeholder")
    part.recompile()
    part.meta = dict(module.meta)
    return part
