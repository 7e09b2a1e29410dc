from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from eqsat_deploy.deployment import Batch
from eqsat_deploy.engines import program
from eqsat_deploy.engines.program import prepared, traced
from tests.support.stages import optimized


class Dotted(nn.Module):
    """Tensors whose names are the same but for where the dot is."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.a_b = nn.Module(), nn.Module()
        self.a.b_c = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
        self.a_b.c = nn.Parameter(torch.tensor([10.0, 20.0, 30.0]))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x * self.a.b_c) + torch.sigmoid(x) * self.a_b.c


def test_tensors_whose_names_differ_by_a_dot_are_two() -> None:
    x = torch.randn(4, 3)
    module, signature = prepared(optimized(Dotted(), x, cost="kernels"), Batch())
    graph = traced(module, signature, {})
    assert len(dict(graph.named_buffers())) == 2
    torch.testing.assert_close(graph(x)[0], Dotted()(x))


class Flat(nn.Module):
    """Hands on a batch of any size by -1."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x).reshape(-1, 12)


class Counting(nn.Module):
    """Reads the size of the batch."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.arange(x.shape[0]).reshape(-1, 1, 1)


def reshaped(values: Tensor) -> Tensor:
    """A function of torch that reads sizes by itself."""
    return values.reshape(values.shape)


def spied(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether the batch was a symbol, tracing by tracing."""
    seen: list[bool] = []
    real = program._traced
    monkeypatch.setattr(
        program, "_traced", lambda *a, symbolic: seen.append(symbolic) or real(*a, symbolic=symbolic)
    )
    return seen


@pytest.mark.parametrize(("model", "expected"), [(Flat(), [False]), (Counting(), [True])])
def test_the_batch_is_a_symbol_where_its_size_is_read(
    model: nn.Module, expected: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = spied(monkeypatch)
    module, signature = prepared(optimized(model, torch.randn(2, 3, 4)), Batch(1, 2, 8))
    graph = traced(module, signature, {})
    assert seen == expected
    x = torch.randn(5, 3, 4)
    assert torch.equal(graph(x)[0], model(x))


def test_a_number_that_comes_of_the_batch_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = spied(monkeypatch)
    module, signature = prepared(optimized(Flat(), torch.randn(2, 3, 4)), Batch(1, 2, 8))
    relu = next(node for node in module.graph.nodes if node.target is torch.relu)
    with module.graph.inserting_after(relu):
        again = module.graph.call_function(reshaped, (relu,))
    relu.replace_all_uses_with(again, lambda user: user is not again)
    module.recompile()
    graph = traced(module, signature, {})
    assert seen == [False, True]
    x = torch.randn(6, 3, 4)
    assert torch.equal(graph(x)[0], Flat()(x))
