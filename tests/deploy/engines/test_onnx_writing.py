"""Modules written in ONNX operators: each function computes what torch's does, and nothing is guessed."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eqsat_deploy.engines.onnx import ONNXRUNTIME, export_onnx
from eqsat_deploy.errors import EngineError
from eqsat_deploy.quantization.fake_quantize import FakeQuantize
from tests.support.calls import (
    UNKNOWN,
    Counting,
    agree,
    arguments,
    called,
    calling,
    calls,
    in_onnx,
    some,
    whole,
)  # fmt: skip

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


@pytest.mark.parametrize("case", [c for c in calls() if c[0] is F.scaled_dot_product_attention], ids=called)
def test_attention_as_one_operator(case: tuple[Any, ...]) -> None:
    function, x, args, kwargs = arguments(case)
    agree(partial(in_onnx, opset=23), calling(function, x, *args, **kwargs), x)


@pytest.mark.parametrize("opset", [21, 23])
def test_a_mask_of_truth_values_keeps_where_it_is_true(opset: int) -> None:
    heads = some(3, 2, 5, 4)
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    agree(
        partial(in_onnx, opset=opset),
        calling(F.scaled_dot_product_attention, heads, heads, heads, mask),
        heads,
    )


def test_shapes_say_how_often_the_batch_is_in_them() -> None:
    file = onnx.load_model_from_string(export_onnx(whole(Counting(), 5, 8), lane=ONNXRUNTIME).model)
    tokens, windows = (
        [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in file.graph.output
    )
    assert tokens == ["batch", 6, 8]
    assert windows == ["5*batch", 2, 4]


@pytest.mark.parametrize(("function", "x", "args"), UNKNOWN[::4])
def test_what_is_exported_by_itself_has_no_symbols_of_its_own(function: Any, x: Tensor, args: Any) -> None:
    file = onnx.load_model_from_string(export_onnx(calling(function, x, *args), lane=ONNXRUNTIME).model)
    values = (*file.graph.value_info, *file.graph.output)
    sizes = {size.dim_param for value in values for size in value.type.tensor_type.shape.dim}
    assert sizes <= {"", "batch", "3*batch", "15*batch"}


def test_inputs_and_constants_may_be_returned_and_tensors_returned_twice() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", some(7, 6))

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return x, self.table, x.relu(), x.relu() + self.table

    agree(in_onnx, whole(Model(), 7, 6), some(2, 7, 6))


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


@pytest.mark.parametrize("opset", [20, 99])
def test_opsets_that_modules_are_not_written_in_are_refused(opset: int) -> None:
    with pytest.raises(EngineError, match=rf"opset {opset}: modules are written in 21 to \d\d"):
        export_onnx(calling(torch.relu, some(2, 3)), lane=ONNXRUNTIME, opset=opset)


def test_what_has_no_form_names_its_node() -> None:
    with pytest.raises(EngineError, match=r"svdvals.*no ONNX form at opset 21"):
        export_onnx(calling(torch.linalg.svdvals, some(2, 3, 4)), lane=ONNXRUNTIME)
