"""An operator: the inverse hyperbolic sine, which the language does not have."""

from __future__ import annotations

from typing import Any

import torch

from eqsat_deploy.language import aten, operator
from eqsat_extraction.kernel import Kind


@operator(Kind.POINTWISE, shape=lambda x: x, flops=lambda out, x: 8.0 * torch.Size(out).numel())
def asinh(x: torch.Tensor) -> torch.Tensor:
    """ln(x + sqrt(x^2 + 1)) of every element."""
    return torch.asinh(x)


@aten("asinh.default")
def _asinh(x: Any) -> Any:
    return asinh(x)
