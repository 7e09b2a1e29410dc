"""ONNX Runtime's TensorRT provider: what it is asked for, on the CPU provider in its place."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import fx

import eqsat_deploy.engines.onnxruntime_tensorrt as home
from eqsat_deploy.engines import Batch
from eqsat_deploy.engines.onnxruntime_tensorrt import PROVIDER, ONNXRuntimeTensorRTEngine
from eqsat_deploy.errors import EngineError, InputError, UnknownNameError
from eqsat_deploy.grid import IntegerGrid
from eqsat_deploy.quantization import quantize
from eqsat_deploy.targets import find_target
from tests.deploy.placing import Residual, images, int8, traced

onnxruntime = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")


class Runtime:
    """Sessions that were asked for, and the providers that are there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[dict[str, Any]] = []
        self.starts = True
        runtime = self

        class Session(onnxruntime.InferenceSession):  # type: ignore[misc, name-defined]
            def __init__(self, model: bytes, settings: Any, providers: list[Any]) -> None:
                (name, options), *others = providers
                runtime.asked.append({"name": name, "others": others, "settings": settings, **options})
                super().__init__(model, settings, providers=["CPUExecutionProvider"])

            def get_providers(self) -> list[str]:
                return [*[PROVIDER] * runtime.starts, "CPUExecutionProvider"]

        known = [PROVIDER, "CUDAExecutionProvider", "CPUExecutionProvider"]
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: known)
        monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
        cuda = SimpleNamespace(is_available=lambda: True, get_device_name=lambda: "NVIDIA Fake 3000")
        monkeypatch.setattr(home, "cuda", cuda)


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Runtime:
    monkeypatch.setenv("EQSAT_DEPLOY_CACHE", str(tmp_path / "cache"))
    return Runtime(monkeypatch)


@pytest.fixture(scope="module")
def model() -> fx.GraphModule:
    torch.manual_seed(0)
    return quantize(int8(traced(Residual(), torch.zeros(1, 3, 32, 32))), images(2), grid=IntegerGrid())


def test_the_provider_gets_the_tensorrt_lanes_file_strongly_typed_with_a_profile(runtime, model) -> None:
    engine = ONNXRuntimeTensorRTEngine.build(model, batch=Batch(1, 2, 4))
    (asked,) = runtime.asked
    settings = asked.pop("settings")
    assert settings.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    assert asked == {
        "name": PROVIDER,
        "others": ["CUDAExecutionProvider", "CPUExecutionProvider"],
        "trt_max_workspace_size": 4 << 30,
        "trt_profile_min_shapes": "x:1x3x32x32",
        "trt_profile_opt_shapes": "x:2x3x32x32",
        "trt_profile_max_shapes": "x:4x3x32x32",
    }
    types = {tensor.data_type for tensor in onnx.load_model_from_string(engine.model).graph.initializer}
    assert types & {onnx.TensorProto.FLOAT, onnx.TensorProto.UINT8} == set()
    x = images(1, batch=3)[0]
    with torch.no_grad():
        expected = model(x)
    torch.testing.assert_close(engine(x), expected, atol=0.05 * float(expected.abs().max()), rtol=0)
    assert engine.device == "NVIDIA Fake 3000"
    assert ONNXRuntimeTensorRTEngine.build(model).signature.batch == Batch(1, 1, 8)


def test_options_reach_the_provider(runtime, model, tmp_path) -> None:
    engine = ONNXRuntimeTensorRTEngine.build(model, options={"level": 5, "workspace": 1 << 20})
    assert runtime.asked[0]["trt_builder_optimization_level"] == 5
    assert runtime.asked[0]["trt_max_workspace_size"] == 1 << 20
    assert engine.options == {"level": 5, "workspace": 1 << 20}
    with pytest.raises(InputError, match="at most 5"):
        ONNXRuntimeTensorRTEngine.build(model, options={"level": 7})
    with pytest.raises(UnknownNameError, match="did you mean 'level'"):
        ONNXRuntimeTensorRTEngine.build(model, options={"levels": 5})


def test_engines_are_kept_apart_by_file(runtime, model, tmp_path) -> None:
    """ONNX Runtime names them by the names in a graph, which other weights share."""
    folders = []
    torch.manual_seed(1)
    other = quantize(int8(traced(Residual(), torch.zeros(1, 3, 32, 32))), images(2), grid=IntegerGrid())
    for module in (model, other, model):
        ONNXRuntimeTensorRTEngine.build(module, options={"engine_cache": tmp_path / "kept"})
        assert runtime.asked[-1]["trt_engine_cache_enable"] is True
        folders.append(runtime.asked[-1]["trt_engine_cache_path"])
    assert folders[0] == folders[2] != folders[1]
    assert all(Path(folder).parent == tmp_path / "kept" for folder in folders)


def test_files_come_back(runtime, model, tmp_path) -> None:
    engine = ONNXRuntimeTensorRTEngine.build(model, options={"level": 1})
    engine.save_files(tmp_path)
    assert [path.name for path in tmp_path.glob("*.onnx")] == ["tensorrt.onnx"]
    back = ONNXRuntimeTensorRTEngine.load_files(tmp_path, engine.signature, engine.options)
    assert runtime.asked[-1]["trt_builder_optimization_level"] == 1
    x = images(1, batch=2)[0]
    assert torch.equal(back(x), engine(x))
    assert {layer.precision for layer in back.layers()} >= {"float32"}


def test_a_provider_that_is_missing_or_does_not_start_says_what_to_install(
    runtime, model, monkeypatch
) -> None:
    runtime.starts = False
    with pytest.raises(EngineError, match="could not start TensorrtExecutionProvider: install the tensorrt"):
        ONNXRuntimeTensorRTEngine.build(model)
    monkeypatch.setattr(home.cuda, "is_available", lambda: False)
    assert "CUDA device" in str(ONNXRuntimeTensorRTEngine.unavailable())
    monkeypatch.undo()
    assert "onnxruntime-gpu" in str(ONNXRuntimeTensorRTEngine.unavailable())


def test_what_it_is_built_for_is_priced_and_quantized_as_for_tensorrt() -> None:
    target, plain = find_target("onnxruntime-tensorrt"), find_target("tensorrt")
    assert (target.grid, target.cost_models, target.lane) == (plain.grid, plain.cost_models, plain.lane)
    assert target.triton is None
