"""Calls that no operator models: they keep their target and arguments, or are evaluated where all is constant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from eqsat_deploy.capture.functional import functional_target, is_mutable, schema_of
from eqsat_deploy.errors import CaptureError
from eqsat_deploy.language import encode, ones, opaque, parameter, zeros
from eqsat_deploy.language.shapes import MAX_RANK
from eqsat_deploy.lower.rows import UNKNOWN, Call, Hole, Row, Rows, Term
from eqsat_deploy.lower.sizes import Sizes, depends_on_symbols, is_batched

IMPURE = frozenset({torch.Tag.nondeterministic_seeded})
SHAPE_ONLY = frozenset({"new_zeros", "new_ones", "new_full", "zeros_like", "ones_like", "full_like"})


class Opaque:
    """Adds opaque calls to `rows`; `warnings` say where a user could do something about one."""

    def __init__(self, rows: Rows, sizes: Sizes) -> None:
        self.rows, self.sizes = rows, sizes
        self.warnings: list[str] = []
        self._values: dict[int, Tensor] = {}  # of constant rows, which many calls may read

    def call(self, node: fx.Node, args: Any, kwargs: Any, reason: str) -> Any:
        """The term of a call, a tuple of terms where it is constant and has several results.

        Raises:
            CaptureError: it mutates what it reads, and no functional overload computes the same.
        """
        operands: list[Term] = []

        def hole(leaf: Any) -> Any:
            if isinstance(leaf, Term):
                operands.append(leaf)
                return Hole(len(operands) - 1)
            return leaf

        value = node.meta.get("val")
        target = _functional(node)
        name = _name(target)
        held = mapped((args, kwargs), hole)
        pure = not IMPURE.intersection(getattr(target, "tags", ()))
        known = all(o.constant or (name in SHAPE_ONLY and o.meta is not None) for o in operands)
        if pure and known and not _has_batch(held) and not depends_on_symbols(value):
            return self._evaluated(node.name, target, held, operands)
        if "left whole" in reason or (reason == UNKNOWN and ("pool" in name or "attention" in name)):
            self.warnings.append(f"{node.name} ({name}): {reason}")
        number = self.rows.call(Call(target, held[0], held[1], reason, node.name), pure)
        row = Row(opaque, (number, tuple(o.row for o in operands)))
        return self.rows.add(row, self.sizes.known_meta(value), constant=False)

    def _evaluated(self, name: str, target: Any, held: Any, operands: list[Term]) -> Any:
        """A constant call that no operator models: its value becomes a parameter named after the node."""
        values = [self._value(o) if o.constant else torch.empty(o.shape, dtype=o.dtype, device="meta")
                  for o in operands]  # fmt: skip
        if any(v.is_meta for v in values):  # only the shape of the operand matters, and that is known
            held = (held[0], held[1] | {"device": torch.device("cpu")})
        args, kwargs = mapped(held, lambda leaf: values[leaf.index] if isinstance(leaf, Hole) else leaf)
        value = target(*args, **kwargs)
        if isinstance(value, Tensor):
            return self._constant(name, value)
        return tuple(self._constant(f"{name}_{i}", v) for i, v in enumerate(value))

    def _constant(self, name: str, value: Tensor) -> Term:
        """A computed constant. All zeros or ones are said to be: a mask that keeps all can go."""
        if value.numel() and value.dim() <= MAX_RANK:
            for uniform, number in ((zeros, 0), (ones, 1)):
                if bool((value == number).all()):
                    return uniform(encode(tuple(value.shape)), str(value.dtype).removeprefix("torch."))  # type: ignore[no-any-return]
        return self.rows.parameter(name, value)

    def _value(self, term: Term) -> Tensor:
        """What a constant term is, computed with all that it is computed from: each once, and none by recursion."""
        pending = [term.row]
        while pending:
            number = pending[-1]
            operator, args = self.rows.rows[number].operator, self.rows.rows[number].args
            operands, attributes = operator.split(args) if operator is not parameter else ((), ())
            missing = [o for o in operands if o not in self._values]
            if missing:
                pending += missing
                continue
            if operator is parameter:
                self._values[number] = self.rows.parameters[args[0]][1]
            else:
                value = operator.body(*operator.join(tuple(self._values[o] for o in operands), attributes))
                meta = self.rows.metas[number]
                self._values[number] = value if meta is None else value.to(meta.dtype)
            pending.pop()
        return self._values[term.row]


def mapped(value: Any, function: Callable[[Any], Any]) -> Any:
    """`value` with `function` applied to the leaves of its tuples, lists (as tuples) and dicts."""
    match value:
        case tuple() | list() if not isinstance(value, torch.Size):
            return tuple(mapped(v, function) for v in value)
        case dict():
            return {k: mapped(v, function) for k, v in value.items()}
        case _:
            return function(value)


def _functional(node: fx.Node) -> Any:
    """What is called: for an in-place overload, the one that computes what it writes."""
    if not is_mutable(node):
        return node.target
    target = functional_target(node.target)
    if target is None:
        raise CaptureError(f"{node.target} mutates its input and has no functional form")
    return target


def _name(target: Any) -> str:
    schema = schema_of(target)
    return schema.name.split("::")[1] if schema is not None else ""


def _has_batch(held: Any) -> bool:
    found: list[bool] = []
    mapped(held, lambda leaf: found.append(type(leaf) is int and is_batched(leaf)))
    return any(found)
