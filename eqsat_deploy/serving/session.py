"""A model's e-graph that is looked at while it is changed: rules put in and left out, kernels given other prices."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import isfinite
from typing import Any

from eqsat_deploy.derivation import Derivation
from eqsat_deploy.errors import InputError
from eqsat_deploy.lower import Lowered
from eqsat_deploy.price import Measuring, kernel_of, specs_of
from eqsat_deploy.report.comparing import diff
from eqsat_deploy.report.view import egraph_data, members
from eqsat_deploy.rules import select
from eqsat_deploy.search import Limits, Search, repriced, search
from eqsat_deploy.selection import TARGET, Rules, find_rules, registered_rules
from eqsat_extraction.kernel import CostModel, Kernel


class Repriced:
    """A cost model with other prices for some kernels, in its own unit."""

    def __init__(self, own: CostModel, prices: Mapping[Kernel, float]) -> None:
        self.name, self.unit, self.float_dtype, self.int8 = own.name, own.unit, own.float_dtype, own.int8
        self.own, self.prices = own, prices
        if isinstance(own, Measuring):
            self.measure = own.measure

    def price(self, kernel: Kernel) -> float:
        """What was said of this kernel, else what the model says."""
        return self.prices[kernel] if kernel in self.prices else self.own.price(kernel)


class Session:
    """One model, saturated with the rules that are on; those of the target always are.

    What does not work (no form can be built at these prices, a name that is none) raises and changes nothing.
    """

    def __init__(
        self, name: str, lowered: Lowered, cost_model: CostModel, rules: Rules, limits: Limits
    ) -> None:
        self.name, self.lowered, self.limits = name, lowered, limits
        self.model = Repriced(cost_model, {})
        self.version = 0
        self.found = search(lowered, find_rules(rules), self.model, limits)
        self.before = self.found
        self.fresh: frozenset[str] = frozenset()
        self.derivation = Derivation(self.found)

    @property
    def on(self) -> list[str]:
        """The rules that are on, besides the target's."""
        return [rule.name for rule in self.found.selection.rules if rule.family not in TARGET]

    def set_rules(self, names: Iterable[str]) -> None:
        """Saturate again, with these rules or families and the target's alone.

        Raises:
            UnknownNameError: a name is neither a rule nor a family.
            ExtractionError: no form can be built.
        """
        had = set(self.on)
        chosen = select(registered_rules(), list(names))
        found = search(self.lowered, find_rules(chosen), self.model, self.limits)
        derivation = Derivation(found)
        self._take(found, frozenset(rule.name for rule in chosen) - had)
        self.derivation = derivation

    def set_price(self, position: int, price: float | None) -> None:
        """Price the kernel of an e-node, and every kernel that is the same, otherwise; None is the model's own price.

        Args:
            position: among the `nodes` of the e-graph that was shown last.
            price: in the model's unit.

        Raises:
            InputError: there is no such e-node or it is no kernel, or a price is none.
            ExtractionError: no form can be built.
        """
        if price is not None and not (isfinite(price) and price >= 0):
            raise InputError(f"price={price}: a number from 0 on is expected")
        shown = members(self.found)
        if not 0 <= position < len(shown):
            raise InputError(f"e-node {position}: there are {len(shown)}")
        index, (number, node) = shown[position]
        if index >= len(self.found.space.choices) or not node.is_launch:
            raise InputError(f"{node} is no kernel of its own: it has no price")
        kernel = kernel_of(specs_of(self.found.space, self.model, self.limits.batch), number, node)
        prices = {known: value for known, value in self.model.prices.items() if known != kernel}
        self._reprice(prices if price is None else {**prices, kernel: price})

    def reset_prices(self) -> None:
        """The model's own prices."""
        self._reprice({})

    def _reprice(self, prices: Mapping[Kernel, float]) -> None:
        model = Repriced(self.model.own, prices)
        self._take(repriced(self.found, model), frozenset())
        self.model = model

    def _take(self, found: Search, fresh: frozenset[str]) -> None:
        self.before, self.found, self.fresh = self.found, found, fresh
        self.version += 1

    def state(self) -> dict[str, Any]:
        """All that a page shows, as JSON values: the e-graph (`report.view.egraph_data`, with `fresh`, the positions of
        the rules that were put in last), the launches, what the last change did, rules by family."""
        found, before = self.found, self.before
        data = egraph_data(found, self.derivation)
        data["fresh"] = [index for index, name in enumerate(data["rules"]) if name in self.fresh]
        solution, was = found.solution, before.solution
        return {
            "name": self.name, "version": self.version, "model": self.model.name, "unit": self.model.unit,
            "cost": solution.cost, "bound": solution.bound, "proved": solution.proved, "before": was.cost,
            "nodes": len(found.space.nodes), "nodes_before": len(before.space.nodes),
            "classes": len(found.space.classes), "classes_before": len(before.space.classes),
            "stopped": found.saturation.stopped, "launches": list(self._launches()), "families": self._families(),
            "prices": [{"kernel": kernel.op, "price": price} for kernel, price in self.model.prices.items()],
            "egraph": data,
        }  # fmt: skip

    def _launches(self) -> Iterator[dict[str, Any]]:
        for before, after in diff(self.before, self.found).pairs:
            shown = after or before
            assert shown is not None
            kind = "same" if before and after else "gone" if before else "new"
            text = f"{shown.tensor} = {shown.kernel}({', '.join(shown.reads)})"
            yield {"kind": kind, "text": text, "cost": shown.cost}

    def _families(self) -> list[dict[str, Any]]:
        on, matches = set(self.on), self.found.saturation.matches
        families: dict[str, list[dict[str, Any]]] = {}
        for rule in registered_rules():
            if rule.family not in TARGET:
                words = " ".join(rule.doc.partition("\n\n")[0].split())
                families.setdefault(rule.family, []).append(
                    {"name": rule.name, "doc": words, "on": rule.name in on, "matches": matches[rule.name]}
                )
        return [{"name": name, "rules": rules} for name, rules in families.items()]
