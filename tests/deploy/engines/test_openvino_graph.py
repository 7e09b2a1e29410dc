"""Modules written in OpenVINO's operators: each function computes what torch's does, and nothing is guessed."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import eqsat_deploy as eqd
from eqsat_deploy.deployment import DEFAULT_BATCH, Signature
from eqsat_deploy.engines import openvino_graph as graph
from eqsat_deploy.engines.openvino_graph import written
from eqsat_deploy.engines.openvino_model import _transformed
from eqsat_deploy.engines.openvino_writing import FUNCTIONS
from eqsat_deploy.engines.program import prepared
from eqsat_deploy.engines.writing import Functions
from eqsat_deploy.errors import EngineError
from eqsat_deploy.quantization.fake_quantize import FakeQuantize
from tests.deploy.test_random_networks import exportable
from tests.support.calls import (
    some,
    whole,
)  # fmt: skip
from tests.support.models import Fire, Residual, randomized


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


@pytest.mark.parametrize("model", [Fire, Residual])
def test_it_is_the_model_that_the_frontend_makes_of_its_nodes(
    model: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    with exportable():
        optimized = eqd.optimize(randomized(model()).eval(), some(2, 3, 32, 32), cost="openvino_fp32")
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
