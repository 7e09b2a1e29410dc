"""Functions of two tensors that the rules' algebra does not hold for: arithmetic of integers, and remainders."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from eqsat_deploy.language.casting import cast_to, number_of
from eqsat_deploy.language.expressions import broadcast
from eqsat_deploy.language.operator import Unsupported, aten, operator
from eqsat_deploy.language.shapes import elements
from eqsat_extraction.kernel import Kind

ARITHMETIC: dict[str, Callable[..., Any]] = {
    "add": torch.add,
    "atan2": torch.atan2,
    "bitwise_and": torch.bitwise_and,
    "bitwise_or": torch.bitwise_or,
    "bitwise_xor": torch.bitwise_xor,
    "floor_divide": partial(torch.div, rounding_mode="floor"),
    "fmod": torch.fmod,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "mul": torch.mul,
    "remainder": torch.remainder,
    "sub": torch.sub,
    "trunc_divide": partial(torch.div, rounding_mode="trunc"),
}


@operator(
    Kind.POINTWISE,
    called=lambda f: f,
    shape=lambda f, a, b: broadcast(a, b),
    flops=lambda out, *_: elements(out),
)
def arithmetic(f: str, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """A function of two tensors of one dtype, with broadcasting: names of `ARITHMETIC`. No rule of reals holds."""
    return ARITHMETIC[f](a, b)  # type: ignore[no-any-return]


def promoted(*values: Any) -> torch.dtype:
    """The dtype that torch computes two terms or numbers in."""
    a, b = (v if isinstance(v, int | float) else v.meta for v in values)
    return torch.result_type(a, b)


def computed(f: str, a: Any, b: Any) -> Any:
    """`arithmetic` of two terms or numbers, in the dtype that torch promotes them to.

    Raises:
        Unsupported: both are constant, so that it is evaluated once, or they are booleans.
    """
    dtype = promoted(a, b)
    terms = [v for v in (a, b) if not isinstance(v, int | float)]
    if all(t.constant for t in terms):
        raise Unsupported("a constant")
    if dtype == torch.bool:
        raise Unsupported(f"{f!r} of booleans")
    return arithmetic(f, *(_in(dtype, v) for v in (a, b)))


def _in(dtype: torch.dtype, value: Any) -> Any:
    if isinstance(value, int | float):
        return number_of(dtype, value)
    return value if value.dtype == dtype else cast_to(value, dtype)


def _import_computed(f: str) -> Callable[..., Any]:
    def import_computed(a: Any, b: Any) -> Any:
        return computed(f, a, b)

    return import_computed


for _name in ("fmod", "remainder"):
    aten(f"{_name}.Tensor", f"{_name}.Scalar")(_import_computed(_name))


aten("remainder.Scalar_Tensor")(_import_computed("remainder"))


@aten("floor_divide.default", "floor_divide.Scalar")
def floor_divided(a: Any, b: Any) -> Any:
    """The quotient rounded down. Of integers, what remains is taken away first: OpenVINO 2026.4.1 rounds quotients of
    negative integers up."""
    if promoted(a, b).is_floating_point:
        return computed("floor_divide", a, b)
    return computed("trunc_divide", computed("sub", a, computed("remainder", a, b)), b)


@aten("atan2.default")
def _atan2(a: Any, b: Any) -> Any:
    if not promoted(a, b).is_floating_point:
        raise Unsupported("an angle of integers")
    return computed("atan2", a, b)
