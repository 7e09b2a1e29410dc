"""What is derived from a rule's declaration: that both sides are equal where it holds, and that it acts there alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from eqsat_deploy.checks.agreement import check_field, check_values, is_polynomial
from eqsat_deploy.checks.domain import check_domain
from eqsat_deploy.checks.samples import UnsoundRule, draw, some
from eqsat_deploy.errors import RuleError
from eqsat_deploy.rules.rule import EgglogRule, Rule

__all__ = [
    "BATCHES", "Checked", "UnsoundRule", "check", "check_all", "check_domain", "check_field", "check_values", "draw",
    "is_polynomial", "some",
]  # fmt: skip

BATCHES = (2, 3)
DRAWS = 4


@dataclass(frozen=True)
class Checked:
    """What was checked of a rule.

    Attributes:
        rule: its name.
        samples: of its domain, at every batch size.
        polynomial: how many of them were compared over a prime field as well.
        beside: cases beside its domain, on which it must not act.
        failure: what is wrong with it; empty where nothing is.
        unchecked: why nothing is derived from it; empty where something is.
    """

    rule: str
    samples: int = 0
    polynomial: int = 0
    beside: int = 0
    failure: str = ""
    unchecked: str = ""

    @property
    def ok(self) -> bool:
        """Whether no check caught it."""
        return not self.failure

    @property
    def checks(self) -> tuple[str, ...]:
        """What was checked, in words."""
        if self.unchecked:
            return ()
        field = f"{self.polynomial} over a prime field" if self.polynomial else ""
        return tuple(filter(None, ("values and shapes", field, f"{self.beside} cases beside its domain")))

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "rule": self.rule, "ok": self.ok, "samples": self.samples, "checks": list(self.checks),
            "failure": self.failure, "unchecked": self.unchecked,
        }  # fmt: skip


def check(rule: EgglogRule, *, seed: int = 0, draws: int = DRAWS) -> Checked:
    """All checks that can be derived from a rule, on `draws` samples at every batch size. Raises nothing that the rule
    is to blame for: see `Checked.failure`."""
    if not isinstance(rule, Rule):
        return Checked(rule.name, unchecked=getattr(rule, "unchecked", "") or "is not written as a function")
    samples, polynomial, beside = 0, 0, 0
    try:
        rule.clauses()
        for batch in BATCHES:
            for sample in some(rule, seed, batch, draws):
                samples += 1
                check_values(sample, torch.Generator().manual_seed(seed))
                if is_polynomial(sample):
                    polynomial += 1
                    check_field(sample, torch.Generator().manual_seed(seed))
        beside = check_domain(rule, seed, BATCHES[0])
    except RuleError as error:
        return Checked(rule.name, samples, polynomial, beside, failure=str(error))
    return Checked(rule.name, samples, polynomial, beside)


def check_all(rules: Iterable[EgglogRule], *, seed: int = 0) -> Iterator[Checked]:
    """`check` of every rule, as they come."""
    return (check(rule, seed=seed) for rule in rules)
