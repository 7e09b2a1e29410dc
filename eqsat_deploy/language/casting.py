"""Conversions between dtypes."""

from __future__ import annotations

from typing import Any

import torch

from eqsat_deploy.language.leaves import scalar
from eqsat_deploy.language.operator import operator
from eqsat_extraction.kernel import Kind


@operator(Kind.POINTWISE, dtype=lambda x, dtype: getattr(torch, dtype), shape=lambda x, dtype: x)
def cast(x: torch.Tensor, dtype: str) -> torch.Tensor:
    """Conversion to another dtype, by torch's name."""
    return x.to(getattr(torch, dtype))


def cast_to(x: Any, dtype: torch.dtype) -> Any:
    """`cast` to a dtype of torch."""
    return cast(x, str(dtype).removeprefix("torch."))


def number_of(dtype: torch.dtype, value: float) -> Any:
    """A number of a dtype: what a condition chooses would be float64 otherwise."""
    return cast_to(scalar(float(value)), dtype)
