"""A TensorRT without a GPU: it computes the network's ONNX file, and is as particular as the real one.

It records what it is asked and fails when told to. Work is queued on streams and done when they are synchronized, on
memory that must be alive then; shapes are those of profiles; CUDA graphs are good as long as their context is left
alone. Its classes have the names, methods and parameters of the published bindings, which a test compares.
"""

from __future__ import annotations

import enum
import importlib.machinery
import importlib.util
import json
import sys
import weakref
from collections.abc import Sequence
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import onnx
import onnxruntime
import torch
from torch import Tensor

from tests.deploy.engines import fake_cuda
from tests.deploy.engines.fake_cuda import Job, Stream

ALIGNMENT = 64  # of the CPU's memory
Shape = tuple[int, ...]
TYPES = {
    "FLOAT": 1,
    "HALF": 10,
    "BF16": 16,
    "INT8": 3,
    "UINT8": 2,
    "INT32": 6,
    "INT64": 7,
    "BOOL": 9,
    "FP8": 17,
}
DTYPES = {"FLOAT": torch.float32, "INT32": torch.int32, "INT64": torch.int64, "BOOL": torch.bool}


class Fake:
    """The module `tensorrt`: `calls` is what was called, `fail` names the steps that shall fail."""

    __version__ = "10.16.1.11"

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.fail: set[str] = set()
        self.schema = 10
        self.tensors: dict[int, weakref.ref[Tensor]] = {}  # by address, whose address was asked for
        fake = self

        class Enum(enum.Enum):
            def __int__(self) -> int:
                return int(self.value)

        self.NetworkDefinitionCreationFlag = Enum("NetworkDefinitionCreationFlag", {"STRONGLY_TYPED": 1})
        self.MemoryPoolType = Enum("MemoryPoolType", {"WORKSPACE": 0})
        self.ProfilingVerbosity = Enum("ProfilingVerbosity", {"DETAILED": 2})
        self.BuilderFlag = Enum("BuilderFlag", {"REFIT": 4})
        self.TensorIOMode = Enum("TensorIOMode", {"INPUT": 1, "OUTPUT": 2})
        self.LayerInformationFormat = Enum("LayerInformationFormat", {"JSON": 1})
        self.DataType = Enum("DataType", {name: index for index, name in enumerate(TYPES)})

        for name in ("IErrorRecorder", "IProfiler", "IProgressMonitor"):
            setattr(self, name, type(name, (), {}))

        class Logger:
            WARNING = 1

            def __init__(self, min_severity: int) -> None:
                self.min_severity = min_severity

        class ITimingCache:
            def __init__(self, blob: bytes) -> None:
                self.blob = blob

            def serialize(self) -> bytes:
                return b"measured"

        class IBuilderConfig:
            builder_optimization_level = 3
            profiling_verbosity: Any = None
            progress_monitor: Any = None

            def __init__(self) -> None:
                self.profiles: list[dict[str, tuple[Shape, Shape, Shape]]] = []

            def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
                assert pool is fake.MemoryPoolType.WORKSPACE
                fake.record("workspace", pool_size)

            def set_flag(self, flag: Any) -> None:
                fake.record("flag", flag.name)

            def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
                fake.record("profile", dict(profile.shapes))
                self.profiles.append(profile.shapes)
                return -1 if "profile" in fake.fail else len(self.profiles) - 1

            def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache:
                return ITimingCache(serialized_timing_cache)

            def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
                accepted = not ("cache" in fake.fail and cache.blob)
                fake.record("cache", cache.blob, accepted)
                return accepted

            def get_timing_cache(self) -> ITimingCache:
                return ITimingCache(b"")

        class IOptimizationProfile:
            def __init__(self) -> None:
                self.shapes: dict[str, tuple[Shape, Shape, Shape]] = {}

            def set_shape(self, input: str, min: Shape, opt: Shape, max: Shape) -> None:
                if not all(0 <= a <= b <= c for a, b, c in zip(min, opt, max, strict=True)):
                    raise ValueError("Shape provided is inconsistent")
                self.shapes[input] = (min, opt, max)

        class Builder:
            error_recorder: Any = None

            def __init__(self, logger: Logger) -> None:
                assert isinstance(logger, Logger)

            def create_network(self, flags: int) -> Any:
                fake.record("network", flags)
                return SimpleNamespace(model=b"")

            def create_builder_config(self) -> IBuilderConfig:
                fake.config = IBuilderConfig()
                return fake.config

            def create_optimization_profile(self) -> IOptimizationProfile:
                return IOptimizationProfile()

            def build_serialized_network(self, network: Any, config: IBuilderConfig) -> bytes | None:
                fake.record("build", config.builder_optimization_level, config.profiling_verbosity)
                if not self._measured(config.progress_monitor):
                    return None
                if "build" in fake.fail:
                    self.error_recorder.report_error(7, "no implementation for node stem")
                    return None
                graph = onnx.load_model_from_string(network.model).graph
                dynamic = {v.name for v in graph.input if any(d.dim_param for d in _dims(v))}
                fixed = {
                    v.name: tuple(d.dim_value for d in _dims(v)) for v in graph.input if v.name not in dynamic
                }
                for profile in config.profiles:
                    assert dynamic <= set(profile) <= {value.name for value in graph.input}
                    assert all(set(profile[name]) == {fixed[name]} for name in profile if name in fixed)
                assert config.profiles or not dynamic
                head = json.dumps({"version": fake.__version__, "profiles": config.profiles})
                return head.encode() + b"\n" + network.model

            def _measured(self, monitor: Any) -> bool:
                if monitor is None:
                    return True
                monitor.phase_start("Building engine", None, 2)
                monitor.phase_start("Timing", "Building engine", 3)
                goes_on = all(monitor.step_complete("Timing", step) for step in range(3))
                monitor.phase_finish("Timing")
                goes_on = goes_on and monitor.step_complete("Building engine", 0)
                monitor.phase_finish("Building engine")
                return goes_on

        class OnnxParser:
            def __init__(self, network: Any, logger: Logger) -> None:
                assert isinstance(logger, Logger)
                self.network = network
                self.num_errors = 0

            def parse(self, model: bytes) -> bool:
                fake.record("parse")
                fake.parsed = onnx.load_model_from_string(model)
                self.network.model = model
                self.num_errors = int("parse" in fake.fail)
                return not self.num_errors

            def get_error(self, index: int) -> Any:
                return SimpleNamespace(
                    desc=lambda: "unsupported", node_name=lambda: "stem", node_operator=lambda: "Conv"
                )

        class Runtime:
            error_recorder: Any = None

            def __init__(self, logger: Logger) -> None:
                assert isinstance(logger, Logger)

            def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
                head, _, model = serialized_engine.partition(b"\n")
                fake.record("deserialize")
                try:
                    known = json.loads(head)
                    assert known["version"] == fake.__version__
                    assert "load" not in fake.fail
                    return ICudaEngine(known["profiles"], model, self.error_recorder)
                except Exception:
                    self.error_recorder.report_error(6, "incompatible version")
                    return None

        class ICudaEngine:
            refittable = True

            def __init__(self, profiles: list[dict[str, Any]], model: bytes, errors: Any) -> None:
                self.profiles, self.model, self.errors = profiles, model, errors
                self.values = {
                    value.name: (value, mode)
                    for values, mode in (
                        (reversed(self.graph.output), fake.TensorIOMode.OUTPUT),
                        (self.graph.input, fake.TensorIOMode.INPUT),
                    )
                    for value in values
                }
                self.num_io_tensors = len(self.values)
                self.num_optimization_profiles = max(1, len(profiles))
                self.layers = [node.name for node in self.graph.node if node.op_type in ("Conv", "Relu")]

            @property
            def graph(self) -> Any:
                return onnx.load_model_from_string(self.model).graph

            def get_tensor_name(self, index: int) -> str:
                return list(self.values)[index]

            def get_tensor_mode(self, name: str) -> Any:
                return self.values[name][1]

            def get_tensor_dtype(self, name: str) -> Any:
                code = self.values[name][0].type.tensor_type.elem_type
                return next(fake.DataType[known] for known, number in TYPES.items() if number == code)

            def get_tensor_shape(self, name: str) -> Shape:
                return tuple(-1 if d.dim_param else d.dim_value for d in _dims(self.values[name][0]))

            def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Shape]:
                return [tuple(shape) for shape in self.profiles[profile_index][name]]

            def create_execution_context(self) -> IExecutionContext | None:
                return None if "context" in fake.fail else IExecutionContext(self)

            def create_engine_inspector(self) -> EngineInspector:
                return EngineInspector(self)

            def serialize(self) -> bytes:
                return (
                    json.dumps({"version": fake.__version__, "profiles": self.profiles}).encode()
                    + b"\n"
                    + self.model
                )

            @cached_property
            def session(self) -> onnxruntime.InferenceSession:
                settings = onnxruntime.SessionOptions()
                settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
                providers = ["CPUExecutionProvider"]
                return onnxruntime.InferenceSession(self.model, settings, providers=providers)

        class IExecutionContext:
            profiler: Any = None
            enqueue_emits_profile = True

            def __init__(self, engine: ICudaEngine) -> None:
                fake.record("context")
                self.engine = engine
                self.profile = 0
                self.profile_stream: int | None = None
                self.shapes: dict[str, Shape] = {}
                self.addresses: dict[str, int] = {}
                self.state = 0  # which changes with shapes and addresses
                self.ran: dict[str, Shape] | None = None

            def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
                assert not self.shapes
                fake.record("set profile", profile_index)
                self.profile, self.profile_stream = profile_index, stream_handle
                return 0 <= profile_index < len(self.engine.profiles)

            def set_input_shape(self, name: str, shape: Shape) -> bool:
                limits = self.engine.profiles[self.profile].get(name) if self.engine.profiles else None
                wanted = tuple(d.dim_value for d in _dims(self.engine.values[name][0]))
                least, _, most = limits or (wanted, wanted, wanted)
                self.shapes[name] = shape
                self.state += 1
                return "shape" not in fake.fail and all(
                    a <= size <= b for a, size, b in zip(least, shape, most, strict=True)
                )

            def set_tensor_address(self, name: str, memory: int) -> bool:
                assert memory % ALIGNMENT == 0
                self.addresses[name] = memory
                self.state += 1
                return True

            def infer_shapes(self) -> list[str]:
                return ["x"] if "infer" in fake.fail else []

            def get_tensor_shape(self, name: str) -> Shape:
                zeros = {n: torch.zeros(s, dtype=self._dtype(n)).numpy() for n, s in self.shapes.items()}
                (value,) = self.engine.session.run([name], zeros)
                return tuple(value.shape)

            def execute_async_v3(self, stream_handle: int) -> bool:
                assert stream_handle, "not the default stream"
                assert self.profile_stream in (None, stream_handle)
                fake.record("execute", stream_handle)
                if "execute" in fake.fail:
                    return False
                job = Job(self, {name: fake.tensors[at] for name, at in self.addresses.items()})
                if Stream.recording is not None:
                    if self.ran != self.shapes or "record" in fake.fail:
                        raise RuntimeError("operation not permitted when stream is capturing")
                    Stream.recording.job = job
                else:
                    self.ran = dict(self.shapes)
                    Stream.known[stream_handle].queue.append(job)
                return True

            def compute(self, shapes: dict[str, Shape], memory: dict[str, Tensor]) -> None:
                for name, shape in shapes.items():
                    assert tuple(memory[name].shape) == shape
                assert all(value.is_contiguous() for value in memory.values())
                assert all(value.dtype == self._dtype(name) for name, value in memory.items())
                names = [value.name for value in self.engine.graph.output]
                results = self.engine.session.run(names, {name: memory[name].numpy() for name in shapes})
                for name, value in zip(names, results, strict=True):
                    assert memory[name].shape == value.shape
                    memory[name].copy_(torch.from_numpy(value))

            def report_to_profiler(self) -> bool:
                assert self.enqueue_emits_profile is False
                for layer in self.engine.layers:
                    self.profiler.report_layer_time(layer, 0.25)
                return True

            def _dtype(self, name: str) -> torch.dtype:
                return DTYPES[self.engine.get_tensor_dtype(name).name]

        class EngineInspector:
            execution_context: Any = None

            def __init__(self, engine: ICudaEngine) -> None:
                self.engine = engine

            def get_engine_information(self, format: Any) -> str:
                assert format is fake.LayerInformationFormat.JSON
                assert isinstance(self.execution_context, IExecutionContext)
                tensor = (
                    {"Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}
                    if fake.schema == 10
                    else {"Format": "Channel major (kHWC)", "Datatype": "Int8"}
                )
                inputs = [{"Name": "x", **tensor}]
                layers = [
                    {"Name": name, "LayerType": "CaskConvolution", "Inputs": inputs, "Outputs": []}
                    for name in self.engine.layers
                ]
                return json.dumps({"Layers": layers, "Bindings" if fake.schema == 10 else "I/O Tensors": []})

        class Refitter:
            error_recorder: Any = None

            def __init__(self, engine: ICudaEngine, logger: Logger) -> None:
                self.engine = engine

            def refit_cuda_engine(self) -> bool:
                queued = [job for stream in Stream.known.values() for job in stream.queue]
                assert not any(isinstance(job, Job) for job in queued), "the engine is running"
                fake.record("refit")
                return "missing" not in fake.fail

            def get_missing_weights(self) -> list[str]:
                return ["stem.bias"]

        class OnnxParserRefitter:
            num_errors = 1

            def __init__(self, refitter: Refitter, logger: Logger) -> None:
                self.refitter = refitter

            def refit_from_bytes(self, model: bytes) -> bool:
                self.refitter.engine.model = model
                self.refitter.engine.__dict__.pop("session", None)
                return "refit" not in fake.fail

            def get_error(self, index: int) -> Any:
                return SimpleNamespace(desc=lambda: "another shape")

        for kind in (Logger, Builder, OnnxParser, Runtime, Refitter, OnnxParserRefitter):
            setattr(self, kind.__name__, kind)

    def record(self, *call: Any) -> None:
        self.calls.append(call)

    @property
    def steps(self) -> list[Any]:
        return [call[0] for call in self.calls]


def _dims(value: Any) -> Sequence[Any]:
    return value.type.tensor_type.shape.dim  # type: ignore[no-any-return]


def install(monkeypatch: Any, fake: Fake) -> SimpleNamespace:
    """Puts `fake` in the place of TensorRT, and the CPU in the place of the GPU; returns what stands for torch.cuda."""
    from eqsat_deploy.engines import tensorrt, tensorrt_api, tensorrt_build, tensorrt_run

    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    found = importlib.util.find_spec
    here = importlib.machinery.ModuleSpec("tensorrt", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: here if name == "tensorrt" else found(name))
    Stream.current = caller = Stream()
    fake.caller = caller
    cuda = SimpleNamespace(
        is_available=lambda: True,
        get_device_name=lambda: "NVIDIA Fake 3000",
        get_device_capability=lambda: (9, 9),
        current_device=lambda: 0,
        Stream=Stream,
        CUDAGraph=fake_cuda.CUDAGraph,
        Event=fake_cuda.Event,
        current_stream=lambda device=None: Stream.current,
        stream=fake_cuda.stream,
        graph=fake_cuda.graph,
    )
    for module in (tensorrt, tensorrt_api, tensorrt_build, tensorrt_run):
        monkeypatch.setattr(module, "cuda", cuda)
    monkeypatch.setattr(tensorrt_run, "this_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(tensorrt_run, "ALIGNMENT", ALIGNMENT)
    address = Tensor.data_ptr

    def data_ptr(tensor: Tensor) -> int:
        found = address(tensor)
        fake.tensors[found] = weakref.ref(tensor)
        return found

    monkeypatch.setattr(Tensor, "data_ptr", data_ptr)
    return cuda
