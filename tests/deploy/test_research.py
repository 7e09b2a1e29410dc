"""Looking inside: destructive rewriting, orderings, e-classes, reasons, drawings."""

from __future__ import annotations

import csv
import io
import json
from contextlib import contextmanager
from dataclasses import replace
from math import factorial, isfinite

import pytest
import torch
from torch import nn

from eqsat_deploy import research
from eqsat_deploy.deployment import deployment
from eqsat_deploy.errors import InputError, UnknownNameError
from eqsat_deploy.explain import explain
from eqsat_deploy.freeze import freeze
from eqsat_deploy.lower import Lowered, Term
from eqsat_deploy.optimizer import optimize
from eqsat_deploy.rebuild import rebuild
from eqsat_deploy.report import reasons
from eqsat_deploy.saturate import saturate, saturated
from eqsat_deploy.search import search
from eqsat_deploy.selection import find_rules
from eqsat_deploy.targets import find_cost
from eqsat_deploy.verify import relative_error
from tests.support.stages import lowered


class Head(nn.Module):
    """Convolution, BatchNorm and the head of a ResNet."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        return self.fc(torch.flatten(self.pool(torch.relu(self.bn(self.conv(x)))), 1))


class PooledBlock(nn.Module):
    """A pool that changes nothing stands between a convolution and its BatchNorm."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(8)
        self.bn = nn.BatchNorm2d(8)

    def forward(self, x):
        x = self.stem(x)
        return torch.relu(self.bn(self.pool(self.conv(x))) + x)


class Branches(nn.Module):
    """Concatenation, several results of one call, a constant of the model's own, two outputs."""

    def __init__(self):
        super().__init__()
        self.left = nn.Conv2d(3, 4, 1)
        self.right = nn.Conv2d(3, 4, 1)
        self.offset = nn.Parameter(torch.rand(8, 1, 1))

    def forward(self, x):
        y = torch.cat([torch.relu(self.left(x)), self.right(x), x], 1)[:, :8] * self.offset + 1.5
        values, _indices = torch.sort(y.flatten(1), 1)
        return y.permute(0, 2, 3, 1), values


IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
ORDERED = ("identity-pool", "folding")


def build(cls):
    torch.manual_seed(0)
    model = cls().eval()
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape) + 0.1)
    return model


@pytest.fixture(scope="module")
def exploration():
    return research.explore(build(Head), IMAGE, cost="trt_int8")


@pytest.fixture(scope="module")
def table():
    return research.compare_orderings(build(PooledBlock), IMAGE, cost="trt_int8", families=ORDERED)


def run(found, *inputs):
    rebuilt = rebuild(found)
    with torch.no_grad():
        result = torch.fx.GraphModule(rebuilt.root, rebuilt.graph)(*inputs)
    return list(result) if isinstance(result, tuple) else [result]


# -- destructive rewriting ---------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [Head, PooledBlock, Branches])
@pytest.mark.parametrize("cost", ["trt_int8", "kernels"])
def test_an_extracted_form_lowered_again_computes_the_same(cls, cost):
    model, cost_model = build(cls), find_cost(cost)
    found, form = research.rewrite_alone(lowered(model, IMAGE), None, cost_model)
    again = search(form, find_rules([]), cost_model)
    with torch.no_grad():
        expected = model(IMAGE)
    expected = list(expected) if isinstance(expected, tuple) else [expected]
    assert relative_error(expected, run(again, IMAGE)) < 1e-5
    assert again.solution.cost <= found.solution.cost * (1 + 1e-4)
    changed = [e + 0.01 for e in expected]
    assert relative_error(changed, run(again, IMAGE)) > 1e-5


def test_a_lowered_form_has_exact_rows_each_once(exploration):
    form = research.lowered_form(exploration)
    assert isinstance(form, Lowered)
    assert len({(r.operator.name, repr(r.args)) for r in form.rows}) == len(form.rows)
    assert [o.shape for o in form.outputs if isinstance(o, Term)] == [
        o.shape for o in exploration.lowered.outputs if isinstance(o, Term)
    ]
    assert "batch_norm" not in {r.operator.name for r in form.rows}


def test_shapes_of_a_lowered_form_agree_with_the_shape_rules(exploration):
    form = research.lowered_form(exploration)
    space = freeze(form, saturate(form, []))
    for row, meta in enumerate(form.metas):
        assert meta is None or space.classes[space.row_class[row]].shape == tuple(meta.shape)


def test_lowering_a_form_is_deterministic(exploration):
    forms = [research.lowered_form(exploration) for _ in range(2)]
    assert [repr(r.args) for r in forms[0].rows] == [repr(r.args) for r in forms[1].rows]


# -- orderings ---------------------------------------------------------------------------------------------


def test_order_matters_and_joint_saturation_is_never_worse(table):
    assert table.order_matters
    costs = {o.order: o.cost for o in table.orders}
    assert costs[ORDERED] < costs[ORDERED[::-1]]
    assert all(table.joint.cost <= o.cost * (1 + 1e-6) for o in table.orders)
    assert table.best.kernels < table.worst.kernels <= table.untouched.kernels
    assert table.joint.kernels == 2


def test_the_last_cost_of_an_order_is_that_of_its_form(table):
    form = lowered(build(PooledBlock), IMAGE)
    for family in ORDERED:
        found, form = research.rewrite_alone(form, family, find_cost("trt_int8"))
    assert {o.order: o.cost for o in table.orders}[ORDERED] == pytest.approx(found.solution.cost)


def test_joint_saturation_costs_what_optimize_finds():
    table = research.compare_orderings(build(Head), IMAGE, cost="kernels")
    found = optimize(build(Head), IMAGE, cost="kernels").report
    assert table.joint.cost == pytest.approx(found.cost, rel=1e-6)
    assert table.joint.kernels == found.kernels
    assert len(table.orders) == table.possible == factorial(len(table.families))
    assert "attention" in table.inactive
    assert all(set(o.order) == set(table.families) for o in table.orders)
    assert [o.cost for o in table.orders] == sorted(o.cost for o in table.orders)


def test_a_sample_of_orders_follows_the_seed_and_says_that_it_is_one():
    def sampled(seed):
        few = research.Effort(evaluations=8)
        return research.compare_orderings(build(Head), IMAGE, cost="kernels", effort=few, seeds=[seed],
                                          strategies="destructive")  # fmt: skip

    first, again = sampled(1), sampled(1)
    assert first.orders == again.orders
    assert 0 < len(first.orders) < first.possible
    assert len({frozenset(o.order for o in sampled(s).orders) for s in range(4)}) > 1
    assert f"{len(first.orders)} of {first.possible} orders tried, a sample" in str(first)
    with pytest.raises(InputError, match="'joint' is not in this table"):
        _ = first.joint


def test_a_table_is_text_html_csv_and_json(table):
    rows = list(csv.DictReader(io.StringIO(table.to_csv())))
    assert [r["strategy"] for r in rows] == ["joint", "destructive", "order", "order", "order"]
    assert [r["sequence"] for r in rows[2:]] == ["", *(" > ".join(o.order) for o in table.orders)]
    assert float(rows[0]["cost"]) == table.joint.cost
    assert {r["unit"] for r in rows} == {"us"}
    assert json.loads(json.dumps(table.to_dict()))["order_matters"] is True
    assert "identity-pool before folding" in str(table)
    assert "the order matters" in table._repr_html_()
    assert sum(map(len, table.groups())) == len(table.orders)


def test_a_long_table_says_that_it_is_truncated(table):
    many = [research.Ordering((str(i),), 10.0 + i, 3) for i in range(40)]
    outcomes = tuple(replace(o, orders=tuple(many)) for o in table.outcomes)
    long = replace(table, outcomes=outcomes)
    assert "TRUNCATED: 28 dearer costs" in str(long)
    assert "TRUNCATED" not in str(table)


@pytest.mark.parametrize("seeds", [[], [-1], ["some"], [1.5]])
def test_wrong_seeds_are_an_error(seeds):
    with pytest.raises(InputError, match="seeds"):
        research.compare_orderings(build(Head), IMAGE, cost="kernels", seeds=seeds)


def test_an_unknown_family_names_near_misses():
    with pytest.raises(UnknownNameError, match="did you mean 'folding'"):
        research.compare_orderings(build(Head), IMAGE, cost="kernels", families=["foldin"])


# -- e-classes ---------------------------------------------------------------------------------------------


def test_inside_shows_the_forms_of_a_head(exploration):
    (view,) = research.inside(exploration, "fc").classes
    assert view.shape[1:] == (5,)
    assert "flatten-linear-as-convolution" in view.rules
    kernels = {f.kernel for f in view.forms}
    assert {"linear", "reshape"} <= kernels
    chosen = view.chosen
    assert chosen is not None
    assert chosen.total == exploration.solution.cost
    assert all(f.total >= exploration.solution.cost * (1 - 1e-9) for f in view.forms)
    assert all(isfinite(f.cost) for f in view.forms)


def test_what_is_not_chosen_is_priced_with_itself_in_the_model(exploration):
    (view,) = research.inside(exploration, "fc").classes
    totals = [form.total for form in view.forms if not form.chosen]
    assert len(set(totals)) > 1
    for form in view.forms:
        if not form.chosen and isfinite(form.total):
            assert form.total > exploration.solution.cost or form.cost <= view.chosen.cost


@pytest.mark.parametrize("rules", ["conversions", ["conversions"], None])
def test_an_explanation_shows_the_form_that_optimize_builds(rules):
    built = optimize(build(Head), IMAGE, cost="trt_int8", rules=rules)
    explained = explain(build(Head), IMAGE, cost="trt_int8", rules=rules)
    launches = list(explained.launches())
    assert [x.cost for x in launches] == [k.cost for k in deployment(built).placement.kernels]
    assert explained.search.solution.cost == built.report.cost
    assert rules is None or not any(x.kernel.startswith("linear") for x in launches)


def test_a_node_a_module_and_a_pattern_name_the_same_class(exploration):
    assert exploration.classes_of("linear") == exploration.classes_of("fc") == exploration.classes_of("f[c]")
    assert len(exploration.classes_of("*")) > 5
    with pytest.raises(UnknownNameError, match="did you mean 'conv"):
        exploration.classes_of("conv2")


def test_a_swallowed_tensor_has_no_chosen_form(exploration):
    inside = research.inside(exploration, "bn")
    assert inside.classes[0].chosen is None
    assert "none is chosen" in str(inside)


def test_a_cut_list_of_forms_says_so(exploration):
    cut = research.inside(exploration, "relu", limit=2)
    assert cut.classes[0].left_out > 0
    assert f"TRUNCATED: {cut.classes[0].left_out} more forms" in str(cut)
    assert len(cut.classes[0].forms) + cut.classes[0].left_out == len(
        research.inside(exploration, "relu", limit=10_000, time_limit=0.2).classes[0].forms
    )


def test_inside_is_text_html_and_json_and_explores_a_model_itself(exploration):
    inside = research.inside(build(Head), "fc", example_inputs=IMAGE, cost="trt_int8")
    assert "linear [n, 5] of fc" in str(inside)
    assert "chosen" in inside._repr_html_()
    data = json.loads(json.dumps(inside.to_dict()))
    assert data["unit"] == "us"
    assert data["classes"][0]["forms"][0]["total"] == pytest.approx(exploration.solution.cost)
    assert [f["chosen"] for f in data["classes"][0]["forms"]].count(True) == 1


def test_rendering_prints_nothing(exploration, capsys):
    research.inside(exploration, "fc")._repr_html_()
    assert capsys.readouterr().out == ""


def test_the_graph_has_forms_classes_and_the_choice(exploration):
    graph = research.to_networkx(exploration)
    egraph = exploration.priced.egraph
    assert graph.number_of_nodes() == egraph.n_nodes + egraph.n_classes
    chosen = [n for n, data in graph.nodes(data=True) if data.get("chosen")]
    assert sum(graph.nodes[n]["cost"] for n in chosen) == pytest.approx(exploration.solution.cost)
    (fc,) = exploration.classes_of("fc")
    assert graph.nodes[("class", fc)]["name"] == "linear"
    assert graph.nodes[("class", fc)]["root"]


# -- why not -----------------------------------------------------------------------------------------------


def test_a_rule_that_applies_fails_nowhere(exploration):
    why = research.why_not(exploration, "flatten-linear-as-convolution", "fc")
    assert why.applies
    assert "rank of x == 4" in why.holds


def test_a_wrong_operator_is_named_with_what_is_there(exploration):
    why = research.why_not(exploration, "flatten-linear-as-convolution", "conv")
    assert not why.applies
    assert why.failed == "conv is linear(x, weight, b)"
    assert why.detail == "it is conv2d"


def test_a_wrong_operand_is_named():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    exploration = research.explore(model, torch.randn(2, 4), cost="kernels")
    why = research.why_not(exploration, "flatten-linear-as-convolution", "2")
    assert why.holds == ("2 is linear(x, weight, b)",)
    assert why.failed.startswith("operand 'x' of that linear is reshape")
    assert why.detail == "it is relu"


def test_a_guard_is_named_with_the_shapes_there(exploration):
    why = research.why_not(exploration, "adaptive-pool-to-own-size", "pool")
    assert why.failed == "size == (h, w)"
    assert why.detail == "size is (1, 1); x is [n, 8, 8, 8]"
    assert "FAILS  size == (h, w)" in str(why)


def test_relational_rules_are_tested_too(exploration):
    assert research.why_not(exploration, "kernel-unary-epilogue", "relu").applies
    assert research.why_not(exploration, "integer-weighted", "fc").applies
    assert not research.why_not(exploration, "kernel-unary-epilogue", "fc").applies


def test_why_not_agrees_with_what_saturation_did(exploration, monkeypatch):
    """A thousand questions of one e-graph: each would saturate one of its own, which takes minutes."""
    saturation = exploration.saturation
    with saturated(exploration.lowered, saturation.rules, saturation.budget) as found:

        @contextmanager
        def again(*_):
            found[0].push()
            yield found
            found[0].pop()

        monkeypatch.setattr(reasons, "saturated", again)
        for node in ("conv", "bn", "relu", "pool", "flatten", "fc"):
            (number,) = exploration.classes_of(node)
            fired = set(exploration.rules_at(number))
            for rule in find_rules(None).rules:
                if rule.phase == "rewrites":
                    why = research.why_not(exploration, rule, node)
                    assert why.applies == (rule.name in fired), (node, rule.name)


def test_an_ambiguous_question_is_an_error(exploration):
    with pytest.raises(InputError, match="stands for"):
        research.why_not(exploration, "folding", "fc")
    with pytest.raises(InputError, match="stands for"):
        research.why_not(exploration, "permute-of-permute", "*")


# -- drawings ----------------------------------------------------------------------------------------------


def texts(figure):
    return [t.get_text() for t in figure.axes[0].texts]


def test_a_drawing_shows_chosen_and_other_forms(exploration):
    pytest.importorskip("matplotlib")
    figure = research.inside(exploration, "fc").draw(depth=1)
    shown = texts(figure)
    assert any(t.startswith("linear [n, 5]") for t in shown)
    assert any(t.startswith("reshape ") for t in shown)
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_a_truncated_drawing_says_so_and_a_whole_one_does_not(exploration):
    pytest.importorskip("matplotlib")
    inside = research.inside(exploration, "fc")
    assert any(t.startswith("TRUNCATED") for t in texts(inside.draw(depth=1)))
    assert any(t.startswith("+ ") for t in texts(inside.draw(depth=4, max_forms=1)))
    whole = inside.draw(depth=50, max_forms=500, max_classes=500)
    assert not any(t.startswith(("TRUNCATED", "+ ")) for t in texts(whole))


def test_forms_say_what_they_read_and_classes_why_none_is_chosen(exploration):
    pytest.importorskip("matplotlib")
    shown = texts(research.inside(exploration, "bn").draw(depth=1, max_forms=50))
    forms = [t for t in shown if "(" in t and not t.startswith(("none", "dashed", "TRUNCATED"))]
    assert "conv2d(x, conv.weight*, conv.bias*)  2.54" in forms
    assert len({f for f in forms if f.startswith("conv2d")}) == len(
        [f for f in forms if f.startswith("conv2d")]
    )
    assert "none chosen: computed inside conv2d + relu, which writes relu" in shown


class Sides(nn.Module):
    """Two layouts whose forms are made from each other."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)
        self.norm, self.inner = nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, x):
        y = self.norm(self.first(x).permute(0, 2, 3, 1))
        return self.last(self.inner(y).permute(0, 3, 1, 2))


def test_no_edge_of_a_cycle_runs_under_a_box():
    pytest.importorskip("matplotlib")
    import numpy as np
    from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

    found = research.explore(build(Sides), IMAGE, cost="trt_int8")
    figure = research.inside(found, "last").draw(depth=6, max_classes=30)
    boxes = [p.get_bbox() for p in figure.axes[0].patches
             if isinstance(p, FancyBboxPatch) and p.get_linestyle() == "--"]  # fmt: skip
    backwards = 0
    for arrow in (p for p in figure.axes[0].patches if isinstance(p, FancyArrowPatch)):
        path = arrow._path_original
        points = (
            path.interpolated(20).vertices
            if not np.isin(path.codes, 4).any()
            else path.to_polygons(closed_only=False)[0]
        )
        ends = [
            next(b for b in boxes if b.padded(0.02).contains(*point)) for point in (points[0], points[-1])
        ]
        backwards += ends[0].x0 >= ends[1].x0
        for x, y in points:
            assert not [b for b in boxes if b not in ends and b.x0 < x < b.x1 and b.y0 < y < b.y1]
    assert backwards


def test_boxes_do_not_overlap(exploration):
    pytest.importorskip("matplotlib")
    from matplotlib.patches import FancyBboxPatch

    figure = research.inside(exploration, "fc").draw(depth=3)
    boxes = [p.get_bbox() for p in figure.axes[0].patches
             if isinstance(p, FancyBboxPatch) and p.get_linestyle() == "--"]  # fmt: skip
    assert len(boxes) > 3
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])
