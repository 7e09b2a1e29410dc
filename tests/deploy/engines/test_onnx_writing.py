"""Modules written in ONNX operators: each function computes what torch's does, and nothing is guessed."""

from __future__ import annotations

import operator
from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from torch import Tensor, fx, nn

import eqsat_deploy as eqd
from eqsat_deploy.deployment import deployment
from eqsat_deploy.engines.onnx import ONNXRUNTIME, export_onnx
from eqsat_deploy.engines.onnx import model as written
from eqsat_deploy.engines.onnx.attention import WHOLE_ATTENTION
from eqsat_deploy.engines.onnx.writing import FUNCTIONS
from eqsat_deploy.engines.openvino_writing import FUNCTIONS as OPENVINO
from eqsat_deploy.engines.program import flat_module
from eqsat_deploy.errors import EngineError
from eqsat_deploy.quantization.fake_quantize import FakeQuantize
from tests.deploy.test_random_networks import exportable
from tests.support.calls import (
    IMAGE,
    UNKNOWN,
    Chosen,
    Counting,
    Dotted,
    Numbered,
    Rounded,
    arguments,
    called,
    calling,
    calls,
    sized,
    some,
    whole,
)  # fmt: skip
from tests.support.networks import networks

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

QUIET = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]


def run(module: fx.GraphModule, *inputs: Tensor, opset: int | None = None) -> list[Tensor]:
    """What ONNX Runtime computes of the file, operator by operator."""
    file = export_onnx(module, lane=ONNXRUNTIME, opset=opset).model
    onnx.checker.check_model(onnx.load_model_from_string(file), full_check=True)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    feeds = {value.name: x.numpy() for value, x in zip(session.get_inputs(), inputs, strict=True)}
    return [torch.from_numpy(value) for value in session.run(None, feeds)]


def agree(module: fx.GraphModule, *inputs: Tensor, opset: int | None = None) -> None:
    with torch.no_grad():
        expected = module(*inputs)
    expected = expected if isinstance(expected, tuple) else (expected,)
    for wanted, found in zip(expected, run(module, *inputs, opset=opset), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.fixture
def regions(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The nodes that were converted because nothing writes them."""
    seen: list[list[str]] = []
    real = written._Writer.converted
    monkeypatch.setattr(
        written._Writer, "converted", lambda self, region: seen.append(region.nodes) or real(self, region)
    )
    return seen


@pytest.mark.parametrize("case", calls(), ids=called)
def test_a_function_computes_what_torch_has(case: tuple[Any, ...], regions: list[list[str]]) -> None:
    function, x, args, kwargs = arguments(case)
    if function == "size":
        assert run(sized(x, *args), torch.zeros(3, 1))[0].shape[1] == x.shape[args[0]]
    else:
        agree(calling(function, x, *args, **kwargs), x)
    assert not regions


def test_both_engines_know_the_same_functions() -> None:
    assert set(FUNCTIONS) == set(WHOLE_ATTENTION) == set(OPENVINO)


@pytest.mark.parametrize("case", [c for c in calls() if c[0] is F.scaled_dot_product_attention], ids=called)
def test_attention_as_one_operator(case: tuple[Any, ...], regions: list[list[str]]) -> None:
    function, x, args, kwargs = arguments(case)
    agree(calling(function, x, *args, **kwargs), x, opset=23)
    assert not regions


@pytest.mark.parametrize("opset", [21, 23])
def test_a_mask_of_truth_values_keeps_where_it_is_true(opset: int) -> None:
    heads = some(3, 2, 5, 4)
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    agree(calling(F.scaled_dot_product_attention, heads, heads, heads, mask), heads, opset=opset)


def test_what_is_concatenated_and_repeated_for_the_batch(regions: list[list[str]]) -> None:
    module = whole(Counting(), 5, 8)
    for size in (1, 4):
        agree(module, some(size, 5, 8))
    assert not regions


def test_shapes_say_how_often_the_batch_is_in_them() -> None:
    file = onnx.load_model_from_string(export_onnx(whole(Counting(), 5, 8), lane=ONNXRUNTIME).model)
    tokens, windows = (
        [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in file.graph.output
    )
    assert tokens == ["batch", 6, 8]
    assert windows == ["5*batch", 2, 4]


def test_quantizers_and_what_calibration_puts_beside_them(regions: list[list[str]]) -> None:
    agree(whole(Rounded().eval(), 6, 9, 8), some(*IMAGE))
    assert not regions


@pytest.mark.parametrize(("function", "x", "args"), UNKNOWN)
def test_what_is_not_known_is_converted_by_itself(
    function: Any, x: Tensor, args: tuple[Any, ...], regions: list[list[str]]
) -> None:
    module = calling(function, x, *args)
    agree(module, x)
    (region,) = regions
    assert len(region) == 1
    file = onnx.load_model_from_string(export_onnx(module, lane=ONNXRUNTIME).model)
    sizes = {
        d.dim_param
        for v in (*file.graph.value_info, *file.graph.output)
        for d in v.type.tensor_type.shape.dim
    }
    assert sizes <= {"", "batch", "3*batch", "15*batch"}


def test_what_is_made_for_a_batch_is_of_its_size(regions: list[list[str]]) -> None:
    module = whole(Numbered(), 5, 8)
    for size in (2, 3):
        agree(module, some(size, 5, 8))
    assert regions[0] == ["size", "arange"]


def test_tensors_whose_names_differ_by_a_dot_are_two(regions: list[list[str]]) -> None:
    agree(whole(Dotted(), 3), some(4, 3))
    assert not regions


def test_what_depends_on_values_is_converted_with_all_that_reads_it(regions: list[list[str]]) -> None:
    agree(whole(Chosen(), 5, 8), some(3, 5, 8))
    assert {"nonzero", "index_select", "relu"} <= set(regions[-1])


def test_inputs_and_constants_may_be_returned_and_tensors_returned_twice() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", some(7, 6))

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return x, self.table, x.relu(), x.relu() + self.table

    agree(whole(Model(), 7, 6), some(2, 7, 6))


def test_a_constant_is_held_once_and_not_its_equal_of_another_name() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(40, 40), nn.Linear(40, 40)
            self.second.load_state_dict(self.first.state_dict())

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(self.first(x)) + self.second(x)
            return y.reshape(-1, 5, 8) + x.reshape(-1, 5, 8)

    file = onnx.load_model_from_string(export_onnx(whole(Model(), 40), lane=ONNXRUNTIME).model)
    names = Counter(tensor.name for tensor in file.graph.initializer)
    assert {"first.weight", "first.bias", "second.weight", "second.bias"} <= set(names)
    assert len(names) == 5  # and the one shape of both reshapes


def test_only_constants_have_a_scale_for_each_channel() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rounded = FakeQuantize(torch.rand(6) + 0.1, axis=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.rounded(x)

    with pytest.raises(EngineError, match="only weights can be"):
        export_onnx(whole(Model(), 6), lane=ONNXRUNTIME)


def test_older_opsets_are_refused() -> None:
    with pytest.raises(EngineError, match="opset 20: modules are written in 21"):
        export_onnx(calling(torch.relu, some(2, 3)), lane=ONNXRUNTIME, opset=20)


def test_what_has_no_form_names_its_node() -> None:
    with pytest.raises(EngineError, match=r"svdvals.*no ONNX form at opset 21"):
        export_onnx(calling(torch.linalg.svdvals, some(2, 3, 4)), lane=ONNXRUNTIME)


def test_a_graph_that_only_selects_is_written(regions: list[list[str]]) -> None:
    agree(calling("unbind", some(3, 4, 2), 2), some(3, 4, 2))
    assert operator.getitem in FUNCTIONS
    assert not regions


@pytest.mark.slow
@settings(max_examples=10, suppress_health_check=QUIET)
@given(networks())
def test_networks_that_are_written_compute_what_they_are(network: Any) -> None:
    with exportable():
        optimized = eqd.optimize(network, network.inputs(), cost="kernels", check=False)
    inputs = deployment(optimized).samples
    found = run(optimized, *inputs)
    with torch.no_grad():
        expected = flat_module(optimized)(*inputs)
    for wanted, got in zip(expected, found, strict=True):
        scale = float(wanted.abs().max()) + 1e-6
        assert float((wanted - got).abs().max()) <= 1e-3 * scale
