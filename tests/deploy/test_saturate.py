"""The e-graph: loading, shapes, budgets, and that the order of rules does not matter."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from eqsat_deploy.egraph import EGraph
from eqsat_deploy.errors import RuleError
from eqsat_deploy.freeze import freeze
from eqsat_deploy.language import dims, relu, reshape, unary
from eqsat_deploy.language.expressions import Variable
from eqsat_deploy.rules import Relational, Rule, integers, rule
from eqsat_deploy.rules.facts import Constructor, Fired, Match
from eqsat_deploy.saturate import Budget, saturate, saturated
from eqsat_deploy.selection import registered_rules
from tests.support.models import (
    Aliasing,
    Attends,
    Opaque,
    Residual,
    Several,
    Tied,
    Transformer,
    image,
    randomized,
)
from tests.support.stages import lowered

MODELS = {
    "residual": (Residual, lambda: image()),
    "transformer": (Transformer, lambda: image()),
    "aliasing": (Aliasing, lambda: image(2, 6)),
    "tied": (Tied, lambda: torch.randint(0, 11, (2, 7))),
    "several": (Several, lambda: {"a": image(2, 4), "b": image(2, 3)}),
    "opaque": (Opaque, lambda: image(2, 6)),
    "attention": (Attends, lambda: image(2, 5, 8)),
}


def test_the_engine_is_loaded_without_its_package_and_is_the_same_engine_with_it() -> None:
    code = (
        "import sys; from eqsat_deploy.selection import find_rules; from eqsat_deploy.egraph import EGraph; "
        "EGraph(find_rules().rules[:1]); alone = 'egglog' not in sys.modules; engine = sys.modules['egglog.bindings']; "
        "from egglog import bindings, i64; print(alone, bindings is engine)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True"]


def test_counting_e_nodes_is_counting_what_is_decoded():
    low = lowered(randomized(Transformer()), image())
    with saturated(low, registered_rules(), Budget()) as (egraph, _, _):
        assert egraph.size() == egraph.frozen().size() > len(low.rows)


@pytest.mark.parametrize("loaded", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_derived_shapes_are_those_torch_reports(name, loaded):
    make, example = MODELS[name]
    low = lowered(randomized(make()), example())
    saturation = saturate(low, registered_rules(), shapes=loaded)
    assert saturation.stopped == "saturated"
    space = freeze(low, saturation)
    for row, number in enumerate(space.row_class):
        meta = low.metas[row]
        if meta is not None:
            assert space.classes[number].shape == tuple(meta.shape), low.rows[row]


def test_every_row_is_in_the_egraph():
    low = lowered(randomized(Residual()), image())
    egraph = EGraph([])
    egraph.load(low)
    assert {args[0] for args, _ in egraph.frozen().rows("Node")} >= set(range(len(low.rows)))


def test_a_rule_that_joins_two_shapes_is_an_error():
    @rule("exact", x="n c")
    def wrong(x, n, c):
        """A matrix is its flattening."""
        return relu(x), unary("relu", reshape(x, dims(n * c)))

    low = lowered(torch.nn.ReLU(), image(2, 4))
    with pytest.raises(RuleError, match="shape"):
        saturate(low, [wrong])


def test_a_rule_that_does_not_compile_is_named():
    e, nothing = Variable("T", "e"), Constructor("Nothing", ("T",), "T")
    part = ((Match(e, nothing(Variable("T", "x"))),), (Fired(e),))
    broken = Relational("broken", "none", "exact", "rewrites", "No such e-node.", "to be broken", (part,))
    with pytest.raises(RuleError, match="'broken'"):
        EGraph([broken])


def test_an_argument_that_no_pattern_binds_is_an_error():
    @rule("exact", x="n c", k=integers((1, 1)))
    def unbound(x, k):
        """k is nowhere on the left."""
        return relu(x), x

    with pytest.raises(RuleError, match="'k'"):
        unbound.clauses()


@pytest.mark.parametrize(
    ("budget", "reason"),
    [(Budget(iterations=1), "iterations"), (Budget(seconds=0.0), "time"), (Budget(nodes=1), "nodes")],
)
def test_what_stopped_saturation_is_reported(budget, reason):
    low = lowered(randomized(Transformer()), image())
    stopped = saturate(low, registered_rules(), budget=budget).stopped
    assert reason in stopped or (reason == "nodes" and stopped == "saturated")


def test_matches_are_counted_by_rule():
    low = lowered(randomized(Residual()), image())
    saturation = saturate(low, registered_rules())
    assert saturation.matches["batch-norm-is-affine"] >= 2
    assert set(saturation.matches) <= {r.name for r in registered_rules()}


def test_the_order_of_rules_does_not_matter():
    low = lowered(randomized(Residual()), image())
    sizes = set()
    written = [r for r in registered_rules() if isinstance(r, Rule)]
    texts = [r for r in registered_rules() if not isinstance(r, Rule)]
    for rules in ([*written, *texts], [*texts, *written[::-1]]):
        space = freeze(low, saturate(low, rules))
        sizes.add((len(space.classes), len(space.nodes), len(space.choices)))
    assert len(sizes) == 1


def test_frozen_numbers_follow_from_the_model_alone():
    spaces = []
    for _ in range(2):
        low = lowered(randomized(Transformer()), image())
        spaces.append(freeze(low, saturate(low, registered_rules())))
    assert spaces[0].choices == spaces[1].choices
    assert spaces[0].terms == spaces[1].terms
    assert spaces[0].fired == spaces[1].fired


def test_merging_that_explodes_is_undone():
    class Siblings(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.branches = torch.nn.ModuleList(torch.nn.Conv2d(3, 4, 1) for _ in range(3))

        def forward(self, x):
            return torch.cat([relu(branch(x)) for branch in self.branches], 1)

    low = lowered(randomized(Siblings()), image())
    rules = [r for r in registered_rules() if r.phase in ("rewrites", "demand", "merging")]
    without = saturate(low, [r for r in rules if r.phase != "merging"]).frozen.size()
    assert saturate(low, rules).frozen.size() > without
    undone = saturate(low, rules, budget=Budget(nodes=without))
    assert undone.stopped == f"e-nodes: {without} (merging undone)"
    assert undone.frozen.size() == without
    assert saturate(low, rules).stopped == "saturated", "an e-graph that is used again is empty"
