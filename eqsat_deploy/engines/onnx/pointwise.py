"""What each pointwise torch function in a rebuilt module is in ONNX operators."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from eqsat_deploy.engines.onnx.writing import FUNCTIONS, made, type_of
from eqsat_deploy.engines.writing import (
    Written,
    alike,
    is_float,
    refuse,
)

writes = FUNCTIONS.writes

UNARY: dict[Any, str] = {
    torch.abs: "Abs", torch.acos: "Acos", torch.acosh: "Acosh", torch.asin: "Asin", torch.asinh: "Asinh",
    torch.atan: "Atan", torch.atanh: "Atanh", torch.ceil: "Ceil", torch.cos: "Cos", torch.cosh: "Cosh",
    torch.erf: "Erf", torch.exp: "Exp", torch.floor: "Floor", torch.log: "Log", torch.neg: "Neg",
    torch.reciprocal: "Reciprocal", torch.relu: "Relu", torch.sigmoid: "Sigmoid", torch.sign: "Sign",
    torch.round: "Round", torch.sin: "Sin", torch.sinh: "Sinh", torch.sqrt: "Sqrt", torch.tan: "Tan",
    torch.tanh: "Tanh",
    F.hardswish: "HardSwish", F.mish: "Mish", F.selu: "Selu",
}  # fmt: skip
BINARY: dict[Any, str] = {
    operator.add: "Add", operator.sub: "Sub", operator.mul: "Mul", torch.add: "Add", torch.sub: "Sub",
    torch.mul: "Mul", torch.maximum: "Max", torch.minimum: "Min", torch.eq: "Equal", torch.gt: "Greater",
    torch.ge: "GreaterOrEqual", torch.lt: "Less", torch.le: "LessOrEqual", torch.logical_and: "And",
    torch.logical_or: "Or",
}  # fmt: skip
OF_FLOATS: dict[Any, str] = {operator.truediv: "Div", operator.pow: "Pow", torch.pow: "Pow"}


def _unary(name: str) -> Callable[..., Any]:
    def unary(x: Written, inplace: bool = False) -> Any:
        is_float(x)
        return made(name, x)

    return unary


def _binary(name: str, of_floats: bool = False) -> Callable[..., Any]:
    def binary(a: Any, b: Any) -> Any:
        if of_floats:
            is_float(a, b)
        return made(name, *alike(a, b))

    return binary


for _function, _name in UNARY.items():
    writes(_function)(_unary(_name))
for _function, _name in BINARY.items():
    writes(_function)(_binary(_name))
for _function, _name in OF_FLOATS.items():
    writes(_function)(_binary(_name, of_floats=True))


@writes(torch.ne)
def _ne(a: Any, b: Any) -> Any:
    return made("Not", made("Equal", *alike(a, b)))


@writes(torch.where)
def _where(condition: Any, a: Any, b: Any) -> Any:
    return made("Where", condition, *alike(a, b))


@writes("to")
def _to(x: Written, dtype: torch.dtype) -> Any:
    refuse(not isinstance(dtype, torch.dtype))
    return made("Cast", x, to=type_of(dtype))


@writes(getattr)
def _attribute(x: Written, name: str) -> torch.dtype:
    refuse(name != "dtype")
    return x.dtype


@writes(F.hardsigmoid)
def _hardsigmoid(x: Written, inplace: bool = False) -> Any:
    return made("HardSigmoid", x, alpha=1 / 6, beta=0.5)


@writes(F.silu)
def _silu(x: Written, inplace: bool = False) -> Any:
    return made("Mul", x, made("Sigmoid", x))


@writes(F.gelu)
def _gelu(x: Written, approximate: str = "none") -> Any:
    return made("Gelu", x, approximate=approximate)


@writes(F.elu)
def _elu(x: Written, alpha: float = 1.0, inplace: bool = False) -> Any:
    return made("Elu", x, alpha=float(alpha))


@writes(F.leaky_relu)
def _leaky_relu(x: Written, negative_slope: float = 0.01, inplace: bool = False) -> Any:
    return made("LeakyRelu", x, alpha=float(negative_slope))


@writes(F.celu)
def _celu(x: Written, alpha: float = 1.0, inplace: bool = False) -> Any:
    return made("Celu", x, alpha=float(alpha))


@writes(F.softplus)
def _softplus(x: Written, beta: float = 1.0, threshold: float = 20.0) -> Any:
    refuse(beta != 1)
    return made("Softplus", x)


@writes(F.logsigmoid)
def _logsigmoid(x: Written) -> Any:
    return made("Neg", made("Softplus", made("Neg", x)))


@writes(torch.expm1)
def _expm1(x: Written) -> Any:
    return made("Sub", made("Exp", x), np.float32(1))


@writes(torch.log1p)
def _log1p(x: Written) -> Any:
    return made("Log", made("Add", x, np.float32(1)))


for _function, _base in ((torch.log2, 2), (torch.log10, 10)):
    writes(_function)(lambda x, base=_base: made("Div", made("Log", x), np.float32(math.log(base))))


@writes(torch.prelu)
def _prelu(x: Written, weight: Tensor) -> Any:
    """One slope for every channel, the second axis."""
    return made("PRelu", x, weight.reshape(-1, *[1] * (x.dim() - 2)) if weight.numel() > 1 else weight)


@writes(torch.clamp)
def _clamp(x: Written, min: Any = None, max: Any = None) -> Any:
    is_float(x)
    refuse(*(isinstance(bound, Tensor | Written) for bound in (min, max)))
    return made("Clip", x, *(None if bound is None else np.float32(bound) for bound in (min, max)))


@writes(torch.rsqrt)
def _rsqrt(x: Written) -> Any:
    return made("Reciprocal", made("Sqrt", x))
