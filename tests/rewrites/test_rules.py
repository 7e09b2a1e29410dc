"""Derived tests of every registered rule, and rules that are wrong on purpose."""

from __future__ import annotations

import pytest
import torch

from eqsat_deploy.checks import BATCHES, check, check_domain, check_field, check_values, is_polynomial, some
from eqsat_deploy.rules import KINDS, PHASES, Rule
from eqsat_deploy.selection import registered_rules

RULES = [r for r in registered_rules() if isinstance(r, Rule)]
DRAWS = 4


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def by_name(rules):
    return pytest.mark.parametrize("rule", rules, ids=[r.name for r in rules])


@pytest.mark.parametrize("batch", BATCHES)
@by_name(RULES)
def test_both_sides_agree_on_random_tensors(rule, batch):
    for sample in some(rule, 0, batch, DRAWS):
        check_values(sample, generator())


@by_name(RULES)
def test_rules_of_linear_operators_hold_over_a_prime_field(rule):
    samples = [s for batch in BATCHES for s in some(rule, 1, batch, DRAWS) if is_polynomial(s)]
    for sample in samples:
        check_field(sample, generator())
    if rule.name in ("flatten-linear-as-convolution", "scale-after-convolution", "reshape-of-reshape"):
        assert samples, "made of linear operators, sums and products alone"


@by_name(RULES)
def test_a_rule_fires_inside_its_domain_and_not_beside_it(rule):
    check_domain(rule, 0, BATCHES[0])


def test_guard_checks_have_cases_outside_the_domain():
    wanted = {"flatten-linear-as-convolution", "adaptive-pool-of-one-pixel", "scale-after-linear"}
    assert all(check_domain(rule, 0, BATCHES[0], 1) > 0 for rule in RULES if rule.name in wanted)


def test_every_rule_is_declared_in_full():
    names = [r.name for r in registered_rules()]
    assert len(set(names)) == len(names)
    for rule in registered_rules():
        assert rule.kind in KINDS, rule.name
        assert rule.phase in PHASES, rule.name
        assert rule.family, rule.name
        assert rule.doc.strip(), rule.name


def test_approximate_rules_never_join_exact_classes():
    for rule in registered_rules():
        if rule.kind == "approximate":
            assert rule.phase == "quantization", rule.name


def test_what_is_no_equation_says_why_nothing_is_derived_from_it():
    relational = [r for r in registered_rules() if not isinstance(r, Rule)]
    assert len(relational) == 11
    for rule in relational:
        assert len(check(rule).unchecked) > 20, rule.name
        assert check(rule).ok
