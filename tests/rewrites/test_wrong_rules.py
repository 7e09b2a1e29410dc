"""Rules that are wrong on purpose: every one is caught, each by the checks that can see its kind of mistake."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from eqsat_deploy.checks import (
    BATCHES,
    UnsoundRule,
    check,
    check_domain,
    check_field,
    check_values,
    is_polynomial,
    some,
)
from eqsat_deploy.errors import RuleError
from eqsat_deploy.language import (
    adaptive_avg_pool2d,
    add,
    avg_pool2d,
    binary,
    concat,
    conv2d,
    dims,
    linear,
    matmul,
    mul,
    permute,
    power,
    reduce_,
    reshape,
    scalar,
    slice_,
    softmax,
    unary,
)  # fmt: skip
from eqsat_deploy.rules import Rule, acting, constant, integer, name, number, positive, rule, shape, tensor
from eqsat_deploy.selection import registered_rules
from eqsat_deploy.soundness import check_egraph
from eqsat_rewrites.demand import MAP, slice_of

BATCH_AXIS = (0, 0, 0, 0, 0, 1, 0)


@rule("real", x="n c h w", weight="o c*h*w")
def transposed_weight(x, weight, b, n, c, h, w, o):
    """The weight read as (in, out)."""
    kernel = permute(reshape(weight, dims(c, h, w, o)), (0, 1, 2, 6, 3, 4, 5))
    return linear(reshape(x, dims(n, c * h * w)), weight, b), reshape(
        conv2d(x, kernel, b, (1, 1), (0, 0), (1, 1), 1), dims(n, o)
    )


@rule("real", x="n c h w")
def dropped_guard(x):
    """A pool to 1x1 is the identity, without asking for a 1x1 map."""
    return adaptive_avg_pool2d(x, (1, 1)), x


@rule("real", x="n c h w", weight="o c 1 1", b="o", t="1... o 1 1")
def dropped_rank_guard(x, weight, b, t, o):
    """A shift folds into the bias, also where it lengthens the shape."""
    whole = conv2d(x, weight, b, (1, 1), (0, 0), (1, 1), 1)
    folded = conv2d(x, weight, add(b, reshape(t, dims(o))), (1, 1), (0, 0), (1, 1), 1)
    return add(whole, t), folded, [constant(t)]


@rule("real", x="n s e")
def wrong_axis(x):
    """Softmax over positions instead of features."""
    return softmax(x, 6), softmax(x, 5)


@rule("exact", x="n c h w", h=(3, 4), w=(3, 4))
def pad_off_by_one(x):
    """A 3x3 average pool without padding, given padding."""
    return avg_pool2d(x, (3, 3), (1, 1), (0, 0), 0, 1), avg_pool2d(x, (3, 3), (1, 1), (1, 1), 0, 1)


@rule("real", x="n c", weight="o c", b="o", s="1... o", t="o")
def bias_forgotten(x, weight, b, s, t, o):
    """A scale moves into the weight, the bias stays."""
    return mul(linear(x, weight, b), s), linear(x, mul(weight, reshape(s, dims(o, 1))), b), [constant(s)]


@rule("real", x="n c", n=(2,))
def constant_of_one_batch(x):
    """The mean over the batch is half the sum: true for batches of two."""
    return reduce_("mean", x, BATCH_AXIS), mul(reduce_("sum", x, BATCH_AXIS), scalar(0.5))


@rule("real", x="n c")
def constant_from_the_batch(x, n):
    """The mean over the batch is the sum divided by it: true, but the batch is a symbol and no number."""
    return reduce_("mean", x, BATCH_AXIS), binary("div", reduce_("sum", x, BATCH_AXIS), unary("abs", size(n)))


def size(n):
    """A rule that writes a dimension where a number belongs."""
    return scalar(power(n, 1.0))


@rule("exact", x="a b c", f=name("relu", "sigmoid"))
def sides_of_two_shapes(x, f):
    """The transposition is lost."""
    return unary(f, permute(x, (0, 1, 2, 3, 4, 6, 5))), unary(f, x)


@rule("real", x="~ a b", y="~ a b", k=number(2.0))
def guard_that_never_holds(x, y, k):
    """Nothing of the domain passes."""
    return add(mul(x, scalar(k)), y), add(y, x), [shape(x)[0] == 5]


@rule("exact", x="n c h w", ceil=integer(0, 1))
def rounds_but_claims_to_be_exact(x, ceil):
    """A reassociated product is no data movement."""
    three, third = scalar(3.0), scalar(1.0 / 3.0 + 1e-11)
    return avg_pool2d(mul(mul(x, three), third), (1, 1), (1, 1), (0, 0), ceil, 1), avg_pool2d(
        x, (1, 1), (1, 1), (0, 0), ceil, 1
    )


@rule("real", x="... k", v="o k", u="o k", b="o", d="o", o=(2, 3))
def slices_exchanged(x, v, u, b, d, o):
    """Two Linears on one input are one, and each gets the other's part of it."""
    whole = linear(x, concat(5, v, u), concat(6, b, d))
    first, second = slice_(whole, 6, 0, o, 1), slice_(whole, 6, o, 2 * o, 1)
    return (linear(x, v, b), second), (linear(x, u, d), first), [constant(v), constant(u)]


@rule("exact", x="~ a b", y="~ a b", f=name("add", "mul"))
def dropped_name(x, y, f):
    """Commutes whatever it is: nothing says that only sums and products do."""
    return binary(f, x, y), binary(f, y, x), [constant(x)]


@rule("real", variance="~ a b")
def root_of_square(variance):
    """True of what is positive, which a name does not say."""
    return unary("sqrt", unary("pow(2.0)", variance)), variance


WRONG = [v for v in list(globals().values()) if isinstance(v, Rule)]


class Zoo(nn.Module):
    """A small model that holds the left side of every wrong rule that needs a model to be seen."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * x.mean(0, keepdim=True)


def caught_by_values(wrong: Rule) -> bool:
    try:
        for batch in BATCHES:
            for sample in some(wrong, 0, batch, 6):
                check_values(sample, torch.Generator().manual_seed(0))
    except UnsoundRule:
        return True
    return False


def caught_over_a_field(wrong: Rule) -> bool:
    try:
        for sample in some(wrong, 0, 2, 6):
            if is_polynomial(sample):
                check_field(sample, torch.Generator().manual_seed(0))
    except UnsoundRule:
        return True
    return False


def caught_by_guards(wrong: Rule) -> bool:
    try:
        check_domain(wrong, 0, BATCHES[0])
    except UnsoundRule:
        return True
    return False


def caught_in_a_model(wrong: Rule) -> bool:
    try:
        return not check_egraph(Zoo(), torch.randn(3, 5), rules=[wrong]).ok
    except RuleError:
        return True


CHECKS = {
    "values": caught_by_values, "field": caught_over_a_field, "guards": caught_by_guards, "model": caught_in_a_model,
}  # fmt: skip
SEEN_BY = {
    "transposed-weight": {"values", "field"},
    "dropped-guard": {"values"},
    "dropped-rank-guard": {"guards"},
    "dropped-name": {"guards"},
    "wrong-axis": {"values"},
    "pad-off-by-one": {"values"},
    "bias-forgotten": {"values", "field"},
    "constant-of-one-batch": {"values", "model"},
    "constant-from-the-batch": {"model"},
    "sides-of-two-shapes": {"values"},
    "slices-exchanged": {"values", "field"},
    "guard-that-never-holds": {"values", "guards"},
    "rounds-but-claims-to-be-exact": {"values"},
    "root-of-square": {"values"},
}


@pytest.mark.parametrize("wrong", WRONG, ids=[r.name for r in WRONG])
def test_wrong_rules_are_caught(wrong):
    caught = {check for check in SEEN_BY[wrong.name] if CHECKS[check](wrong)}
    assert caught == SEEN_BY[wrong.name]


def test_values_alone_miss_what_the_other_checks_are_for():
    assert not caught_by_values(constant_from_the_batch), "true for every batch that is a number"
    for wrong in (dropped_rank_guard, dropped_name):
        assert not caught_by_values(wrong), "the declared samples do not reach it"


def test_every_check_catches_something_and_none_cries_wolf():
    assert set().union(*SEEN_BY.values()) == set(CHECKS)
    right = next(r for r in registered_rules() if r.name == "flatten-linear-as-convolution")
    assert isinstance(right, Rule)
    assert not any(check(right) for check in CHECKS.values())


def test_a_rule_with_a_wrong_guard_is_caught_although_its_sides_agree_where_it_was_sampled():
    right = next(r for r in registered_rules() if r.name == "adaptive-pool-of-one-pixel")
    assert isinstance(right, Rule)
    relaxed = dataclasses.replace(
        right, domains=dict(right.domains) | {"x": tensor("n c h w")}, name="relaxed"
    )
    assert caught_by_values(relaxed)
    assert not caught_by_values(right)


def test_what_an_argument_is_called_changes_nothing():
    @rule("real", x=positive("~ a b"))
    def root_of_positive(x):
        """What the name does not say, the declaration does."""
        return unary("sqrt", unary("pow(2.0)", x)), x

    assert not caught_by_values(root_of_positive)
    assert caught_by_values(root_of_square)


@pytest.mark.parametrize("wrong", WRONG, ids=[r.name for r in WRONG])
def test_all_checks_together_catch_what_one_of_them_does(wrong):
    outcome = check(wrong)
    assert outcome.ok == (SEEN_BY[wrong.name] == {"model"})
    assert wrong.name in outcome.failure or outcome.ok


@pytest.mark.parametrize(("along", "caught"), [("slot", False), ((), True), ((6,), True)])
def test_wrongly_declared_axes_are_caught(along, caught):
    declared = acting(dataclasses.replace(softmax, along=along), along=integer(5, 6))
    assert (
        caught_by_values(rule("real", **MAP | {"slot": integer(5, 6), "apply": declared})(slice_of)) == caught
    )


def test_an_operator_without_axes_to_act_along_moves_nothing():
    with pytest.raises(RuleError, match="'matmul' does not declare which axes it acts `along`"):
        acting(matmul)
