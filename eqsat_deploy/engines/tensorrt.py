"""TensorRT 10.13 and later, 11.x included: the `tensorrt` lane's file as a strongly typed engine on a GPU.

No calibrators and no precision flags: 11 has neither, and in 10 Q/DQ networks should not set them. The types
of the file decide. Names and signatures used here are checked against the published Python bindings by the
tests.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, cuda, fx

from eqsat_deploy.deployment import DEFAULT_BATCH, Batch, Signature
from eqsat_deploy.engines.base import Engine, Layer, check_options
from eqsat_deploy.engines.onnx import (
    ATTENTION_OPSET,
    OPSET,
    TENSORRT,
    Lane,
    export_onnx,
    missing_packages,
    nodes_of,
)
from eqsat_deploy.engines.onnx.written import as_written
from eqsat_deploy.engines.tensorrt_callbacks import error_recorder, profiler
from eqsat_deploy.errors import EngineError

if TYPE_CHECKING:
    import tensorrt as trt

OLDEST = (10, 13)
ATTENTION_SINCE = (10, 14)  # the parser reads ONNX Attention from this version on
OPTIONS = ("opset", "level", "workspace", "refit", "timing_cache")
DEVICE = "cuda"
PLAN, MODEL = "engine.plan", "tensorrt.onnx"
RUNS = 10
# Inspector texts of 10.x ("Row major linear FP16 format") and 11.x ("Half") for each dtype, most specific
# first.
PRECISIONS = (
    ("int8", r"\bint8\b"), ("bfloat16", r"\bbf16\b|\bbfloat16\b"),
    ("float16", r"\bfp16\b|\bhalf\b|\bfloat16\b"),
    ("float8", r"\bfp8\b"), ("int64", r"\bint64\b"), ("int32", r"\bint32\b"), ("bool", r"\bbool\b"),
    ("float32", r"\bfp32\b|\bfloat\b|\bfloat32\b"),
)  # fmt: skip


class TensorRTEngine(Engine):
    """A TensorRT engine with one optimization profile, which runs on a CUDA stream of its own.

    Inputs may be on the CPU or on the GPU; outputs are where the first input is. Options:

    - `level`: builder optimization level, 0 (fast build) to 5; TensorRT's default is 3.
    - `workspace`: bytes of scratch memory tactics may use; 4 GiB unless given.
    - `refit`: keep weights replaceable with `refit`. TensorRT then gives up INT8 rewrites that need equal
      scales, since they may change.
    - `timing_cache`: file of measured tactics, reused over builds; False for none. By default one file per
      TensorRT version and GPU in the user's cache directory.
    - `opset`: ONNX opset of the exported file.
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
    ) -> None:
        super().__init__(signature, weights)
        api = _tensorrt()
        self.plan = plan
        self.model = model
        self.errors = error_recorder(api)
        self.logger: trt.Logger = api.Logger(api.Logger.WARNING)
        self.runtime: trt.Runtime = api.Runtime(self.logger)
        self.runtime.error_recorder = self.errors
        engine: trt.ICudaEngine | None = self.runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise EngineError(
                f"TensorRT {api.__version__} cannot load this plan on {self.device}: a plan runs on the "
                f"version and the GPU model it was built for; build it again. {self._reported()}"
            )
        self.engine: trt.ICudaEngine = engine
        context: trt.IExecutionContext | None = self.engine.create_execution_context()
        if context is None:
            raise EngineError(f"TensorRT cannot make an execution context. {self._reported()}")
        self.context: trt.IExecutionContext = context
        self.stream = cuda.Stream()  # type: ignore[no-untyped-call]
        self._lock = Lock()  # a context serves one call at a time
        names = [self.engine.get_tensor_name(index) for index in range(self.engine.num_io_tensors)]
        modes = {name: self.engine.get_tensor_mode(name) for name in names}
        self.inputs = [name for name in names if modes[name] == api.TensorIOMode.INPUT]
        self.outputs = [name for name in names if modes[name] == api.TensorIOMode.OUTPUT]
        self.outputs.sort(key=lambda name: int(name.rpartition("_")[2]))  # output_0, output_1, ...

    @classmethod
    def unavailable(cls) -> str | None:
        """What is missing: the package, its version, a GPU, or the packages that export ONNX."""
        if importlib.util.find_spec("tensorrt") is None:
            return "tensorrt is not installed: pip install 'eqsat-deploy[tensorrt]' (it needs an NVIDIA GPU)"
        if not cuda.is_available():
            return "torch sees no CUDA device: it needs an NVIDIA GPU, its driver, and a CUDA build of torch"
        try:
            api = _tensorrt()
        except EngineError as error:
            return str(error)
        if _version(api) < OLDEST:
            oldest = ".".join(map(str, OLDEST))
            return f"TensorRT {api.__version__} is older than {oldest}: pip install -U tensorrt"
        return missing_packages()

    @classmethod
    def build(
        cls, module: fx.GraphModule, *, batch: Batch = DEFAULT_BATCH, options: Mapping[str, Any] | None = None
    ) -> Self:
        """Export and build. Without `batch.maximum` the engine takes batches up to 8 or the typical size."""
        chosen = check_options(cls.name, options, OPTIONS)
        if (reason := cls.unavailable()) is not None:
            raise EngineError(f"TensorRT is not available: {reason}")
        batch = replace(batch, maximum=batch.maximum or max(8, batch.typical))
        opset = chosen.get("opset") or (
            ATTENTION_OPSET if _version(_tensorrt()) >= ATTENTION_SINCE else OPSET
        )
        file = export_onnx(module, lane=cls.lane, batch=batch, opset=opset)
        plan = _build_plan(file.model, file.signature, chosen)
        weights = {name: value.detach().cpu() for name, value in module.state_dict().items()}
        engine = cls(file.signature, plan, file.model, weights)
        engine.changes = file.changes
        return engine

    def asked(self) -> Callable[[Sequence[Tensor]], Sequence[Tensor]] | None:
        """The file as it is written, in FP16, where ONNX Runtime is there to compute it."""
        return as_written(self.model, self.signature.wide)

    def run(self, inputs: Sequence[Tensor], batch: int) -> Sequence[Tensor]:
        """Flat outputs, on the device of the first input."""
        return self._run(self.context, inputs)

    def _run(self, context: trt.IExecutionContext, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        api = _tensorrt()
        given = {spec.name: value for spec, value in zip(self.signature.inputs, inputs, strict=True)}
        home = inputs[0].device if inputs else torch.device("cpu")
        caller = cuda.current_stream()
        with self._lock, cuda.stream(self.stream):
            self.stream.wait_stream(caller)
            # The context holds pointers only: these tensors must live until the stream is synchronized.
            held = {}
            for name in self.inputs:
                dtype = _torch_dtype(api, self.engine.get_tensor_dtype(name))
                held[name] = given[name].detach().to(DEVICE, dtype, non_blocking=True).contiguous()
                if not context.set_input_shape(name, tuple(held[name].shape)):
                    raise EngineError(
                        f"input {name!r}: shape {tuple(held[name].shape)} is outside what the engine was "
                        f"built for, {self.signature.batch}. {self._reported()}"
                    )
                context.set_tensor_address(name, held[name].data_ptr())
            if missing := context.infer_shapes():
                raise EngineError(f"TensorRT cannot infer shapes: {', '.join(missing)} unspecified")
            for name in self.outputs:
                shape = tuple(context.get_tensor_shape(name))
                dtype = _torch_dtype(api, self.engine.get_tensor_dtype(name))
                held[name] = torch.empty(shape, dtype=dtype, device=DEVICE)
                context.set_tensor_address(name, held[name].data_ptr())
            if not context.execute_async_v3(self.stream.cuda_stream):
                raise EngineError(f"TensorRT did not run. {self._reported()}")
            self.stream.synchronize()
        return tuple(held[name].to(home) for name in self.outputs)

    def save_files(self, folder: Path) -> None:
        """The plan, and the ONNX file it was built from."""
        (folder / PLAN).write_bytes(self.plan)
        (folder / MODEL).write_bytes(self.model)

    @classmethod
    def load_files(cls, folder: Path, signature: Signature, options: Mapping[str, Any]) -> Self:
        """The engine from its plan, on the TensorRT version and the GPU model it was built with."""
        if (reason := cls.unavailable()) is not None:
            raise EngineError(f"this artifact needs TensorRT: {reason}")
        return cls(signature, (folder / PLAN).read_bytes(), (folder / MODEL).read_bytes())

    def layers(self, *inputs: Tensor) -> tuple[Layer, ...]:
        """Every layer of the engine. Times are for attribution: measured one by one, they sum to more."""
        inputs = inputs or self.signature.zeros(self.signature.batch.typical)
        self.signature.check(inputs)
        inputs = self.signature.widened(inputs)
        api = _tensorrt()
        self._run(self.context, inputs)
        watch = profiler(api)
        # A context of its own: a profiler cannot be taken off again, and the engine may be serving.
        context: trt.IExecutionContext = self.engine.create_execution_context()
        context.profiler = watch
        context.enqueue_emits_profile = False
        for _ in range(RUNS):
            self._run(context, inputs)
            context.report_to_profiler()
        inspector: trt.EngineInspector = self.engine.create_engine_inspector()
        inspector.execution_context = context
        described = json.loads(inspector.get_engine_information(api.LayerInformationFormat.JSON))
        return read_layers(described["Layers"], watch.milliseconds)

    def refit(self, module: fx.GraphModule) -> None:
        """Replace the weights by those of `module`, of the same structure; needs the option `refit`."""
        api = _tensorrt()
        if not self.engine.refittable:
            raise EngineError("this engine cannot be refitted: build it with options={'refit': True}")
        model = export_onnx(
            module, lane=self.lane, batch=self.signature.batch, opset=_opset(self.model)
        ).model
        refitter: trt.Refitter = api.Refitter(self.engine, self.logger)
        parser: trt.OnnxParserRefitter = api.OnnxParserRefitter(refitter, self.logger)
        with self._lock:
            if not parser.refit_from_bytes(_decomposable(model)):
                found = "; ".join(parser.get_error(index).desc() for index in range(parser.num_errors))
                raise EngineError(f"the module's weights do not fit this engine: {found}")
            if not refitter.refit_cuda_engine():
                missing = ", ".join(refitter.get_missing_weights())
                raise EngineError(f"refitting needs weights that the module does not have: {missing}")
            plan: trt.IHostMemory = self.engine.serialize()
        self.plan, self.model = bytes(plan), model
        self.weights = {name: value.detach().cpu() for name, value in module.state_dict().items()}

    @property
    def device(self) -> str:
        """The GPU's name."""
        return cuda.get_device_name()

    @property
    def version(self) -> str:
        """TensorRT's version."""
        return str(_tensorrt().__version__)

    def _reported(self) -> str:
        return _said(self.errors)


def _build_plan(model: bytes, signature: Signature, options: Mapping[str, Any]) -> bytes:
    """The serialized engine for an ONNX file; `EngineError` carries what parser and builder reported."""
    api = _tensorrt()
    errors = error_recorder(api)
    logger: trt.Logger = api.Logger(api.Logger.WARNING)
    builder: trt.Builder = api.Builder(logger)
    builder.error_recorder = errors
    # Needed by 10.x, accepted and without effect in 11.x.
    strong = 1 << int(api.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network: trt.INetworkDefinition = builder.create_network(strong)
    parser: trt.OnnxParser = api.OnnxParser(network, logger)
    if not parser.parse(_decomposable(model)):
        found = "; ".join(_parser_error(parser.get_error(index)) for index in range(parser.num_errors))
        raise EngineError(f"TensorRT {api.__version__} does not read the model: {found}")
    config: trt.IBuilderConfig = builder.create_builder_config()
    config.set_memory_pool_limit(api.MemoryPoolType.WORKSPACE, options.get("workspace", 4 << 30))
    config.profiling_verbosity = api.ProfilingVerbosity.DETAILED  # the inspector then says types and formats
    if "level" in options:
        config.builder_optimization_level = options["level"]
    if options.get("refit"):
        config.set_flag(api.BuilderFlag.REFIT)
    profile: trt.IOptimizationProfile = builder.create_optimization_profile()
    if _set_shapes(profile, signature) and config.add_optimization_profile(profile) < 0:
        raise EngineError(f"TensorRT refuses the batch sizes {signature.batch}. {_said(errors)}")
    cache_file = _timing_cache(api, options.get("timing_cache"))
    if cache_file is not None:
        known = cache_file.read_bytes() if cache_file.is_file() else b""
        cache: trt.ITimingCache = config.create_timing_cache(known)
        # A cache of another version or GPU is refused; the build then measures everything.
        if not config.set_timing_cache(cache, ignore_mismatch=False):
            config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
    plan: trt.IHostMemory | None = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineError(f"TensorRT {api.__version__} cannot build the engine. {_said(errors)}")
    if cache_file is not None:
        measured: trt.ITimingCache = config.get_timing_cache()
        _write(cache_file, bytes(measured.serialize()))
    return bytes(plan)


def _set_shapes(profile: trt.IOptimizationProfile, signature: Signature) -> bool:
    """Gives `profile` the shapes of every input with a batch axis; whether there was one."""
    batch = signature.batch
    batched = [spec for spec in signature.inputs if None in spec.shape]
    for spec in batched:
        least, typical, most = (
            tuple(size if length is None else length for length in spec.shape)
            for size in (batch.minimum, batch.typical, batch.maximum or batch.typical)
        )
        profile.set_shape(spec.name, least, typical, most)
    return bool(batched)


def _timing_cache(api: Any, option: str | os.PathLike[str] | bool | None) -> Path | None:
    if option is False:
        return None
    if option is not None and option is not True:
        return Path(option)
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    device = re.sub(r"\W+", "-", cuda.get_device_name())
    return root / "eqsat-deploy" / f"tensorrt-{api.__version__}-{device}.cache"


def _write(path: Path, content: bytes) -> None:
    """Replaces the file in one step: another build may be reading it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    partial.write_bytes(content)
    partial.replace(path)


def _opset(model: bytes) -> int:
    import onnx

    versions = {entry.domain: entry.version for entry in onnx.load_model_from_string(model).opset_import}
    return int(versions[""])


def _decomposable(model: bytes) -> bytes:
    """`model` with permission to decompose each Attention: without it, no fused kernel is a build failure.

    The permission is an attribute that only TensorRT's parser knows, so the saved file does without it.
    """
    import onnx

    if b"Attention" not in model:
        return model
    parsed = onnx.load_model_from_string(model)
    for node in parsed.graph.node:
        if node.op_type == "Attention":
            node.attribute.append(onnx.helper.make_attribute("TRT_decomposable", 1))
    return bytes(parsed.SerializeToString(deterministic=True))


def read_layers(
    described: Iterable[Mapping[str, Any] | str], milliseconds: Mapping[str, Sequence[float]]
) -> tuple[Layer, ...]:
    """Layers from the inspector's JSON, of TensorRT 10.x or 11.x, and profiled times by layer name.

    An engine built without detailed verbosity lists names only; their precision is then `unknown`.
    """
    layers = []
    for entry in described:
        fields: Mapping[str, Any] = {"Name": entry} if isinstance(entry, str) else entry
        times = milliseconds.get(fields["Name"], ())
        read = [*fields.get("Inputs", ()), *fields.get("Outputs", ())]
        layers.append(
            Layer(
                fields["Name"],
                str(fields.get("LayerType", "unknown")),
                _precision(read[0]) if read else "unknown",
                1000 * sum(times) / len(times) if times else 0.0,
                nodes_of(f"{fields['Name']}\x1e{fields.get('Metadata', '')}"),
            )
        )
    return tuple(layers)


def _precision(tensor: Mapping[str, Any]) -> str:
    # 10.x has one field for format and type, 11.x a field for each.
    text = str(tensor.get("DataType") or tensor.get("Format/Datatype") or tensor.get("Format", "")).lower()
    return next((name for name, pattern in PRECISIONS if re.search(pattern, text)), "unknown")


def _tensorrt() -> Any:
    try:
        return importlib.import_module("tensorrt")
    except Exception as error:  # a missing CUDA library is an OSError, a broken wheel a RuntimeError
        raise EngineError(f"tensorrt cannot be imported: {error}") from error


def _version(api: Any) -> tuple[int, int]:
    major, minor = api.__version__.split(".")[:2]
    return int(major), int(minor)


def _torch_dtype(api: Any, dtype: trt.DataType) -> torch.dtype:
    known = {
        api.DataType.FLOAT: torch.float32,
        api.DataType.HALF: torch.float16,
        api.DataType.BF16: torch.bfloat16,
        api.DataType.INT8: torch.int8,
        api.DataType.UINT8: torch.uint8,
        api.DataType.INT32: torch.int32,
        api.DataType.INT64: torch.int64,
        api.DataType.BOOL: torch.bool,
    }
    if dtype not in known:
        raise EngineError(f"TensorRT type {dtype} of an input or output has no torch dtype")
    return known[dtype]


def _parser_error(error: trt.ParserError) -> str:
    return f"{error.desc()} (node {error.node_name()!r}, {error.node_operator()})"


def _said(errors: Any) -> str:
    said = "; ".join(errors.get_error_desc(index) for index in range(errors.num_errors()))
    return f"It says: {said}" if said else "It gives no reason; its log has more."
