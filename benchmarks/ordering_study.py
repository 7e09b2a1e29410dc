"""Does the order of rewriting matter? Founding conversions, fusion, quantization, pairs of families; and the experiment
of the MCTS study on real modules.

    python -m benchmarks.ordering_study --models zoo --json benchmarks/results/ordering_study.json
    python -m benchmarks.ordering_study --report benchmarks/results/ordering_study.json

Every job runs in a process of its own and adds a line to `--rows`, beside the JSON: run again, it goes on with what is
missing. `--json` then gets everything in one file; `--report` prints its tables as Markdown and draws its figures
(`benchmarks/_ordering_report.py`). Parts: `orders` (each model of `--models`, prices of `--cost`), `reference` (MCTS
with `--seeds` seeds beside joint saturation) and `plain` (what an engine does by itself), `latency` (forms measured by
OpenVINO).
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import platform
import random
import resource
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import quantiles
from typing import Any

import torch

from benchmarks._models import inputs, load, rerandomize
from benchmarks._reference_models import REFERENCE
from benchmarks.zoo import FORKS, versions
from eqsat_deploy.capture import capture
from eqsat_deploy.errors import ExtractionError
from eqsat_deploy.inputs import example_arguments
from eqsat_deploy.lower import Lowered, lower
from eqsat_deploy.research import STRATEGIES, Effort, Environment, Schedule, lowered_form, sweep
from eqsat_deploy.research.environment import Spent
from eqsat_deploy.research.orderings import SAME, find_actions
from eqsat_deploy.saturate import Budget
from eqsat_deploy.search import Limits, search
from eqsat_deploy.selection import BETWEEN, CONVERSIONS, Selection, find_rules, plain_rules
from eqsat_deploy.targets import find_cost

ZOO = (
    *(f"torchvision:{n}" for n in ("resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_1")),
    *(f"timm:{n}" for n in ("convnext_atto", "deit_tiny_patch16_224", "repvgg_a0", "mobileone_s0")),
    *(f"transformers:{n}" for n in ("swin", "bert", "vit", "convnext", "segformer", "distilbert")),
    *(f"torchvision:{n}" for n in ("mobilenet_v2", "mnasnet0_5", "regnet_x_400mf", "googlenet", "efficientnet_b0")),
    *(f"timm:{n}" for n in ("poolformer_s12", "ghostnet_100", "mobilevit_xxs", "levit_128s", "resmlp_12_224")),
)  # fmt: skip
MEASURED = ("timm:convnext_atto", "torchvision:mobilenet_v3_small", "torchvision:shufflenet_v2_x0_5", "timm:repvgg_a0",
            "timm:levit_128s")  # fmt: skip
CLASSICS = {"torchvision:alexnet": 224, "torchvision:vgg11": 224, "torchvision:vit_b_16": 224}
"""Models with several of the founding conversions, at the side of images where these apply."""
SIDE, ORDERS, FORMS, NODES = 64, 12, 10, 20_000
WORK = 400_000
"""Units of an extraction: counted and not timed, so that rows do not depend on what else the machine does."""
MEMORY = 8 << 30
"""Bytes of address space of a job: an e-graph that asks for more ends the job, and not the machine."""
FAILED = "error"


@dataclass(frozen=True)
class Job:
    """One line of the file; `seed` is that of a draw, or how many there are."""

    part: str
    model: str
    seed: int = 0
    cost: str = "trt_int8"
    seconds: float = 60.0

    @property
    def key(self) -> str:
        """What the job is known by in the file."""
        return " ".join((self.part, self.model, str(self.seed), self.cost))


def run(job: Job) -> dict[str, Any]:
    """What a job finds; what fails is a result too."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    with open(os.devnull, "w") as nowhere:  # solvers greet
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
    start = time.perf_counter()
    try:
        found = PARTS[job.part](job)
    except Exception as error:  # whatever goes wrong with one model is its row
        found = {
            FAILED: f"{type(error).__name__}: {error}"[:300],
            "traceback": traceback.format_exc()[-2000:],
        }
    return found | {"wall_seconds": round(time.perf_counter() - start, 1), "load": os.getloadavg()[0]}


class _All(Environment):
    """With every rule loaded, whatever matches: loaded once for all models."""

    selection = find_rules(None)


# -- orders on the zoo -------------------------------------------------------------------------------------


def orders(job: Job) -> dict[str, Any]:
    """Everything about one model, cheapest questions first: what there was no time for is named in `cut`."""
    lowered = _lowered(job.model, CLASSICS.get(job.model, SIDE))
    cost_model = find_cost(job.cost)
    limits = Limits(time_limit=None, work_limit=WORK)
    actions, _, notes = find_actions(lowered, None, cost_model, limits)
    environment = _All(lowered, actions, cost_model, Effort(10**6, job.seconds, 200_000), limits)
    joint = environment.search(None, actions)
    row: dict[str, Any] = {
        "rows": len(lowered.rows), "families": list(actions), "e_nodes": len(joint.space.nodes), "notes": notes,
        "joint": joint.solution.cost, "bound": joint.solution.bound,
        "untouched": environment.search(Schedule(()), ()).solution.cost, "unit": cost_model.unit, "cut": [],
    }  # fmt: skip
    for name, ask in (("staged", _staged), ("founding", _founding), ("pairs", _pairs), ("orders", _orders)):
        row[name] = {}
        try:
            for key, value in ask(environment):
                row[name][key] = value
        except Spent:
            row["cut"].append(name)
    return row | {"evaluations": environment.evaluations}


def _staged(environment: Environment) -> Iterator[tuple[str, float]]:
    for name in ("fusion-first", "fusion-last", "quantization-first", "quantization-last"):
        STRATEGIES[name](environment, random.Random(0))
        yield name, list(environment.known.values())[-1].solution.cost


def _founding(environment: Environment) -> Iterator[tuple[str, dict[str, float | None]]]:
    """Orders of the founding conversions: where they pay, and wherever they match; alone, and then everything."""
    known: dict[tuple[str, ...], tuple[float, Lowered] | None] = {}
    active = [name for name in CONVERSIONS if name in environment.actions]
    for order in itertools.permutations(active) if active else ():
        found = environment.follow(order)
        then = environment.search(None, order, environment.form(found))
        forced: tuple[float, Lowered] | None = (0.0, environment.lowered)
        for count in range(1, len(order) + 1):
            if (prefix := order[:count]) not in known:
                known[prefix] = forced and _forced(environment, forced[1], prefix[-1])
            forced = known[prefix]
        yield " > ".join(order), {
            "alone": found.solution.cost, "then all": then.solution.cost, "forced": forced and forced[0],
        }  # fmt: skip


def _forced(environment: Environment, form: Lowered, family: str) -> tuple[float, Lowered] | None:
    """A conversion wherever it matches, whatever it costs; None where the target has no kernels for that."""
    between = [BETWEEN] if family == CONVERSIONS[0] else []
    rules = find_rules([family, *between]).rules
    try:
        found = search(form, Selection(rules, (family,)), environment.cost_model, environment.limits)
    except ExtractionError:
        return None
    return found.solution.cost, lowered_form(found)


def _pairs(environment: Environment) -> Iterator[tuple[str, dict[str, float]]]:
    """Two families one after the other, both ways, and each alone."""
    for one, other in itertools.combinations(environment.actions, 2):
        found = {
            "first": environment.follow((one,)), "second": environment.follow((other,)),
            "then": environment.follow((one, other)), "reversed": environment.follow((other, one)),
        }  # fmt: skip
        yield f"{one} + {other}", {name: search.solution.cost for name, search in found.items()}


def _orders(environment: Environment) -> Iterator[tuple[str, float]]:
    """Orders of all families: all, or so many drawn."""
    names, draw = environment.actions, random.Random(0)
    drawn = (tuple(draw.sample(names, len(names))) for _ in range(ORDERS))
    for order in itertools.permutations(names) if math.factorial(len(names)) <= ORDERS else drawn:
        yield " > ".join(order), environment.follow(order).solution.cost


# -- the reference experiment ------------------------------------------------------------------------------


def reference(job: Job) -> dict[str, Any]:
    """One of the MCTS study's kinds of models: joint saturation, and MCTS with every seed, within TENSAT's limits (15
    iterations, `NODES` e-nodes, merging in one iteration) and in as much time as `joint` may extract."""
    model, x = REFERENCE[job.model]()
    args, kwargs = example_arguments(model, x)
    lowered = lower(capture(model, args, kwargs))
    del model
    cost_model, effort = find_cost(job.cost), Effort(10**6, job.seconds, NODES)
    limits = Limits(time_limit=job.seconds, budget=Budget(iterations=15, nodes=effort.nodes, seconds=3600.0))
    quick = replace(limits, time_limit=1.0)
    actions, _, notes = find_actions(lowered, None, cost_model, quick)
    untouched = search(lowered, find_rules([]), cost_model, quick).solution.cost
    runs = [("joint", 0, limits), *(("mcts", seed, quick) for seed in range(job.seed))]
    return {
        "rows": len(lowered.rows), "families": list(actions), "untouched": untouched, "notes": notes,
        "runs": [_played(name, seed, _Once(lowered, actions, cost_model, effort, bounds))
                 for name, seed, bounds in runs],
    }  # fmt: skip


def plain(job: Job) -> dict[str, Any]:
    """What an engine makes of that model by itself: BatchNorm folded, which TENSAT's models come without."""
    model, x = REFERENCE[job.model]()
    args, kwargs = example_arguments(model, x)
    found = search(lower(capture(model, args, kwargs)), plain_rules(), find_cost(job.cost), Limits())
    return {"plain": found.solution.cost}


class _Once(_All):
    """TENSAT's k_multi of 1: rules of several outputs run in one iteration; each more of it squares their number."""

    def cost(self, sequence: Sequence[str]) -> float:
        first = sequence.index("merging") if "merging" in sequence else len(sequence)
        return super().cost([a for i, a in enumerate(sequence) if a != "merging" or i == first])


def _played(name: str, seed: int, environment: Environment) -> dict[str, Any]:
    with suppress(Spent):
        STRATEGIES[name](environment, random.Random(seed))
    best = environment.best
    assert best is not None  # the first evaluation is never refused
    return {
        "strategy": name, "seed": seed, "cost": best.solution.cost, "bound": best.solution.bound,
        "e_nodes": len(best.space.nodes), "evaluations": environment.evaluations,
        "seconds": time.perf_counter() - environment.start, "sequence": list(environment.sequence),
        "curve": [asdict(point) for point in environment.curve],
    }  # fmt: skip


# -- latency -----------------------------------------------------------------------------------------------


def latency(job: Job) -> dict[str, Any]:
    """Forms that different orders leave, as float OpenVINO networks, timed in turns; the cheapest of them twice.

    Forms are those that orders of families, and the beginnings of orders, leave, spread over what they are predicted to
    cost."""
    import openvino

    from benchmarks._peers import SETTINGS
    from eqsat_deploy.rebuild import rebuild

    lowered = _lowered(job.model, 224)
    cost_model, limits = find_cost(job.cost), Limits(time_limit=None, work_limit=WORK)
    actions, _, _ = find_actions(lowered, None, cost_model, limits)
    environment = _All(lowered, actions, cost_model, Effort(10**6, job.seconds, 200_000), limits)
    found = {"untouched": environment.search(Schedule(()), ()), "joint": environment.search(None, actions)}
    draw = random.Random(job.seed)
    with suppress(Spent):
        for _ in range(ORDERS):
            order = draw.sample(actions, len(actions))
            for count in range(1, len(order) + 1):
                found[" > ".join(order[:count])] = environment.follow(order[:count])
    distinct: list[str] = []
    for name in sorted(found, key=lambda name: (found[name].solution.cost, name)):
        if not distinct or found[name].solution.cost > found[distinct[-1]].solution.cost * (1 + 10 * SAME):
            distinct.append(name)
    chosen = list(dict.fromkeys(distinct[round(i * (len(distinct) - 1) / (FORMS - 1))] for i in range(FORMS)))
    x = lowered.captured.tensors[0][:1]
    engines = {}
    for index, name in enumerate([*chosen, chosen[0]]):
        made = rebuild(found[name])
        module = torch.fx.GraphModule(made.root, made.graph).eval()
        engines[str(index)] = _runner(
            openvino.Core().compile_model(
                openvino.convert_model(torch.export.export(module, (x,))),
                "CPU",
                {**SETTINGS, "INFERENCE_NUM_THREADS": 1},
            )
        )
    timings = _cpu_times(engines, x, 30.0)
    return {
        "families": list(actions), "distinct": len(distinct), "unit": cost_model.unit,
        "forms": [{"form": name, "predicted": found[name].solution.cost, **timings[str(index)]}
                  for index, name in enumerate([*chosen, chosen[0]])],
    }  # fmt: skip


def _runner(compiled: Any) -> Callable[[torch.Tensor], Any]:
    import openvino

    request = compiled.create_infer_request()
    return lambda x: request.infer({0: openvino.Tensor(x.numpy(), shared_memory=True)})


def _cpu_times(
    engines: dict[str, Callable[[Any], Any]], x: Any, seconds: float
) -> dict[str, dict[str, float]]:
    """Microseconds of CPU that a call takes on one thread, in rounds of random order: what others do on the machine
    counts less than by the clock."""
    taken: dict[str, list[float]] = {name: [] for name in engines}
    order, shuffle, stop = list(engines), random.Random(0).shuffle, time.perf_counter() + seconds
    while time.perf_counter() < stop or len(taken[order[0]]) < 5:
        shuffle(order)
        for name in order:
            start = time.process_time()
            engines[name](x)
            taken[name].append((time.process_time() - start) * 1e6)
    found = {}
    for name, times in taken.items():
        lower, middle, upper = quantiles(times, n=4)
        found[name] = {"median": middle, "lower": lower, "upper": upper, "runs": len(times)}
    return found


# -- all of it ---------------------------------------------------------------------------------------------

PARTS: dict[str, Callable[[Job], dict[str, Any]]] = {
    "orders": orders,
    "reference": reference,
    "plain": plain,
    "latency": latency,
}


def _lowered(spec: str, side: int) -> Lowered:
    model = rerandomize(load(spec))
    args, kwargs = example_arguments(model, inputs(spec, 0, model, side))
    return lower(capture(model, args, kwargs))


def jobs(parts: list[str], models: list[str], cost: str, seeds: int, seconds: float) -> list[Job]:
    """What to do, in turns of the parts, so that a run that is cut has something of every one."""
    zoo = [Job("orders", spec, cost=cost, seconds=seconds) for spec in models]
    others = [Job("reference", name, seed=seeds, cost="trt_fp16", seconds=seconds / 4) for name in REFERENCE]
    measured = [Job("latency", spec, cost="openvino_fp32", seconds=seconds / 2) for spec in MEASURED]
    alone = [Job("plain", name, cost="trt_fp16") for name in REFERENCE]
    few = 8
    made = (
        *zoo[:few],
        *others[:-2],
        *measured[:2],
        *alone[:-2],
        *zoo[few:],
        *others[-2:],
        *alone[-2:],
        *measured[2:],
    )
    return [job for job in made if job.part in parts]


def _pool() -> Executor:
    """One process, and another where a model is too much for it."""
    return ProcessPoolExecutor(1, mp_context=FORKS)


def _told(job: Job) -> dict[str, Any]:
    row = run(job)
    print(f"{job.key:70} {row['wall_seconds']:6.1f} s  {row.get(FAILED, '')}", file=sys.stderr, flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default="zoo", help="comma-separated SPECs, or `zoo`: 27 models")
    parser.add_argument("--cost", default="trt_int8", help="cost model of the part `orders`")
    parser.add_argument("--parts", default=",".join(PARTS), help="comma-separated")
    parser.add_argument("--seeds", type=int, default=5, help="of MCTS in the reference experiment")
    parser.add_argument(
        "--seconds",
        type=float,
        default=60.0,
        help="at most, on a model's orders; a quarter of that for MCTS and joint extraction",
    )
    parser.add_argument("--json", type=Path, help="where everything goes at the end")
    parser.add_argument(
        "--rows", type=Path, help="the file that grows (default: the JSON's name with .jsonl)"
    )
    parser.add_argument(
        "--report", type=Path, help="draw that file's figures beside it, print its tables, run nothing"
    )
    args = parser.parse_args()
    if args.report:
        from benchmarks._ordering_report import report

        print(report(json.loads(args.report.read_text(encoding="utf-8")), args.report.parent))
        return
    if args.json is None:
        parser.error("--json is needed")
    models = [*ZOO[:8], *CLASSICS, *ZOO[8:]] if args.models == "zoo" else args.models.split(",")
    wanted = jobs(args.parts.split(","), models, args.cost, args.seeds, args.seconds)
    rows = sweep(wanted, args.rows or args.json.with_suffix(".jsonl"), _pool, run=_told)  # type: ignore[arg-type]
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    found = {
        "versions": versions(),
        "machine": machine,
        "rows": [{**row["job"], **row["result"]} for row in rows],
    }
    args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
