"""ONNX Runtime on the CPU: the `onnxruntime` lane's file, run by its CPU execution provider."""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, fx

from eqsat_deploy.deployment import DEFAULT_BATCH, Batch, Signature
from eqsat_deploy.engines.base import Engine, Layer, check_options
from eqsat_deploy.engines.onnx import ONNXRUNTIME, Lane, export_onnx, missing_packages, nodes_of
from eqsat_deploy.engines.onnx.written import as_written
from eqsat_deploy.errors import EngineError
from eqsat_deploy.processors import description, threads

if TYPE_CHECKING:
    import onnxruntime

FILE = "onnxruntime.onnx"
OPTIONS = ("threads", "opset")
CONVERSIONS = frozenset({"QuantizeLinear", "DequantizeLinear"})
# Types in a profile, in ONNX Runtime's spelling.
TYPES = {"float": "float32", "double": "float64", "uint8": "int8"}


class ONNXRuntimeEngine(Engine):
    """An inference session on the CPU. Options: `threads` (per operator, all cores unless given), `opset`."""

    name: ClassVar[str] = "onnxruntime"
    portable: ClassVar[bool] = True
    lane: ClassVar[Lane] = ONNXRUNTIME

    def __init__(
        self,
        signature: Signature,
        model: bytes,
        weights: Mapping[str, Tensor] | None = None,
        threads: int = 0,
    ) -> None:
        super().__init__(signature, weights, {"threads": threads})
        self.model = model
        self.session = self._start()

    @classmethod
    def unavailable(cls) -> str | None:
        """What to install, or None."""
        if importlib.util.find_spec("onnxruntime") is None:
            return "onnxruntime is not installed: pip install 'eqsat-deploy[onnxruntime]'"
        return missing_packages()

    @classmethod
    def build(
        cls, module: fx.GraphModule, *, batch: Batch = DEFAULT_BATCH, options: Mapping[str, Any] | None = None
    ) -> Self:
        """Export `module` for ONNX Runtime and load it."""
        chosen = check_options(cls.name, options, OPTIONS)
        file = export_onnx(module, lane=cls.lane, batch=batch, opset=chosen.get("opset"))
        engine = cls(file.signature, file.model, module.state_dict(), chosen.get("threads", 0))
        engine.changes = file.changes
        return engine

    def asked(self) -> Callable[[Sequence[Tensor]], Sequence[Tensor]] | None:
        """The file as it is written."""
        return as_written(self.model, self.signature.wide)

    def run(self, inputs: Sequence[Tensor], batch: int) -> Sequence[Tensor]:
        """Flat outputs on the CPU."""
        return self._run(self.session, inputs)

    def _run(self, session: onnxruntime.InferenceSession, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        names = (spec.name for spec in self.signature.inputs)
        feeds = {name: value.detach().cpu().numpy() for name, value in zip(names, inputs, strict=True)}
        known = {value.name for value in session.get_inputs()}  # an input nothing reads is not in the file
        results = session.run(None, {name: value for name, value in feeds.items() if name in known})
        return tuple(torch.from_numpy(result) for result in results)

    def save_files(self, folder: Path) -> None:
        """Write the ONNX file."""
        (folder / FILE).write_bytes(self.model)

    @classmethod
    def load_files(cls, folder: Path, signature: Signature, options: Mapping[str, Any]) -> Self:
        """The engine from its ONNX file."""
        if (reason := cls.unavailable()) is not None:
            raise EngineError(f"this artifact needs ONNX Runtime: {reason}")
        return cls(signature, (folder / FILE).read_bytes(), threads=options.get("threads", 0))

    def layers(self, *inputs: Tensor) -> tuple[Layer, ...]:
        """Every node of the optimized graph with its time, averaged over five runs after a first one."""
        inputs = inputs or self.signature.zeros(self.signature.batch.typical)
        self.signature.check(inputs)
        with tempfile.TemporaryDirectory() as folder:
            session = self._start(profile=f"{folder}/profile")  # of its own: the engine may be serving
            for _ in range(RUNS + 1):
                self._run(session, self.signature.widened(inputs))
            events = json.loads(Path(session.end_profiling()).read_text())
        return _layers(events)

    @property
    def device(self) -> str:
        """The kind of CPU; the file runs on any."""
        return description("CPU")

    @property
    def version(self) -> str:
        """ONNX Runtime's version."""
        import onnxruntime  # whose package has other names for GPUs

        return str(onnxruntime.__version__)

    def _start(self, profile: str | None = None) -> onnxruntime.InferenceSession:
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3  # errors
        settings.intra_op_num_threads = threads(self.options)
        if profile is not None:
            settings.enable_profiling = True
            settings.profile_file_prefix = profile
        try:
            return onnxruntime.InferenceSession(
                self.model,
                settings,
                providers=["CPUExecutionProvider"],
                # It turns the integer MatMul and its Add into one float Gemm: 18.1 against 1.0 ms for a
                # Linear of 197x384x1536 (ONNX Runtime 1.31, AVX512-VNNI).
                disabled_optimizers=["MatMulAddFusion"] if b"DequantizeLinear" in self.model else None,
            )
        except Exception as error:
            raise EngineError(f"ONNX Runtime {self.version} does not load the model: {error}") from error


RUNS = 5


def _layers(events: Iterable[Mapping[str, Any]]) -> tuple[Layer, ...]:
    """One layer per node event name, in order of execution; the first run, which allocates, is left out."""
    times: dict[str, list[float]] = {}
    kinds: dict[str, tuple[str, str]] = {}
    for event in events:
        if event["cat"] != "Node" or not event["name"].endswith("_kernel_time"):
            continue
        name = event["name"].removesuffix("_kernel_time")
        times.setdefault(name, []).append(float(event["dur"]))
        kinds[name] = (event["args"]["op_name"], _precision(event["args"]))
    return tuple(
        Layer(
            name,
            *kinds[name],
            microseconds=sum(runs[1:]) / max(1, len(runs) - 1),
            nodes=_nodes(name, kinds[name][0]),
        )
        for name, runs in times.items()
    )


def _nodes(name: str, op_type: str) -> tuple[str, ...]:
    """The graph nodes a layer computes: none for a conversion, or a node the runtime inserted and named itself."""
    return () if op_type in CONVERSIONS else tuple(node for node in nodes_of(name) if node != op_type)


def _precision(arguments: Mapping[str, Any]) -> str:
    """The type of the first input, which of `QLinearConcat` is a scale; a conversion counts as float, since what it
    reads or writes is."""
    types: list[str] = [
        TYPES.get(kind, kind) for entry in arguments.get("input_type_shape", ()) for kind in entry
    ]
    if arguments["op_name"] in CONVERSIONS or not types:
        return "float32"
    return "int8" if arguments["op_name"] == "QLinearConcat" else types[0]
