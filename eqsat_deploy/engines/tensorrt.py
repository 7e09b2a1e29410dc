"""TensorRT 10.13 and later, 11.x included: the `tensorrt` lane's file as a strongly typed engine on a GPU.

No calibrators and no precision flags: 11 has neither, and in 10 Q/DQ networks should not set them. The types
of the file decide. Names and signatures used here and in `tensorrt_*.py` are checked against the published Python
bindings by the tests.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from queue import LifoQueue
from threading import Lock
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, cuda, fx

from eqsat_deploy import compiled_cache
from eqsat_deploy.deployment import DEFAULT_BATCH, Batch, Signature
from eqsat_deploy.engines import tensorrt_api, tensorrt_build
from eqsat_deploy.engines.base import Engine, Layer, check_options
from eqsat_deploy.engines.onnx import (
    ATTENTION_OPSET,
    OPSET,
    TENSORRT,
    Lane,
    OnnxFile,
    export_onnx,
    missing_packages,
)
from eqsat_deploy.engines.onnx.written import as_written
from eqsat_deploy.engines.tensorrt_api import tensorrt, version
from eqsat_deploy.engines.tensorrt_build import build_plan, decomposable, plan_key
from eqsat_deploy.engines.tensorrt_callbacks import logger, profiler
from eqsat_deploy.engines.tensorrt_layers import read_layers
from eqsat_deploy.engines.tensorrt_run import Loaded, Worker
from eqsat_deploy.errors import EngineError, InputError
from eqsat_extraction.arguments import whole

if TYPE_CHECKING:
    import tensorrt as trt

ATTENTION_SINCE = (10, 14)  # the parser reads ONNX Attention from this version on
RUN_OPTIONS = ("streams", "cuda_graphs", "asynchronous")
OPTIONS = ("opset", *tensorrt_build.OPTIONS, *RUN_OPTIONS)
STREAMS = 32
PLAN, MODEL = "engine.plan", "tensorrt.onnx"
RUNS = 10


class TensorRTEngine(Engine):
    """A TensorRT engine, which runs on CUDA streams of its own.

    Inputs may be on the CPU or on the GPU, where they are read in place; outputs are where the first input is.

    Options of a build:

    - `level`: builder optimization level, 0 (fast build) to 5; TensorRT's default is 3.
    - `workspace`: bytes of scratch memory tactics may use; 4 GiB unless given.
    - `refit`: keep weights replaceable with `refit`. TensorRT then gives up INT8 rewrites that need equal
      scales, since they may change.
    - `profiles`: batch sizes that get kernels of their own, beside those for the whole range, which are chosen for
      the typical size. Each is timed like a build of its own.
    - `timing_cache`: file of measured tactics, reused over builds; False for none. By default one file per
      TensorRT version and GPU in the cache of `eqsat_deploy.cache`.
    - `engine_cache`: keep the plan, and use the one that is kept of the same file, options, TensorRT and GPU; True
      unless given. `eqsat_deploy.compiled_cache` says where, and how much.
    - `progress`: called with a phase of the build, its steps that are done, and their number. What it raises stops the
      build, and so does Ctrl-C.
    - `opset`: ONNX opset of the exported file.

    Options of running, which an artifact keeps:

    - `streams`: how many calls run at once, each in scratch memory of its own; 1 unless given.
    - `cuda_graphs`: record every batch size at its first call, and replay that: less work for the CPU, and one copy of
      inputs and outputs each. For up to 8 sizes a stream; others run as they do without.
    - `asynchronous`: a call on GPU tensors returns before its results are computed, as torch's own operators do: what
      is queued on the caller's stream from then on finds them. `benchmark` on such tensors then times the queuing.
    """

    name: ClassVar[str] = "tensorrt"
    float_dtype: ClassVar[torch.dtype] = torch.float16
    lane: ClassVar[Lane] = TENSORRT

    def __init__(
        self,
        signature: Signature,
        plan: bytes,
        model: bytes,
        weights: Mapping[str, Tensor] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(signature, weights, check_options(self.name, options, RUN_OPTIONS))
        self.plan = plan
        self.model = model
        self.loaded = Loaded(plan, signature)
        self._outputs = sorted(
            self.loaded.outputs, key=lambda name: int(name.rpartition("_")[2])
        )  # output_0, ...
        self._streams = whole("streams", self.options.get("streams", 1))
        if self._streams > STREAMS:
            raise InputError(f"streams={self._streams}: at most {STREAMS}")
        graphs = bool(self.options.get("cuda_graphs"))
        self._workers: LifoQueue[Worker] = LifoQueue()  # the last to be done is the one that is warm
        self._refitting = Lock()  # two that hold some workers each would wait for each other
        for _ in range(self._streams):
            worker = Worker(self.loaded, graphs=graphs)
            worker.context(signature.batch.typical)
            self._workers.put(worker)

    @classmethod
    def unavailable(cls) -> str | None:
        """What is missing: the package, its version, a GPU, or the packages that export ONNX."""
        return tensorrt_api.unavailable() or missing_packages()

    @classmethod
    def build(
        cls, module: fx.GraphModule, *, batch: Batch = DEFAULT_BATCH, options: Mapping[str, Any] | None = None
    ) -> Self:
        """Export and build. Without `batch.maximum` the engine takes batches up to 8 or the typical size."""
        chosen = check_options(cls.name, options, OPTIONS)
        if (reason := cls.unavailable()) is not None:
            raise EngineError(f"TensorRT is not available: {reason}")
        batch = replace(batch, maximum=batch.maximum or max(8, batch.typical))
        opset = chosen.get("opset") or (ATTENTION_OPSET if version(tensorrt()) >= ATTENTION_SINCE else OPSET)
        file = export_onnx(module, lane=cls.lane, batch=batch, opset=opset)
        weights = {name: value.detach().cpu() for name, value in module.state_dict().items()}
        kept = plan_key(file.model, file.signature, chosen) if chosen.get("engine_cache", True) else None
        engine = cls._kept(kept, file, weights, chosen) if kept is not None else None
        if engine is None:
            engine = cls._made(build_plan(file.model, file.signature, chosen), file, weights, chosen)
            if kept is not None:
                compiled_cache.write(kept, engine.plan)
        engine.changes = file.changes
        return engine

    @classmethod
    def _kept(
        cls, name: str, file: OnnxFile, weights: Mapping[str, Tensor], options: Mapping[str, Any]
    ) -> Self | None:
        """The engine of a plan that is kept, where there is one that this driver still loads."""
        plan = compiled_cache.read(name)
        try:
            return None if plan is None else cls._made(bytes(plan), file, weights, options)
        except EngineError:
            return None

    @classmethod
    def _made(
        cls, plan: bytes, file: OnnxFile, weights: Mapping[str, Tensor], options: Mapping[str, Any]
    ) -> Self:
        running = {name: options[name] for name in RUN_OPTIONS if name in options}
        return cls(file.signature, plan, file.model, weights, running)

    def asked(self) -> Callable[[Sequence[Tensor]], Sequence[Tensor]] | None:
        """The file as it is written, in FP16, where ONNX Runtime is there to compute it."""
        return as_written(self.model, self.signature.wide)

    def run(self, inputs: Sequence[Tensor], batch: int) -> Sequence[Tensor]:
        """Flat outputs, on the device of the first input."""
        home = inputs[0].device if inputs else torch.device("cpu")
        wait = not (self.options.get("asynchronous") and home.type != "cpu")
        with self._worker() as worker:
            results = worker(self._named(inputs), batch, wait=wait)
        return tuple(results[name].to(home) for name in self._outputs)

    def save_files(self, folder: Path) -> None:
        """The plan, and the ONNX file it was built from."""
        (folder / PLAN).write_bytes(self.plan)
        (folder / MODEL).write_bytes(self.model)

    @classmethod
    def load_files(cls, folder: Path, signature: Signature, options: Mapping[str, Any]) -> Self:
        """The engine from its plan, on the TensorRT version and the GPU model it was built with."""
        if (reason := cls.unavailable()) is not None:
            raise EngineError(f"this artifact needs TensorRT: {reason}")
        return cls(signature, (folder / PLAN).read_bytes(), (folder / MODEL).read_bytes(), options=options)

    def layers(self, *inputs: Tensor) -> tuple[Layer, ...]:
        """Every layer of the engine. Times are for attribution: measured one by one, they sum to more."""
        inputs = inputs or self.signature.zeros(self.signature.batch.typical)
        batch = self.signature.check(inputs)
        given = self._named(self.signature.widened(inputs))
        api = tensorrt()
        # Of its own: a profiler cannot be taken off a context again, and the engine may be serving.
        worker = Worker(self.loaded)
        worker(given, batch)
        context: trt.IExecutionContext = worker.context(batch)
        watch = profiler(api)
        context.profiler = watch
        context.enqueue_emits_profile = False
        for _ in range(RUNS):
            worker(given, batch)
            context.report_to_profiler()
        engine: trt.ICudaEngine = self.loaded.engine
        inspector: trt.EngineInspector = engine.create_engine_inspector()
        inspector.execution_context = context
        described = json.loads(inspector.get_engine_information(api.LayerInformationFormat.JSON))
        return read_layers(described["Layers"], watch.milliseconds)

    def refit(self, module: fx.GraphModule) -> None:
        """Replace the weights by those of `module`, of the same structure; needs the option `refit`."""
        api = tensorrt()
        engine: trt.ICudaEngine = self.loaded.engine
        if not engine.refittable:
            raise EngineError("this engine cannot be refitted: build it with options={'refit': True}")
        file = export_onnx(module, lane=self.lane, batch=self.signature.batch, opset=_opset(self.model))
        refitter: trt.Refitter = api.Refitter(engine, logger(api))
        refitter.error_recorder = self.loaded.errors
        parser: trt.OnnxParserRefitter = api.OnnxParserRefitter(refitter, logger(api))
        with self._all_workers() as workers:
            if not parser.refit_from_bytes(decomposable(file.model)):
                found = "; ".join(parser.get_error(index).desc() for index in range(parser.num_errors))
                raise EngineError(f"the module's weights do not fit this engine: {found}")
            if not refitter.refit_cuda_engine():
                missing = ", ".join(refitter.get_missing_weights())
                said = self.loaded.errors.said()
                raise EngineError(f"refitting needs weights that the module does not have: {missing}. {said}")
            for worker in workers:
                worker.forget()
            plan: trt.IHostMemory = engine.serialize()
        self.plan, self.model = bytes(plan), file.model
        self.weights = {name: value.detach().cpu() for name, value in module.state_dict().items()}

    @property
    def device(self) -> str:
        """The GPU's name."""
        return cuda.get_device_name()

    @property
    def version(self) -> str:
        """TensorRT's version."""
        return str(tensorrt().__version__)

    def _named(self, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
        return {spec.name: value for spec, value in zip(self.signature.inputs, inputs, strict=True)}

    @contextmanager
    def _worker(self) -> Iterator[Worker]:
        """One that is free; waits for one where all are busy."""
        worker = self._workers.get()
        try:
            yield worker
        finally:
            self._workers.put(worker)

    @contextmanager
    def _all_workers(self) -> Iterator[list[Worker]]:
        """All of them, none of them running, and nothing left on their streams."""
        workers: list[Worker] = []
        try:
            with self._refitting:
                workers += [self._workers.get() for _ in range(self._streams)]
            for worker in workers:
                worker.stream.synchronize()
            yield workers
        finally:
            for worker in workers:
                self._workers.put(worker)


def _opset(model: bytes) -> int:
    import onnx

    versions = {entry.domain: entry.version for entry in onnx.load_model_from_string(model).opset_import}
    return int(versions[""])
