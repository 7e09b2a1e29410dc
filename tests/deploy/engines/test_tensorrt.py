"""The TensorRT engine's control flow, on a stand-in that computes the ONNX file on the CPU."""

from __future__ import annotations

import pytest
import torch

import eqsat_deploy as eqd
from eqsat_deploy.engines import Batch, tensorrt, tensorrt_run
from eqsat_deploy.engines.tensorrt import TensorRTEngine
from eqsat_deploy.engines.tensorrt_layers import read_layers
from eqsat_deploy.errors import EngineError, EqsatError, InputError, UnknownNameError
from eqsat_deploy.grid import IntegerGrid
from eqsat_deploy.quantization import quantize
from eqsat_deploy.stages import listening
from tests.deploy.engines.fake_tensorrt import Fake
from tests.deploy.engines.tensorrt_cases import build, fake, model
from tests.deploy.placing import Attention, Residual, images, int8, traced

__all__ = ["fake", "model"]


def test_a_build_is_strongly_typed_with_a_profile_per_batched_input_and_a_timing_cache(
    fake, model, tmp_path
) -> None:
    build(model)
    cache = tmp_path / "cache" / "tensorrt" / "10.16.1.11-NVIDIA-Fake-3000.timing"
    assert fake.calls == [
        ("network", 1 << 1),
        ("parse",),
        ("workspace", 4 << 30),
        ("profile", {"x": ((1, 3, 32, 32), (2, 3, 32, 32), (4, 3, 32, 32))}),
        ("cache", b"", True),
        ("build", 3, fake.ProfilingVerbosity.DETAILED),
        ("deserialize",),
        ("context",),
    ]
    assert cache.read_bytes() == b"measured"
    assert [path.name for path in cache.parent.iterdir()] == [cache.name]
    fake.calls.clear()
    build(model)
    assert ("cache", b"measured", True) in fake.calls


def test_options_reach_the_builder(fake, model, tmp_path) -> None:
    build(model, level=5, workspace=1 << 20, refit=True, timing_cache=tmp_path / "mine")
    assert ("workspace", 1 << 20) in fake.calls
    assert ("flag", "REFIT") in fake.calls
    assert fake.config.builder_optimization_level == 5
    assert (tmp_path / "mine").is_file()
    fake.calls.clear()
    build(model, timing_cache=False)
    assert "cache" not in fake.steps
    assert "flag" not in fake.steps
    with pytest.raises(UnknownNameError, match="did you mean 'level'"):
        build(model, levels=5)
    with pytest.raises(InputError, match="at most 5"):
        build(model, level=6)
    with pytest.raises(InputError, match="workspace"):
        build(model, workspace="4G")


def test_a_timing_cache_of_another_version_is_replaced(fake, model, tmp_path) -> None:
    (tmp_path / "old").write_bytes(b"old")
    fake.fail = {"cache"}
    build(model, timing_cache=tmp_path / "old")
    assert [call for call in fake.calls if call[0] == "cache"] == [
        ("cache", b"old", False),
        ("cache", b"", True),
    ]
    assert (tmp_path / "old").read_bytes() == b"measured"


def test_plans_are_kept_by_file_version_gpu_and_options(fake, model, tmp_path, monkeypatch) -> None:
    folder = tmp_path / "cache" / "compiled"

    def builds(**options: object) -> bool:
        fake.calls.clear()
        build(model, engine_cache=True, **options)
        return "build" in fake.steps

    assert builds()
    assert not builds()
    assert not builds(streams=2, timing_cache=False)
    assert builds(level=1)
    assert builds(workspace=1 << 20)
    assert builds(refit=True)
    assert builds(profiles=[1])
    monkeypatch.setattr(Fake, "__version__", "11.0.0.114")
    assert builds()
    monkeypatch.setattr(tensorrt.cuda, "get_device_name", lambda: "NVIDIA Fake 4000")
    assert builds()
    assert not builds()
    assert len(list(folder.glob("*.blob"))) == 7
    torch.manual_seed(1)
    other = quantize(int8(traced(Residual(), torch.zeros(1, 3, 32, 32))), images(2), grid=IntegerGrid())
    fake.calls.clear()
    build(other, engine_cache=True)
    assert "build" in fake.steps
    fake.calls.clear()
    build(model, Batch(1, 2, 5), engine_cache=True)
    assert "build" in fake.steps


def test_a_kept_plan_that_is_damaged_or_not_loaded_is_built_again(fake, model, tmp_path, monkeypatch) -> None:
    build(model, engine_cache=True)
    (path,) = (tmp_path / "cache" / "compiled").glob("*.blob")
    whole = path.read_bytes()
    for damaged in (whole[:100], whole[:-1] + bytes([whole[-1] ^ 1]), b""):
        path.write_bytes(damaged)
        fake.calls.clear()
        build(model, engine_cache=True)
        assert "build" in fake.steps
        assert path.read_bytes() == whole
    load = tensorrt_run.Loaded.__init__
    refused: list[bytes] = []

    def once(self, plan, signature) -> None:
        if not refused:
            refused.append(plan)
            raise EngineError("another driver")
        load(self, plan, signature)

    monkeypatch.setattr(tensorrt_run.Loaded, "__init__", once)
    fake.calls.clear()
    build(model, engine_cache=True)
    assert refused
    assert "build" in fake.steps


def test_a_build_tells_its_progress_and_is_stopped_by_what_that_raises(fake, model) -> None:
    told: list[tuple[str, int, int]] = []
    build(model, progress=lambda *step: told.append(step))
    assert told == [
        ("Building engine", 0, 2),
        *(("Timing", step, 3) for step in (0, 1, 2, 3, 3)),
        ("Building engine", 1, 2),
        ("Building engine", 2, 2),
    ]

    def interrupt(phase: str, done: int, of: int) -> None:
        if (phase, done) == ("Timing", 2):
            raise KeyboardInterrupt

    fake.calls.clear()
    with pytest.raises(KeyboardInterrupt):
        build(model, progress=interrupt)
    assert fake.steps[-1] == "build"


def test_phases_of_a_build_are_stages_to_whoever_listens(fake, model) -> None:
    heard: list[tuple[str, bool]] = []
    with listening(lambda stage, seconds: heard.append((stage, seconds is None))):
        build(model)
    assert heard == [("TensorRT: Building engine", True), ("TensorRT: Building engine", False)]


def test_a_cache_that_cannot_be_written_is_said_if_it_was_named_and_done_without_if_not(
    fake, model, tmp_path, monkeypatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineError, match=r"cannot write .*or False for none"):
        build(model, timing_cache=tmp_path / "file" / "cache")
    assert "build" not in fake.steps
    monkeypatch.setenv("EQSAT_DEPLOY_CACHE", str(tmp_path / "file" / "cache"))
    build(model, engine_cache=True)
    assert "build" in fake.steps
    assert (tmp_path / "file").is_file()


def test_outputs_keep_the_modules_order_and_structure(fake) -> None:
    class Two(torch.nn.Module):
        def forward(self, x, y):
            return {"difference": x - y, "sum": (x + y,)}

    example = torch.zeros(1, 3, 4, 4)
    engine = build(traced(Two(), example, example, fold=False))
    x, y = images(2, size=4, batch=2)
    found = engine(x, y)
    torch.testing.assert_close(found["difference"], x - y, atol=5e-3, rtol=0)
    torch.testing.assert_close(found["sum"][0], x + y, atol=5e-3, rtol=0)


def test_without_a_maximum_the_engine_picks_one_and_says_so(fake, model) -> None:
    engine = build(model, batch=Batch(1, 1, None))
    assert engine.signature.batch == Batch(1, 1, 8)
    with pytest.raises(InputError, match="batch of 9"):
        engine(images(1, batch=9)[0])
    assert build(model, batch=Batch(1, 32)).signature.batch.maximum == 32


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("parse", r"does not read the model: unsupported \(node 'stem', Conv\)"),
        ("profile", "refuses the sizes"),
        ("build", "cannot build the engine.*no implementation for node stem"),
        ("load", "cannot load this plan on NVIDIA Fake 3000.*build it again.*incompatible version"),
        ("context", "cannot make an execution context"),
    ],
)
def test_failures_of_a_build_carry_what_tensorrt_said(fake, model, step, message) -> None:
    fake.fail = {step}
    with pytest.raises(EngineError, match=message):
        build(model)


@pytest.mark.parametrize("schema", [10, 11])
def test_layers_report_precision_times_and_graph_nodes_in_both_schemas(fake, model, schema) -> None:
    fake.schema = schema
    engine = build(model)
    layers = engine.layers()
    assert all(context.profiler is None for context in engine._workers.queue[0]._contexts.values())
    assert [layer.name for layer in layers] == engine.loaded.engine.layers
    assert {layer.precision for layer in layers} == {"int8"}
    assert {layer.microseconds for layer in layers} == {250.0}
    assert layers[0].nodes == ("stem",)


@pytest.mark.parametrize(
    ("text", "precision"),
    [
        ("Row major linear FP16 format", "float16"),
        ("Channel major FP32 format where channel % 4 == 0", "float32"),
        ("Thirty-two wide channel vectorized row major Int8 format", "int8"),
        ("Row major linear BFloat16 format", "bfloat16"),
        ("Row major Int32 format", "int32"),
        ("something new", "unknown"),
    ],
)
def test_precisions_are_read_from_the_inspectors_words(text, precision) -> None:
    described = [{"Name": "stem + relu", "Inputs": [{"Format/Datatype": text}]}, "a name only"]
    layers = read_layers(described, {"stem + relu": [0.5, 1.5]})
    assert (layers[0].precision, layers[0].microseconds, layers[0].nodes) == (
        precision,
        1000.0,
        ("stem", "relu"),
    )
    assert (layers[1].precision, layers[1].microseconds) == ("unknown", 0.0)


def test_an_engine_survives_its_files(fake, model, tmp_path) -> None:
    engine = build(model, streams=2, cuda_graphs=True)
    folder = tmp_path / "files"
    folder.mkdir()
    engine.save_files(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["engine.plan", "tensorrt.onnx"]
    back = TensorRTEngine.load_files(folder, engine.signature, engine.options)
    x = images(1, batch=2)[0]
    assert torch.equal(back(x), engine(x))
    assert back.options == {"streams": 2, "cuda_graphs": True}
    assert (back.version, back.device) == ("10.16.1.11", "NVIDIA Fake 3000")


def test_an_artifact_keeps_how_it_runs(fake, model, tmp_path) -> None:
    engine = build(model, streams=2, cuda_graphs=True, level=1)
    engine.save(tmp_path / "artifact")
    back = eqd.load(tmp_path / "artifact")
    assert back.options == {"streams": 2, "cuda_graphs": True}
    x = images(1, batch=2)[0]
    assert torch.equal(back(x), engine(x))
    monkey = Fake.__version__
    try:
        Fake.__version__ = "11.4.0.106"
        with pytest.raises(EqsatError, match=r"10\.16\.1\.11"):
            eqd.load(tmp_path / "artifact")
    finally:
        Fake.__version__ = monkey


def test_refit_replaces_weights(fake, model) -> None:
    engine = build(model, refit=True, cuda_graphs=True, streams=2)
    torch.manual_seed(1)
    other = quantize(int8(traced(Residual(), torch.zeros(1, 3, 32, 32))), images(2), grid=IntegerGrid())
    x, before = images(1, batch=2)[0], engine.plan
    engine(x)
    engine.refit(other)
    assert fake.steps[-1] == "refit"
    with torch.no_grad():
        expected = other(x)
    torch.testing.assert_close(engine(x), expected, atol=0.05 * float(expected.abs().max()), rtol=0)
    assert engine.plan != before
    assert torch.equal(engine.weights["head.bias"], other.state_dict()["head.bias"])
    fake.fail = {"refit"}
    with pytest.raises(EngineError, match="do not fit this engine: another shape"):
        engine.refit(other)
    fake.fail = {"missing"}
    with pytest.raises(EngineError, match=r"stem\.bias"):
        engine.refit(other)
    engine.loaded.engine.refittable = False
    with pytest.raises(EngineError, match="'refit': True"):
        engine.refit(other)


@pytest.mark.parametrize(
    ("version", "whole"), [("10.13.3.9", False), ("10.16.1.11", True), ("11.4.0.106", True)]
)
def test_attention_is_whole_and_decomposable_where_the_parser_reads_it(fake, version, whole) -> None:
    Fake.__version__, original = version, Fake.__version__
    try:
        build(traced(Attention(), torch.zeros(1, 3, 32, 32)))
    finally:
        Fake.__version__ = original
    nodes = [node for node in fake.parsed.graph.node if node.op_type == "Attention"]
    assert bool(nodes) is whole
    for node in nodes:
        assert {a.name: a.i for a in node.attribute}["TRT_decomposable"] == 1


def test_unavailable_says_what_is_missing(fake, monkeypatch) -> None:
    assert TensorRTEngine.unavailable() is None
    monkeypatch.setattr(Fake, "__version__", "10.9.0.34")
    assert "older than 10.13" in str(TensorRTEngine.unavailable())
    monkeypatch.setattr(tensorrt.cuda, "is_available", lambda: False)
    assert "CUDA device" in str(TensorRTEngine.unavailable())
    monkeypatch.undo()
    assert "not installed" in str(TensorRTEngine.unavailable())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"profiles": 4}, "profiles=4: a list"),
        ({"profiles": ["4"]}, "profiles='4'"),
        ({"timing_cache": 5}, "timing_cache=5: a path"),
        ({"timing_cache": b"x"}, "a path is expected"),
        ({"progress": "yes"}, "progress='yes'"),
        ({"streams": "two"}, "streams='two'"),
    ],
)
def test_options_of_the_wrong_kind_are_refused(fake, model, options, message) -> None:
    with pytest.raises(InputError, match=message):
        build(model, **options)
