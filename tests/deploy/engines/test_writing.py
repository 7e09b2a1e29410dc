"""Modules written node by node, in every engine's operators: they compute what torch does, and nothing is guessed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor, fx, nn

import eqsat_deploy as eqd
from eqsat_deploy.deployment import deployment
from eqsat_deploy.engines.onnx.attention import WHOLE_ATTENTION
from eqsat_deploy.engines.onnx.writing import FUNCTIONS
from eqsat_deploy.engines.openvino_writing import FUNCTIONS as OPENVINO
from eqsat_deploy.engines.program import flat_module
from eqsat_deploy.engines.writer import Region, Writer
from tests.deploy.test_random_networks import exportable
from tests.support.calls import (
    IMAGE,
    UNKNOWN,
    Chosen,
    Counting,
    Dotted,
    Numbered,
    Rounded,
    agree,
    arguments,
    called,
    calling,
    calls,
    in_onnx,
    in_openvino,
    sized,
    some,
    whole,
)  # fmt: skip
from tests.support.networks import networks

QUIET = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
Run = Callable[..., list[Tensor]]


@pytest.fixture(params=[in_onnx, in_openvino])
def run(request: pytest.FixtureRequest) -> Run:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def regions(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The nodes that are exported because nothing writes them."""
    seen: list[list[str]] = []

    def region(self: Writer, results: Any) -> Region:
        found = real(self, results)
        seen.append(found.nodes)
        return found

    real = Writer._region
    monkeypatch.setattr(Writer, "_region", region)
    return seen


@pytest.mark.parametrize("case", calls(), ids=called)
def test_a_function_computes_what_torch_has(
    case: tuple[Any, ...], run: Run, regions: list[list[str]]
) -> None:
    function, x, args, kwargs = arguments(case)
    if function == "size":
        assert run(sized(x, *args), torch.zeros(3, 1))[0].shape[1] == x.shape[args[0]]
    else:
        agree(run, calling(function, x, *args, **kwargs), x)
    assert not regions


def test_every_engine_knows_the_functions_that_are_tried() -> None:
    tried = {case[0] for case in calls()} | {torch.cat, getattr}  # below
    assert tried == set(FUNCTIONS) == set(WHOLE_ATTENTION) == set(OPENVINO)


def test_what_is_concatenated_and_repeated_for_the_batch(run: Run, regions: list[list[str]]) -> None:
    module = whole(Counting(), 5, 8)
    for size in (1, 4):
        agree(run, module, some(size, 5, 8))
    assert not regions


def test_quantizers_and_what_calibration_puts_beside_them(run: Run, regions: list[list[str]]) -> None:
    agree(run, whole(Rounded().eval(), 6, 9, 8), some(*IMAGE))
    assert not regions


@pytest.mark.parametrize(("function", "x", "args"), UNKNOWN)
def test_what_is_not_known_is_exported_by_itself(
    function: Any, x: Tensor, args: tuple[Any, ...], run: Run, regions: list[list[str]]
) -> None:
    agree(run, calling(function, x, *args), x)
    (region,) = regions
    assert len(region) == 1


def test_what_is_made_for_a_batch_is_of_its_size(run: Run, regions: list[list[str]]) -> None:
    module = whole(Numbered(), 5, 8)
    for size in (2, 3):
        agree(run, module, some(size, 5, 8))
    assert regions[0] == ["size", "arange"]


def test_tensors_whose_names_differ_by_a_dot_are_two(run: Run, regions: list[list[str]]) -> None:
    agree(run, whole(Dotted(), 3), some(4, 3))
    assert not regions


def test_what_depends_on_values_is_exported_with_all_that_reads_it(
    run: Run, regions: list[list[str]]
) -> None:
    agree(run, whole(Chosen(), 5, 8), some(3, 5, 8))
    assert {"nonzero", "index_select", "relu"} <= set(regions[-1])


def test_sizes_that_come_of_the_batch_are_not_taken_for_numbers(run: Run) -> None:
    class Doubled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            both = torch.cat([x, x[:1]], 0)
            return both.flatten(1).narrow(1, 0, 2)

    module = whole(Doubled(), 5, 8)
    for size in (2, 3):
        agree(run, module, some(size, 5, 8))


@pytest.mark.slow
@settings(max_examples=10, suppress_health_check=QUIET)
@given(networks())
def test_networks_that_are_written_compute_what_they_are(network: Any) -> None:
    with exportable():
        optimized: fx.GraphModule = eqd.optimize(network, network.inputs(), cost="openvino_fp32", check=False)
    inputs = deployment(optimized).samples
    with torch.no_grad():
        expected = flat_module(optimized)(*inputs)
    for run in (in_onnx, in_openvino):
        for wanted, got in zip(expected, run(optimized, *inputs), strict=True):
            scale = float(wanted.abs().max()) + 1e-6
            assert float((wanted - got.reshape(wanted.shape)).abs().max()) <= 1e-3 * scale
