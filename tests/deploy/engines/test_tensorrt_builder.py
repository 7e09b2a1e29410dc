"""Plans made by NVIDIA's own parser and builder, of TensorRT for RTX: the interface of TensorRT 11, without a GPU."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import eqsat_deploy as eqd
from eqsat_deploy.deployment import Signature
from eqsat_deploy.engines import Batch
from eqsat_deploy.engines.onnx import TENSORRT, OnnxFile, export_onnx
from eqsat_deploy.engines.tensorrt_build import build_plan
from eqsat_deploy.errors import EngineError
from eqsat_deploy.grid import IntegerGrid
from eqsat_deploy.quantization import quantize
from tests.deploy.placing import Attention, Residual, images, int8, traced
from tests.support.models import image, randomized, timm_model

pytest.importorskip("onnxscript")
SIZES = Batch(1, 2, 8)


@pytest.fixture(autouse=True)
def nvidia(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    api: ModuleType = pytest.importorskip(
        "tensorrt_rtx_bindings", reason="TensorRT for RTX is installed on Linux with an x86-64 alone"
    )
    monkeypatch.setitem(sys.modules, "tensorrt", api)
    return api


@pytest.fixture(scope="module")
def file() -> OnnxFile:
    return exported(Residual(), 21)


def exported(model: nn.Module, opset: int) -> OnnxFile:
    torch.manual_seed(0)
    module = quantize(int8(traced(model, torch.zeros(1, 3, 32, 32))), images(2), grid=IntegerGrid())
    return export_onnx(module, lane=TENSORRT, batch=SIZES, opset=opset)


def plan(file: OnnxFile, **options: Any) -> bytes:
    return build_plan(file.model, file.signature, {"timing_cache": False, **options})


@pytest.mark.parametrize("opset", [21, 23])
@pytest.mark.parametrize("make", [Residual, Attention])
def test_a_quantized_module_becomes_a_plan(make: type[nn.Module], opset: int) -> None:
    assert plan(exported(make(), opset))


class Uneven(nn.Module):
    """Attention whose values are wider than its keys, as LeViT has it."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(32, 4 * (16 + 16 + 32)), nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.transpose(torch.flatten(x, 2), 1, 2).reshape(-1, 96, 32)
        heads = torch.permute(self.qkv(tokens).reshape(-1, 96, 4, 64), (0, 2, 1, 3))
        query, key = torch.narrow(heads, 3, 0, 16), torch.narrow(heads, 3, 16, 16)
        return self.out(F.scaled_dot_product_attention(query, key, torch.narrow(heads, 3, 32, 32)).mean(1))


def test_attention_with_values_of_another_width_becomes_a_plan() -> None:
    assert plan(exported(Uneven(), 23))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["test_convnext", "test_efficientnet", "test_vit", "test_mambaout"])
def test_a_chosen_form_becomes_a_plan(name: str) -> None:
    model = randomized(timm_model(name))
    x = image(2, 3, 64, 64)
    chosen = eqd.optimize(model, (x,), cost="trt_int8", batch=8).quantize([x], effort="fast")
    assert plan(export_onnx(chosen, lane=TENSORRT, batch=SIZES))


def test_every_option_is_taken(file: OnnxFile, tmp_path: Path) -> None:
    timing = tmp_path / "made" / "timing"
    one = plan(file, level=0, workspace=1 << 30)
    three = plan(file, profiles=[1, 4], level=5, timing_cache=timing)
    assert len(three) > len(one)
    assert timing.read_bytes()
    assert plan(file, timing_cache=timing)


def test_what_the_parser_refuses_is_said(file: OnnxFile) -> None:
    with pytest.raises(EngineError, match=r"does not read the model: .*Failed to parse the ONNX model"):
        build_plan(b"no model", file.signature, {"timing_cache": False})


def test_what_the_builder_refuses_is_said(file: OnnxFile) -> None:
    with pytest.raises(EngineError, match=r"cannot build the engine\. It says: .*workspace"):
        plan(file, workspace=1)


def test_sizes_that_the_model_does_not_have_are_refused(file: OnnxFile) -> None:
    other = Signature.of(traced(Residual(), torch.zeros(1, 3, 16, 16)), SIZES)
    with pytest.raises(EngineError, match=r"cannot build the engine\. It says: .*profile"):
        build_plan(file.model, other, {"timing_cache": False})


def test_progress_is_told_of_nested_phases(file: OnnxFile) -> None:
    steps: list[tuple[str, int, int]] = []
    plan(file, progress=lambda *step: steps.append(step))
    assert len({phase for phase, _, _ in steps}) > 3
    first = steps[0][0]
    assert [done for phase, done, of in steps if phase == first][-1] == steps[0][2]


@pytest.mark.parametrize("after", [0, 10])
def test_an_interrupt_stops_the_build_and_the_next_one_works(file: OnnxFile, after: int) -> None:
    told = 0

    def interrupted(*step: object) -> None:
        nonlocal told
        told += 1
        if told > after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        plan(file, progress=interrupted)
    assert plan(file)


def test_a_recorder_outlives_what_points_to_it(file: OnnxFile) -> None:
    """A segmentation fault otherwise: what a raised error holds is freed in an order of the collector's own."""
    for _ in range(3):
        with pytest.raises(EngineError):
            plan(file, workspace=1)
    assert plan(file)
