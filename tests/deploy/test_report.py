"""What a report says of a choice: the equalities behind it, before and after, what rules are worth."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import replace

import pytest
import torch
from torch import nn

from eqsat_deploy.derivation import Derivation
from eqsat_deploy.errors import InputError, UnknownNameError
from eqsat_deploy.optimizer import optimize
from eqsat_deploy.provenance import computed, inside_of, why_unchosen
from eqsat_deploy.report.explaining import explain_node
from eqsat_deploy.rules import Equation, Term, rule, select
from eqsat_deploy.search import search
from eqsat_deploy.selection import registered_rules
from tests.deploy.test_research import IMAGE, Branches, Head, PooledBlock, build


class Attention(nn.Module):
    """A block whose scale, projections and head are all rewritten."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        x = self.norm(x)
        y, _ = self.attention(x, x, x, need_weights=False)
        return self.head((x + y)[:, 0])


TOKENS = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
MODELS = [(Head, IMAGE), (PooledBlock, IMAGE), (Branches, IMAGE), (Attention, TOKENS)]


def optimized(cls, example, **options):
    return optimize(build(cls), example, **{"cost": "trt_int8", **options})


@pytest.fixture(scope="module", params=MODELS, ids=lambda m: m[0].__name__)
def any_report(request):
    return optimized(*request.param).report


@pytest.fixture(scope="module")
def report():
    return optimized(PooledBlock, IMAGE).report


# -- derivation --------------------------------------------------------------------------------------------


def test_everything_in_the_egraph_is_derived_again(any_report):
    found = any_report.searches.found
    derivation = Derivation(found)
    members = set(found.space.nodes)
    assert set(derivation.entries) == members == set(derivation.born)
    assert set(derivation.made) == members - found.space.original
    terms = {}
    for term, number in enumerate(derivation.class_of):
        terms.setdefault(number, set()).add(derivation.find(term))
    assert all(len(equal) == 1 for equal in terms.values())


class Siblings(nn.Module):
    """Four layers that read one tensor: they merge in pairs and threes, in every order."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 4 + width) for width in range(4))

    def forward(self, x):
        return [torch.relu(layer(x)) for layer in self.layers]


def test_what_can_be_derived_in_many_ways_is_written_in_few():
    found = optimized(Siblings, (torch.randn(2, 8),)).report.searches.found
    derivation = Derivation(found)
    assert set(derivation.entries) == set(found.space.nodes)
    assert len(derivation.written) < 4 * len(found.space.nodes)  # it was 150 times as many


def test_what_made_an_e_node_acted_on_its_e_class_or_around_it(any_report):
    found = any_report.searches.found
    derivation = Derivation(found)
    fired = {index for indices in found.space.fired.values() for index in indices}
    assert set(derivation.made.values()) <= fired
    assert all(born > 0 for member, born in derivation.born.items() if member not in found.space.original)
    assert max(derivation.born.values()) <= len(derivation.phases) == len(found.saturation.iterations)


def test_the_kernels_of_a_form_compute_what_they_write(any_report):
    found = any_report.searches.found
    for index in found.chosen:
        number, node = found.space.choices[index]
        members = computed(found.space, found.space.choices[index])
        assert all(found.space.owner[node] == owner for owner, node in members)
        own = found.space.classes[number].quantized_of
        assert not members or members[-1][0] == (number if own is None else own)
        assert len(members) == 1 + len(node.steps) or node.is_leaf or not node.steps


# -- explaining --------------------------------------------------------------------------------------------


def test_every_step_is_evaluated_and_true(any_report):
    steps = 0
    for explained in any_report.explain("*"):
        assert len(explained.errors) == len(explained.steps)
        assert all(error < 1e-9 for error in explained.errors)
        steps += len(explained.steps)
    assert steps or any_report.model == "Branches"


def test_the_rules_of_the_steps_are_enough_for_the_form(any_report):
    found = any_report.searches.found
    named = {step.rule for explained in any_report.explain("*") for step in explained.steps}
    launched = [r for r in registered_rules() if r.phase in ("kernels", "quantization")]
    rules = (*select(registered_rules(), named), *launched)
    again = search(found.lowered, replace(found.selection, rules=rules), found.priced.model)
    assert again.solution.cost == pytest.approx(found.solution.cost, rel=1e-6)


def test_a_step_names_rule_binding_and_both_sides(report):
    (explained,) = report.explain("relu")
    steps = {step.rule: step for step in explained.steps}
    pool = steps["adaptive-pool-to-own-size"]
    assert (pool.left, pool.right) == ("adaptive_avg_pool2d(conv2d_1, (8, 8))", "conv2d_1")
    assert pool.binding["x"] == "conv2d_1"
    assert steps["scale-after-convolution"].binding["weight"] == "conv.weight"
    assert explained.kernels[-1].startswith("relu = conv2d + relu(conv2d, conv.weight*, conv.bias*)")
    assert "adaptive-pool-to-own-size" in str(explained)
    json.dumps(explained.to_dict())


def test_steps_come_in_an_order_in_which_each_follows(report):
    """What a step reads that the model does not have was made by one before it."""
    (explained,) = report.explain("relu")
    found = report.searches.found
    known = set(found.space.row_class)
    for step in explained.steps:
        sides = [number for number, _ in step.members]
        assert any(number in known for number in sides)
        known |= set(sides)


def test_a_wrong_rule_shows_in_the_error_of_its_step():
    @rule("real", x="n c h w")
    def wrong_pool(x: Term) -> Equation:
        """The output of a pool is its input, nearly."""
        from eqsat_deploy.language import adaptive_avg_pool2d, binary, scalar

        return adaptive_avg_pool2d(x, (8, 8)), binary("add", x, scalar(0.5))

    rules = [wrong_pool, "folding", "merging"]
    built = optimized(PooledBlock, IMAGE, rules=rules, check=False).report
    (explained,) = built.explain("pool")
    assert max(explained.errors) > 1e-3 or not explained.steps
    wrong = [
        e
        for x in built.explain("*")
        for s, e in zip(x.steps, x.errors, strict=True)
        if s.rule == "wrong-pool"
    ]
    assert wrong
    assert min(wrong) > 1e-3


def test_a_tensor_inside_a_kernel_says_so():
    report = optimized(Head, IMAGE).report
    (explained,) = report.explain("bn")
    assert explained.why == "computed inside conv2d + relu, which writes relu"
    assert explained.kernels == report.explain("relu")[0].kernels


def test_a_tensor_that_is_not_needed_says_so():
    class Unread(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.second(self.first(x))

    report = optimized(Unread, torch.randn(2, 4), cost="kernels").report
    found = report.searches.found
    (number,) = found.classes_of("first")
    assert len(report.searches.found.launches) == 1
    (explained,) = report.explain("first")
    assert (
        explained.why == why_unchosen(found, number) == "not needed: the chosen form does without this tensor"
    )
    assert explained.kernels == explained.steps == ()
    assert number not in inside_of(found)


def test_every_class_has_a_form_or_a_reason(any_report):
    found = any_report.searches.found
    for number, choice in enumerate(found.solution.choice):
        assert bool(why_unchosen(found, number)) == (choice < 0)


def test_an_unknown_node_names_near_misses(report):
    with pytest.raises(UnknownNameError, match="did you mean"):
        report.explain("rel")


def test_a_report_that_was_pickled_says_what_it_lacks(report):
    module = optimized(Head, IMAGE)
    again = pickle.loads(pickle.dumps(module)).report
    assert again == module.report
    for ask in (
        again.diff,
        again.contribution,
        lambda: again.explain("fc"),
        lambda: again.why_not("x", "fc"),
    ):
        with pytest.raises(InputError, match="run optimize"):
            ask()
    assert copy.deepcopy(module).report.searches is module.report.searches
    json.dumps(module.report.to_dict())


def test_why_not_is_asked_of_the_report_too(report):
    assert report.why_not("adaptive-pool-to-own-size", "pool").applies


# -- before and after --------------------------------------------------------------------------------------


def test_a_diff_has_every_kernel_of_both_forms_once(any_report):
    before, after = zip(*any_report.diff().pairs, strict=True)
    assert len([k for k in before if k]) == any_report.plain_kernels
    assert len([k for k in after if k]) == any_report.kernels
    assert sum(k.cost for k in before if k) == pytest.approx(any_report.plain_cost)
    assert sum(k.cost for k in after if k) == pytest.approx(any_report.cost)


def test_a_diff_puts_what_is_the_same_beside_itself(report):
    pairs = report.diff().pairs
    assert [(bool(a), bool(b)) for a, b in pairs] == [(True, True), *[(True, False)] * 3, (False, True)]
    assert pairs[0][0].reads == pairs[0][1].reads == ("x", "stem.weight", "stem.bias")
    assert "10.10 us before, 5.10 after" in str(report.diff())
    json.dumps(report.diff().to_dict())


# -- contribution ------------------------------------------------------------------------------------------


def test_what_a_family_is_worth_is_what_it_costs_to_leave_it_out(report):
    contribution = report.contribution()
    worth = {row.name: row for row in contribution.rows}
    without = [f for f in dict.fromkeys(r.family for r in registered_rules()) if f != "identity-pool"]
    assert worth["identity-pool"].cost == pytest.approx(
        optimized(PooledBlock, IMAGE, rules=without).report.cost
    )
    assert worth["identity-pool"].worth == pytest.approx(worth["identity-pool"].cost - report.cost)
    assert worth["identity-pool"].exact
    assert worth["movement"].worth == 0
    assert contribution.rows[0].name == "identity-pool"
    assert "attention" in contribution.unmatched
    json.dumps(contribution.to_dict())


def test_a_rule_is_worth_what_it_alone_brings(report):
    rules = {row.name: row.worth for row in report.contribution("rule").rows}
    assert (
        rules["adaptive-pool-to-own-size"] > rules["batch-norm-is-affine"] > rules["reshape-of-reshape"] == 0
    )


def test_an_unproved_form_gives_a_range(report):
    found = report.searches.found
    from eqsat_deploy.report.comparing import contribution

    loose = replace(found, solution=replace(found.solution, bound=found.solution.cost / 2))
    row = next(r for r in contribution(loose).rows if r.name == "identity-pool")
    assert not row.exact
    assert row.least <= row.worth <= row.most
    assert row.most == pytest.approx(row.cost - found.solution.cost / 2)
    assert " to " in str(contribution(loose))


def test_a_contribution_is_a_chart(report):
    pytest.importorskip("matplotlib")
    contribution = report.contribution()
    axes = contribution.plot().axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == [r.name for r in reversed(contribution.rows)]
    assert [b.get_width() for b in axes.patches] == [r.worth for r in reversed(contribution.rows)]


def test_anything_but_families_and_rules_is_an_error(report):
    with pytest.raises(InputError, match="'family' or 'rule'"):
        report.contribution("node")


def test_a_search_is_explained_without_a_report(report):
    found = report.searches.found
    assert explain_node(found, "relu", Derivation(found))[0].steps == explain_node(found, "relu")[0].steps
