"""OpenVINO models compiled and run, by any number of threads.

Arrays in, arrays out; knows neither torch nor what the model was made of.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from queue import SimpleQueue
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eqsat_deploy import compiled_cache
from eqsat_deploy.errors import EngineError, UnknownNameError
from eqsat_deploy.hashing import CheckedFiles
from eqsat_deploy.processors import description, threads
from eqsat_extraction.arguments import whole

Array = NDArray[Any]
ANY = -1
"""The batch of a compilation with dynamic shapes."""
CHOICES = {
    "precision": {"f32": "FP32", "bf16": "BF16", "f16": "FP16"},
    "mode": {"latency": "LATENCY", "throughput": "THROUGHPUT"},
    "shapes": {"static": "", "dynamic": ""},
}
"""Options that are one of a few words, the default first, and what OpenVINO calls these."""
OPTIONS = (*CHOICES, "threads", "streams")


class Compiled:
    """`model`, compiled for a size of the batch when that is first needed.

    Any thread may run it, but no process that was forked since. `concurrency` calls run at a time, as many as OpenVINO
    has streams; more wait for one of them.
    """

    def __init__(
        self,
        read: Callable[[], Any],
        shapes: Sequence[Sequence[int | None]],
        typical: int,
        options: Mapping[str, Any],
        hashes: Mapping[str, str] | None = None,
    ) -> None:
        """Compile it for the size that is `typical`.

        Args:
            read: gives the model of OpenVINO; called once, after what was compiled before is found, or is not.
            shapes: of its inputs, None where the batch stands.
            typical: the size with static shapes; all others share one dynamic compilation.
            options: some of `OPTIONS`.
            hashes: of the files that it is read from; where they are given, what was compiled is kept on disk
                (`compiled_cache`).

        Raises:
            UnknownNameError: an option is none of its choices.
            InputError: one is no number.
            EngineError: this processor does not compute in that precision, OpenVINO cannot compile the model, or it
                was in use in the process that this one was forked from.
        """
        self.properties = properties(options)
        self._shapes, self._hashes = shapes, hashes
        self._static = None if chosen(options, "shapes") == "dynamic" else typical
        self._kept: list[memoryview] = []
        self._lock = Lock()  # nobody compiles what somebody else compiles
        size = self._size(typical)
        imported = self._imported(size)  # while the file that `read` reads may still be being checked
        self.model = read()
        self._results = range(len(self.model.outputs))
        self._made = {size: _requests(imported or self._compiled(size))}
        self.concurrency = self._made[size].qsize()

    def run(self, arrays: Sequence[Array], batch: int) -> list[Array]:
        """The results for contiguous arrays of batch size `batch`, in memory of their own."""
        # Inputs are shared and results copied once. Written into memory of ours, some were garbage (2026.4.1): of a
        # model that also returns one of its inputs, whose memory becomes that of the result.
        _check_process()
        free = self._requests(batch)
        feed = [_tensor(array) for array in arrays]
        request = free.get()
        try:
            for index, value in enumerate(feed):
                request.set_input_tensor(index, value)
            request.infer(share_outputs=True)
            return [request.get_output_tensor(index).data.copy() for index in self._results]
        finally:
            free.put(request)

    def compile(self, batch: int, more: Mapping[str, Any] | None = None) -> Any:
        """OpenVINO's compiled model that serves `batch`, with `more` properties."""
        size = self._size(batch)
        return (not more and self._imported(size)) or self._compiled(size, more)

    def _imported(self, size: int) -> Any | None:
        """What was compiled for `size` before; None where nothing is kept."""
        if (name := self._name(size)) is None or (kept := compiled_cache.read(name)) is None:
            return None
        self._kept.append(kept)  # constants are read where they are kept
        with _compiling():
            return core().import_model(_tensor(np.frombuffer(kept, np.uint8)), "CPU", self.properties)

    def _compiled(self, size: int, more: Mapping[str, Any] | None = None) -> Any:
        with _compiling():
            model = self.model.clone()
            reshape(model, self._shapes, size)
            compiled = core().compile_model(model, "CPU", {**self.properties, **(more or {})})
        if not more and (name := self._name(size)) is not None:
            compiled_cache.write(name, compiled.export_model().getvalue())
        return compiled

    def _name(self, size: int) -> str | None:
        """What the compilation for `size` is kept under; None where none is kept."""
        import openvino

        if self._hashes is None or compiled_cache.folder() is None:
            return None
        return compiled_cache.key(
            openvino=openvino.__version__, model=dict(self._hashes), size=size, properties=self.properties,
            device=core().get_property("CPU", "FULL_DEVICE_NAME"),
        )  # fmt: skip

    def _size(self, batch: int) -> int:
        return batch if batch == self._static else ANY

    def _requests(self, batch: int) -> SimpleQueue[Any]:
        """Those of the compilation that serves `batch`, as far as no call uses them."""
        size = self._size(batch)
        if (free := self._made.get(size)) is None:
            with self._lock:
                if (free := self._made.get(size)) is None:
                    free = self._made[size] = _requests(self.compile(batch))
        return free


@contextmanager
def _compiling() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise EngineError(f"OpenVINO cannot compile the model: {error}") from error


def _requests(compiled: Any) -> SimpleQueue[Any]:
    """As many as it has streams."""
    free: SimpleQueue[Any] = SimpleQueue()
    for _ in range(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")):
        free.put(compiled.create_infer_request())
    return free


def read_model(files: CheckedFiles) -> Any:
    """The model in OpenVINO IR among `files`, once they are checked; `EngineError` when OpenVINO refuses it."""
    import openvino

    file = files.folder() / "model.xml"
    try:
        return core().read_model(file)
    except RuntimeError as error:
        raise EngineError(f"OpenVINO {openvino.__version__} cannot read {file}: {error}") from error


def properties(options: Mapping[str, Any]) -> dict[str, Any]:
    """OpenVINO's, for `options`; raises as `Compiled` does."""
    words = {name: chosen(options, name) for name in CHOICES}
    _check_precision(words["precision"])
    found: dict[str, Any] = {
        "PERFORMANCE_HINT": CHOICES["mode"][words["mode"]],
        "INFERENCE_PRECISION_HINT": words["precision"],
    }
    if "threads" in options:
        found["INFERENCE_NUM_THREADS"] = threads(options)
    if "streams" in options:
        found["NUM_STREAMS"] = min(whole("streams", options["streams"]), os.cpu_count() or 1)
    return found


def chosen(options: Mapping[str, Any], name: str) -> str:
    """The choice of option `name`, its default where there is none; `UnknownNameError` where it is none of them."""
    found = options.get(name, next(iter(CHOICES[name])))
    if found not in CHOICES[name]:
        raise UnknownNameError(f"openvino {name}", str(found), CHOICES[name])
    return str(found)


def capabilities() -> list[str]:
    """What OpenVINO computes in on this processor, by its names."""
    return sorted(core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


def device() -> str:
    """The CPU and what OpenVINO computes in on it."""
    return description(core().get_property("CPU", "FULL_DEVICE_NAME"), *capabilities())


def version() -> str:
    """OpenVINO's, as artifacts have it."""
    import openvino

    return f"openvino {openvino.__version__.partition('-')[0]}"


def reshape(model: Any, shapes: Sequence[Sequence[int | None]], batch: int) -> None:
    """Give the inputs of `model` these shapes with the batch `batch`, or `ANY`."""
    from openvino import PartialShape

    sized = (PartialShape([batch if size is None else size for size in shape]) for shape in shapes)
    model.reshape(dict(zip(model.inputs, sized, strict=True)))


def _check_precision(precision: str) -> None:
    # Asked for what it has not, the plugin computes in float32 and says nothing.
    needed = CHOICES["precision"][precision]
    if needed not in (found := capabilities()):
        raise EngineError(
            f"precision={precision!r}: this processor computes in {', '.join(found)}; leave the option out for f32"
        )


def _tensor(array: Array) -> Any:
    import openvino

    return openvino.Tensor(array, shared_memory=True)


_process: int | None = None  # that runs OpenVINO


def core() -> Any:
    """OpenVINO's.

    Raises:
        EngineError: it was in use in the process that this one was forked from.
    """
    import openvino

    _check_process()
    return openvino.Core()


def _check_process() -> None:
    # A fork copies one thread. A child that waits for the others, or for what they held, hangs: some did (2026.4.1).
    global _process
    _process = _process or os.getpid()
    if _process != os.getpid():
        raise EngineError(
            "OpenVINO was in use in the process that this one was forked from, and its threads did not come along: "
            "start processes with multiprocessing's `spawn` or `forkserver`, and load the engine in each"
        )
