"""Which rules to saturate with: those that are registered, and what names of rules and families stand for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from eqsat_deploy.errors import InputError, RegistrationError, RuleError
from eqsat_deploy.rules import EgglogRule, select
from eqsat_extraction.registry import Registry

FOUNDING = "conversions"
"""Stands for the founding families, applied wherever they match, whatever they cost."""
CONVERSIONS = ("linear-to-convolution", "identity-pool", "attention")
BETWEEN = "unary-through-reshape"  # an activation between Flatten and Linear moves before the convolution
TARGET = ("kernels", "quantization")
PLAIN = ("folding", *TARGET)

RULES: Registry[object] = Registry(
    "eqsat_deploy.rules", "source of rules", callable, "to return a list of rules"
)


@dataclass(frozen=True)
class Selection:
    """Rules to saturate with. Where one of the families `forced` finds another form, the model's own is ruled out."""

    rules: tuple[EgglogRule, ...]
    forced: tuple[str, ...] = ()

    def reaches(self, other: Selection) -> bool:
        """Whether every form that `other` reaches is among those that these rules reach."""
        return not self.forced and {r.name for r in other.rules} <= {r.name for r in self.rules}


Rules = str | Iterable[str | EgglogRule] | Selection | None
"""What `optimize(rules=...)` takes: names of families or rules, or rule objects; all rules when missing."""


@cache
def registered_rules() -> tuple[EgglogRule, ...]:
    """Every rule registered under the entry-point group `eqsat_deploy.rules`, built-in ones first.

    Raises:
        RuleError: two rules have one name; the message names both sources.
        RegistrationError: no rules are registered.
    """
    found: dict[str, tuple[EgglogRule, str]] = {}
    entries = RULES.entries()
    for source in sorted(entries, key=lambda name: (name != "builtin", name)):
        for rule in entries[source].load()():
            if rule.name in found:
                raise RuleError(
                    f"two rules are called {rule.name!r}: from {found[rule.name][1]} and {entries[source].value}"
                )
            found[rule.name] = (rule, entries[source].value)
    if not found:
        raise RegistrationError(
            "no rules are registered: run `pip install -e .` in the checkout, or pass rules="
        )
    return tuple(rule for rule, _ in found.values())


def find_rules(rules: Rules = None) -> Selection:
    """The rules asked for, and the target's kernels and quantization.

    Raises:
        UnknownNameError: a name is neither a rule nor a family.
        InputError: something else than names and rules.
    """
    if isinstance(rules, Selection):
        return rules
    known = registered_rules()
    if not isinstance(rules, str | Iterable | None):
        raise InputError(f"rules={rules!r}: names of rules or families, or rules, are expected")
    wanted = ["all"] if rules is None else [rules] if isinstance(rules, str) else list(rules)
    if "all" in wanted:  # and what is named or given besides
        wanted = [*dict.fromkeys(rule.family for rule in known), *(name for name in wanted if name != "all")]
    forced = CONVERSIONS if FOUNDING in wanted else ()
    named = [name for name in wanted if name != FOUNDING]
    return Selection(tuple(select(known, [*TARGET, *forced, *([BETWEEN] if forced else []), *named])), forced)


def plain_rules() -> Selection:
    """What an engine reaches by itself: BatchNorm folded, epilogues fused, INT8 where it pays."""
    return Selection(tuple(select(registered_rules(), PLAIN)))
