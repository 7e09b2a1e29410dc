"""Declaring rules: what a declaration compiles to, what it draws, and what it refuses."""

from __future__ import annotations

from random import Random

import pytest
import torch

from eqsat_deploy.checks import check
from eqsat_deploy.egraph import EGraph, rule_text
from eqsat_deploy.errors import RuleError, UnknownNameError
from eqsat_deploy.language import add, binary, conv2d, dims, linear, mul, relu, reshape, sub, unary
from eqsat_deploy.language.expressions import Guard, Variable, one_of
from eqsat_deploy.rules import (
    EgglogRule,
    Relational,
    commutative,
    constant,
    integer,
    integers,
    name,
    number,
    optional,
    rule,
    rules,
    rules_of,
    select,
    several,
    shape,
    window,
)  # fmt: skip
from eqsat_deploy.rules.facts import Fired, Match, Pattern, Size, Union


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
    text = rule_text(prefixes, 0)
    assert "(const s)" in text
    assert "(= 1 (vec-get s-s 5))" in text


def test_both_directions_are_compiled_under_one_name():
    @rule("exact", f=name("relu"), both=True)
    def both_ways(x, f):
        """A function of a reshaped tensor."""
        return unary(f, reshape(x, shape(x))), reshape(unary(f, x), shape(x))

    assert ':name "both-ways"' in rule_text(both_ways, 0)
    assert ':name "both-ways#reverse"' in rule_text(both_ways, 0)


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
        one_side.clauses()


E, X = Variable("T", "e"), Variable("T", "x")


def relational(name, family="own"):
    twice = ((Match(E, Pattern(unary, ("relu", X))),), (Union(E, X), Fired(E)))
    return Relational(name, family, "exact", "rewrites", "Two parts.", "to be tested", (twice, twice))


def test_relational_rules_are_named_and_numbered():
    compiled = rule_text(relational("twice"), 7)
    assert '"twice#0"' in compiled
    assert '"twice#1"' in compiled
    assert "(fired 7 e)" in compiled
    assert not relational("twice").collapses
    assert relational("twice").heads == {unary}
    assert isinstance(relational("twice"), EgglogRule)


def test_heads_are_the_operators_on_top_of_left_sides():
    @rule("exact", f=name("relu"), both=True)
    def both_ways(x, f):
        """A function of a reshaped tensor."""
        return unary(f, reshape(x, shape(x))), reshape(unary(f, x), shape(x))

    assert flat.heads == {linear}
    assert both_ways.heads == {unary, reshape}


def test_facts_are_typed():
    (clause,) = flat.clauses()
    assert [f.root.name for f in clause.facts if isinstance(f, Match)] == ["e-0"]
    ranks = {f.tensor.name: f.value for f in clause.facts if isinstance(f, Size) and f.slot == 0}
    assert ranks == {"x": 4, "weight": 2}


def test_a_guard_is_no_condition_of_python():
    @rule("exact", x="n c", k=number(1.0))
    def branches(x, k):
        """One or the other."""
        if k == 1.0:
            return relu(x), x
        return x, relu(x)

    with pytest.raises(RuleError, match=r"rule 'branches'.*return the guard in the list"):
        branches.clauses()
    x = torch.ones(2, 3)
    assert branches(x=x, k=1.0)[0][0][1] is x, "on plain values it is one"
    assert branches(x=x, k=2.0)[0][0][0] is x


@pytest.mark.parametrize(
    "guard", [constant(X), one_of(Variable("String", "f"), "relu"), Variable("i64", "k") > 1]
)
def test_no_guard_has_a_truth_value(guard):
    assert isinstance(guard, Guard)
    with pytest.raises(RuleError, match="no truth value"):
        bool(guard)


def test_plain_values_compare_as_ever():
    assert one_of("relu", "relu", "gelu")
    assert constant(2.0) is True
    assert not isinstance(shape(torch.zeros(2)) == (2,), Guard)


def test_selection_by_family_name_and_object():
    other, third = relational("other"), relational("third", "elsewhere")
    rules = [flat, other, third]
    assert select(rules, ["own"]) == [other]
    assert select(rules, ["third", "flat"]) == [flat, third]
    assert select([flat], [other]) == [other]
    with pytest.raises(UnknownNameError, match="did you mean 'third'"):
        select(rules, ["thirt"])


def test_rules_of_a_module_come_in_order_of_definition():
    namespace = {"b": flat, "a": relational("a"), "integer": integer}
    assert [r.name for r in rules_of(namespace)] == ["flat", "a"]


def test_a_window_is_one_argument_of_several_variables():
    @rule(
        "real",
        x="n c h w",
        weight="o c 1 1",
        b="o",
        window=window(integers((1, 1)), (0, 0), groups=integer(1)),
    )
    def convolved(x, weight, b, window):
        """A made-up rule."""
        whole = conv2d(x, weight, b, *window)
        return whole, whole, [*window.everywhere, *window.unpadded, window.groups == 1]

    assert set(convolved.attributes) == {"stride", "groups"}
    text = rule_text(convolved, 0)
    assert "(Conv2d x weight b stride v-0 v-1 groups)" in text
    assert "(= v-0 (vec-of 0 0))" in text
    assert "(= (vec-get stride 0) 1)" in text
    assert check(convolved).ok


def test_a_guard_that_is_false_as_it_is_written_is_an_error():
    @rule("real", x="n c h w", weight="o c 1 1", window=window(integers((1, 1)), (1, 1)))
    def padded(x, weight, b, window):
        """A made-up rule."""
        whole = conv2d(x, weight, b, *window)
        return whole, whole, window.unpadded

    with pytest.raises(RuleError, match="never holds"):
        padded.clauses()


def test_variants_are_rules_of_their_own():
    @rules(
        "real", x="~ a b", y="~ a b", m=optional("~ a b", "-under-mask"), order=commutative("left-", "right-")
    )
    def product(x, y, m, order):
        """A made-up rule."""
        whole = mul(*order(x, y))
        return (whole, mul(y, x)) if m is None else (add(whole, m), add(m, whole))

    names = [each.name for each in product]
    assert names == ["left-product", "right-product", "left-product-under-mask", "right-product-under-mask"]
    assert [set(each.tensors) for each in product] == [{"x", "y"}] * 2 + [{"x", "y", "m"}] * 2
    left, right = (each.clauses()[0].facts[0].form for each in product[:2])
    assert [a.name for a in left.args[1:]] == ["x", "y"]
    assert [a.name for a in right.args[1:]] == ["y", "x"]
    assert list(rules_of({"product": product, "other": (1, 2)})) == list(product)


def test_so_many_alike_are_tuples_of_their_parts_and_sizes():
    @rules("real", x="n k", branches=several({"two-": 2, "three-": 3}, ("o#",), v="o# k", b="o#"))
    def sums(x, branches):
        """A made-up rule; the names of its variables are those that a compiled rule might give itself."""
        total = sum(o for _, _, o in branches)
        (v, b, o), *_ = branches
        return linear(x, v, b), reshape(linear(x, v, b), dims(shape(x)[5], o)), [
            total > 0, *(constant(t) for w, c, _ in branches for t in (w, c)),
        ]  # fmt: skip

    two, three = sums
    assert list(two.tensors) == ["x", "v0", "v1", "b0", "b1"]
    assert set(three.dimensions) == {"n", "k", "o0", "o1", "o2"}
    EGraph([two])


def test_of_two_orders_the_wrong_one_is_caught():
    @rules("real", x="~ a b", y="~ a b", order=commutative("", "-swapped"))
    def difference(x, y, order):
        """A difference is that of its operands, in one order."""
        return sub(*order(x, y)), add(x, unary("neg", y))

    right, wrong = difference
    assert check(right).ok
    assert "difference-swapped" in check(wrong).failure
