"""What an engine is: a compiled module, called as the module is."""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, fx

from eqsat_deploy import artifact
from eqsat_deploy.calling import array_of, holds_arrays
from eqsat_deploy.deployment import DEFAULT_BATCH, Batch, PlacedKernel, Signature
from eqsat_deploy.engines import measure
from eqsat_deploy.errors import EngineError, EqsatError, UnknownNameError
from eqsat_deploy.hashing import CheckedFiles
from eqsat_extraction.arguments import checked

if TYPE_CHECKING:
    from eqsat_deploy.engines.onnx import Lane

KINDS = 64
"""How many kinds of calls an engine remembers to have checked."""


@dataclass(frozen=True)
class Layer:
    """One kernel as the engine ran it.

    `precision` is the realized one, a torch dtype name (`int8` also for unsigned bytes). `nodes` are the
    graph nodes it covers where the engine says so. `microseconds` is 0 where it does not time kernels.
    """

    name: str
    type: str
    precision: str
    microseconds: float
    nodes: tuple[str, ...] = ()


def realized(kernels: Iterable[PlacedKernel], layers: Iterable[Layer]) -> dict[str, str | None]:
    """The precision that each kernel ran in, by its anchor: that of the first layer which covers its anchor, or another
    of its nodes (what converts its result comes later); None where none says so, as where several became one."""
    precisions: dict[str, str] = {}
    for layer in layers:
        for node in layer.nodes:
            precisions.setdefault(node, layer.precision)
    return {
        kernel.anchor: next((precisions[node] for node in kernel.nodes if node in precisions), None)
        for kernel in kernels
    }


class Engine(ABC):
    """A compiled module. Calling it takes and returns what the module takes and returns.

    An implementation imports its runtime inside its methods only, so that finding engines costs nothing
    and `unavailable` can say what is missing.

    Attributes:
        name: what it is found by, the name of its target.
        portable: whether its files also run on other devices and with other versions of the runtime.
        float_dtype: what is not INT8 is computed in, unless an option says otherwise.
        lane: how the ONNX file it reads is written, None where it reads none.
        fallbacks: options to build with, in turn, where an engine built without them departs from the module.
        changes: what it was asked to compute otherwise than the module, on purpose, a sentence each.
        signature: how the module is called.
        weights: the module's parameters and buffers by name, for an artifact that is to have them; none where it was
            loaded from one without.
        options: how it runs, as JSON values, which an artifact keeps: what it was built with that is not in its files.
        report: the optimization's report as JSON values, or None.
    """

    name: ClassVar[str]
    portable: ClassVar[bool] = False
    float_dtype: ClassVar[torch.dtype] = torch.float32
    lane: ClassVar[Lane | None] = None
    fallbacks: ClassVar[tuple[Mapping[str, Any], ...]] = ()

    def __init__(
        self,
        signature: Signature,
        weights: Mapping[str, Tensor] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.signature = signature
        self.weights: Mapping[str, Tensor] = weights or {}
        self.options: Mapping[str, Any] = options or {}
        self.report: dict[str, Any] | None = None
        self.changes: tuple[str, ...] = ()
        self._kinds: dict[tuple[Any, ...], int] = {}

    @property
    def computes(self) -> torch.dtype:
        """What this engine computes in where it is not INT8."""
        return self.float_dtype

    @property
    def concurrency(self) -> int:
        """How many calls of several threads run at a time; more wait."""
        return 1

    def asked(self) -> Callable[[Sequence[Tensor]], Sequence[Tensor]] | None:
        """Flat inputs to the flat outputs that it was asked for, step by step, where `changes` are made; None where
        this machine cannot tell."""
        return None

    @classmethod
    @abstractmethod
    def unavailable(cls) -> str | None:
        """Why this machine cannot build and run this engine, and how to get it; None when it can."""

    @classmethod
    @abstractmethod
    def build(
        cls, module: fx.GraphModule, *, batch: Batch = DEFAULT_BATCH, options: Mapping[str, Any] | None = None
    ) -> Self:
        """Compile `module` (rebuilt or quantized), which is left as it is.

        Raises `EngineError`, and `UnknownNameError` for an option it does not have (`check_options`).
        """

    @abstractmethod
    def run(self, inputs: Sequence[Tensor], batch: int) -> Sequence[Tensor]:
        """The flat outputs (order of `flat_outputs`) for checked inputs of batch size `batch`."""

    @abstractmethod
    def save_files(self, folder: Path) -> None:
        """Write the engine's own files into an existing, empty folder; no pickles."""

    @classmethod  # noqa: B027  there may be nothing to join
    def join_files(cls, folders: Sequence[Path]) -> None:
        """Make what several engines of this class have in common one file, which each of `folders`, that their
        `save_files` wrote, has a copy of."""

    @classmethod
    @abstractmethod
    def load_files(cls, folder: Path, signature: Signature, options: Mapping[str, Any]) -> Self:
        """The engine of these `options` whose `save_files` wrote `folder`; `EngineError` when this machine cannot
        run it."""

    @classmethod
    def load(cls, files: CheckedFiles, signature: Signature, options: Mapping[str, Any]) -> Self:
        """`load_files`, once the files are checked. An engine that knows something to do until then does it here."""
        return cls.load_files(files.folder(), signature, options)

    @abstractmethod
    def layers(self, *inputs: Tensor) -> tuple[Layer, ...]:
        """Every kernel executed for tensors in the order of `signature.inputs` (zeros at the typical batch when none
        are given), in order."""

    @property
    @abstractmethod
    def device(self) -> str:
        """The processor the engine is compiled for, as the manifest records it."""

    @property
    @abstractmethod
    def version(self) -> str:
        """The runtime's version, as the manifest records it."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Called as the module is, and returns what it returns, nested as it nests; arrays where it is given arrays.

        Raises:
            InputError: an argument is missing or unknown, or nested otherwise, or has another shape, dtype or value
                than the engine was built for; the message says what is expected.
        """
        # All that is checked follows from this, which calls of one kind have in common.
        kind = tuple([(v.shape, v.dtype) if type(v) is Tensor else None for v in args]) if not kwargs else ()
        if (batch := self._kinds.get(kind)) is not None:
            return self.signature.pack(self._flat(args, batch))
        inputs = self.signature.call.flatten(args, kwargs)
        batch = self.signature.check(inputs)
        if kind and len(inputs) == len(args) and all(map(operator.is_, inputs, args)):
            if len(self._kinds) >= KINDS:
                self._kinds = {}
            self._kinds[kind] = batch
        found: Sequence[Any] = self._flat(inputs, batch)
        if holds_arrays((args, kwargs)):
            found = list(map(array_of, found))
        return self.signature.pack(found)

    def __repr__(self) -> str:
        shipped = ((self.report or {}).get("engine") or {}).get("shipped")
        parts = [self.version, str(self.signature.call), str(self.signature.batch)]
        return f"{type(self).__name__}({'; '.join(parts + [f'{shipped} form'] * (shipped is not None))})"

    def flat(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """The flat outputs, in the order of `flat_outputs`, for tensors in the order of `signature.inputs`.

        Raises:
            InputError: they do not fit.
            EngineError: the runtime fails on inputs that fit.
        """
        return self._flat(inputs, self.signature.check(inputs))

    def _flat(self, inputs: Sequence[Tensor], batch: int) -> Sequence[Tensor]:
        """`flat` of what is checked, on the device of the first input."""
        try:
            found = self.run(self.signature.widened(inputs), batch)
        except EqsatError:
            raise
        except Exception as error:  # runtimes' errors have no common base
            raise EngineError(
                f"{self.version} fails on {self.signature.call} at batch {batch}: {error}"
            ) from error
        if len(found) != self.signature.results:
            raise EngineError(f"{self.version} computes {len(found)} outputs, not {self.signature.results}")
        if inputs and not inputs[0].is_cpu:
            found = [value.to(inputs[0].device) for value in found]
        return self.signature.narrowed(found)

    @checked
    def warm(self, batches: Iterable[Any]) -> None:
        """Call it once on each batch, or on zeros of each size, so that no later call of these sizes compiles."""
        for batch in batches:
            args, kwargs = measure.call_of(self, batch)
            self(*args, **kwargs)

    @checked
    def map(self, batches: Iterable[Any]) -> Iterator[Any]:
        """What it returns for each batch, given as example inputs are, in their order: `concurrency` calls at a time,
        while the next batches are read.
        """
        return self._mapped(batches)

    def _mapped(self, batches: Iterable[Any]) -> Iterator[Any]:
        waiting: deque[Future[Any]] = deque()
        with ThreadPoolExecutor(self.concurrency, thread_name_prefix="map") as pool:
            for batch in batches:
                args, kwargs = measure.call_of(self, batch)
                waiting.append(pool.submit(self, *args, **kwargs))
                if len(waiting) > 2 * self.concurrency:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def benchmark(self, batch: Any = None, seconds: float = 2.0) -> measure.Benchmark:
        """Call it over and over for `seconds`, one call at a time, after a few that do not count.

        `batch` is given as example inputs are, or a size of zeros; the typical size where it is None. To compare
        engines with each other, time them in turns (`engines.race`).
        """
        return measure.benchmark(self, batch, seconds)

    @checked
    def compare(self, module: Callable[..., Any], batches: Iterable[Any]) -> measure.Comparison:
        """Its outputs beside those of `module` (the original, or an optimized one) on batches given as example inputs.

        Raises:
            InputError: there are none, one does not fit, or the module returns something else.
        """
        return measure.compare(self, module, batches)

    def profile(self, *inputs: Tensor) -> measure.Profile:
        """`layers`, joined by node names to the kernels that the cost model priced: predicted beside measured."""
        return measure.profile(self, inputs)

    @checked
    def save(self, path: str | Path, *, weights: bool = False) -> None:
        """Write an artifact directory (`eqsat_deploy.artifact.save`), with the module's `weights` beside the engine's
        own where they are asked for."""
        artifact.save(self, path, weights=weights)


def check_options(engine: str, options: Mapping[str, Any] | None, known: Iterable[str]) -> dict[str, Any]:
    """`options` as a dict; `UnknownNameError` for a key that is not in `known`."""
    known = tuple(known)
    for key in options or {}:
        if key not in known:
            raise UnknownNameError(f"{engine} option", key, known)
    return dict(options or {})
