"""A TensorRT without a GPU: records what it is asked, computes the network's ONNX file, fails when told to."""

from __future__ import annotations

import enum
import json
from collections.abc import Sequence
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime


class Fake:
    """The module `tensorrt`: `calls` is what was called, `fail` names the steps that shall fail."""

    __version__ = "10.16.1.11"

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.fail: set[str] = set()
        self.schema = 10
        fake = self

        class NetworkDefinitionCreationFlag(enum.IntEnum):
            STRONGLY_TYPED = 1

        class Enum(enum.Enum):
            def __int__(self) -> int:
                return int(self.value)

        self.NetworkDefinitionCreationFlag = NetworkDefinitionCreationFlag
        self.MemoryPoolType = Enum("MemoryPoolType", {"WORKSPACE": 0})
        self.ProfilingVerbosity = Enum("ProfilingVerbosity", {"DETAILED": 2})
        self.BuilderFlag = Enum("BuilderFlag", {"REFIT": 4})
        self.TensorIOMode = Enum("TensorIOMode", {"INPUT": 1, "OUTPUT": 2})
        self.LayerInformationFormat = Enum("LayerInformationFormat", {"JSON": 1})
        names = ("FLOAT", "HALF", "BF16", "INT8", "UINT8", "INT32", "INT64", "BOOL", "FP8")
        self.DataType = Enum("DataType", {name: index for index, name in enumerate(names)})

        class IErrorRecorder:
            pass

        class IProfiler:
            pass

        class Logger:
            WARNING = 1

            def __init__(self, severity: int) -> None:
                self.severity = severity

        class Cache:
            def __init__(self, blob: bytes) -> None:
                self.blob = blob

            def serialize(self) -> bytes:
                return b"measured"

        class Config:
            builder_optimization_level = 3
            profiling_verbosity = None

            def set_memory_pool_limit(self, pool: Any, size: int) -> None:
                fake.record("workspace", size)

            def set_flag(self, flag: Any) -> None:
                fake.record("flag", flag.name)

            def add_optimization_profile(self, profile: Any) -> int:
                fake.record("profile", dict(profile.shapes))
                return -1 if "profile" in fake.fail else 0

            def create_timing_cache(self, blob: bytes) -> Cache:
                return Cache(blob)

            def set_timing_cache(self, cache: Cache, ignore_mismatch: bool) -> bool:
                accepted = not ("cache" in fake.fail and cache.blob)
                fake.record("cache", cache.blob, accepted)
                return accepted

            def get_timing_cache(self) -> Cache:
                return Cache(b"")

        class Profile:
            def __init__(self) -> None:
                self.shapes: dict[str, Any] = {}

            def set_shape(self, name: str, *shapes: tuple[int, ...]) -> None:
                self.shapes[name] = shapes

        class Builder:
            error_recorder: Any = None

            def __init__(self, logger: Logger) -> None:
                assert isinstance(logger, Logger)

            def create_network(self, flags: int) -> Any:
                fake.record("network", flags)
                return SimpleNamespace(model=b"")

            def create_builder_config(self) -> Config:
                fake.config = Config()
                return fake.config

            def create_optimization_profile(self) -> Profile:
                return Profile()

            def build_serialized_network(self, network: Any, config: Config) -> bytes | None:
                fake.record("build", config.builder_optimization_level, config.profiling_verbosity)
                if "build" in fake.fail:
                    self.error_recorder.report_error(7, "no implementation for node stem")
                    return None
                return network.model

        class OnnxParser:
            def __init__(self, network: Any, logger: Logger) -> None:
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

            def deserialize_cuda_engine(self, plan: bytes) -> Any:
                if "load" in fake.fail:
                    self.error_recorder.report_error(6, "incompatible version")
                    return None
                return Engine(plan)

        class Engine:
            refittable = True

            def __init__(self, plan: bytes) -> None:
                self.plan = plan
                graph = onnx.load_model_from_string(plan).graph
                self.names = [(v.name, "OUTPUT") for v in reversed(graph.output)] + [
                    (v.name, "INPUT") for v in graph.input
                ]
                self.num_io_tensors = len(self.names)
                self.layers = [node.name for node in graph.node if node.op_type in ("Conv", "Relu")]

            def get_tensor_name(self, index: int) -> str:
                return self.names[index][0]

            def get_tensor_mode(self, name: str) -> Any:
                return fake.TensorIOMode[dict(self.names)[name]]

            def get_tensor_dtype(self, name: str) -> Any:
                return fake.DataType.FLOAT

            def create_execution_context(self) -> Any:
                return None if "context" in fake.fail else Context(self)

            def create_engine_inspector(self) -> Any:
                return Inspector(self)

            def serialize(self) -> bytes:
                return self.plan

        class Context:
            profiler: Any = None
            enqueue_emits_profile = True

            def __init__(self, engine: Engine) -> None:
                self.engine = engine
                self.shapes: dict[str, tuple[int, ...]] = {}
                self.addresses: dict[str, int] = {}

            @cached_property
            def session(self) -> onnxruntime.InferenceSession:
                settings = onnxruntime.SessionOptions()
                settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
                providers = ["CPUExecutionProvider"]
                return onnxruntime.InferenceSession(self.engine.plan, settings, providers=providers)

            def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
                self.shapes[name] = shape
                return "shape" not in fake.fail

            def set_tensor_address(self, name: str, address: int) -> None:
                self.addresses[name] = address

            def infer_shapes(self) -> Sequence[str]:
                self.results = self.session.run(
                    None,
                    {name: fake.memory(self.addresses[name], shape) for name, shape in self.shapes.items()},
                )
                self.outputs = dict(
                    zip([v.name for v in self.session.get_outputs()], self.results, strict=True)
                )
                return ["x"] if "infer" in fake.fail else []

            def get_tensor_shape(self, name: str) -> tuple[int, ...]:
                return self.outputs[name].shape

            def execute_async_v3(self, stream: int) -> bool:
                fake.record("execute", stream)
                for name, value in self.outputs.items():
                    fake.memory(self.addresses[name], value.shape)[...] = value
                return "execute" not in fake.fail

            def report_to_profiler(self) -> None:
                assert self.enqueue_emits_profile is False
                for layer in self.engine.layers:
                    self.profiler.report_layer_time(layer, 0.25)

        class Inspector:
            execution_context: Any = None

            def __init__(self, engine: Engine) -> None:
                self.engine = engine

            def get_engine_information(self, format: Any) -> str:
                assert isinstance(self.execution_context, Context)
                tensor = (
                    {"Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}
                    if fake.schema == 10
                    else {"Format": "Channel major (kHWC)", "DataType": "Int8"}
                )
                layers = [
                    {
                        "Name": name,
                        "LayerType": "CaskConvolution",
                        "Inputs": [{"Name": "x", **tensor}],
                        "Outputs": [],
                    }
                    for name in self.engine.layers
                ]
                return json.dumps({"Layers": layers, "Bindings" if fake.schema == 10 else "I/O Tensors": []})

        class Refitter:
            def __init__(self, engine: Engine, logger: Logger) -> None:
                self.engine = engine

            def refit_cuda_engine(self) -> bool:
                fake.record("refit")
                return "missing" not in fake.fail

            def get_missing_weights(self) -> list[str]:
                return ["stem.bias"]

        class OnnxParserRefitter:
            num_errors = 1

            def __init__(self, refitter: Refitter, logger: Logger) -> None:
                self.refitter = refitter

            def refit_from_bytes(self, model: bytes) -> bool:
                self.refitter.engine.plan = model
                return "refit" not in fake.fail

            def get_error(self, index: int) -> Any:
                return SimpleNamespace(desc=lambda: "another shape")

        for kind in (
            IErrorRecorder,
            IProfiler,
            Logger,
            Builder,
            OnnxParser,
            Runtime,
            Refitter,
            OnnxParserRefitter,
        ):
            setattr(self, kind.__name__, kind)

    def record(self, *call: Any) -> None:
        self.calls.append(call)

    @property
    def steps(self) -> list[Any]:
        return [call[0] for call in self.calls]

    @staticmethod
    def memory(address: int, shape: Sequence[int]) -> np.ndarray:
        """The float32 tensor at `address`, which in these tests is in the CPU's memory."""
        import ctypes

        count = int(np.prod(shape))
        return np.frombuffer((ctypes.c_float * count).from_address(address), np.float32).reshape(shape)


class Stream:
    """Stands for `torch.cuda.Stream`."""

    cuda_stream = 4711

    def wait_stream(self, other: Any) -> None:
        self.waited = other

    def synchronize(self) -> None:
        self.synchronized = True


def install(monkeypatch: Any, fake: Fake) -> None:
    """Puts `fake` in the place of TensorRT, and the CPU in the place of the GPU."""
    import contextlib
    import importlib.machinery
    import importlib.util
    import sys

    from eqsat_deploy.engines import tensorrt

    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    found = importlib.util.find_spec
    here = importlib.machinery.ModuleSpec("tensorrt", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: here if name == "tensorrt" else found(name))
    cuda = SimpleNamespace(
        is_available=lambda: True,
        get_device_name=lambda: "NVIDIA Fake 3000",
        Stream=Stream,
        current_stream=lambda: "the caller's stream",
        stream=contextlib.nullcontext,
    )
    monkeypatch.setattr(tensorrt, "cuda", cuda)
    monkeypatch.setattr(tensorrt, "DEVICE", "cpu")
