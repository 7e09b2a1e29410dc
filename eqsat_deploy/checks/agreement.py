"""Whether both sides of a rule are equal, over the reals and over a prime field."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from eqsat_deploy.checks.samples import PRIME, REFUSED, Sample, Tree, UnsoundRule
from eqsat_deploy.language.operator import Operator

TOLERANCE = {"exact": 1e-12, "real": 1e-9}
"""By kind of rule: of the largest element, in float64."""
RING = frozenset({"add", "sub", "mul"})


def check_values(sample: Sample, generator: torch.Generator) -> None:
    """Both sides agree on random tensors: values, shapes, and shapes on meta tensors.

    Raises:
        UnsoundRule: they do not.
    """
    values, where = sample.elements(generator), f"rule {sample.rule.name!r} at {sample}"
    for left, right in sample.pairs:
        try:
            a, b = (_evaluated(side, values).double() for side in (left, right))
            metas = left.shape, right.shape
        except REFUSED as error:
            raise UnsoundRule(f"{where}: {error}") from error
        if not a.shape == b.shape == metas[0] == metas[1]:
            raise UnsoundRule(f"{where}: {tuple(a.shape)} is not {tuple(b.shape)} (on meta tensors {metas})")
        limit = TOLERANCE[sample.rule.kind] * float(a.abs().max()) if a.numel() else 0.0
        difference = float((a - b).abs().max()) if a.numel() else 0.0
        if not difference <= limit:
            raise UnsoundRule(f"{where}: sides differ by {difference:.3g}")


def check_field(sample: Sample, generator: torch.Generator) -> None:
    """Both sides agree exactly over the integers modulo a prime. For a sample that `is_polynomial`.

    Raises:
        UnsoundRule: they do not.
    """
    values, where = sample.elements(generator, integers=True), f"rule {sample.rule.name!r} at {sample}"
    for left, right in sample.pairs:
        try:
            a, b = _evaluated(left, values, PRIME), _evaluated(right, values, PRIME)
        except REFUSED as error:
            raise UnsoundRule(f"{where}: {error}") from error
        if a.shape != b.shape or not torch.equal(a, b):
            raise UnsoundRule(f"{where}: sides differ modulo {PRIME}")


def is_polynomial(sample: Sample) -> bool:
    """Whether both sides are made of linear operators, sums and products, so that they mean the same in any ring."""
    return all(
        _in_ring(operator, attributes)
        for pair in sample.pairs
        for side in pair
        for operator, attributes in side.operators()
    )


def _evaluated(tree: Tree, values: dict[str, Tensor], modulus: int | None = None) -> Tensor:
    if isinstance(tree.head, str):
        return values[tree.head]
    operands, attributes = tree.head.split(tree.args)
    operands = tuple(_evaluated(o, values, modulus) for o in operands)
    value: Tensor = tree.head.body(*tree.head.join(operands, attributes))
    value = value.double() if value.is_floating_point() else value
    return value if modulus is None else torch.remainder(value, modulus)


def _in_ring(operator: Operator, attributes: tuple[Any, ...]) -> bool:
    match operator.name:
        case "binary":
            return attributes[0] in RING
        case "unary":
            return bool(attributes[0] == "neg")
        case "reduce":
            return bool(attributes[0] == "sum")
        case "pad" | "scalar":
            return float(attributes[-1]).is_integer()
        case "zeros" | "identity_matrix":
            return True
    return operator.linear
