"""INT8 kernels are those that engines have."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from eqsat_deploy.price import kernel_of, specs_of
from eqsat_extraction.cost_models import find_cost_model
from eqsat_extraction.kernel import Kernel, Kind
from tests.support.stages import space


class Sums(nn.Module):
    """Sums of what convolutions compute, one of them with a constant and all in one chain."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))
        self.shift = nn.Parameter(torch.randn(8, 1, 1))
        self.head = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        first, second, third = (conv(x) for conv in self.convs)
        return self.head(torch.relu(first + second + third + self.shift))


def kernels() -> list[Kernel]:
    found = space(Sums().eval(), torch.randn(2, 8, 6, 6))
    specs = specs_of(found, find_cost_model("openvino_int8"), 1)
    return [kernel_of(specs, *choice) for choice in found.choices if choice[1].operator is not None]


def joined(kernel: Kernel) -> set[str]:
    """Dtypes of what runs and the steps after the anchor read."""
    operands = (step.operand for step in kernel.epilogue)
    return {operand.dtype for operand in operands if operand is not None and not operand.constant}


def test_what_is_pointwise_on_int8_joins_nothing_in_float() -> None:
    """Engines compute it in float, all of it, where one operand is; beside weights a float operand is as good."""
    integer = [kernel for kernel in kernels() if kernel.inputs and kernel.inputs[0].dtype == "int8"]
    chains = [kernel for kernel in integer if kernel.kind is Kind.POINTWISE and joined(kernel)]
    assert chains
    assert all(joined(kernel) == {"int8"} for kernel in chains)
    weighted = [kernel for kernel in integer if kernel.kind is Kind.CONVOLUTION and joined(kernel)]
    assert {"float32"} in map(joined, weighted)
    assert {"int8"} in map(joined, weighted)
