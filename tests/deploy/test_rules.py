"""Declaring rules: what a declaration compiles to, what it draws, and what it refuses."""

from __future__ import annotations

from random import Random

import pytest

from eqsat_deploy.errors import RuleError, UnknownNameError
from eqsat_deploy.language import binary, dims, linear, relu, reshape, unary
from eqsat_deploy.rules import EgglogRule, TextRule, constant, integer, name, rule, rules_of, select, shape


@rule("real", x="n c h w", weight="o c*h*w", h=(2, 3))
def flat(x, weight, b, n, c, h, w):
    """A Linear on a flattened map, as itself."""
    return linear(reshape(x, dims(n, c * h * w)), weight, b), linear(
        reshape(x, dims(n, c * h * w)), weight, b
    )


def test_names_families_and_documentation():
    assert flat.name == "flat"
    assert flat.family == "test-rules"
    assert flat.doc == "A Linear on a flattened map, as itself."
    assert isinstance(flat, EgglogRule)
    assert flat.dimensions == ("n", "c", "h", "w", "o")


def test_draws_follow_the_declaration():
    for seed in range(20):
        drawn = flat.draw(Random(seed), batch=3)
        n, c, h, w = drawn["x"]
        assert n == 3
        assert h in (2, 3)
        assert drawn["weight"] == (drawn["o"], c * h * w)


def test_the_same_seed_draws_the_same():
    assert flat.draw(Random(7), 2) == flat.draw(Random(7), 2)


def test_prefixes_of_shapes():
    @rule("exact", x="... k", s="1... k")
    def prefixes(x, s):
        """A product with a vector."""
        return binary("mul", x, s), binary("mul", x, s), [constant(s)]

    for seed in range(20):
        drawn = prefixes.draw(Random(seed), 2)
        assert len(drawn["x"]) >= 2
        assert all(d == 1 for d in drawn["s"][:-1])
    text = prefixes.text(0)
    assert "(const s)" in text
    assert "(= 1 (vec-get s_s 5))" in text


def test_both_directions_are_compiled_under_one_name():
    @rule("exact", f=name("relu"), both=True)
    def both_ways(x, f):
        """A function of a reshaped tensor."""
        return unary(f, reshape(x, shape(x))), reshape(unary(f, x), shape(x))

    assert ':name "both-ways"' in both_ways.text(0)
    assert ':name "both-ways#reverse"' in both_ways.text(0)


def test_rules_that_find_one_of_their_own_variables_collapse():
    @rule("exact")
    def collapses(x):
        """A reshape to its own shape."""
        return reshape(x, shape(x)), x

    assert collapses.collapses
    assert not flat.collapses


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": "probably"}, "kind must be one of"),
        ({"kind": "exact", "phase": "someday"}, "phase one of"),
        ({"kind": "exact", "y": "n"}, "'y' is neither"),
    ],
)
def test_wrong_declarations_are_errors_that_name_the_rule(options, words):
    kind = options.pop("kind")
    with pytest.raises(RuleError, match=f"test_rules.*{words}"):

        @rule(kind, **options)
        def wrong(x):
            """Declared wrongly."""
            return relu(x), x


def test_a_rule_must_return_two_sides():
    @rule("exact")
    def one_side(x):
        """Nothing to equate."""
        return (relu(x),)

    with pytest.raises(RuleError, match="two equal terms"):
        one_side.text(0)


def test_text_rules_are_named_and_numbered():
    text = TextRule(
        "twice",
        "own",
        "exact",
        "rewrites",
        "Two.",
        "(rule (a) (fired $RULE e) :ruleset r) (rule (b) () :ruleset r)",
    )
    compiled = text.text(7)
    assert '"twice#0"' in compiled
    assert '"twice#1"' in compiled
    assert "(fired 7 e)" in compiled
    assert not text.collapses


def test_selection_by_family_name_and_object():
    other = TextRule("other", "own", "exact", "rewrites", "Another.", "")
    third = TextRule("third", "elsewhere", "exact", "rewrites", "A third.", "")
    rules = [flat, other, third]
    assert select(rules, ["own"]) == [other]
    assert select(rules, ["third", "flat"]) == [flat, third]
    assert select([flat], [other]) == [other]
    with pytest.raises(UnknownNameError, match="did you mean 'third'"):
        select(rules, ["thirt"])


def test_rules_of_a_module_come_in_order_of_definition():
    namespace = {"b": flat, "a": TextRule("a", "own", "exact", "rewrites", "A.", ""), "integer": integer}
    assert [r.name for r in rules_of(namespace)] == ["flat", "a"]
