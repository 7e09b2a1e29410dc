"""Parity: an engine computes what its module computes, on real inputs, at the typical batch size and at another.

At each size every sample that the record keeps is drawn, since a batch of many hides one that is wrong. What a
calibration has not seen is another matter: padded attention over 16 positions, calibrated on sequences of 4 and more,
had 39 to 42 dB to the float model on these and 19 on one of a single position, which averages nothing and is clipped (a
range of 0.95 where its values reach 1.30). With short sequences in the calibration it has 41. Values at padded
positions stretched no range, and engine and module agreed at more than 100 dB at every length and batch size.

INT8 outputs agree to 40 dB: rounding ties fall differently in another order of summation, everything else is equal.
A network that amplifies a single code that fell differently agrees with itself no better when it is computed in
float64; then that is the measure, 10 dB less. (ResNet-18 with random weights: one of 20,000 codes of the sixth
activation falls differently, and the logits agree at 33 to 38 dB, in OpenVINO's static and its dynamic compilation
alike; the module agrees with itself in float64 at 33 to 35. MobileNetV2: 22 to 26, and 20.) An engine that rounds
where its module does not, as sums fused into convolutions do, is right where it is as near to the module without
rounding as the module is. Of a network that agrees with itself at a few decibels (EfficientNet-B0 with random weights:
3) nothing more can be asked, and `Fidelity` warns of it. Float outputs agree within verification's tolerance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Generic, TypeVar

import torch
from torch import Tensor, fx

from eqsat_deploy.deployment import SAMPLES, InputSpec, Signature, at_rest, copied, deployment, record
from eqsat_deploy.engines.base import Engine
from eqsat_deploy.engines.program import flat_module
from eqsat_deploy.noise import decibels
from eqsat_deploy.quantization.biases import unrounded
from eqsat_deploy.quantization.fake_quantize import rounded_once
from eqsat_deploy.verify import ROUNDING_FACTOR, TOLERANCE, relative_error

DECIBELS = 40.0
AS_NEAR = 2.0  # decibels that an engine may be further than its module, from the module without rounding or from itself
SLACK = 10.0  # decibels below what a network agrees with itself at, down to the floor
FLOOR = 12.0  # decibels that a network has to agree with itself at for that slack; wrong engines answered at 2 to 6
PROBES = 3

T = TypeVar("T")
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
    resting = at_rest(module)
    flat = rounded_once(flat_module(resting))
    without = () if asked or not integer else (_runner(flat_module(unrounded(resting))),)
    probes = _Kept(() if asked else (_probe(flat, seed) for seed in range(PROBES)))
    batches = list(_batches(module, engine.signature))
    at_once = (partial(_of_all, count := _kept(module), inputs_of(module, count)),)
    for at in (*(at_once if deployment(module).samples else ()), _alone):
        parity = _compared(
            engine,
            batches,
            at(asked or _runner(flat)),
            _Kept(map(at, probes)),
            tuple(map(at, without)),
            integer=integer,
        )
        if parity.holds:
            break
    return parity


@dataclass(frozen=True)
class _Batch:
    """Some of the kept samples, which `rows` are, in one batch of `size`."""

    size: int
    rows: Tensor
    inputs: tuple[Tensor, ...]


def _alone(reference: Reference) -> Callable[[_Batch], Sequence[Tensor]]:
    return lambda batch: reference(batch.inputs)


def _of_all(count: int, kept: Sequence[Tensor], reference: Reference) -> Callable[[_Batch], Sequence[Tensor]]:
    """The `count` samples `kept` computed at once, and those of a batch out of them: the same where none mix."""
    results: list[Tensor] = []

    def at(batch: _Batch) -> Sequence[Tensor]:
        results.extend(() if results else reference(kept))
        if any(value.dim() == 0 or len(value) != count for value in results):
            return reference(batch.inputs)
        return [value[batch.rows] for value in results]

    return at


def _compared(
    engine: Engine,
    batches: Sequence[_Batch],
    module: Callable[[_Batch], Sequence[Tensor]],
    probes: Iterable[Callable[[_Batch], Sequence[Tensor]]],
    without: Sequence[Callable[[_Batch], Sequence[Tensor]]],
    *,
    integer: bool,
) -> Parity:
    departures: list[Departure] = []
    lowest = inf
    for batch in batches:
        expected, found = module(batch), [value.cpu() for value in engine.flat(batch.inputs)]
        again = _Kept(_again(probes, batch))
        unhurt = _Kept(reference(batch) for reference in without)
        for index, (wanted, got) in enumerate(zip(expected, found, strict=True)):
            lowest = min(lowest, decibels(wanted, got))
            itself = (results[index].to(wanted.dtype) for results in again)
            exact = (results[index] for results in unhurt)
            words = _departs(wanted, got, exact, itself, integer, engine.computes)
            if words is not None:
                departures.append(Departure(index, batch.size, words))
    return Parity(tuple(departures), lowest)


def inputs_of(module: fx.GraphModule, size: int, first: int = 0) -> tuple[Tensor, ...]:
    """Inputs of batch `size`: the samples that the module's record keeps, from `first` on and round again, or else
    random ones."""
    known = deployment(module)
    if known.samples:
        return tuple(_sized(*given, size, first) for given in zip(known.inputs, known.samples, strict=True))
    generator = torch.Generator().manual_seed(first)
    return tuple(_random(spec, size, generator) for spec in known.inputs)


def _batches(module: fx.GraphModule, signature: Signature) -> Iterator[_Batch]:
    batch = signature.batch
    sizes = [batch.typical]
    if any(None in spec.shape for spec in signature.inputs):
        others = (size for size in (batch.typical + 1, batch.typical - 1) if size >= batch.minimum)
        sizes += [size for size in others if batch.maximum is None or size <= batch.maximum][:1]
    count = _kept(module)
    for size in sizes:
        for first in range(0, count, size):
            yield _Batch(size, torch.arange(first, first + size) % count, inputs_of(module, size, first))


def _kept(module: fx.GraphModule) -> int:
    """How many samples there are to draw: those that the record keeps, or as many random ones."""
    known = deployment(module)
    batched = [
        value.shape[spec.shape.index(None)]
        for spec, value in zip(known.inputs, known.samples, strict=False)
        if None in spec.shape
    ]
    return min(batched, default=SAMPLES if not known.samples else 1)


def _sized(spec: InputSpec, value: Tensor, size: int, first: int) -> Tensor:
    value = value.cpu()
    if None not in spec.shape:
        return value
    axis = spec.shape.index(None)
    return value.index_select(axis, torch.arange(first, first + size) % value.shape[axis])


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


class _Kept(Generic[T]):
    """Values made once, each when it is first asked for."""

    def __init__(self, values: Iterable[T]) -> None:
        self.rest = iter(values)
        self.made: list[T] = []

    def __iter__(self) -> Iterator[T]:
        yield from self.made
        for value in self.rest:
            self.made.append(value)
            yield value


def _probe(flat: fx.GraphModule, seed: int) -> Reference:
    """The module itself with other rounding: in float64, and with every `seed` but 0 its parameters off by as much as a
    few roundings, which is what folding scales and summing in another order comes to."""
    doubled = copied(flat)
    generator = torch.Generator().manual_seed(seed)
    for tensor in (*doubled.parameters(), *doubled.buffers()):
        if tensor.is_floating_point():
            off = 2 * torch.finfo(tensor.dtype).eps
            tensor.data = tensor.data.double()
            if seed:
                noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64) * 2 - 1
                tensor.data *= 1 + off * noise
    return _doubled(_runner(doubled))


def _again(
    probes: Iterable[Callable[[_Batch], Sequence[Tensor]]], batch: _Batch
) -> Iterator[Sequence[Tensor]]:
    """What each probe makes of a batch; nothing where the module mixes in tensors of a fixed dtype."""
    with suppress(RuntimeError):
        for probe in probes:
            yield probe(batch)


def _doubled(run: Reference) -> Reference:
    return lambda inputs: run([value.double() if value.is_floating_point() else value for value in inputs])


def _departs(
    expected: Tensor,
    found: Tensor,
    exact: Iterable[Tensor],
    itself: Iterable[Tensor],
    integer: bool,
    computes: torch.dtype,
) -> str | None:
    """In words, by how much `found` is not what was expected; the values `exact`, without rounding, and then `itself`,
    which takes float64, are asked only where, and until, that is in doubt."""
    measured, needed = decibels(expected, found), DECIBELS
    if integer and measured < needed and any(_as_near(values, expected, found) for values in exact):
        return None
    if integer and expected.is_floating_point():
        others = iter(itself)
        while measured < needed and (other := next(others, None)) is not None:
            agrees = decibels(expected, other)
            needed = min(needed, max(agrees - SLACK, min(FLOOR, agrees - AS_NEAR)))
        return None if measured >= needed else f"{measured:.1f} dB, where {needed:.1f} are needed"
    error = relative_error([expected], [found])
    tolerance = TOLERANCE.get(expected.dtype, 0.0)
    if expected.is_floating_point():
        tolerance = max(tolerance, TOLERANCE[computes])
    if error <= tolerance:
        return None
    rounding = max((relative_error([expected], [other]) for other in itself), default=0.0)
    allowed = max(tolerance, ROUNDING_FACTOR * rounding) if rounding < 1 else tolerance
    return (
        None
        if error <= allowed
        else f"differs by {error:.3g} of its largest value, where {allowed:.3g} is allowed"
    )


def _as_near(exact: Tensor, expected: Tensor, found: Tensor) -> bool:
    """Whether what was found is as near to the values without rounding as what was expected."""
    return decibels(exact, found) >= decibels(exact, expected) - AS_NEAR


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
        Watch(at_rest(module)).run(*inputs_of(module, 2))
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
    part.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    part.recompile()
    part.meta = dict(module.meta)
    record(part, call=None)  # it returns something else
    return part
