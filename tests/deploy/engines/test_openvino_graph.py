"""Modules written in OpenVINO's operators: each function computes what torch's does, and nothing is guessed."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable
from typing import Any

import openvino
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor, fx, nn

import eqsat_deploy as eqd
from eqsat_deploy.deployment import DEFAULT_BATCH, Signature, deployment
from eqsat_deploy.engines import openvino_graph as graph
from eqsat_deploy.engines.openvino_graph import written
from eqsat_deploy.engines.openvino_model import _transformed
from eqsat_deploy.engines.openvino_nodes import converted
from eqsat_deploy.engines.openvino_writing import FUNCTIONS
from eqsat_deploy.engines.program import flat_module, prepared
from eqsat_deploy.engines.writing import Functions
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
from tests.support.models import Fire, Residual, Transformer, randomized
from tests.support.networks import networks

QUIET = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]


def run(module: fx.GraphModule, *inputs: Tensor) -> list[Tensor]:
    """What OpenVINO computes of the module as written."""
    model = written(module, Signature.of(module, DEFAULT_BATCH))
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return [torch.from_numpy(value.copy()) for value in compiled([x.numpy() for x in inputs]).values()]


def agree(module: fx.GraphModule, *inputs: Tensor) -> None:
    with torch.no_grad():
        expected = module(*inputs)
    expected = expected if isinstance(expected, tuple) else (expected,)
    for wanted, found in zip(expected, run(module, *inputs), strict=True):
        torch.testing.assert_close(
            found.reshape(wanted.shape), wanted, rtol=1e-4, atol=1e-5, check_dtype=False
        )


@pytest.fixture
def regions(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The nodes that were converted because nothing writes them."""
    seen: list[list[str]] = []
    monkeypatch.setattr(graph, "converted", lambda region: seen.append(region.nodes) or converted(region))
    return seen


@pytest.mark.parametrize("case", calls(), ids=called)
def test_a_function_computes_what_torch_has(case: tuple[Any, ...], regions: list[list[str]]) -> None:
    function, x, args, kwargs = arguments(case)
    if function == "size":
        assert run(sized(x, *args), torch.zeros(3, 1))[0].shape[1] == x.shape[args[0]]
    else:
        agree(calling(function, x, *args, **kwargs), x)
    assert not regions


def test_every_function_is_tried() -> None:
    tried = {case[0] for case in calls()} | {torch.cat, getattr}  # below
    assert tried == set(FUNCTIONS)


def test_what_is_concatenated_and_repeated_for_the_batch(regions: list[list[str]]) -> None:
    module = whole(Counting(), 5, 8)
    for size in (1, 4):
        agree(module, some(size, 5, 8))
    assert not regions


def test_quantizers_and_what_calibration_puts_beside_them(regions: list[list[str]]) -> None:
    agree(whole(Rounded().eval(), 6, 9, 8), some(*IMAGE))
    assert not regions


@pytest.mark.parametrize(("function", "x", "args"), UNKNOWN)
def test_what_is_not_known_is_converted_by_itself(
    function: Any, x: Tensor, args: tuple[Any, ...], regions: list[list[str]]
) -> None:
    agree(calling(function, x, *args), x)
    (region,) = regions
    assert len(region) == 1


def test_what_is_made_for_a_batch_is_of_its_size(regions: list[list[str]]) -> None:
    module = whole(Numbered(), 5, 8)
    for size in (2, 3):
        agree(module, some(size, 5, 8))
    assert regions[0] == ["size", "arange"]


def test_tensors_whose_names_differ_by_a_dot_are_two(regions: list[list[str]]) -> None:
    agree(whole(Dotted(), 3), some(4, 3))
    assert not regions


def test_what_depends_on_values_is_converted_with_all_that_reads_it(regions: list[list[str]]) -> None:
    module = whole(Chosen(), 5, 8)
    agree(module, some(3, 5, 8))
    assert {"nonzero", "index_select", "relu"} <= set(regions[-1])


def test_sizes_that_come_of_the_batch_are_not_taken_for_numbers(regions: list[list[str]]) -> None:
    class Doubled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            both = torch.cat([x, x[:1]], 0)
            return both.flatten(1).narrow(1, 0, 2)

    module = whole(Doubled(), 5, 8)
    for size in (2, 3):
        agree(module, some(size, 5, 8))


def test_weights_that_nothing_has_codes_for_are_refused() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", some(7, 6))
            self.rounded = FakeQuantize(torch.tensor(0.05), low=0, high=255, zero_point=7)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.rounded(self.table)

    module = whole(Model(), 7, 6)
    with pytest.raises(EngineError, match="zero point"):
        written(module, Signature.of(module, DEFAULT_BATCH))


@pytest.mark.parametrize(("model", "side"), [(Fire, 32), (Residual, 32), (Transformer, 8)])
def test_it_is_the_model_that_the_frontend_makes_of_its_nodes(
    model: Callable[[], nn.Module], side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with exportable():
        optimized = eqd.optimize(randomized(model()).eval(), some(2, 3, side, side), cost="openvino_fp32")
    module, signature = prepared(optimized, DEFAULT_BATCH)
    found = _transformed(written(module, signature))
    none = Functions(FUNCTIONS.result, FUNCTIONS.shape, FUNCTIONS.dtype)
    none.update({name: FUNCTIONS[name] for name in ("size", operator.getitem)})
    monkeypatch.setattr(graph, "FUNCTIONS", none)
    expected = _transformed(written(module, signature))

    def computing(made: Any) -> Counter[str]:
        kinds = (op.get_type_name() for op in made.get_ordered_ops())
        return Counter(
            kind for kind in kinds if kind not in ("Constant", "Split", "Slice", "Squeeze", "Reshape")
        )

    assert computing(found) == computing(expected)


@pytest.mark.slow
@settings(max_examples=10, suppress_health_check=QUIET)
@given(networks())
def test_networks_that_are_written_compute_what_they_are(network: Any) -> None:
    with exportable():
        optimized = eqd.optimize(network, network.inputs(), cost="openvino_fp32", check=False)
    inputs = deployment(optimized).samples
    found = run(optimized, *inputs)
    with torch.no_grad():
        expected = flat_module(optimized)(*inputs)
    for wanted, got in zip(expected, found, strict=True):
        scale = float(wanted.abs().max()) + 1e-6
        assert float((wanted - got.reshape(wanted.shape)).abs().max()) <= 1e-3 * scale
