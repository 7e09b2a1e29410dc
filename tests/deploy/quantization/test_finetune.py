from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from eqsat_deploy.errors import InputError, QuantizationError
from eqsat_deploy.noise import decibels
from eqsat_deploy.quantization import finetune, quantize
from tests.deploy.placing import ADDS, WEIGHTED, Residual, images, int8, traced
from tests.deploy.quantization.test_equalization import Depthwise


def placed(model: type[nn.Module]) -> fx.GraphModule:
    torch.manual_seed(0)
    return int8(traced(model(), torch.zeros(1, 3, 32, 32)), WEIGHTED + ADDS)


@pytest.mark.parametrize("learnable", [False, True])
def test_it_comes_closer_to_the_float_module(learnable: bool) -> None:
    module = placed(Depthwise)
    quantized = quantize(module, images(2), effort="fast", learnable=learnable)
    before = copy.deepcopy(quantized.state_dict())
    trained = finetune(quantized, module, images(4), epochs=10, rate=1e-2)
    x: Tensor = images(1, seed=9)[0]
    with torch.no_grad():
        assert decibels(module(x), trained(x)) > decibels(module(x), quantized(x)) + 3
    assert all(torch.equal(value, before[name]) for name, value in quantized.state_dict().items())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batches": []}, QuantizationError, "no batches"),
        ({"epochs": 0}, InputError, "epochs=0"),
        ({"rate": -1.0}, InputError, "rate=-1"),
        ({"batches": [torch.zeros(2, 3, 31, 32)]}, InputError, "31"),
        ({"rate": 1e30, "epochs": 3}, QuantizationError, "diverged"),
    ],
)
def test_what_cannot_be_trained_is_an_error(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    module = placed(Residual)
    quantized = quantize(module, images(2), effort="fast")
    with pytest.raises(error, match=message):
        finetune(quantized, module, options.pop("batches", images(2)), **options)


def test_a_float_module_is_refused() -> None:
    module = placed(Residual)
    with pytest.raises(QuantizationError, match="not quantized"):
        finetune(module, module, images(2))
