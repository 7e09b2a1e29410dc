"""An operator: a scaled Bessel function, which the language does not have."""

from __future__ import annotations

from typing import Any

import torch

from eqsat_deploy.language import aten, operator
from eqsat_extraction.kernel import Kind


@operator(Kind.POINTWISE, shape=lambda x: x, flops=lambda out, x: 8.0 * torch.Size(out).numel())
def bessel(x: torch.Tensor) -> torch.Tensor:
    """exp(-|x|) I1(x) of every element (torch.special.i1e)."""
    return torch.special.i1e(x)


@aten("special_i1e.default")
def _bessel(x: Any) -> Any:
    return bessel(x)
