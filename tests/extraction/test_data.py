"""E-graphs, solutions, files, networkx, the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from math import inf
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from eqsat_extraction import (
    EGraph,
    EGraphError,
    GymFormatWarning,
    Solution,
    SolutionError,
    dump_json,
    extract,
    load_json,
)
from eqsat_extraction.__main__ import main
from tests.extraction.strategies import problems

ROOT = Path(__file__).resolve().parents[2]
GYM = Path(os.environ.get("EXTRACTION_GYM", ROOT.parent / "shared" / "extraction-gym"))
needs_gym = pytest.mark.skipif(not GYM.is_dir(), reason="extraction-gym files are not here (EXTRACTION_GYM)")

SMALL = {
    "nodes": {
        "a": {"op": "add", "cost": 1.0, "eclass": "r", "children": ["x", "y"]},
        "s": {"op": "shl", "cost": 0.5, "eclass": "r", "children": ["x"], "subsumed": True},
        "x": {"op": "x", "cost": 2.0, "eclass": "1", "children": []},
        "y": {"op": "y", "cost": 2.0, "eclass": "2", "children": []},
    },
    "root_eclasses": ["r"],
}


def write(path, data):
    path.write_text(json.dumps(data))
    return path


def test_subsumed_nodes_are_not_extracted(tmp_path):
    egraph, costs = load_json(write(tmp_path / "g.json", SMALL))
    assert egraph.class_ids == ("r", "1", "2")
    assert costs.tolist() == [1.0, inf, 2.0, 2.0]
    assert extract(egraph, costs).cost == 5.0


def test_defects_are_worked_around_with_a_message(tmp_path):
    data = json.loads(json.dumps(SMALL))
    data["root_eclasses"] = ["r", "7"]
    data["nodes"]["m"] = {"op": "mul", "cost": 0.0, "eclass": "r", "children": ["gone"]}
    with pytest.warns(GymFormatWarning) as caught:
        egraph, costs = load_json(write(tmp_path / "g.json", data))
    messages = " ".join(str(w.message) for w in caught)
    assert "roots 7 have no e-node" in messages
    assert "first 'm', have a child that is not in the file" in messages
    assert extract(egraph, costs).cost == 5.0
    data["nodes"]["x"]["cost"] = -1.0
    data["root_eclasses"] = ["r"]
    del data["nodes"]["m"]
    with pytest.warns(GymFormatWarning, match="e-node 'x' has a negative cost"):
        load_json(write(tmp_path / "g.json", data))


@pytest.mark.parametrize("text", ["", "[]", '{"nodes": {}}', '{"nodes": {}, "root_eclasses": ["r"]}'])
def test_other_files_are_refused(tmp_path, text):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(EGraphError, match=r"bad\.json"):
        load_json(path)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(problems())
def test_files_round_trip(tmp_path_factory, problem):
    egraph, costs = problem
    path = tmp_path_factory.mktemp("gym") / "g.json"
    if not set(egraph.children.tolist() + egraph.roots.tolist()) <= set(egraph.node_class.tolist()):
        with pytest.raises(EGraphError, match="no e-node"):
            dump_json(egraph, costs, path)
        return
    dump_json(egraph, costs, path)
    again, prices = load_json(path)
    number = {name: c for c, name in enumerate(again.class_ids)}
    assert prices.tolist() == costs.tolist()
    assert [again.class_ids[c] for c in again.node_class] == [f"c{c}" for c in egraph.node_class]
    assert again.children.tolist() == [number[f"c{c}"] for c in egraph.children.tolist()]
    assert again.roots.tolist() == [number[f"c{c}"] for c in egraph.roots.tolist()]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"children": np.array([9])}, "children"),
        ({"child_ptr": np.array([0, 2])}, "child_ptr"),
        ({"roots": np.array([-1])}, "roots"),
        ({"ops": ("a", "b")}, "ops has 2 entries"),
    ],
)
def test_inconsistent_arrays_are_refused(change, message):
    arrays = {
        "node_class": np.array([0]),
        "child_ptr": np.array([0, 1]),
        "children": np.array([1]),
        "roots": np.array([0]),
        "n_classes": 2,
    }
    EGraph(**arrays)
    with pytest.raises(EGraphError, match=message):
        EGraph(**{**arrays, **change})


def test_checks_find_every_fault():
    egraph = EGraph.build([(0, [1]), (1, [0]), (1, []), (2, [])], [0])
    costs = np.array([1.0, 1.0, 2.0, 1.0])
    good = extract(egraph, costs)
    assert good.choice.tolist() == [0, 2, -1]
    good.check(egraph, costs)
    for choice, cost, message in [
        ([0, -1, -1], 1.0, "no e-node is chosen"),
        ([0, 1, -1], 2.0, "cyclic"),
        ([0, 2, 3], 4.0, "nothing needs it"),
        ([0, 2, -1], 4.0, "says it costs"),
        ([2, 2, -1], 4.0, "is not in"),
    ]:
        with pytest.raises(SolutionError, match=message):
            Solution(np.array(choice, dtype=np.int32), cost).check(egraph, costs)
    with pytest.raises(SolutionError, match="bound"):
        Solution(good.choice, good.cost, bound=9.0).check(egraph, costs)


def test_networkx_and_difference():
    egraph = EGraph.build([(0, [1, 1]), (1, []), (1, [])], [0], ops=["mul", "x", "y"])
    graph = egraph.to_networkx([1.0, 2.0, 3.0])
    assert graph.number_of_edges(("node", 0), ("class", 1)) == 2
    assert graph.nodes["node", 2]["cost"] == 3.0
    one = extract(egraph, [1.0, 2.0, 3.0])
    other = extract(egraph, [1.0, 3.0, 2.0])
    assert one.difference(other) == {1: (1, 2)}
    chosen = one.to_networkx(egraph)
    assert chosen.graph["roots"] == [0]
    assert sorted(chosen.nodes) == [0, 1]
    assert chosen.number_of_edges(0, 1) == 2


def test_subset_keeps_class_numbers():
    egraph = EGraph.build([(0, [1]), (1, []), (1, [0])], [0], ops=["f", "x", "g"])
    smaller, kept = egraph.subset([True, False, True])
    assert kept.tolist() == [0, 2]
    assert smaller.ops == ("f", "g")
    assert smaller.children.tolist() == [1, 0]
    assert smaller.n_classes == 2


def test_command_line(tmp_path, capsys):
    out = tmp_path / "solution.json"
    assert main([str(write(tmp_path / "g.json", SMALL)), "--time-limit", "5", "--out", str(out)]) == 0
    assert "cost 5  bound 5  optimal" in capsys.readouterr().out
    assert json.loads(out.read_text())["choices"] == {"1": "x", "2": "y", "r": "a"}
    assert main([str(tmp_path / "missing.json")]) == 1
    assert "missing.json" in capsys.readouterr().err


def test_importing_it_is_cheap():
    heavy = {"numba", "scipy", "highspy", "networkx", "torch", "egglog"}
    code = "import sys, eqsat_extraction; print(*sys.modules)"
    path = os.pathsep.join(entry for entry in sys.path if entry)
    loaded = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": path},
    ).stdout.split()
    assert not heavy & set(loaded)


@needs_gym
@pytest.mark.parametrize(
    ("file", "cost"),
    [
        ("tensat/vgg.json", 4.850757),
        ("tensat/resnet50.json", 4.385795),
        ("tensat/bert.json", 0.704720),
        ("rover/mcm_3_7_21_original_8iteration_egraph.json", 1050.0),
        ("eggcc-bril/nested_call.bril.json", 948.0),
        ("egg/diff_power_harder.json", 6.0),
    ],
)
def test_published_egraphs_are_proved(file, cost):
    egraph, costs = load_json(GYM / file)
    solution = extract(egraph, costs, time_limit=60)
    assert solution.proved
    assert solution.cost == pytest.approx(cost, abs=1e-6)
