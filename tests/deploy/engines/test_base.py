from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import fx, nn

from eqsat_deploy.deployment import Batch, InputSpec, Signature, flat_outputs, record
from eqsat_deploy.engines.program import flat_module
from eqsat_deploy.errors import InputError


def structures() -> st.SearchStrategy[Any]:
    leaves = st.one_of(st.none(), st.integers(0, 5))
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.lists(inner, max_size=3).map(tuple),
            st.dictionaries(st.text(max_size=3), inner, max_size=3),
        ),
        max_leaves=8,
    )


@given(structures())
def test_a_signature_goes_through_json(outputs: Any) -> None:
    import json

    inputs = (InputSpec("x", (None, 3, 4), torch.float32), InputSpec("mask", (2,), torch.bool))
    signature = Signature(inputs, outputs, Batch(1, 2, None))
    assert Signature.from_json(json.loads(json.dumps(signature.to_json()))) == signature


@pytest.mark.parametrize("sizes", [(0, 1, 2), (2, 1, 3), (1, 4, 3)])
def test_batches_are_ordered(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(InputError, match="minimum <= typical <= maximum"):
        Batch(*sizes)


def test_inputs_must_agree_on_the_batch() -> None:
    inputs = tuple(InputSpec(name, (None, 2), torch.float32) for name in "ab")
    with pytest.raises(InputError, match="disagree on the batch size"):
        Signature(inputs, 0).check([torch.zeros(2, 2), torch.zeros(3, 2)])


class Many(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        y = self.layer(x)
        return {"a": (y, x), "b": y, "c": None}


def test_a_flat_module_returns_each_output_once_and_shares_parameters() -> None:
    module = fx.symbolic_trace(Many())
    record(module, inputs=(InputSpec("x", (None, 2), torch.float32),))
    flat = flat_module(module)
    assert [node.name for node in flat_outputs(module)] == ["layer", "x"]
    assert Signature.of(module, Batch()).outputs == {"a": (0, 1), "b": 0, "c": None}
    assert flat.layer is module.layer
    x = torch.randn(3, 2)
    y, same = flat(x)
    torch.testing.assert_close(y, module(x)["b"])
    assert torch.equal(same, x)


def test_outputs_that_are_no_tensors_are_refused() -> None:
    class Constant(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, int]:
            return x, 3

    module = fx.symbolic_trace(Constant())
    record(module, inputs=())
    with pytest.raises(InputError, match="the module returns 3"):
        Signature.of(module, Batch())
