"""Conditions: comparisons, logic on booleans, and the choice between two tensors that a mask is written with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from eqsat_deploy.language.casting import cast_to, number_of
from eqsat_deploy.language.expressions import broadcast
from eqsat_deploy.language.leaves import ones
from eqsat_deploy.language.operator import IMPORTERS, Unsupported, aten, of_operands, operator
from eqsat_deploy.language.pointwise import per_element, unary
from eqsat_deploy.language.shapes import encode
from eqsat_extraction.kernel import Kind

COMPARISONS: dict[str, Callable[..., Any]] = {
    "and": torch.logical_and,
    "eq": torch.eq,
    "ge": torch.ge,
    "gt": torch.gt,
    "le": torch.le,
    "lt": torch.lt,
    "ne": torch.ne,
    "or": torch.logical_or,
}


@operator(
    Kind.POINTWISE, dtype=lambda f, a, b: torch.bool, shape=lambda f, a, b: broadcast(a, b), flops=per_element
)
def compare(f: str, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """A boolean of two tensors, with broadcasting: `eq`, `ge`, `gt`, `le`, `lt`, `ne`; `and`, `or` of booleans."""
    return COMPARISONS[f](a, b)  # type: ignore[no-any-return]


@operator(
    Kind.POINTWISE,
    dtype=lambda condition, a, b: of_operands(a, b),
    shape=lambda condition, a, b: broadcast(condition, broadcast(a, b)),
    flops=per_element,
)
def where(condition: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """`a` where the condition (booleans) is true, `b` elsewhere, with broadcasting."""
    return torch.where(condition, a, b)


def mask_bias(removed: Any, like: Any) -> Any:
    """A boolean mask as what is added to scores: -inf where it is true, zero elsewhere, in the dtype of `like`."""
    return where(removed, number_of(like.dtype, -float("inf")), number_of(like.dtype, 0.0))


def _import_compare(f: str) -> Callable[..., Any]:
    def import_compare(a: Any, b: Any) -> Any:
        if isinstance(b, int | float):
            if isinstance(b, float) and not a.dtype.is_floating_point:
                raise Unsupported(f"a comparison of {a.dtype} with {b}")
            b = number_of(a.dtype, b)
        if a.constant and b.constant:
            raise Unsupported("a constant")
        return compare(f, a, b)

    return import_compare


for _name in ("eq", "ge", "gt", "le", "lt", "ne"):
    aten(f"{_name}.Tensor", f"{_name}.Scalar")(_import_compare(_name))


def _import_logic(f: str) -> Callable[..., Any]:
    def import_logic(a: Any, b: Any) -> Any:
        if isinstance(b, bool):
            b = number_of(torch.bool, b)
        if (a.dtype, b.dtype) != (torch.bool, torch.bool):
            raise Unsupported(f"{f!r} of the bits of {a.dtype} and {b.dtype}")
        return _import_compare(f)(a, b)

    return import_logic


for _name in ("and", "or"):
    aten(
        f"__{_name}__.Tensor",
        f"bitwise_{_name}.Tensor",
        f"bitwise_{_name}.Scalar",
        f"logical_{_name}.default",
    )(_import_logic(_name))


@aten("bitwise_not.default", "logical_not.default")
def _not(x: Any) -> Any:
    return _import_logic("ne")(x, ones(encode(()), "bool"))


@aten("bitwise_xor.Tensor", "bitwise_xor.Scalar", "logical_xor.default")
def _xor(a: Any, b: Any) -> Any:
    return _import_logic("ne")(a, b)


@aten("isnan.default")
def _isnan(x: Any) -> Any:
    return _import_compare("ne")(x, x)


@aten("isinf.default")
def _isinf(x: Any) -> Any:
    if not x.dtype.is_floating_point:
        raise Unsupported(f"infinity of {x.dtype}")
    return _import_compare("eq")(unary("abs", x), float("inf"))


@aten("any.default", "any.dim", "any.dims")
def _any(x: Any, dim: int | Sequence[int] | None = None, keepdim: bool = False) -> Any:
    """Whether the largest of ones and zeros is one."""
    truth = x if x.dtype == torch.bool else _import_compare("ne")(x, 0)
    largest = IMPORTERS["amax.default"](cast_to(truth, torch.float32), dim, keepdim)
    return compare("gt", largest, number_of(torch.float32, 0.0))


@aten("where.self", "where.Scalar", "where.ScalarOther", "where.ScalarSelf")
def _where(condition: Any, a: Any, b: Any) -> Any:
    dtypes = [x.dtype for x in (a, b) if not isinstance(x, int | float)]
    dtype = dtypes[0] if dtypes else torch.result_type(a, b)
    return where(condition, *(number_of(dtype, x) if isinstance(x, int | float) else x for x in (a, b)))


@aten("masked_fill.Scalar", "masked_fill.Tensor")
def _masked_fill(x: Any, mask: Any, value: Any) -> Any:
    return where(mask, number_of(x.dtype, value) if isinstance(value, int | float) else value, x)
