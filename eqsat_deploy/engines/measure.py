"""What an engine takes and how far it is from a module, measured: what its methods of these names return."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.utils._pytree as pytree
from torch import Tensor

from eqsat_deploy.calling import Arguments, arguments, call_arguments
from eqsat_deploy.errors import InputError
from eqsat_deploy.noise import decibels
from eqsat_extraction import arguments as checked

if TYPE_CHECKING:
    from eqsat_deploy.engines.base import Engine, Layer

WARMUP = 3
LEAST = 5  # calls, however long they take


@dataclass(frozen=True)
class Benchmark:
    """Calls of an engine one after another, in microseconds a call: the median, percentiles, and the fastest."""

    batch: int
    calls: int
    median: float
    p90: float
    p99: float
    fastest: float
    throughput: float
    """Samples a second over all calls."""

    def __str__(self) -> str:
        times = f"{self.median / 1e3:.3f} ms a call (90 %: {self.p90 / 1e3:.3f}, 99 %: {self.p99 / 1e3:.3f})"
        return f"batch {self.batch}: {times}, {self.throughput:,.0f} samples/s; {self.calls} calls"


@dataclass(frozen=True)
class Agreement:
    """One output beside the module's: the lowest signal-to-noise ratio of a batch (dB), and the largest difference."""

    name: str
    decibels: float
    largest: float


@dataclass(frozen=True)
class Comparison:
    """An engine beside a module, output by output, over a number of batches."""

    outputs: tuple[Agreement, ...]
    batches: int

    @property
    def decibels(self) -> float:
        """The lowest of any output."""
        return min((output.decibels for output in self.outputs), default=inf)

    def __str__(self) -> str:
        return "\n".join(f"{o.name}: {o.decibels:.1f} dB, at most {o.largest:.3g} off" for o in self.outputs)


@dataclass(frozen=True)
class Profiled:
    """Kernels that share nodes with layers that ran, and these layers, together.

    `predicted` is in the cost model's unit, None where nothing was predicted; `microseconds` is what the layers took.
    `planned` and `precisions` are the precisions predicted and realized. Without kernels: what the runtime added.
    """

    kernels: tuple[str, ...]
    layers: tuple[str, ...]
    planned: tuple[str, ...]
    precisions: tuple[str, ...]
    predicted: float | None
    microseconds: float


@dataclass(frozen=True)
class Profile:
    """Every layer that ran, in order, with the kernels that it is of; then kernels that no layer names."""

    rows: tuple[Profiled, ...]
    unit: str

    def __rich__(self) -> Any:
        """As a table."""
        from rich.table import Table

        table = Table("kernel", "layer", "precision", title="predicted beside measured", title_justify="left")
        table.add_column(f"predicted {self.unit}", justify="right")
        table.add_column("measured us", justify="right")
        for row in self.rows:
            precision = " ".join(dict.fromkeys(row.precisions or row.planned))
            predicted = "-" if row.predicted is None else f"{row.predicted:.2f}"
            table.add_row(
                ", ".join(row.kernels), ", ".join(row.layers), precision, predicted, f"{row.microseconds:.2f}"
            )
        return table


def benchmark(engine: Engine, batch: Any = None, seconds: float = 2.0) -> Benchmark:
    """Call `engine` on `batch` over and over; see `Engine.benchmark`."""
    limit = checked.seconds("seconds", seconds) or 0.0
    args, kwargs = call_of(engine, batch)
    size = engine.signature.check(engine.signature.call.flatten(args, kwargs))
    for _ in range(WARMUP):
        engine(*args, **kwargs)
    taken: list[float] = []
    begin = now = time.perf_counter()
    while len(taken) < LEAST or now - begin < limit:
        engine(*args, **kwargs)
        before, now = now, time.perf_counter()
        taken.append((now - before) * 1e6)
    p50, p90, p99 = (float(p) for p in np.percentile(taken, (50, 90, 99)))
    return Benchmark(size, len(taken), p50, p90, p99, min(taken), size * len(taken) / (now - begin))


def compare(engine: Engine, module: Callable[..., Any], batches: Iterable[Any]) -> Comparison:
    """`engine` beside `module` on `batches`; see `Engine.compare`."""
    outputs: dict[str, Agreement] = {}
    count = 0
    for count, batch in enumerate(batches, 1):
        args, kwargs = arguments(batch, "the batch")
        try:
            with torch.no_grad():
                expected = pytree.tree_flatten_with_path(module(*args, **kwargs))[0]
        except Exception as error:  # whatever somebody else's forward raises
            raise InputError(f"batch {count}: the module does not take it: {error}") from error
        found = pytree.tree_leaves(engine(*args, **kwargs))
        if len(expected) != len(found):
            raise InputError(f"the module returns {len(expected)} values and the engine {len(found)}")
        for (path, wanted), got in zip(expected, found, strict=True):
            name = f"output{pytree.keystr(path)}"
            if isinstance(wanted, Tensor) != isinstance(got, Tensor):
                kinds = f"{type(wanted).__name__} and the engine {type(got).__name__}"
                raise InputError(f"{name}: the module returns {kinds}")
            if isinstance(wanted, Tensor):
                new = _agreement(name, wanted.cpu(), got.cpu())
                old = outputs.get(name, new)
                worst = min(old.decibels, new.decibels), max(old.largest, new.largest)
                outputs[name] = Agreement(name, *worst)
    if not count:
        raise InputError("batches is empty: give at least one, as example inputs are given")
    return Comparison(tuple(outputs.values()), count)


def profile(engine: Engine, inputs: Sequence[Tensor] = ()) -> Profile:
    """The engine's layers joined to the kernels in its report; see `Engine.profile`."""
    report = engine.report or {}
    kernels = (report.get("engine") or {}).get("kernels") or []
    layers = engine.layers(*inputs)
    rows: list[Profiled] = []
    left = list(kernels)
    rest = list(layers)
    while rest:
        joined = [rest.pop(0)]
        theirs: list[Any] = []
        while True:  # until no kernel names a node of these layers, and no layer one of these kernels
            nodes = {node for layer in joined for node in layer.nodes} | {
                n for k in theirs for n in k["nodes"]
            }
            more = [k for k in left if nodes & set(k["nodes"])]
            others = [layer for layer in rest if nodes & set(layer.nodes)]
            if not more and not others:
                break
            theirs += more
            joined += others
            left = [k for k in left if k not in more]
            rest = [layer for layer in rest if layer not in others]
        rows.append(_row(theirs, joined))
    return Profile((*rows, *(_row([kernel], []) for kernel in left)), str(report.get("unit", "us")))


def _row(kernels: Sequence[Any], layers: Sequence[Layer]) -> Profiled:
    return Profiled(
        tuple(kernel["nodes"][0] for kernel in kernels),
        tuple(layer.name for layer in layers),
        tuple(kernel["precision"] for kernel in kernels),
        tuple(layer.precision for layer in layers),
        sum(kernel["predicted"] for kernel in kernels) if kernels else None,
        sum(layer.microseconds for layer in layers),
    )


def call_of(engine: Engine, batch: Any) -> Arguments:
    """A call of the engine: of zeros where `batch` is a size, or None for the typical one."""
    if batch is not None and not isinstance(batch, int):
        return call_arguments(batch, "the batch")
    size = engine.signature.batch.typical if batch is None else checked.whole("batch", batch)
    return call_arguments(engine.signature.call.batch(engine.signature.zeros(size)), "the batch")


def _agreement(name: str, expected: Tensor, found: Tensor) -> Agreement:
    if expected.shape != found.shape:
        raise InputError(
            f"{name}: the module returns shape {list(expected.shape)} and the engine {list(found.shape)}"
        )
    off = (expected.double() - found.double()).abs()
    return Agreement(name, decibels(expected, found), float(off.max()) if off.numel() else 0.0)
