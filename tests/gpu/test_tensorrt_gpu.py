"""The TensorRT engine on a real GPU."""

from __future__ import annotations

import importlib.util
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import fx

from eqsat_deploy.engines import Batch
from eqsat_deploy.engines.tensorrt import TensorRTEngine
from eqsat_deploy.errors import EngineError, InputError
from eqsat_deploy.grid import IntegerGrid
from eqsat_deploy.quantization import quantize
from eqsat_deploy.targets import find_cost
from tests.deploy.placing import ADDS, WEIGHTED, Attention, Residual, images, int8, torchvision_model, traced

REASON = TensorRTEngine.unavailable()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(REASON is not None, reason=str(REASON))]
SIZES = Batch(1, 2, 8)


@pytest.fixture(scope="module", params=[Residual, Attention])
def module(request: pytest.FixtureRequest) -> fx.GraphModule:
    torch.manual_seed(0)
    return int8(traced(request.param(), torch.zeros(1, 3, 32, 32)), WEIGHTED)


@pytest.fixture(scope="module")
def quantized(module: fx.GraphModule) -> fx.GraphModule:
    return quantize(module, images(4), grid=IntegerGrid())


@pytest.fixture(scope="module")
def engine(quantized: fx.GraphModule, tmp_path_factory: pytest.TempPathFactory) -> TensorRTEngine:
    cache = tmp_path_factory.mktemp("cache") / "tactics"
    built = TensorRTEngine.build(quantized, batch=SIZES, options={"timing_cache": cache})
    assert cache.stat().st_size > 0
    return built


def sqnr(expected: torch.Tensor, found: torch.Tensor) -> float:
    return float(10 * torch.log10((expected**2).sum() / ((expected - found) ** 2).sum()))


@pytest.mark.parametrize("size", [1, 3, 8])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_results_match_the_fake_quantized_module(engine, quantized, size: int, device: str) -> None:
    x = images(1, batch=size, seed=5)[0]
    with torch.no_grad():
        expected = quantized(x)
    found = engine(x.to(device))
    assert found.device.type == device
    assert found.dtype == torch.float32
    assert sqnr(expected, found.cpu()) > 25


def test_a_float_module_matches_in_half_precision(module) -> None:
    x = images(1, batch=2)[0]
    with torch.no_grad():
        assert sqnr(module(x), TensorRTEngine.build(module, batch=SIZES)(x)) > 40


def test_work_queued_before_a_call_is_seen_by_it(engine, quantized) -> None:
    x = images(1, batch=2, seed=7)[0].cuda()
    for _ in range(20):
        busy = torch.randn(2048, 2048, device="cuda")
        for _ in range(10):
            busy = busy @ busy / 2048
        filled = x + 0 * busy.mean().nan_to_num()
        torch.testing.assert_close(engine(filled), engine(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("graphs", [False, True])
def test_profiles_and_graphs_compute_the_same(quantized, engine, graphs: bool, tmp_path: Path) -> None:
    options = {"profiles": [1, 4], "cuda_graphs": graphs, "timing_cache": tmp_path / "tactics"}
    other = TensorRTEngine.build(quantized, batch=SIZES, options=options)
    assert other.loaded.profiles == [(1, 8), (1, 1), (4, 4)]
    for size in (4, 1, 2, 4, 8, 1):
        x = images(1, batch=size, seed=size)[0].cuda()
        first, second = other(x), other(x + 1)
        assert sqnr(engine(x), first) > 30
        assert sqnr(engine(x + 1), second) > 30
        assert first.data_ptr() != second.data_ptr()


def test_an_asynchronous_call_is_in_order_and_does_not_wait(quantized, engine) -> None:
    other = TensorRTEngine.build(quantized, batch=SIZES, options={"asynchronous": True, "cuda_graphs": True})
    xs = [x.cuda() for x in images(20, batch=8)]
    expected = [engine(x).cpu() for x in xs]
    other(xs[0])
    torch.cuda.synchronize()
    torch.cuda._sleep(200_000_000)
    found = [other(x) * 1 for x in xs]
    assert not torch.cuda.current_stream().query()
    for got, wanted in zip(found, expected, strict=True):
        assert sqnr(wanted, got.cpu()) > 30


@pytest.mark.parametrize("graphs", [False, True])
def test_threads_share_an_engine(quantized, engine, graphs: bool) -> None:
    other = TensorRTEngine.build(quantized, batch=SIZES, options={"streams": 3, "cuda_graphs": graphs})
    xs = [x.cuda() for x in images(64, batch=2)]
    expected = [engine(x) for x in xs]

    def call(x: torch.Tensor) -> torch.Tensor:
        with torch.cuda.stream(torch.cuda.Stream()):
            found = other(x)
            torch.cuda.current_stream().synchronize()
        return found

    with ThreadPoolExecutor(6) as pool:
        for got, wanted in zip(pool.map(call, xs), expected, strict=True):
            assert sqnr(wanted, got) > 30


def test_views_at_odd_addresses_are_taken(engine) -> None:
    x = images(1, batch=3)[0].cuda()
    shifted = torch.cat([x.flatten(), x.flatten()]).roll(1)[1 : 1 + x.numel()].reshape(x.shape)
    torch.testing.assert_close(engine(shifted), engine(x), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(
        engine(x.to(memory_format=torch.channels_last)), engine(x), rtol=1e-3, atol=1e-3
    )


def test_calls_leave_no_memory_behind(engine) -> None:
    x = images(1, batch=8)[0].cuda()
    allocated = []
    for count in (20, 1000):
        for _ in range(count):
            engine(x)
        allocated.append(torch.cuda.memory_allocated())
    assert allocated[1] <= allocated[0]


def test_plans_are_kept_and_reused(quantized, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EQSAT_DEPLOY_CACHE", str(tmp_path))
    phases: list[str] = []
    options = {"progress": lambda phase, done, of: phases.append(phase)}
    first = TensorRTEngine.build(quantized, batch=SIZES, options=options)
    assert phases
    phases.clear()
    second = TensorRTEngine.build(quantized, batch=SIZES, options=options)
    assert not phases
    assert first.plan == second.plan


def test_a_build_is_stopped_by_its_progress(quantized) -> None:
    def stop(phase: str, done: int, of: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        TensorRTEngine.build(quantized, batch=SIZES, options={"progress": stop, "timing_cache": False})


def test_batches_outside_the_profile_are_refused(engine) -> None:
    with pytest.raises(InputError, match="batch of 9"):
        engine(torch.zeros(9, 3, 32, 32))


def test_layers_tell_what_ran_in_int8(engine, module) -> None:
    layers = engine.layers()
    assert layers
    assert sum(layer.microseconds for layer in layers) > 0
    assert "int8" in {layer.precision for layer in layers}
    nodes = {node.name for node in module.graph.nodes}
    assert nodes & {name for layer in layers for name in layer.nodes}


def test_an_engine_survives_its_files_and_not_their_damage(engine, tmp_path: Path) -> None:
    engine.save_files(tmp_path)
    back = TensorRTEngine.load_files(tmp_path, engine.signature, engine.options)
    x = images(1, batch=2)[0]
    assert torch.equal(back(x), engine(x))
    (tmp_path / "engine.plan").write_bytes(engine.plan[:1000])
    with pytest.raises(EngineError, match=r"build it again.*It says: "):
        TensorRTEngine.load_files(tmp_path, engine.signature, engine.options)


def test_refit_replaces_weights() -> None:
    torch.manual_seed(0)
    first = traced(Residual(), torch.zeros(1, 3, 32, 32))
    second = traced(Residual(), torch.zeros(1, 3, 32, 32))
    engine = TensorRTEngine.build(first, batch=SIZES, options={"refit": True, "cuda_graphs": True})
    x = images(1, batch=2)[0]
    with torch.no_grad():
        assert sqnr(first(x), engine(x)) > 40
        engine.refit(second)
        assert sqnr(second(x), engine(x)) > 40


def test_auto_prices_for_tensorrt() -> None:
    assert find_cost("auto").name == "trt_int8"


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="torchvision is not installed")
@pytest.mark.slow
def test_resnet50_runs_in_int8_nearly_throughout() -> None:
    module = traced(torchvision_model("resnet50"), torch.zeros(1, 3, 224, 224))
    quantized = quantize(int8(module, WEIGHTED + ADDS), images(2, size=224, batch=8), grid=IntegerGrid())
    layers = TensorRTEngine.build(quantized, batch=Batch(1, 8, 8)).layers()
    integer = {name for layer in layers if layer.precision == "int8" for name in layer.nodes}
    convolutions = [
        node.name for node in module.graph.nodes if "conv" in node.name or "downsample" in node.name
    ]
    assert len(convolutions) == 53
    assert len(integer & set(convolutions)) >= 50
