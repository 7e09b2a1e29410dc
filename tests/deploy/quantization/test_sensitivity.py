from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, fx, nn

from eqsat_deploy.deployment import deployment
from eqsat_deploy.errors import QuantizationError, UnknownNameError
from eqsat_deploy.quantization import (
    FakeQuantize,
    QuantizedConv2d,
    QuantizedLinear,
    ptq,
    quantize,
    sensitivity,
)
from tests.deploy.placing import ADDS, WEIGHTED, Residual, images, int8, traced
from tests.deploy.quantization.test_equalization import Depthwise, batches


@pytest.fixture
def residual() -> fx.GraphModule:
    torch.manual_seed(0)
    return int8(traced(Residual(), torch.zeros(1, 3, 32, 32)), WEIGHTED + ADDS)


def test_every_int8_kernel_is_ranked_by_its_error_at_the_outputs(residual: fx.GraphModule) -> None:
    quantized = quantize(residual, images(4), grid=ptq.ANY_GRID)  # on every CPU
    found = sensitivity(quantized)
    kernels = deployment(quantized).placement.kernels
    assert {k.kernel for k in found.kernels} == {k.anchor for k in kernels if k.precision == "int8"}
    assert [k.sqnr for k in found.kernels] == sorted(k.sqnr for k in found.kernels)
    assert found.sqnr < found.kernels[0].sqnr + 0.5  # together they are no better than the worst alone
    # Noise powers add up, nearly.
    alone = sum(10 ** (-k.sqnr / 10) for k in found.kernels)
    assert -10 * math.log10(alone) == pytest.approx(found.sqnr, abs=3)
    assert found.kernels[0].kernel in str(found)


def test_a_planted_outlier_is_named() -> None:
    torch.manual_seed(0)
    module = int8(traced(Depthwise(), torch.zeros(1, 3, 12, 12)), WEIGHTED)
    quantized = quantize(module, batches(3, 12, 12), effort="fast")
    ranked = {found.kernel: found.sqnr for found in sensitivity(quantized, batches(3, 12, 12)).kernels}
    assert list(ranked)[-1] == "spread"
    assert min(ranked.values()) < ranked["spread"] - 10


def test_only_a_quantized_module_is_measured(residual: fx.GraphModule) -> None:
    with pytest.raises(QuantizationError, match="not quantized"):
        sensitivity(residual)
    with pytest.raises(QuantizationError, match="nothing to measure"):
        sensitivity(quantize(residual, images(2)), [])


def test_kernels_stay_in_float_by_name(residual: fx.GraphModule) -> None:
    quantized = quantize(residual, images(4), precision={"depth*": "float"})
    assert type(quantized.depthwise) is nn.Conv2d
    assert isinstance(quantized.pointwise, QuantizedConv2d)
    assert isinstance(quantized.head, QuantizedLinear)
    depthwise = next(node for node in quantized.graph.nodes if node.name == "depthwise")
    reads = depthwise.all_input_nodes[0]
    assert reads.op != "call_module" or not isinstance(
        quantized.get_submodule(str(reads.target)), FakeQuantize
    )
    kept = [k.anchor for k in deployment(quantized).placement.kernels if k.precision == "float32"]
    assert "depthwise" in kept
    assert not [
        k for k in deployment(residual).placement.kernels if k.precision == "float32" and k.anchor in kept
    ]


def test_all_kernels_in_float_is_the_float_module(residual: fx.GraphModule) -> None:
    quantized = quantize(residual, images(4), precision={"*": "float"})
    x: Tensor = images(1, seed=5)[0]
    with torch.no_grad():
        torch.testing.assert_close(quantized(x), residual(x))


@pytest.mark.parametrize(
    ("precision", "message"),
    [
        ({"layer9.*": "float"}, "unknown kernel 'layer9"),
        ({"head": "int4"}, "unknown precision of 'head' 'int4'"),
    ],
)
def test_what_matches_nothing_is_an_error(
    residual: fx.GraphModule, precision: dict[str, str], message: str
) -> None:
    with pytest.raises(UnknownNameError, match=message):
        quantize(residual, images(2), precision=precision)
