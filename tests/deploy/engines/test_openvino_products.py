"""INT8 products with weights, written as convolutions."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import openvino
import pytest
import torch
from openvino import opset13 as opset
from torch import Tensor, nn

from eqsat_deploy.engines.openvino import OpenVINOEngine
from eqsat_deploy.engines.openvino_products import as_convolutions
from eqsat_deploy.grid import IntegerGrid
from eqsat_deploy.quantization import quantize
from tests.deploy.placing import int8, traced

RANDOM = np.random.default_rng(0)
BOUNDS = (-2, 127 / 64)


def rounded(values: Any) -> Any:
    """On 256 codes between `BOUNDS`, which have as many axes as the values."""
    shape = [1] * values.get_output_partial_shape(0).rank.get_length()
    bounds = [np.full(shape, bound, np.float32) for bound in (*BOUNDS, *BOUNDS)]
    return opset.fake_quantize(values, *bounds, levels=256)


def weight(outputs: int, inputs: int) -> Any:
    codes = RANDOM.integers(-20, 20, (outputs, inputs)).astype(np.int8)
    scales = RANDOM.uniform(0.005, 0.02, (outputs, 1)).astype(np.float32)
    return opset.multiply(opset.convert(opset.constant(codes), np.float32), opset.constant(scales))


def product(values: Any, outputs: int, inputs: int, name: str) -> Any:
    found = opset.matmul(values, weight(outputs, inputs), False, True)
    found.set_friendly_name(name)
    return opset.add(found, opset.constant(RANDOM.standard_normal((1, 1, outputs)).astype(np.float32)))


def block(shape: list[int]) -> Any:
    """Two products with what is between them in a transformer, and a residual."""
    x = opset.parameter(shape, np.float32, name="x")
    hidden = opset.gelu(product(rounded(x), 24, 8, "up"), "erf")
    out = opset.add(product(rounded(hidden), 8, 24, "down"), x)
    out.output(0).get_tensor().set_names({"result"})
    return openvino.Model([out], [x])


def kinds(model: Any) -> Counter[str]:
    return Counter(op.get_type_name() for op in model.get_ordered_ops())


def run(model: Any, *values: Any) -> Any:
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    return openvino.Core().compile_model(model, "CPU", settings)(values)[0]


@pytest.mark.parametrize("shape", [[-1, 8], [-1, 5, 8], [2, 3, 5, 8], [-1, 2, 3, 2, 8]])
def test_what_is_computed_stays_the_same_at_every_rank(shape: list[int]) -> None:
    model = block(shape)
    x = RANDOM.standard_normal([2 if size < 0 else size for size in shape]).astype(np.float32)
    written = model.clone()
    as_convolutions(written)
    assert kinds(written)["MatMul"] == 0
    assert kinds(written)["Convolution"] == 2
    np.testing.assert_allclose(run(written, x), run(model, x), atol=0.05)


@pytest.mark.parametrize("shape", [[8, 5], [-1, 8, 5], [2, 3, 8, 5]])
def test_what_is_read_the_other_way_round_is_turned(shape: list[int]) -> None:
    x = opset.parameter(shape, np.float32)
    model = openvino.Model([opset.matmul(rounded(x), weight(24, 8), True, True)], [x])
    given = RANDOM.standard_normal([2 if size < 0 else size for size in shape]).astype(np.float32)
    written = model.clone()
    as_convolutions(written)
    assert kinds(written)["MatMul"] == 0
    np.testing.assert_allclose(run(written, given), run(model, given), atol=1e-3)


def test_what_follows_row_by_row_is_computed_on_the_map_and_names_stay() -> None:
    model = block([-1, 5, 8])
    as_convolutions(model)
    assert kinds(model)["Transpose"] == 2  # into the first map and out of the last
    named = {op.get_friendly_name(): op.get_type_name() for op in model.get_ordered_ops()}
    assert (named["up"], named["down"]) == ("Convolution", "Convolution")
    assert model.output("result").get_partial_shape() == openvino.PartialShape([-1, 5, 8])


def test_the_name_of_an_output_moves_with_it() -> None:
    x = opset.parameter([-1, 8], np.float32)
    head = product(rounded(x), 4, 8, "head")
    head.output(0).get_tensor().set_names({"scores"})
    model = openvino.Model([head], [x])
    as_convolutions(model)
    assert kinds(model)["MatMul"] == 0
    assert model.output("scores").get_partial_shape().rank == openvino.Dimension(2)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("read_twice", [True, False])
def test_codes_are_counted_from_zero_where_only_such_products_read_them(
    biased: bool, read_twice: bool
) -> None:
    x = opset.parameter([-1, 5, 8], np.float32)
    codes = rounded(x)
    y = product(codes, 8, 8, "first") if biased else opset.matmul(codes, weight(8, 8), False, True)
    z = opset.add(y, opset.add(product(codes, 8, 8, "second"), codes if read_twice else x))
    model = openvino.Model([z], [x])
    written = model.clone()
    as_convolutions(written)
    (rounding,) = (op for op in written.get_ordered_ops() if op.get_type_name() == "FakeQuantize")
    bounds = [rounding.input_value(place).get_node().data.item() for place in range(1, 5)]
    assert bounds == [*BOUNDS, *(BOUNDS if read_twice else (0, 255 / 64))]
    given = RANDOM.standard_normal((3, 5, 8)).astype(np.float32)
    np.testing.assert_allclose(run(written, given), run(model, given), atol=1e-4)


def test_other_products_are_left() -> None:
    x, y = (opset.parameter(shape, np.float32) for shape in ([-1, -1, 8], [4, 8]))
    floats = opset.matmul(x, opset.constant(np.ones((4, 8), np.float32)), False, True)
    activations = opset.matmul(rounded(x), rounded(y), False, True)
    two_free_sizes = product(rounded(x), 4, 8, "free")
    model = openvino.Model([opset.add(opset.add(floats, activations), two_free_sizes)], [x, y])
    as_convolutions(model)
    assert kinds(model)["MatMul"] == 3


def test_a_map_is_not_taken_for_one_of_other_rows() -> None:
    """A reshape that does not keep rows whole stands between two products."""
    x = opset.parameter([2, 4, 8], np.float32)
    first = opset.reshape(product(rounded(x), 8, 8, "first"), np.array([2, 2, 16]), False)
    model = openvino.Model([product(rounded(first), 4, 16, "second")], [x])
    values = RANDOM.standard_normal((2, 4, 8)).astype(np.float32)
    expected = run(model, values)
    as_convolutions(model)
    assert kinds(model)["Convolution"] == 2
    np.testing.assert_allclose(run(model, values), expected, atol=0.05)


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.nn.functional.gelu(self.up(x)))


@pytest.mark.parametrize("old", [False, True])
def test_engines_do_so_on_cpus_without_dot_products(old: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eqsat_deploy.engines.openvino_model.saturating", lambda: old)
    torch.manual_seed(0)
    module = int8(traced(Mlp(), torch.zeros(1, 6, 16)), (nn.Linear,))
    rows = torch.randn(8, 6, 16, generator=torch.Generator().manual_seed(1))
    engine = OpenVINOEngine.build(quantize(module, [rows], grid=IntegerGrid(saturating=True)))
    layers = [layer for layer in engine.layers() if layer.type in ("Convolution", "FullyConnected")]
    assert {layer.type for layer in layers} == {"Convolution" if old else "FullyConnected"}
    assert {layer.precision for layer in layers} == {"int8"}
    assert {"up", "down"} <= {node for layer in layers for node in layer.nodes}
    for batch in (1, 3, 8):
        torch.testing.assert_close(engine(rows[:batch]), module(rows[:batch]), atol=0.1, rtol=0.1)
