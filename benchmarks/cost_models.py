"""Predicted against measured: forms of models that no price was fitted to, in microseconds a call.

    python -m benchmarks.cost_models --json benchmarks/results/cost_models.json
    python -m benchmarks.cost_models --models torchvision:resnet34 --cost measured:openvino_int8

The forms of a model are those that `optimize(tune=K)` builds: the K cheapest distinct ones, the plain form in INT8 and
in float. They run in one process a model, one call each a round, in random order (`engines.race`, without leaving
anybody out), a few copies of the engine of each, on as many threads as prices are of. Beside each model is the load of
the machine before and after. On a busy machine a call waits more than it computes; so everything is given twice, by the
time that a call takes (median) and by the CPU time of the process in it (median), which on one thread is what it takes
on an idle machine, but for what others do to caches and clocks.

Errors are of single forms, predicted over measured. The rank correlation (Kendall's tau-b) is between forms of one
model; where these take the same time within the noise it is chance, so that beside it stands how many pairs of forms
differ by more than `APART`, and how many of those are predicted in their order. The regret is what the form that is
predicted to be the fastest takes over the fastest that was timed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from collections.abc import Sequence
from functools import partial
from itertools import combinations
from math import isnan
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from scipy.stats import kendalltau

from benchmarks._models import inputs, load, rerandomize
from benchmarks.openvino_kernels import MODELS as FITTED
from benchmarks.zoo import isolated, versions
from eqsat_deploy.build import faithful
from eqsat_deploy.calling import arguments
from eqsat_deploy.capture import capture
from eqsat_deploy.deployment import Batch, call_of, deployment, record, samples_of
from eqsat_deploy.engines.race import race
from eqsat_deploy.lower import lower
from eqsat_deploy.module import OptimizedModule
from eqsat_deploy.quantization import quantize
from eqsat_deploy.rebuild import rebuild
from eqsat_deploy.search import Limits, Search, search
from eqsat_deploy.selection import find_rules, plain_rules
from eqsat_deploy.targets import find_cost, target_of
from eqsat_deploy.tune import COPIES, Copies, Form, contestants

MODELS = (
    "torchvision:mobilenet_v3_small", "torchvision:squeezenet1_0", "torchvision:shufflenet_v2_x0_5",
    "torchvision:mnasnet0_5", "torchvision:regnet_y_400mf", "torchvision:resnet34", "timm:deit_tiny_patch16_224",
    "timm:repvgg_a0", "timm:mobileone_s0", "torchvision:efficientnet_b1", "torchvision:inception_v3",
    "torchvision:densenet169",
)  # fmt: skip
FIXED = 224  # of models that take no other side
MEASURES = {"by time": "us", "by CPU time": "cpu_us"}
APART = 0.02
"""By what part the times of two forms have to differ for their order to say something."""
AIMS = {"mean_error": 0.10, "rank_correlation": 0.9, "top_1_regret": 0.02}


def survey(
    spec: str, *, cost: str, forms: int, side: int, threads: int, seconds: float, limit: float, copies: int
) -> dict[str, Any]:
    """One model in this process: its row."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")
    load_before, model = os.getloadavg()[0], rerandomize(load(spec)).eval()
    example = inputs(spec, 0, model, side)
    if example is None:
        example = torch.randn(2, 3, FIXED, FIXED, generator=torch.Generator().manual_seed(0))
    captured = capture(model, (example,), {})
    cost_model, lowered = find_cost(cost), lower(captured)
    target = target_of(cost_model.name)
    assert target is not None
    kept = search(lowered, find_rules(None), cost_model, Limits(time_limit=limit))
    plain = search(lowered, plain_rules(), cost_model, Limits(extractor="greedy"))

    def made(found: Search) -> OptimizedModule:
        rebuilt = rebuild(found)
        module = OptimizedModule(rebuilt.root, rebuilt.graph, "Form").eval()
        samples = samples_of(rebuilt.inputs, captured.tensors)
        record(
            module, inputs=rebuilt.inputs, placement=rebuilt.placement, grid=target.grid_here, samples=samples
        )
        return module

    engines, failed, found = {}, {}, contestants(kept, plain, forms, made)
    for form in found:
        try:
            engines[form.name] = Copies(_engine(form, target.engine, threads), copies)
        except Exception as error:  # a form that fails costs itself
            failed[form.name] = f"{type(error).__name__}: {str(error)[:300]}"
    signature = next(iter(engines.values())).engine.signature
    args, kwargs = arguments(signature.call.batch(signature.zeros(1)))
    cpu: dict[str, list[float]] = {name: [] for name in engines}

    def timed(name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> None:
            start = time.process_time()
            engines[name](*args, **kwargs)
            cpu[name].append((time.process_time() - start) * 1e6)

        return call

    timings = race({name: timed(name) for name in engines}, args, kwargs, seconds=seconds, runs=10_000)
    rows = [
        {
            "form": form.name, "predicted": form.found.solution.cost, "us": timing.median,
            "cpu_us": median(cpu[form.name]), "quartiles": [timing.lower, timing.upper], "rounds": timing.runs,
        }
        for form in found if (timing := timings.get(form.name)) is not None
    ]  # fmt: skip
    return {
        "model": spec, "status": "ok", "side": int(example.shape[-1]), "fitted": spec.partition(":")[2] in FITTED,
        "forms": rows, "failed": failed, "load": [round(load_before, 2), round(os.getloadavg()[0], 2)],
        **{name: figures(rows, key) for name, key in MEASURES.items()},
    }  # fmt: skip


def _engine(form: Form, maker: Any, threads: int) -> Any:
    module: Any = form.module
    if form.integer:
        sample = call_of(module).batch(deployment(module).samples)
        module = quantize(module, [sample], effort="fast")
    notes: list[str] = []
    engine = faithful(maker, module, Batch(), {"threads": threads}, form.name, notes)
    if engine is None:
        raise RuntimeError("; ".join(notes))
    return engine


def figures(rows: Sequence[dict[str, Any]], measure: str) -> dict[str, float | None]:
    """What the forms of one model say of the prices; None where fewer than two were timed."""
    by_time = sorted(rows, key=lambda row: row[measure])
    apart = [
        (faster, slower)
        for faster, slower in combinations(by_time, 2)
        if slower[measure] > (1 + APART) * faster[measure]
    ]
    ordered = sum(faster["predicted"] < slower["predicted"] for faster, slower in apart)
    pairs = {"told_apart": len(apart), "in_order": ordered}
    if len(rows) < 2:
        return {"rank_correlation": None, "top_1_regret": None, **pairs}
    tau = float(kendalltau([row["predicted"] for row in rows], [row[measure] for row in rows]).statistic)
    first = min(rows, key=lambda row: row["predicted"])
    return {
        "rank_correlation": None if isnan(tau) else round(tau, 3),
        "top_1_regret": round(first[measure] / min(row[measure] for row in rows) - 1, 4),
        **pairs,
    }


def summary(models: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Figures over all forms of all models that nothing was fitted to, beside what is aimed at."""
    done = [model for model in models if model["status"] == "ok" and not model["fitted"] and model["forms"]]
    if not done:
        return {"pairs": 0}
    loads = [load for model in done for load in model["load"]]
    return {
        "pairs": sum(len(model["forms"]) for model in done),
        "models": len(done),
        "load": [min(loads), max(loads)],
        **{name: _over_models(done, name, key) for name, key in MEASURES.items()},
        "aims": AIMS,
    }


def _over_models(done: Sequence[dict[str, Any]], name: str, measure: str) -> dict[str, Any]:
    ratios = [row["predicted"] / row[measure] for model in done for row in model["forms"]]
    scale = median(ratios)
    found = [model[name] for model in done]
    correlations = [f["rank_correlation"] for f in found if f["rank_correlation"] is not None]
    regrets = [f["top_1_regret"] for f in found if f["top_1_regret"] is not None]
    return {
        "mean_error": round(mean(abs(ratio - 1) for ratio in ratios), 4),
        "median_error": round(median(abs(ratio - 1) for ratio in ratios), 4),
        "median_ratio": round(scale, 4),
        # What remains where the machine as a whole is slower or faster than that of the table.
        "mean_error_in_proportion": round(mean(abs(ratio / scale - 1) for ratio in ratios), 4),
        "rank_correlation": round(mean(correlations), 4) if correlations else None,
        "top_1_regret": round(mean(regrets), 4) if regrets else None,
        "largest_regret": max(regrets, default=None),
        "told_apart": sum(f["told_apart"] for f in found),
        "in_order": sum(f["in_order"] for f in found),
    }


def plot(models: Sequence[dict[str, Any]], path: Path) -> None:
    """Predicted against measured, a colour a model, as an SVG file."""
    from matplotlib import rcParams

    from eqsat_deploy.report.plotting import new_drawing

    rcParams["svg.hashsalt"] = "eqsat-deploy"
    figure = new_drawing(figsize=(7, 5), layout="constrained")
    axes = figure.add_subplot()
    done = [model for model in models if model["status"] == "ok" and model["forms"]]
    for number, model in enumerate(done):
        x, y = ([row[key] / 1e3 for row in model["forms"]] for key in ("cpu_us", "predicted"))
        axes.plot(x, y, "o" if number < 10 else "s", ms=4, label=model["model"].partition(":")[2])
    ends = [row[key] / 1e3 for model in done for row in model["forms"] for key in ("cpu_us", "predicted")]
    span = [min(ends, default=1.0), max(ends, default=1.0)]
    axes.plot(span, span, color="grey", lw=0.8)
    axes.set(xscale="log", yscale="log", xlabel="measured, ms of CPU time", ylabel="predicted, ms")
    axes.legend(fontsize=7)
    figure.savefig(path, metadata={"Date": None})


def main() -> int:
    """Command line; exits with 1 where a model could not be timed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=MODELS, help="SPECs")
    parser.add_argument(
        "--json", type=Path, help="where the rows go, and a plot beside it; rewritten after every model"
    )
    parser.add_argument(
        "--cost", default="openvino_int8", help="a cost model of an engine, measured:NAME too"
    )
    parser.add_argument("--forms", type=int, default=3, help="distinct forms from the cheapest on")
    parser.add_argument("--side", type=int, default=128, help="height and width of images")
    parser.add_argument("--threads", type=int, default=1, help="of the engine; the tables are of one")
    parser.add_argument("--seconds", type=float, default=15.0, help="of timing a model")
    parser.add_argument(
        "--copies", type=int, default=COPIES, help="of the engine of every form (`eqsat_deploy.tune`)"
    )
    parser.add_argument("--limit", type=float, default=10.0, help="seconds of extraction")
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds per model")
    arguments = parser.parse_args()
    work = partial(survey, cost=arguments.cost, forms=arguments.forms, side=arguments.side,
                   threads=arguments.threads, seconds=arguments.seconds, limit=arguments.limit,
                   copies=arguments.copies)  # fmt: skip
    rows: list[dict[str, Any]] = []
    for spec in arguments.models:
        row = isolated(work, spec, timeout=arguments.timeout)
        rows.append(row)
        print(f"{spec}: {row['status']} {row.get('error', '')}", flush=True)
        for form in row.get("forms", ()):
            ratio = form["predicted"] / form["cpu_us"]
            print(f"    {form['form']:<15} {form['predicted']:>9.0f} us predicted, {form['us']:>9.0f} measured, "
                  f"{form['cpu_us']:>9.0f} of CPU time: {ratio:.2f}", flush=True)  # fmt: skip
        if row["status"] == "ok":
            print(f"    {row['by CPU time']} by CPU time, load {row['load']}", flush=True)
        if arguments.json:
            settings = {
                "cost": arguments.cost,
                "threads": arguments.threads,
                "batch": 1,
                "side": arguments.side,
            }
            found = {"summary": summary(rows), "settings": settings, "rows": rows, "versions": versions(),
                     "cpus": os.cpu_count()}  # fmt: skip
            arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            plot(rows, arguments.json.with_suffix(".svg"))
    print(json.dumps(summary(rows), indent=1))
    return int(any(row["status"] != "ok" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
