"""Destructive rewriting: an extracted form becomes the whole graph again, and every other form is forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from eqsat_deploy.freeze import CONCAT, CONSTANT, QUANTIZE, ENode
from eqsat_deploy.language import binary, concat, unary
from eqsat_deploy.language.operator import interpreted_by
from eqsat_deploy.lower import Lowered, Row, Rows, Term
from eqsat_deploy.optimizer import search
from eqsat_deploy.price import Priced
from eqsat_deploy.rules import EgglogRule
from eqsat_extraction import Solution
from eqsat_extraction.kernel import CostModel


def rewrite_alone(
    lowered: Lowered, rules: Sequence[EgglogRule], cost_model: CostModel, **limits: Any
) -> tuple[Priced, Solution, Lowered]:
    """Saturate `rules` on one form and keep only the cheapest form of the result; `limits` are those of `search`.

    Raises:
        ExtractionError: no form can be built from the kernels of the target.
    """
    priced, solution = search(lowered, rules, cost_model, **limits)
    return priced, solution, lowered_form(priced, solution)


def lowered_form(priced: Priced, solution: Solution) -> Lowered:
    """The chosen form as rows of exact operators: kernels come apart into anchor and steps, INT8 codes are erased.

    Precision and fusion are prices of a form, not part of it: the next saturation finds them anew. Equal terms
    become one row again, so a value that two kernels recomputed may be shared from here on.
    """
    return _Emitter(priced, solution).lowered


class _Emitter(Rows):
    def __init__(self, priced: Priced, solution: Solution) -> None:
        space = priced.space
        super().__init__(space.lowered.captured)
        self.space = space
        self.terms: dict[int, Term] = {}
        self.lowered.parameters = list(space.lowered.parameters)
        self.lowered.calls = list(space.lowered.calls)
        self.lowered.warnings = list(space.lowered.warnings)
        self.lowered.nodes = space.lowered.nodes
        with torch.no_grad(), interpreted_by(self):
            for index in solution.order(priced.egraph):
                number, node = space.choices[index]
                self.terms[number] = (
                    self._constant(number) if node.kind == CONSTANT else self._kernel(number, node)
                )
        self.lowered.outputs = [
            self.terms[space.row_class[o.row]] if isinstance(o, Term) else o for o in space.lowered.outputs
        ]

    def _constant(self, number: int) -> Term:
        """The term that computes a constant class, down to the parameters it is made of."""
        if number not in self.terms:
            node = self.space.terms[number]
            for operand in node.operands:
                self._constant(operand)
            self.terms[number] = self._kernel(number, node)
        return self.terms[number]

    def _kernel(self, number: int, node: ENode) -> Term:
        self.current = self.space.classes[number].origin or ("", "")
        if node.kind == QUANTIZE:
            return self.terms[node.operands[0]]
        value = self._anchor(number, node)
        for step in node.steps:
            if step.operand is None:
                value = unary(step.function, value)
            else:
                pair = (value, self.terms[step.operand])
                value = binary(step.function, *(pair if step.side == 0 else pair[::-1]))
        return value

    def _anchor(self, number: int, node: ENode) -> Term:
        operands = [self.terms[o] for o in node.operands]
        assert node.operator is not None
        if node.kind == CONCAT:
            joined = operands[0]
            for operand in operands[1:]:
                joined = concat(node.attributes[0], joined, operand)
            return joined
        if node.operator.shape is not None:
            return self.apply(node.operator, node.operator.join(tuple(operands), node.attributes))
        known = self.space.classes[number]
        meta = None
        if known.shape is not None and known.dtype is not None:
            meta = torch.empty(known.shape, dtype=known.dtype, device="meta")
        rows = tuple(o.row for o in operands)
        args = (
            (*node.attributes, rows) if node.kind == "opaque" else node.operator.join(rows, node.attributes)
        )
        return self.add(Row(node.operator, args), meta, known.constant)
