"""What an engine measures of itself: how long, how far from a module, and what was predicted."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from eqsat_deploy.engines import Batch, Engine, Layer
from eqsat_deploy.engines.openvino import OpenVINOEngine
from eqsat_deploy.errors import EngineError, InputError
from eqsat_deploy.openvino_compiled import ANY
from tests.deploy.placing import traced
from tests.support.engines import Double, Fake
from tests.support.models import image, randomized
from tests.support.stages import optimized


class Two(nn.Module):
    """A dict of a pair and a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor, *, scale: float = 1.0) -> Any:
        y = torch.relu(self.layer(x)) * scale
        return {"pair": (self.head(y), y), "kept": 3}


@pytest.fixture(scope="module")
def built() -> tuple[nn.Module, Engine]:
    model = randomized(Two())
    x = image(2, 8)
    with warnings.catch_warnings():  # nothing in it pays in INT8
        warnings.simplefilter("ignore")
        form = optimized(model, (x,), cost="openvino_int8")
        return model, form.build("openvino", batch=Batch(1, 2, 8), options={"threads": 1})


@pytest.fixture
def fake() -> Fake:
    return Fake.build(traced(Double(), torch.zeros(1, 3)), batch=Batch(1, 2, 8))


def test_batches_of_arrays_are_answered_with_arrays(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.ones((2, 3), np.float32)
    *arrays, tensor = (found[0] for found in fake.map([x, (x,), {"x": x}, torch.from_numpy(x)]))
    assert all(isinstance(array, np.ndarray) and np.array_equal(array, 2 * x) for array in arrays)
    assert isinstance(tensor, Tensor)
    sizes = []
    run = Fake.run
    monkeypatch.setattr(
        Fake, "run", lambda self, given, batch: sizes.append(batch) or run(self, given, batch)
    )
    fake.warm([x, 3])
    assert sizes == [2, 3]
    assert fake.benchmark(x, seconds=0.01).batch == 2


def test_a_benchmark_counts_every_call(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    run = Fake.run
    monkeypatch.setattr(
        Fake, "run", lambda self, given, batch: calls.append(batch) or run(self, given, batch)
    )
    found = fake.benchmark(3, seconds=0.01)
    assert set(calls) == {3}
    assert (found.batch, found.calls) == (3, len(calls) - 3)
    assert found.calls >= 5
    assert 0 < found.fastest <= found.median <= found.p90 <= found.p99
    assert found.throughput <= 3e6 / found.fastest
    assert str(found).startswith("batch 3: ")
    assert fake.benchmark(seconds=1e-9).batch == 2
    assert fake.benchmark(torch.zeros(8, 3), seconds=1e-9).batch == 8


@pytest.mark.parametrize(
    ("batch", "seconds", "words"),
    [
        (0, 1.0, "batch=0: a whole number"),
        (True, 1.0, "batch=True"),
        (9, 1.0, "batch of 9"),
        (torch.zeros(2, 4), 1.0, "'x': shape"),
        (None, -1.0, "seconds=-1.0"),
        (None, "x", "seconds='x'"),
    ],
)
def test_what_cannot_be_benchmarked_is_said(fake: Fake, batch: Any, seconds: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        fake.benchmark(batch, seconds)


def test_an_engine_agrees_with_its_module_and_not_with_another(built: Any) -> None:
    model, engine = built
    batches = [image(size, 8, seed=size) for size in (1, 2, 5)]
    found = engine.compare(model, batches)
    assert [output.name for output in found.outputs] == ["output['pair'][0]", "output['pair'][1]"]
    assert (found.batches, found.decibels > 100) == (3, True)
    assert max(output.largest for output in found.outputs) < 1e-4
    other = Two()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        other.head.bias[1] += 0.5
    first, second = engine.compare(other, batches).outputs
    assert first.decibels < 40
    assert first.largest == pytest.approx(0.5, abs=1e-4)
    assert second.decibels > 100
    assert str(found).count(" dB, at most ") == 2


def test_what_cannot_be_compared_is_said(built: Any, fake: Fake) -> None:
    model, engine = built
    with pytest.raises(InputError, match="batches is empty"):
        engine.compare(model, [])
    with pytest.raises(InputError, match="module returns 2 values and the engine 3"):
        engine.compare(lambda x: (x, x), [image(2, 8)])
    with pytest.raises(
        InputError, match=r"output\[0\]: the module returns shape \[3, 2\] and the engine \[2, 3\]"
    ):
        fake.compare(lambda x: [x.T], [torch.zeros(2, 3)])


def test_warm_sizes_compile_no_more(built: Any) -> None:
    engine = OpenVINOEngine(lambda: built[1].model, built[1].signature, options={"threads": 1})
    assert set(engine._compiled._made) == {2}
    engine.warm([2, image(3, 8)])
    assert set(engine._compiled._made) == {2, ANY}


def test_a_profile_has_what_was_predicted_beside_what_ran(built: Any) -> None:
    found = built[1].profile()
    assert found.unit == "us"
    predicted = built[1].report["engine"]["kernels"]
    assert sorted(k for row in found.rows for k in row.kernels) == sorted(k["nodes"][0] for k in predicted)
    ran = [row for row in found.rows if row.kernels and row.layers]
    assert ran
    assert all(row.predicted > 0 and row.microseconds > 0 for row in ran)
    assert len([name for row in found.rows for name in row.layers]) == len(built[1].layers())
    assert found.__rich__().row_count == len(found.rows)


def test_kernels_and_layers_that_share_nodes_are_one_row(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = (
        Layer("reorder", "Reorder", "float32", 1.0),
        Layer("fused", "Conv", "int8", 5.0, ("conv", "relu", "add")),
        Layer("tail", "Eltwise", "float32", 2.0, ("mul",)),
        Layer("other", "Gemm", "int8", 3.0, ("fc",)),
    )
    monkeypatch.setattr(Fake, "layers", lambda self, *inputs: layers)
    kernels = [
        {"nodes": ["conv", "relu"], "precision": "int8", "predicted": 3.0},
        {"nodes": ["add", "mul"], "precision": "float32", "predicted": 1.0},
        {"nodes": ["fc"], "precision": "float32", "predicted": 4.0},
        {"nodes": ["view"], "precision": "float32", "predicted": 0.5},
    ]
    fake.report = {"unit": "us", "engine": {"kernels": kernels}}
    found = [
        (r.kernels, r.layers, r.planned, r.precisions, r.predicted, r.microseconds)
        for r in fake.profile().rows
    ]
    assert found == [
        ((), ("reorder",), (), ("float32",), None, 1.0),
        (("conv", "add"), ("fused", "tail"), ("int8", "float32"), ("int8", "float32"), 4.0, 7.0),
        (("fc",), ("other",), ("float32",), ("int8",), 4.0, 3.0),
        (("view",), (), ("float32",), (), 0.5, 0),
    ]
    fake.report = None
    assert [row.predicted for row in fake.profile().rows] == [None] * 4


def test_a_runtime_that_fails_is_an_error_with_what_was_asked(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Fake, inputs: Any, batch: int) -> Any:
        raise RuntimeError("out of registers")

    monkeypatch.setattr(Fake, "run", fail)
    with pytest.raises(
        EngineError, match=r"runtime 1 fails on x \[batch, 3\] float32 at batch 2: out of registers"
    ):
        fake(torch.zeros(2, 3))
    monkeypatch.setattr(Fake, "run", lambda self, inputs, batch: [])
    with pytest.raises(EngineError, match="computes 0 outputs, not 1"):
        fake(torch.zeros(2, 3))
