"""What tests of the TensorRT engine share: a stand-in for TensorRT, a quantized network, and builds of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx

from eqsat_deploy.engines import Batch, tensorrt
from eqsat_deploy.engines.onnx import OnnxFile, export_onnx
from eqsat_deploy.engines.tensorrt import TensorRTEngine
from eqsat_deploy.grid import IntegerGrid
from eqsat_deploy.quantization import quantize
from tests.deploy.engines.fake_tensorrt import Fake, install
from tests.deploy.placing import Residual, images, int8, traced

SIZES = Batch(1, 2, 4)


KEPT: dict[tuple[object, ...], tuple[fx.GraphModule, OnnxFile]] = {}


def exported(module: fx.GraphModule, *, batch: Batch, opset: int, **rest: Any) -> OnnxFile:
    """Each file is exported once: it takes most of the time of a build here."""
    key = id(module), batch, opset
    if key not in KEPT:
        KEPT[key] = module, export_onnx(module, batch=batch, opset=opset, **rest)
    return KEPT[key][1]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Fake:
    fake = Fake()
    install(monkeypatch, fake)
    monkeypatch.setattr(tensorrt, "export_onnx", exported)
    monkeypatch.setenv("EQSAT_DEPLOY_CACHE", str(tmp_path / "cache"))
    return fake


@pytest.fixture(scope="module")
def model() -> fx.GraphModule:
    torch.manual_seed(0)
    return quantize(int8(traced(Residual(), torch.zeros(1, 3, 32, 32))), images(2), grid=IntegerGrid())


def build(model: fx.GraphModule, batch: Batch = SIZES, **options: object) -> TensorRTEngine:
    """Without plans that are kept, unless `engine_cache` is given."""
    return TensorRTEngine.build(model, batch=batch, options={"engine_cache": False, **options})
