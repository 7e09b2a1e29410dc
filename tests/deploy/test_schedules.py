"""Schedules, traces, strategies, sweeps: how rewriting goes, as data."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from eqsat_deploy import research
from eqsat_deploy.derivation import Derivation
from eqsat_deploy.errors import EqsatError, InputError, UnknownNameError
from eqsat_deploy.research import (
    Backoff,
    Effort,
    Job,
    Schedule,
    Sketch,
    Sketches,
    Step,
    Trace,
    Until,
    compare_orderings,
    replay,
    trace,
)
from eqsat_deploy.research.sweeps import sweep
from eqsat_deploy.saturate import Budget
from eqsat_deploy.schedule import SATURATE
from eqsat_deploy.selection import registered_rules
from tests.deploy.test_research import IMAGE, Head, PooledBlock, build

ALL = Step(run=("demand", "rewrites", "merging"), times=SATURATE)
TOML = """
seed = 3

[rulesets]
algebra = ["folding", "movement"]

[[steps]]
run = ["algebra"]
times = "saturate"
backoff = { match_limit = 10, ban_length = 2 }

[[steps]]
times = 2
shuffle = true
until = { nodes = 5000, matches = 0 }
steps = [{ run = ["identity-pool"] }, { run = ["merging"], nodes = 20000 }]
"""


def explored(schedule, cls=PooledBlock):
    return research.explore(build(cls), IMAGE, cost="trt_int8", budget=Budget(schedule=schedule))


@pytest.fixture(scope="module")
def joint():
    return research.explore(build(PooledBlock), IMAGE, cost="trt_int8")


# -- schedules ---------------------------------------------------------------------------------------------


def test_a_schedule_is_the_same_in_toml_and_in_python(tmp_path):
    (tmp_path / "s.toml").write_text(TOML)
    read = Schedule.load(tmp_path / "s.toml")
    assert read == Schedule(
        (
            Step(run=("algebra",), times=SATURATE, backoff=Backoff(10, 2)),
            Step(
                steps=(Step(run=("identity-pool",)), Step(run=("merging",), nodes=20000)), times=2, shuffle=True,
                until=Until(nodes=5000, matches=0),
            ),
        ),
        {"algebra": ("folding", "movement")}, seed=3,
    )  # fmt: skip
    assert Schedule.from_dict(json.loads(json.dumps(read.to_dict()))) == read


@pytest.mark.parametrize(("text", "message"), [
    ("", "no steps"),
    ("[[steps]]\nrun = ['folding']\ntimes = 0", "times"),
    ("speed = 1\n[[steps]]\nrun = ['a']", "speed"),
    ("[[steps]]\nrum = ['folding']", "rum"), ("[[steps]]\ntimes = 2", "either run"),
    ("[[steps]]\nrun = ['a']\nbackoff = { match_limit = -1 }", "match_limit"), ("[[", "TOML|Expected|Invalid"),
    ("[[steps]]\nrun = ['a']\nuntil = { nodes = 'x' }", "until.nodes"),
])  # fmt: skip
def test_what_is_no_schedule_is_an_error_that_names_it(tmp_path, text, message):
    (tmp_path / "s.toml").write_text(text)
    with pytest.raises(InputError, match=message) as raised:
        Schedule.load(tmp_path / "s.toml")
    assert "s.toml" in str(raised.value)


def test_an_unknown_ruleset_names_near_misses():
    with pytest.raises(UnknownNameError, match="did you mean 'folding'"):
        explored(Schedule.sequence(["foldin"]))


def test_everything_to_saturation_is_the_usual_e_graph(joint):
    found = explored(Schedule((ALL,)))
    assert found.saturation.stopped == "saturated"
    assert found.solution.cost == pytest.approx(joint.solution.cost)
    assert len(found.space.nodes) == len(joint.space.nodes)
    assert len(Derivation(found).made) == len(Derivation(joint).made)


def test_a_schedule_among_some_rules_runs_nothing_else():
    inner = (Step(run=("folding",)), Step(run=("pooling", "folding")))
    schedule = Schedule(
        (Step(steps=inner, times=2), Step(run=("folding",)), Step(run=("mine",))),
        {"mine": ("folding", "identity-pool")},
    )
    known = registered_rules()
    left = Schedule(
        (Step(steps=(Step(run=("pooling",)),), times=2), Step(run=("mine",))), {"mine": ("identity-pool",)}
    )
    assert schedule.among([rule for rule in known if rule.family != "folding"], known) == left
    assert schedule.among(known, known) == schedule


def test_only_what_a_schedule_runs_acts():
    found = explored(Schedule.sequence(["folding"], times=SATURATE))
    acted = {rule.family for rule in found.saturation.rules if found.saturation.matches[rule.name]}
    assert acted == {"folding", "kernels", "quantization"}


def test_a_sequence_sees_what_came_before_it():
    """One round of folding makes a scale and a shift, a second takes the scale into the convolution."""
    once, twice = (explored(Schedule.sequence(["identity-pool", *["folding"] * n])) for n in (1, 2))
    assert len(twice.space.nodes) > len(once.space.nodes)
    assert twice.solution.cost < once.solution.cost


def test_a_banned_rule_comes_back_and_nothing_is_lost(joint):
    schedule = Schedule((replace(ALL, backoff=Backoff(1, 2)),))
    found = explored(schedule)
    assert found.saturation.stopped == "saturated"
    assert len(found.space.nodes) == len(joint.space.nodes)
    traced = trace(build(PooledBlock), IMAGE, cost="trt_int8", budget=Budget(schedule=schedule))
    undone = [i for i, step in enumerate(traced.iterations) if step.dropped]
    assert undone
    for index in undone:
        before = traced.iterations[index - 1]
        counts = Counter()
        for name, count in before.matches.items():
            counts[name.partition("#")[0]] += count
        busy = {name for name, count in counts.items() if count > 1}
        gone = set(before.rules) - set(traced.iterations[index + 1].rules)
        assert gone
        assert gone <= busy


def test_a_budget_of_e_nodes_undoes_what_is_over_it(joint):
    found = explored(Schedule((replace(ALL, nodes=30),)))
    assert len(found.space.nodes) <= 30 < len(joint.space.nodes)
    assert found.saturation.stopped == "e-nodes: 30 (demand + rewrites + merging)"


def test_until_stops_a_repetition(joint):
    step = replace(ALL, until=Until(nodes=24))
    found = explored(Schedule((step,)))
    assert 24 < len(found.space.nodes) < len(joint.space.nodes)
    assert found.saturation.stopped == "schedule"


def test_a_shuffled_sequence_follows_its_seed():
    inner = tuple(Step(run=(name,)) for name in ("folding", "identity-pool", "movement", "merging"))

    def phases(seed):
        schedule = Schedule((Step(steps=inner, times=2, shuffle=True),), seed=seed)
        budget = Budget(schedule=schedule)
        return [s.phase for s in trace(build(PooledBlock), IMAGE, cost="trt_int8", budget=budget).iterations]

    assert phases(1) == phases(1)
    assert len({tuple(phases(seed)) for seed in range(4)}) > 1


# -- traces ------------------------------------------------------------------------------------------------

SHUFFLED = Schedule(
    (Step(steps=(Step(run=("folding",)), Step(run=("identity-pool",))), times=SATURATE, shuffle=True),)
)
BACKED_OFF = Schedule((replace(ALL, backoff=Backoff(1, 2), nodes=40),), seed=1)


@pytest.mark.parametrize("schedule", [None, SHUFFLED, BACKED_OFF], ids=["usual", "shuffled", "backed off"])
def test_a_trace_is_replayed_to_the_same_e_graph(schedule, tmp_path):
    budget = Budget(schedule=schedule)
    trace(build(PooledBlock), IMAGE, cost="trt_int8", budget=budget, incumbents=True).save(
        tmp_path / "t.json"
    )
    traced = Trace.load(tmp_path / "t.json")
    assert traced.schedule == (schedule and schedule.to_dict())
    _, space = replay(traced, build(PooledBlock), IMAGE)
    assert len(space.nodes) == traced.e_nodes
    with pytest.raises(EqsatError, match="another one"):
        replay(traced, build(Head), IMAGE)
    without = replace(traced, iterations=traced.iterations[:1])
    with pytest.raises(EqsatError, match="another one"):
        replay(without, build(PooledBlock), IMAGE)


def test_a_trace_has_counts_times_sizes_incumbents_and_bounds(joint):
    traced = trace(build(PooledBlock), IMAGE, cost="trt_int8", incumbents=True)
    rewriting = [step for step in traced.iterations if step.phase in ("rewrites", "merging")]
    costs = [step.incumbent for step in rewriting]
    assert all(later <= earlier * (1 + 1e-9) for earlier, later in pairwise(costs))
    assert costs[-1] == pytest.approx(joint.solution.cost)
    assert all(step.bound <= step.incumbent for step in rewriting)
    sizes = [step.e_nodes for step in traced.iterations]
    assert sizes == sorted(sizes)
    assert all(set(step.rule_seconds) == set(step.matches) for step in traced.iterations)
    assert [step.matches for step in traced.iterations] == joint.saturation.iterations
    assert traced.versions["egglog"]
    assert traced.machine


OTHERWISE = """
import sys, torch
from eqsat_deploy.research import Trace, replay
from eqsat_deploy.research.traces import digest
from tests.deploy.test_research import IMAGE, PooledBlock, build
torch.set_num_threads(2)
torch.manual_seed(0)
print(*(digest(replay(Trace.load(path), build(PooledBlock), IMAGE)[1]) for path in sys.argv[1:]))
"""


def test_a_trace_is_replayed_in_another_process_with_other_hashes_threads_and_folder(tmp_path):
    digests, files = [], []
    for name, schedule in (("usual", None), ("backed off", BACKED_OFF)):
        traced = trace(build(PooledBlock), IMAGE, cost="trt_int8", budget=Budget(schedule=schedule))
        files.append(str(tmp_path / f"{name}.json"))
        traced.save(files[-1])
        digests.append(traced.digest)
    there = {"PYTHONHASHSEED": "12345", "OMP_NUM_THREADS": "2", "PYTHONPATH": str(Path(__file__).parents[2])}
    found = subprocess.run([sys.executable, "-c", OTHERWISE, *files], cwd=tmp_path, env=os.environ | there,
                           capture_output=True, text=True, check=False)  # fmt: skip
    assert found.stdout.split() == digests, found.stderr[-2000:]


def test_what_is_no_trace_is_an_error(tmp_path):
    for text in ("", "{}", '{"iterations": 3}', "[]"):
        (tmp_path / "t.json").write_text(text)
        with pytest.raises(InputError, match=r"t\.json"):
            Trace.load(tmp_path / "t.json")


# -- strategies --------------------------------------------------------------------------------------------

FEW = Effort(evaluations=8, length=5)
FAMILIES = ("identity-pool", "folding", "movement")


@pytest.fixture(scope="module")
def table():
    return compare_orderings(
        build(PooledBlock),
        IMAGE,
        cost="trt_int8",
        families=FAMILIES,
        effort=FEW,
        seeds=(0, 1),
        strategies=list(research.STRATEGIES),
    )


def test_every_strategy_stays_within_its_budget_and_above_joint_saturation(table):
    assert {o.strategy for o in table.outcomes} == set(research.STRATEGIES)
    best = min(o.cost for o in table.outcomes if o.strategy == "joint")
    for outcome in table.outcomes:
        assert outcome.evaluations <= FEW.evaluations
        assert len(outcome.sequence) <= FEW.length
        assert outcome.evaluations >= 1
        assert outcome.cost >= best * (1 - 1e-5)
        assert outcome.bound <= outcome.cost
        costs = [point.cost for point in outcome.curve]
        assert costs == sorted(costs, reverse=True)
        assert costs[-1] == outcome.cost


def test_the_sequence_of_an_outcome_leads_to_its_cost(table):
    for outcome in table.outcomes:
        if outcome.strategy in ("greedy", "beam", "annealing", "mcts"):
            found = explored(Schedule.sequence(outcome.sequence))
            assert found.solution.cost == pytest.approx(outcome.cost)


def test_a_strategy_follows_its_seed(table):
    again = compare_orderings(build(PooledBlock), IMAGE, cost="trt_int8", families=FAMILIES, effort=FEW, seeds=(1,),
                               strategies=["annealing", "mcts"])  # fmt: skip
    for outcome in again.outcomes:
        (before,) = [o for o in table.outcomes if (o.strategy, o.seed) == (outcome.strategy, 1)]
        assert [p.cost for p in before.curve] == [p.cost for p in outcome.curve]
        assert before.sequence == outcome.sequence


def test_a_strategy_and_a_schedule_of_ones_own():
    asked = []

    def mine(environment, generator):
        for action in environment.actions:
            asked.append(action)
            environment.cost([action])

    own = {"mine": mine, "all": Schedule((ALL,))}
    table = compare_orderings(build(PooledBlock), IMAGE, cost="trt_int8", strategies=own, families=FAMILIES)
    assert asked == list(table.families)
    assert [o.strategy for o in table.outcomes] == ["mine", "all"]
    assert table.outcomes[1].cost < table.outcomes[0].cost


def test_a_table_is_text_pandas_and_a_plot(table):
    pandas = pytest.importorskip("pandas")
    frame = table.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert len(frame) == len(table.outcomes)
    assert {"strategy", "seed", "cost", "bound", "seconds", "e_nodes"} <= set(frame.columns)
    assert frame.groupby("strategy").cost.min()["joint"] == frame.cost.min()
    assert len(table.curves()) == sum(len(o.curve) for o in table.outcomes)
    assert "mcts" in str(table)
    json.dumps(table.to_dict())
    pytest.importorskip("matplotlib")
    found, curves = table.plot().axes
    assert len(curves.lines) == len(table.outcomes)
    assert [t.get_text() for t in curves.get_legend().get_texts()] == list(research.STRATEGIES)
    assert [t.get_text() for t in found.get_yticklabels()] == list(research.STRATEGIES)
    assert sorted(line.get_xdata()[0] for line in found.lines) == pytest.approx(
        sorted([*(o.cost for o in table.outcomes), table.untouched.cost])
    )


def test_only_strategies_that_draw_run_with_every_seed(table):
    seeds = Counter(outcome.strategy for outcome in table.outcomes)
    assert {name for name, count in seeds.items() if count == 2} == {
        "shuffled",
        "destructive",
        "annealing",
        "mcts",
    }
    assert set(seeds.values()) == {1, 2}


def test_fusing_first_keeps_what_rewriting_would_have_taken_apart(table):
    """The pool stands between the convolution and the BatchNorm: fused first, they stay three kernels."""
    joint, first, last = (table.cheapest(name) for name in ("joint", "fusion-first", "fusion-last"))
    assert (joint.kernels, first.kernels, last.kernels) == (2, 3, 2)
    assert joint.cost == pytest.approx(last.cost)
    assert first.cost > joint.cost * 1.1


def test_quantizing_first_or_last_may_cost_and_never_gains():
    found = compare_orderings(
        build(Head), IMAGE, cost="trt_int8", strategies=["joint", "quantization-first", "quantization-last"]
    )
    costs = {o.strategy: o.cost for o in found.outcomes}
    assert min(costs.values()) == pytest.approx(costs["joint"])


def test_what_is_kept_first_is_still_there():
    from eqsat_deploy.research.orderings import find_actions
    from eqsat_deploy.research.staging import _meaning
    from eqsat_deploy.search import Limits
    from eqsat_deploy.targets import find_cost
    from tests.deploy.test_research import lowered

    form, cost, limits = lowered(build(PooledBlock), IMAGE), find_cost("trt_int8"), Limits()
    actions = find_actions(form, None, cost, limits)[0]
    environment = research.Environment(form, actions, cost, Effort(), limits)
    research.STRATEGIES["fusion-first"](environment, None)
    before, after = environment.known.values()
    now = dict(zip(before.space.row_class, after.space.row_class, strict=True))
    same = {number: number for number in range(len(after.space.classes))}
    fused = {
        now[before.space.exact(number)]: _meaning(before.space, node, now)
        for number, node in (before.space.choices[i] for i in before.chosen) if node.steps
    }  # fmt: skip
    kept = {
        after.space.exact(number): _meaning(after.space, node, same)
        for number, node in (after.space.choices[i] for i in after.chosen)
    }
    assert fused
    assert all(kept[number] == meaning for number, meaning in fused.items())


def test_ablations_leave_a_family_or_a_rule_out():
    found = compare_orderings(build(PooledBlock), IMAGE, cost="trt_int8", strategies=["joint"],
                              leave_out=["folding", "identity-pool", "movement"])  # fmt: skip
    costs = {o.without: o.cost for o in found.outcomes}
    assert list(costs) == [None, "folding", "identity-pool", "movement"]
    assert costs["folding"] > costs[None] * 1.1
    assert costs["identity-pool"] > costs[None] * 1.1
    assert costs["movement"] == pytest.approx(costs[None], rel=1e-5)
    assert "joint without folding" in str(found)
    with pytest.raises(UnknownNameError, match="did you mean 'folding'"):
        compare_orderings(build(PooledBlock), IMAGE, leave_out=["foldin"])


def test_a_schedule_may_name_families_that_a_model_has_nothing_for() -> None:
    schedule = Schedule.from_dict({
        "rulesets": {"clean": ["folding", "attention"]},
        "steps": [{"run": "clean", "times": "saturate"}, {"run": "attention"}, {"run": "kernels", "times": "saturate"}],
    })  # fmt: skip
    table = compare_orderings(
        build(PooledBlock), IMAGE, cost="trt_int8", strategies={"mine": schedule}, leave_out=["folding"]
    )
    assert "attention" in table.inactive
    assert [outcome.without for outcome in table.outcomes] == [None, "folding"]
    assert table.outcomes[0].cost < table.outcomes[1].cost


def test_a_schedule_that_names_nothing_is_told_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eqsat_deploy.research.orderings.capture", lambda *_, **__: pytest.fail("it ran"))
    schedule = Schedule.from_dict({"rulesets": {"clean": ["foldin"]}, "steps": [{"run": "clean"}]})
    with pytest.raises(UnknownNameError, match=r"'foldin': did you mean 'folding'"):
        compare_orderings(build(PooledBlock), IMAGE, strategies={"mine": schedule})


def test_rules_can_be_actions_too():
    names = [r.name for r in registered_rules() if r.family in ("folding", "identity-pool")]
    found = compare_orderings(
        build(PooledBlock), IMAGE, cost="trt_int8", strategies=["greedy"], families=names, effort=FEW
    )
    assert set(found.families) < set(names)
    assert found.inactive
    assert set(found.outcomes[0].sequence) <= set(found.families)


# -- sketches ----------------------------------------------------------------------------------------------


def test_a_sketch_is_read_and_written():
    sketch = Sketch.parse(" add( conv2d(?, ?) ,relu )")
    assert sketch == Sketch("add", (Sketch("conv2d", (None, None)), Sketch("relu")))
    assert str(sketch) == "add(conv2d(?, ?), relu)"
    for text in ("", "?", "conv2d(", "conv2d)", "conv2d(,)", "a b", "conv2d(?)x", "+"):
        with pytest.raises(InputError, match="sketch"):
            Sketch.parse(text)
    with pytest.raises(InputError, match="at least one"):
        Sketches()


def test_a_sketch_decides_what_the_program_contains():
    """Two kernels are cheapest; a program with the BatchNorm in it is there from the start: no more is asked."""
    own = {"with": Sketches("batch_norm"), "fused": Sketches("batch_norm", "relu(?, ?, ?, conv2d)")}
    found = compare_orderings(build(PooledBlock), IMAGE, cost="trt_int8", strategies=own)
    first, second = found.outcomes
    assert first.evaluations == 1
    assert second.evaluations > first.evaluations
    assert second.cost < first.cost * 0.9
    assert second.sequence == ("batch_norm", "relu(?, ?, ?, conv2d)")


def test_what_contains_a_sketch_computes_what_the_model_does():
    from functools import partial

    import torch

    from eqsat_deploy.research.sketches import containing
    from eqsat_deploy.search import search
    from eqsat_deploy.selection import find_rules
    from eqsat_deploy.targets import find_cost
    from eqsat_deploy.verify import relative_error
    from tests.deploy.test_research import lowered, run

    model = build(PooledBlock)
    for text in ("batch_norm", "batch_norm(conv2d)", "relu(?, ?, ?, conv2d)"):
        restrict = partial(containing, Sketch.parse(text))
        found = search(lowered(model, IMAGE), find_rules(), find_cost("trt_int8"), restrict=restrict)
        again = search(research.lowered_form(found), find_rules([]), find_cost("trt_int8"))
        with torch.no_grad():
            assert relative_error([model(IMAGE)], run(again, IMAGE)) < 1e-5
        names = {str(found.space.choices[i][1]) for i in found.launches}
        assert any(text.partition("(")[0] in name for name in names), names


def test_a_sketch_that_is_not_reached_is_named():
    with pytest.raises(InputError, match=r"sketch 2, softmax\(conv2d\)"):
        compare_orderings(build(PooledBlock), IMAGE, cost="trt_int8",
                          strategies={"s": Sketches("conv2d", "softmax(conv2d)")})  # fmt: skip


def test_an_unknown_strategy_names_near_misses():
    with pytest.raises(UnknownNameError, match="did you mean 'greedy'"):
        compare_orderings(build(Head), IMAGE, strategies=["gredy"])


# -- sweeps ------------------------------------------------------------------------------------------------


def told(job):
    """Stands for the work of a job: notes that it was begun, and dies or fails as its strategy says."""
    begun = Path(job.spec) / job.key
    first = not begun.exists()
    begun.write_text("")
    if job.strategy == "dies" and first:
        os.kill(os.getpid(), signal.SIGKILL)
    if job.strategy == "fails":
        raise ValueError("always")
    return {"seed": job.seed}


def test_a_sweep_goes_on_where_it_stopped(tmp_path):
    jobs = [Job(str(tmp_path), "works", seed) for seed in range(6)]
    file = tmp_path / "rows.jsonl"
    with ThreadPoolExecutor(2) as pool:
        sweep(jobs[:3], file, pool, run=told)
        whole = file.read_bytes()
        file.write_bytes(whole + b'{"key": "half a li')
        for begun in tmp_path.glob("[0-9a-f]" * 16):
            begun.unlink()
        rows = sweep(jobs, file, pool, run=told)
    assert [row["result"]["seed"] for row in rows] == list(range(6))
    assert {p.name for p in tmp_path.glob("[0-9a-f]" * 16)} == {job.key for job in jobs[3:]}
    assert file.read_bytes().startswith(whole)
    assert len(file.read_text().splitlines()) == 6


def test_jobs_of_workers_that_died_are_tried_again_and_none_is_lost_or_doubled(tmp_path):
    jobs = [Job(str(tmp_path), "dies" if seed == 2 else "works", seed) for seed in range(8)]
    file = tmp_path / "rows.jsonl"
    rows = sweep(jobs, file, lambda: ProcessPoolExecutor(2), run=told)
    assert [row["result"]["seed"] for row in rows] == list(range(8))
    assert sorted(json.loads(line)["key"] for line in file.read_text().splitlines()) == sorted(
        job.key for job in jobs
    )


def test_a_job_that_always_fails_is_named_and_the_others_are_done(tmp_path):
    jobs = [Job(str(tmp_path), "fails" if seed == 0 else "works", seed) for seed in range(4)]
    with (
        ThreadPoolExecutor(2) as pool,
        pytest.raises(EqsatError, match=r"1 of 4 jobs failed 2 times.*seed=0.*always"),
    ):
        sweep(jobs, tmp_path / "rows.jsonl", pool, run=told, tries=2)
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 3


def test_a_file_of_something_else_is_an_error(tmp_path):
    (tmp_path / "rows.jsonl").write_text("hello\n")
    with ThreadPoolExecutor(1) as pool, pytest.raises(InputError, match="line 1"):
        sweep([Job("x", "joint")], tmp_path / "rows.jsonl", pool, run=told)
    assert (tmp_path / "rows.jsonl").read_text() == "hello\n"


def test_a_job_runs_a_strategy_on_a_model_by_name(tmp_path):
    file = tmp_path / "model.py"
    file.write_text("from torch import nn\nimport torch\n\ndef make():\n"
                    "    m = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))\n"
                    "    m.example_input_array = torch.randn(2, 4)\n    return m.eval()\n")  # fmt: skip
    job = Job(f"{file}:make", "joint", cost="kernels", effort=(("evaluations", 3),))
    with ThreadPoolExecutor(1) as pool:
        (row,) = sweep([job], tmp_path / "rows.jsonl", pool)
    assert row["result"]["cost"] == 1.0
    assert row["job"]["strategy"] == "joint"


def killed_once(job):
    """Stands for the work of a job; the second one takes its worker with it, the first time."""
    begun = Path(job.spec) / f"{job.key}.begun"
    first = not begun.exists()
    begun.write_text("")
    if job.strategy == "dies" and first:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"seed": job.seed}


@pytest.mark.slow
def test_a_cluster_of_dask_loses_a_worker_and_no_job(tmp_path):
    distributed = pytest.importorskip("distributed")
    jobs = [Job(str(tmp_path), "dies" if seed == 1 else "works", seed) for seed in range(6)]
    file = tmp_path / "rows.jsonl"
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        before = {worker.pid for worker in (w.process.process for w in cluster.workers.values())}
        rows = sweep(jobs, file, client.get_executor(), run=killed_once)
        after = {worker.pid for worker in (w.process.process for w in cluster.workers.values())}
    assert [row["result"]["seed"] for row in rows] == list(range(6))
    assert sorted(json.loads(line)["key"] for line in file.read_text().splitlines()) == sorted(
        job.key for job in jobs
    )
    assert before != after
