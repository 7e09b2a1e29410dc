"""ONNX Runtime on an NVIDIA GPU: the `tensorrt` lane's file, built by its TensorRT execution provider.

For who serves with ONNX Runtime. It is what TensorRT itself does behind ONNX Runtime's interface; what it does not take
goes to the CUDA provider.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, cuda, fx

from eqsat_deploy.cache import cache_folder
from eqsat_deploy.deployment import DEFAULT_BATCH, Batch, Signature
from eqsat_deploy.engines.base import Layer, check_options
from eqsat_deploy.engines.onnx import TENSORRT, Lane, export_onnx
from eqsat_deploy.engines.onnx.tensorrt import shapes_at
from eqsat_deploy.engines.onnxruntime import ONNXRuntimeEngine
from eqsat_deploy.engines.tensorrt_build import WORKSPACE, level_of, path_of
from eqsat_deploy.errors import EngineError
from eqsat_extraction.arguments import whole

if TYPE_CHECKING:
    import onnxruntime

FILE = "tensorrt.onnx"
PROVIDER = "TensorrtExecutionProvider"
OPTIONS = ("opset", "level", "workspace", "engine_cache")


class ONNXRuntimeTensorRTEngine(ONNXRuntimeEngine):
    """An inference session on the GPU; tensors go there and come back with every call.

    Its files are the ONNX file alone: the engine is built where they are loaded, unless `engine_cache` has it.

    Options: `level`, `workspace` and `opset` as for TensorRT; `engine_cache`, the folder that ONNX Runtime keeps
    engines in, True for one in the user's cache directory, none unless given.
    """

    name: ClassVar[str] = "onnxruntime-tensorrt"
    float_dtype: ClassVar[torch.dtype] = torch.float16
    lane: ClassVar[Lane] = TENSORRT

    def __init__(
        self,
        signature: Signature,
        model: bytes,
        weights: Mapping[str, Tensor] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self._asked = check_options(self.name, options, OPTIONS)
        super().__init__(signature, model, weights)
        self.options = {name: self._asked[name] for name in ("level", "workspace") if name in self._asked}

    @classmethod
    def unavailable(cls) -> str | None:
        """What is missing: a build of ONNX Runtime with the provider, or a GPU."""
        if (reason := super().unavailable()) is not None:
            return reason
        import onnxruntime

        if PROVIDER not in onnxruntime.get_available_providers():
            return (
                f"onnxruntime {onnxruntime.__version__} was built without {PROVIDER}: pip install onnxruntime-gpu in "
                "its place, and the tensorrt that it was built for"
            )
        if not cuda.is_available():
            return "torch sees no CUDA device: it needs an NVIDIA GPU, its driver, and a CUDA build of torch"
        return None

    @classmethod
    def build(
        cls, module: fx.GraphModule, *, batch: Batch = DEFAULT_BATCH, options: Mapping[str, Any] | None = None
    ) -> Self:
        """Export `module` for TensorRT and let ONNX Runtime build it. Without `batch.maximum` the engine takes batches
        up to 8 or the typical size."""
        chosen = check_options(cls.name, options, OPTIONS)
        batch = replace(batch, maximum=batch.maximum or max(8, batch.typical))
        file = export_onnx(module, lane=cls.lane, batch=batch, opset=chosen.get("opset"))
        engine = cls(file.signature, file.model, module.state_dict(), chosen)
        engine.changes = file.changes
        return engine

    def save_files(self, folder: Path) -> None:
        """Write the ONNX file."""
        (folder / FILE).write_bytes(self.model)

    @classmethod
    def load_files(cls, folder: Path, signature: Signature, options: Mapping[str, Any]) -> Self:
        """The engine, built anew of its ONNX file."""
        if (reason := cls.unavailable()) is not None:
            raise EngineError(f"this artifact needs ONNX Runtime with TensorRT: {reason}")
        return cls(signature, (folder / FILE).read_bytes(), options=options)

    def layers(self, *inputs: Tensor) -> tuple[Layer, ...]:
        """Every node that ran: TensorRT's part as one, which does not say what is in it."""
        return tuple(
            replace(layer, precision="unknown", nodes=()) if layer.name.startswith(PROVIDER) else layer
            for layer in super().layers(*inputs)
        )

    @property
    def device(self) -> str:
        """The GPU's name."""
        return cuda.get_device_name()

    def _start(self, profile: str | None = None) -> onnxruntime.InferenceSession:
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3  # errors
        # TensorRT is to read Q and DQ as they are written (microsoft/onnxruntime#17482).
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        if profile is not None:
            settings.enable_profiling = True
            settings.profile_file_prefix = profile
        known = onnxruntime.get_available_providers()
        others = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in known]
        providers = [(PROVIDER, self._provider_options()), *others]
        try:
            session = onnxruntime.InferenceSession(self.model, settings, providers=providers)
        except Exception as error:
            raise EngineError(
                f"ONNX Runtime {self.version} does not build the model with TensorRT: {error}"
            ) from error
        # One that cannot start is left out, with a line in the log.
        if PROVIDER not in session.get_providers():
            raise EngineError(
                f"ONNX Runtime {self.version} could not start {PROVIDER}: install the tensorrt that it was built for"
            )
        return session

    def _provider_options(self) -> dict[str, Any]:
        """Without precisions, so that TensorRT types strongly, as the file says (microsoft/onnxruntime#18707)."""
        batch = self.signature.batch
        sizes = {"min": batch.minimum, "opt": batch.typical, "max": batch.maximum or batch.typical}
        shapes = {
            f"trt_profile_{kind}_shapes": shapes_at(self.signature, size) for kind, size in sizes.items()
        }
        folder = self._engine_cache()
        cached = (
            {} if folder is None else {"trt_engine_cache_enable": True, "trt_engine_cache_path": str(folder)}
        )
        options = self._asked
        level = {"trt_builder_optimization_level": level_of(options["level"])} if "level" in options else {}
        return {
            "trt_max_workspace_size": whole("workspace", options.get("workspace", WORKSPACE)),
            **{name: text for name, text in shapes.items() if text},
            **level,
            **cached,
        }

    def _engine_cache(self) -> Path | None:
        """A folder for this file alone: ONNX Runtime knows engines by the names in a graph, whatever its weights."""
        option = self._asked.get("engine_cache", False)
        if option is False:
            return None
        known = (
            f"{self.version}\0{self.device}\0{self.signature.batch}\0{self._asked.get('level')}\0".encode()
        )
        name = hashlib.sha256(known + self.model).hexdigest()
        if option is True:
            return cache_folder("onnxruntime-tensorrt", name)
        own = path_of("engine_cache", option) / name
        own.mkdir(parents=True, exist_ok=True)
        return own
