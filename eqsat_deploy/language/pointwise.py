"""Pointwise operators. One constructor serves all unary functions and one all binary ones: a rule that moves
data through any of them is one rule."""

from __future__ import annotations

import operator as python_operator
import re
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from eqsat_deploy.language.arithmetic import ARITHMETIC, computed, floor_divided, promoted
from eqsat_deploy.language.casting import cast_to
from eqsat_deploy.language.expressions import broadcast, one_of
from eqsat_deploy.language.leaves import scalar
from eqsat_deploy.language.operator import Unsupported, aten, operator
from eqsat_deploy.language.shapes import elements
from eqsat_extraction.kernel import Kind

UNARY: dict[str, Callable[..., Any]] = {
    "abs": torch.abs,
    "acos": torch.acos,
    "acosh": torch.acosh,
    "asin": torch.asin,
    "asinh": torch.asinh,
    "atan": torch.atan,
    "atanh": torch.atanh,
    "ceil": torch.ceil,
    "celu": F.celu,
    "clamp": torch.clamp,
    "clamp_max": lambda x, bound: torch.clamp(x, max=bound),
    "clamp_min": lambda x, bound: torch.clamp(x, min=bound),
    "cos": torch.cos,
    "cosh": torch.cosh,
    "elu": F.elu,
    "erf": torch.erf,
    "exp": torch.exp,
    "expm1": torch.expm1,
    "floor": torch.floor,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "leaky_relu": F.leaky_relu,
    "log": torch.log,
    "log10": torch.log10,
    "log1p": torch.log1p,
    "log2": torch.log2,
    "log_sigmoid": F.logsigmoid,
    "mish": F.mish,
    "neg": torch.neg,
    "pow": torch.pow,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "reciprocal": torch.reciprocal,
    "relu": torch.relu,
    "round": torch.round,
    "rsqrt": torch.rsqrt,
    "selu": F.selu,
    "sigmoid": torch.sigmoid,
    "sign": torch.sign,
    "silu": F.silu,
    "sin": torch.sin,
    "sinh": torch.sinh,
    "softplus": F.softplus,
    "sqrt": torch.sqrt,
    "tan": torch.tan,
    "tanh": torch.tanh,
    "trunc": lambda x: torch.sign(x) * torch.floor(torch.abs(x)),
}
BINARY: dict[str, Callable[..., Any]] = {
    "add": python_operator.add,
    "div": python_operator.truediv,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "mul": python_operator.mul,
    "pow": python_operator.pow,
    "sub": python_operator.sub,
}
_CALL = re.compile(r"(\w+)(?:\((.*)\))?")


def parse_function(f: str) -> tuple[str, tuple[float, ...]]:
    """`"clamp(0.0,6.0)"` as `("clamp", (0.0, 6.0))`."""
    match = _CALL.fullmatch(f)
    if match is None or match[1] not in UNARY:
        raise ValueError(f"{f!r} is not a unary function of the language")
    return match[1], tuple(float(a) for a in match[2].split(",")) if match[2] else ()


NONNEGATIVE = ("exp", "rsqrt", "sqrt", "sigmoid")
"""Functions without a negative value where their argument is not negative."""


def base_name(f: str) -> str:
    """A function without its constants: `clamp` of `clamp(0.0,6.0)`."""
    return f.partition("(")[0]


def per_element(out: tuple[int, ...], *_: Any) -> float:
    """One operation for every element of the result."""
    return elements(out)


@operator(
    Kind.POINTWISE,
    requantizes=True,
    called=lambda f: base_name(f),
    nonnegative=lambda f: one_of(f, *NONNEGATIVE),
    along=(),
    shape=lambda f, x: x,
    epilogue=True,
    flops=per_element,
)
def unary(f: str, x: torch.Tensor) -> torch.Tensor:
    """A unary function, its constants in its name: `relu`, `clamp(0.0,6.0)`."""
    name, constants = parse_function(f)
    return UNARY[name](x, *constants)  # type: ignore[no-any-return]


@operator(
    Kind.POINTWISE,
    requantizes=True,
    called=lambda f: f,
    nonnegative=lambda f: one_of(f, "add", "div", "mul"),
    along=(),
    shape=lambda f, a, b: broadcast(a, b),
    epilogue=True,
    integer="pointwise",
    flops=per_element,
)
def binary(f: str, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """A binary function with broadcasting: `add`, `sub`, `mul`, `div`, `maximum`, `minimum`, `pow`."""
    return BINARY[f](a, b)  # type: ignore[no-any-return]


def _prelu_module(w: torch.Tensor) -> torch.nn.Module:
    module = torch.nn.PReLU(w.numel(), device="meta")
    module.weight = torch.nn.Parameter(w)
    return module


@operator(
    Kind.POINTWISE, requantizes=True, epilogue=True, shape=lambda x, w: x, flops=per_element, module=_prelu_module
)  # fmt: skip
def prelu(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """max(x, 0) + w * min(x, 0); a slope for each channel, on axis 1, or one for all: (channels) or (1)."""
    return F.prelu(x, w)


def relu(x: Any) -> Any:
    """max(x, 0)."""
    return unary("relu", x)


def upper_bound(f: str) -> float | None:
    """What a unary function clips at that clips at 0 from below; None of any other."""
    name, constants = parse_function(f)
    return constants[1] if name == "clamp" and constants[0] == 0 < constants[1] else None


def clipped(x: Any, bound: float) -> Any:
    """`clamp(0.0,bound)` in two steps, of which rules move scales through either."""
    return binary("minimum", relu(x), scalar(bound))


def add(a: Any, b: Any) -> Any:
    """a + b."""
    return binary("add", a, b)


def sub(a: Any, b: Any) -> Any:
    """a - b."""
    return binary("sub", a, b)


def mul(a: Any, b: Any) -> Any:
    """a * b."""
    return binary("mul", a, b)


def div(a: Any, b: Any) -> Any:
    """a / b."""
    return binary("div", a, b)


def _floating(*terms: Any) -> None:
    for term in terms:
        if not term.dtype.is_floating_point:
            raise Unsupported(f"arithmetic on {term.dtype}")


def _operand(value: Any) -> Any:
    return scalar(float(value)) if isinstance(value, int | float) else value


INTEGER: dict[str, Callable[..., Any]] = {
    "abs": lambda x: computed("maximum", x, computed("sub", 0, x)),
    "neg": lambda x: computed("sub", 0, x),
    "relu": lambda x: computed("maximum", x, 0),
}
"""Functions that give integers of integers."""


def _import_unary(f: str) -> Callable[..., Any]:
    def import_unary(x: Any) -> Any:
        if not x.dtype.is_floating_point and f in INTEGER:
            return INTEGER[f](x)
        _floating(x)
        return unary(f, x)

    return import_unary


for _name in (
    "abs", "acos", "acosh", "asin", "asinh", "atan", "atanh", "ceil", "cos", "cosh", "erf", "exp", "expm1", "floor",
    "hardsigmoid", "hardswish", "log", "log10", "log1p", "log2", "mish", "neg", "reciprocal", "relu", "round",
    "rsqrt", "selu", "sigmoid", "sign", "silu", "sin", "sinh", "sqrt", "tan", "tanh", "trunc",
):  # fmt: skip
    aten(f"{_name}.default")(_import_unary(_name))
aten("log_sigmoid.default")(_import_unary("log_sigmoid"))
aten("relu6.default")(_import_unary("clamp(0.0,6.0)"))


@aten("gelu.default")
def _gelu(x: Any, approximate: str = "none") -> Any:
    _floating(x)
    return unary("gelu_tanh" if approximate == "tanh" else "gelu", x)


@aten("leaky_relu.default")
def _leaky_relu(x: Any, negative_slope: float = 0.01) -> Any:
    return unary(f"leaky_relu({float(negative_slope)})", x)


@aten("elu.default")
def _elu(x: Any, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Any:
    if scale != 1 or input_scale != 1:
        raise Unsupported("scaled elu")
    return unary(f"elu({float(alpha)})", x)


@aten("celu.default")
def _celu(x: Any, alpha: float = 1.0) -> Any:
    return unary(f"celu({float(alpha)})", x)


@aten("softplus.default")
def _softplus(x: Any, beta: float = 1, threshold: float = 20) -> Any:
    return unary(f"softplus({float(beta)},{float(threshold)})", x)


@aten("hardtanh.default")
def _hardtanh(x: Any, low: float = -1, high: float = 1) -> Any:
    return _clamp(x, low, high)


@aten("clamp.default")
def _clamp(x: Any, low: float | None = None, high: float | None = None) -> Any:
    if not promoted(x, high if low is None else low).is_floating_point:
        return _between(x, low, high)
    _floating(x)
    if low is None:
        return unary(f"clamp_max({float(high)})", x)  # type: ignore[arg-type]
    if high is None:
        return unary("relu", x) if low == 0 else unary(f"clamp_min({float(low)})", x)
    return unary(f"clamp({float(low)},{float(high)})", x)


@aten("clamp.Tensor")
def _clamp_to(x: Any, low: Any = None, high: Any = None) -> Any:
    return _between(x, low, high)


def _between(x: Any, low: Any, high: Any) -> Any:
    """The bounds one after the other, as torch has them where they cross."""
    x = x if low is None else _import_binary("maximum")(x, low)
    return x if high is None else _import_binary("minimum")(x, high)


@aten("square.default")
def _square(x: Any) -> Any:
    return _pow(x, 2.0)


@aten("pow.Tensor_Scalar")
def _pow(x: Any, exponent: float) -> Any:
    _floating(x)
    return unary(f"pow({float(exponent)})", x)


def _real(value: Any, dtype: torch.dtype) -> Any:
    """Booleans and integers in arithmetic of `dtype` are converted to it, as torch does; a number takes it anyway."""
    if isinstance(value, int | float) or value.dtype.is_floating_point:
        return _operand(value)
    return cast_to(value, dtype)


def _import_binary(f: str) -> Callable[..., Any]:
    def import_binary(a: Any, b: Any, alpha: float = 1) -> Any:
        dtype = promoted(a, b)
        if not dtype.is_floating_point:
            if f in ARITHMETIC:
                return computed(f, a, b if alpha == 1 else computed("mul", b, alpha))
            if f != "div":
                raise Unsupported(f"{f!r} of {dtype}")
            dtype = torch.get_default_dtype()
        a, b = _real(a, dtype), _real(b, dtype)
        if alpha != 1:
            b = mul(b, scalar(float(alpha)))
        return binary(f, a, b)

    return import_binary


for _name in ("add", "sub"):
    aten(f"{_name}.Tensor", f"{_name}.Scalar")(_import_binary(_name))
for _name in ("mul", "div"):
    aten(f"{_name}.Tensor", f"{_name}.Scalar")(_import_binary(_name))
for _name in ("maximum", "minimum"):
    aten(f"{_name}.default")(_import_binary(_name))
aten("pow.Tensor_Tensor", "pow.Scalar")(_import_binary("pow"))


@aten("div.Tensor_mode", "div.Scalar_mode")
def _div(a: Any, b: Any, *, rounding_mode: str | None) -> Any:
    match rounding_mode:
        case None:
            return _import_binary("div")(a, b)
        case "trunc" if promoted(a, b).is_floating_point:
            return unary("trunc", _import_binary("div")(a, b))
        case "trunc":
            return computed("trunc_divide", a, b)
    return floor_divided(a, b)


@aten("prelu.default")
def _prelu(x: Any, w: Any) -> Any:
    if len(w.shape) != 1 or len(x.shape) < 2:
        raise Unsupported("a slope that is no channel's")
    return prelu(x, w)


@aten("rsub.Scalar", "rsub.Tensor")
def _rsub(a: Any, b: Any, alpha: float = 1) -> Any:
    return _import_binary("sub")(b, a, alpha)


@aten("clone.default", "alias.default", "detach.default", "contiguous.default", "lift_fresh_copy.default",
      "detach_.default")  # fmt: skip
def _same(x: Any, *_: Any, **__: Any) -> Any:
    return x


@aten("dropout.default", "feature_dropout.default", "alpha_dropout.default", "dropout_.default",
      "feature_dropout_.default", "alpha_dropout_.default")  # fmt: skip
def _dropout(x: Any, p: float, train: bool) -> Any:
    if train:
        raise Unsupported("dropout in training mode")
    return x


@aten("native_dropout.default")
def _native_dropout(x: Any, p: float, train: bool | None) -> Any:
    if train:
        raise Unsupported("dropout in training mode")
    raise Unsupported("the mask of a dropout is read")


@aten("to.dtype", "_to_copy.default", "type_as.default", "to.dtype_layout", "to.device")
def _to(x: Any, *args: Any, dtype: torch.dtype | None = None, **kwargs: Any) -> Any:
    for arg in args:
        dtype = arg if isinstance(arg, torch.dtype) else getattr(arg, "dtype", dtype)
    if dtype is None or dtype == x.dtype:
        return x
    return cast_to(x, dtype)
