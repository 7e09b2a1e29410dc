"""What each pointwise torch function in a rebuilt module is in OpenVINO's operators."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from eqsat_deploy.engines.openvino_writing import FUNCTIONS, element_type, ops, output_of
from eqsat_deploy.engines.writing import (
    Written,
    alike,
    is_float,
    refuse,
)

writes = FUNCTIONS.writes

UNARY: dict[Any, str] = {
    torch.abs: "abs", torch.acos: "acos", torch.acosh: "acosh", torch.asin: "asin", torch.asinh: "asinh",
    torch.atan: "atan", torch.atanh: "atanh", torch.ceil: "ceil", torch.cos: "cos", torch.cosh: "cosh",
    torch.erf: "erf", torch.exp: "exp", torch.floor: "floor", torch.log: "log", torch.neg: "negative",
    torch.relu: "relu", torch.sigmoid: "sigmoid", torch.sign: "sign", torch.sin: "sin", torch.sinh: "sinh",
    torch.sqrt: "sqrt", torch.tan: "tan", torch.tanh: "tanh", F.hardsigmoid: "hsigmoid", F.hardswish: "hswish",
    F.mish: "mish", F.silu: "swish",
}  # fmt: skip
BINARY: dict[Any, str] = {
    operator.add: "add", operator.sub: "subtract", operator.mul: "multiply", torch.add: "add", torch.sub: "subtract",
    torch.mul: "multiply", torch.maximum: "maximum", torch.minimum: "minimum", torch.eq: "equal",
    torch.ne: "not_equal", torch.gt: "greater", torch.ge: "greater_equal", torch.lt: "less", torch.le: "less_equal",
    torch.logical_and: "logical_and", torch.logical_or: "logical_or",
}  # fmt: skip
OF_FLOATS: dict[Any, str] = {operator.truediv: "divide", operator.pow: "power", torch.pow: "power"}


def _unary(name: str) -> Callable[..., Any]:
    def unary(x: Written, inplace: bool = False) -> Any:
        is_float(x)
        return getattr(ops(), name)(x.value)

    return unary


def _binary(name: str, of_floats: bool = False) -> Callable[..., Any]:
    def binary(a: Any, b: Any) -> Any:
        if of_floats:
            is_float(a, b)
        return getattr(ops(), name)(*map(output_of, alike(a, b)))

    return binary


for _function, _name in UNARY.items():
    writes(_function)(_unary(_name))
for _function, _name in BINARY.items():
    writes(_function)(_binary(_name))
for _function, _name in OF_FLOATS.items():
    writes(_function)(_binary(_name, of_floats=True))


@writes(torch.where)
def _where(condition: Any, a: Any, b: Any) -> Any:
    return ops().select(output_of(condition), *map(output_of, alike(a, b)))


@writes("to")
def _to(x: Written, dtype: torch.dtype) -> Any:
    refuse(not isinstance(dtype, torch.dtype))
    return ops().convert(x.value, element_type(dtype))


@writes(getattr)
def _attribute(x: Written, name: str) -> torch.dtype:
    refuse(name != "dtype")
    return x.dtype


@writes(F.gelu)
def _gelu(x: Written, approximate: str = "none") -> Any:
    return ops().gelu(x.value, "tanh" if approximate == "tanh" else "erf")


@writes(F.elu)
def _elu(x: Written, alpha: float = 1.0, inplace: bool = False) -> Any:
    return ops().elu(x.value, alpha)


@writes(F.leaky_relu)
def _leaky_relu(x: Written, negative_slope: float = 0.01, inplace: bool = False) -> Any:
    return ops().prelu(x.value, np.array([negative_slope], np.float32))


@writes(F.celu)
def _celu(x: Written, alpha: float = 1.0, inplace: bool = False) -> Any:
    by = np.float32(alpha)
    return ops().multiply(ops().elu(ops().divide(x.value, by), 1.0), by)


@writes(F.selu)
def _selu(x: Written, inplace: bool = False) -> Any:
    return ops().selu(x.value, np.float32(1.6732632423543772), np.float32(1.0507009873554805))


@writes(F.softplus)
def _softplus(x: Written, beta: float = 1.0, threshold: float = 20.0) -> Any:
    refuse(beta != 1)
    return ops().softplus(x.value)


@writes(F.logsigmoid)
def _logsigmoid(x: Written) -> Any:
    return ops().negative(ops().softplus(ops().negative(x.value)))


@writes(torch.round)
def _round(x: Written) -> Any:
    is_float(x)
    return ops().round(x.value, "half_to_even")


@writes(torch.expm1)
def _expm1(x: Written) -> Any:
    return ops().subtract(ops().exp(x.value), np.float32(1))


@writes(torch.log1p)
def _log1p(x: Written) -> Any:
    return ops().log(ops().add(x.value, np.float32(1)))


for _function, _base in ((torch.log2, 2), (torch.log10, 10)):
    writes(_function)(lambda x, base=_base: ops().divide(ops().log(x.value), np.float32(math.log(base))))


@writes(torch.prelu)
def _prelu(x: Written, weight: Tensor) -> Any:
    return ops().prelu(x.value, output_of(weight))


@writes(torch.clamp)
def _clamp(x: Written, min: Any = None, max: Any = None) -> Any:
    is_float(x)
    refuse(*(isinstance(bound, Tensor | Written) for bound in (min, max)))
    if min is not None and max is not None:
        return ops().clamp(x.value, float(min), float(max))
    if min is None:
        return ops().minimum(x.value, np.float32(max))
    return ops().maximum(x.value, np.float32(min))


@writes(torch.rsqrt)
def _rsqrt(x: Written) -> Any:
    return ops().divide(np.float32(1), ops().sqrt(x.value))


@writes(torch.reciprocal)
def _reciprocal(x: Written) -> Any:
    return ops().divide(np.float32(1), x.value)
