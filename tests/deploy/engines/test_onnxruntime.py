"""ONNX Runtime: the same results as the module, integers where placed, and an artifact that comes back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import eqsat_deploy.engines.onnxruntime as home
from eqsat_deploy.deployment import PlacedKernel, Placement, Quantizer, record
from eqsat_deploy.engines import Batch
from eqsat_deploy.engines.onnxruntime import ONNXRuntimeEngine
from eqsat_deploy.errors import EngineError, InputError, UnknownNameError
from eqsat_deploy.quantization import quantize
from tests.deploy.placing import ADDS, WEIGHTED, Attention, Residual, images, int8, traced
from tests.support.models import Fire, randomized

pytest.importorskip("onnxruntime")
OPTIONS = {"threads": 1}


def module(make: type[nn.Module] = Residual, readers: tuple[object, ...] = WEIGHTED):
    torch.manual_seed(0)
    return int8(traced(make(), torch.zeros(1, 3, 32, 32)), readers)


def sqnr(expected: torch.Tensor, found: torch.Tensor) -> float:
    return float(10 * torch.log10((expected**2).sum() / ((expected - found) ** 2).sum()))


@pytest.mark.parametrize("make", [Residual, Attention])
def test_a_float_module_comes_out_float_at_any_batch(make: type[nn.Module]) -> None:
    model = module(make)
    engine = ONNXRuntimeEngine.build(model, options=OPTIONS)
    for size in (1, 4):
        x = images(1, batch=size)[0]
        torch.testing.assert_close(engine(x), model(x), rtol=1e-4, atol=1e-5)
    assert {layer.precision for layer in engine.layers()} <= {"float32", "int64"}


@pytest.mark.parametrize("make", [Residual, Attention])
def test_a_quantized_module_runs_in_integers_where_onnxruntime_can(make: type[nn.Module]) -> None:
    model = module(make, WEIGHTED + ADDS)
    quantized = quantize(model, images(3))
    engine = ONNXRuntimeEngine.build(quantized, options=OPTIONS)
    x = images(1, seed=5)[0]
    with torch.no_grad():
        assert sqnr(quantized(x), engine(x)) > 20
    layers = engine.layers(x)
    assert all(layer.microseconds > 0 for layer in layers)
    found = {
        node: layer for layer in layers for node in layer.nodes if layer.type not in ("Add", "Clip", "Relu")
    }
    linear = [node.name for node in model.graph.nodes if isinstance(target(model, node), nn.Linear)]
    assert linear
    assert {found[name].type for name in linear} <= {"MatMulIntegerToFloat", "QLinearMatMul"}
    assert {found[name].precision for name in linear} == {"int8"}
    if make is Residual:
        convolutions = [found[name] for name in ("stem", "depthwise", "pointwise")]
        assert {(layer.type, layer.precision) for layer in convolutions} == {("QLinearConv", "int8")}


def target(model, node) -> nn.Module | None:
    return model.get_submodule(node.target) if node.op == "call_module" else None


def test_a_concatenation_of_codes_runs_in_integers() -> None:
    model, x = traced(randomized(Fire()), torch.zeros(1, 3, 30, 30)), images(1, size=30)[0]
    reads = {"x": ("stem",), "relu": ("one", "two"), "relu_1": ("cat",), "two": ("cat",)}
    quantizers = tuple(Quantizer(name, readers) for name, readers in reads.items())
    kernels = tuple(PlacedKernel(n, (n,), "int8", "float32", 0.0) for n in ("stem", "one", "two", "last"))
    record(model, placement=Placement(quantizers, kernels, (("relu_1", "two"),)))
    quantized = quantize(model, images(3, size=30))
    engine = ONNXRuntimeEngine.build(quantized, options=OPTIONS)
    layers = {layer.type: layer.precision for layer in engine.layers(x)}
    assert layers["QLinearConcat"] == layers["QLinearConv"] == "int8"
    with torch.no_grad():
        assert sqnr(quantized(x), engine(x)) > 25


def test_an_engine_survives_its_files(tmp_path: Path) -> None:
    engine = ONNXRuntimeEngine.build(quantize(module(), images(2)), batch=Batch(1, 2, 8), options=OPTIONS)
    engine.save_files(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["onnxruntime.onnx"]
    back = ONNXRuntimeEngine.load_files(tmp_path, engine.signature, engine.options)
    x = images(1)[0]
    assert torch.equal(back(x), engine(x))
    assert (back.device, back.version) == (engine.device, engine.version)
    with pytest.raises(InputError, match="batch of 9"):
        back(torch.zeros(9, 3, 32, 32))


def test_a_damaged_file_says_so(tmp_path: Path) -> None:
    engine = ONNXRuntimeEngine.build(module(), options=OPTIONS)
    (tmp_path / "onnxruntime.onnx").write_bytes(engine.model[: len(engine.model) // 2])
    with pytest.raises(EngineError, match="does not load"):
        ONNXRuntimeEngine.load_files(tmp_path, engine.signature, engine.options)


def test_unknown_options_and_missing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'threads'"):
        ONNXRuntimeEngine.build(module(), options={"thread": 1})
    monkeypatch.setattr(home.importlib.util, "find_spec", lambda name: None)
    assert "pip install" in str(ONNXRuntimeEngine.unavailable())
