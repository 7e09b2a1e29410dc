from __future__ import annotations

import torch
from torch import Tensor, nn

from eqsat_deploy.deployment import Batch
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
