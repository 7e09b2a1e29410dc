"""Destructive rewriting: an extracted form becomes the whole graph again, and every other form is forgotten."""

from __future__ import annotations

from functools import partial, reduce
from typing import Any

import torch

from eqsat_deploy.kernels import CONSTANT, QUANTIZE, ENode, applied, value_of
from eqsat_deploy.language import concat, concat_all
from eqsat_deploy.language.operator import interpreted_by
from eqsat_deploy.lower import Lowered, Row, Rows, Term
from eqsat_deploy.search import Limits, Search, search
from eqsat_deploy.selection import Rules, find_rules
from eqsat_extraction.kernel import CostModel


def rewrite_alone(
    lowered: Lowered, rules: Rules, cost_model: CostModel, limits: Limits | None = None
) -> tuple[Search, Lowered]:
    """Saturate `rules` on one form and keep only the cheapest form of the result.

    Raises:
        ExtractionError: no form can be built from the kernels of the target.
    """
    found = search(lowered, find_rules(rules), cost_model, limits)
    return found, lowered_form(found)


def lowered_form(found: Search) -> Lowered:
    """The chosen form as rows of exact operators: kernels come apart into anchor and steps, INT8 codes are erased.

    Precision and fusion are prices of a form, not part of it: the next saturation finds them anew. Equal terms
    become one row again, so a value that two kernels recomputed may be shared from here on.
    """
    return _Emitter(found).form(found.lowered)


class _Emitter(Rows):
    def __init__(self, found: Search) -> None:
        super().__init__(found.lowered.parameters, found.lowered.calls)
        self.space = found.space
        self.terms: dict[int, Term] = {}
        with torch.no_grad(), interpreted_by(self):
            for index in found.chosen:
                number, node = self.space.choices[index]
                self.terms[number] = (
                    self._constant(number) if node.operator is CONSTANT else self._kernel(number, node)
                )

    def form(self, before: Lowered) -> Lowered:
        """The rows as a lowering of the same model."""
        outputs = [
            self.terms[self.space.row_class[o.row]] if isinstance(o, Term) else o for o in before.outputs
        ]
        return self.lowered(before.captured, outputs, nodes=before.nodes, warnings=before.warnings)

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
        if node.operator is QUANTIZE:
            return self.terms[node.operands[0]]
        term: Term = value_of(node, self.terms.__getitem__, lambda _: self._anchor(number, node))
        return term

    def _anchor(self, number: int, node: ENode) -> Any:
        operands = [self.terms[o] for o in node.operands]
        if node.operator is concat_all:  # in the form that rules are written for
            return reduce(partial(concat, *node.attributes), operands)
        if node.operator.shape is not None:
            return applied(node, self.terms.__getitem__)
        known = self.space.classes[number]
        meta = None
        if known.shape is not None and known.dtype is not None:
            meta = torch.empty(known.shape, dtype=known.dtype, device="meta")
        args = node.operator.join(tuple(o.row for o in operands), node.attributes)
        return self.add(Row(node.operator, args), meta, known.constant)
