"""Capture to verification on any list of models, one process each.

    python -m benchmarks.zoo --models torchvision:resnet18,timm:deit_tiny_patch16_224 --json zoo.json
    python -m benchmarks.zoo --models all --side 128 --threads 1 --resume --json benchmarks/results/zoo_coverage.json
    python -m benchmarks.zoo --summary benchmarks/results/zoo_coverage.json > benchmarks/results/zoo_coverage.md

A name in `--models` stands for a list, smallest model first: `founding`; `torchvision`, every classification and
segmentation model; `timm`, the smallest model of every family of every timm module (`zoo_timm.txt`);
`transformers`, small models from configurations; `all` of these. `--side` gives images that size to every
architecture that takes them, to save time; the others get their own.

Parameters are re-randomized by a seed. Every row also says whether noise planted on one weight of the optimized
module was caught by the same verification: a check that cannot fail is none. Where the first weight matters less than
the tolerance, up to two others are tried.

With `--build ENGINE` every model is also calibrated on its inputs and built; one that does not compute what its module
computes fails:

    python -m benchmarks.zoo --models timm --side 128 --cost openvino_int8 --build openvino --threads 1 --jobs 2
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import resource
import subprocess
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.utils._pytree as pytree
from torch import nn

import eqsat_deploy
from benchmarks._models import (
    inputs,
    load,
    mutate,
    rerandomize,
    timm_names,
    torchvision_names,
    transformers_names,
)
from eqsat_deploy import optimizer
from eqsat_deploy.capture import Captured, capture
from eqsat_deploy.errors import VerificationError
from eqsat_deploy.inputs import example_arguments
from eqsat_deploy.verify import verify

FOUNDING = (
    *(f"torchvision:{n}" for n in ("resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0",
                                   "convnext_tiny", "vit_b_16", "swin_t")),
    *(f"timm:{n}" for n in ("deit_tiny_patch16_224", "convnext_tiny", "efficientnet_b0")),
)  # fmt: skip
FORKS = get_context("forkserver")
FORKS.set_forkserver_preload(["benchmarks._models", "torchvision", "timm"])  # a fork of egglog 13.2 hangs
PLANTED = 3
STABLE = 1e-2
REFUSED = "refused by torch.export"


def expand(models: str) -> list[str]:
    """The SPECs behind a comma-separated list of SPECs and names of lists, each once."""
    lists = {
        "founding": lambda: list(FOUNDING),
        "transformers": transformers_names,
        "timm": timm_names,
        "torchvision": torchvision_names,
    }
    lists["all"] = lambda: [spec for make in list(lists.values())[:-1] for spec in make()]
    given = (s.strip() for s in models.split(",") if s.strip())
    return list(
        dict.fromkeys(spec for name in given for spec in (lists[name]() if name in lists else [name]))
    )


def survey(
    spec: str, *, cost: str, seed: int, threads: int, side: int | None, build: str | None = None
) -> dict[str, Any]:
    """One model in this process: its row.

    A model whose own rounding error in float32 would hide a mistake is verified in float64.
    """
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")
    model: nn.Module = rerandomize(load(spec, seed), seed)
    args, kwargs = example_arguments(model, inputs(spec, seed, model, side))
    row = _row(spec, model, args, kwargs, cost, seed, build)
    if row["tolerance"] <= STABLE:
        return row
    args, kwargs = pytree.tree_map(lambda v: v.double() if v.is_floating_point() else v, (args, kwargs))
    return _row(spec, model.double(), args, kwargs, cost, seed)  # which no engine is built of


def _row(
    spec: str,
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    cost: str,
    seed: int,
    build: str | None = None,
) -> dict[str, Any]:
    start = time.perf_counter()
    captured = capture(model, args, kwargs)
    seconds = time.perf_counter() - start
    with mock.patch.object(optimizer, "capture", return_value=captured):  # the slowest stage once, not twice
        optimized = eqsat_deploy.optimize(model, kwargs or args, cost=cost)
    report = optimized.report
    row = {
        "model": spec, "status": "ok", "error": None,
        "inputs": [[str(v.dtype), *v.shape] for v in (*args, *kwargs.values())],
        "relative_error": max(report.errors.values()),
        "relative_errors": report.to_dict()["errors"], "tolerance": report.tolerance, "nodes": report.nodes,
        "plain_kernels": report.plain_kernels, "kernels": report.kernels,
        "plain_cost": report.plain_cost, "cost": report.cost, "gap": report.gap, "proved": report.proved,
        "opaque": len(report.opaque), "opaque_nodes": report.opaque, "e_nodes": report.e_nodes,
        "stopped": report.stopped, "rules_used": report.used_rules(), "notes": report.notes,
        "seconds": report.seconds | {"capture": round(seconds, 4)},
    }  # fmt: skip
    row["mutated"] = []
    for attempt in range(PLANTED):  # some weights matter less to any output than the tolerance
        mutated = copy.deepcopy(optimized)
        row["mutated"].append(mutate(mutated, seed + attempt))
        row["mutation_caught"] = _differs(captured, mutated)
        if row["mutation_caught"]:
            break
    if not row["mutation_caught"]:
        row["status"] = f"no planted mutation was noticed: {', '.join(row['mutated'])}"
    if build is not None and row["tolerance"] <= STABLE:
        row["engine"] = _built(optimized, kwargs or args, build)
    return row


def _built(optimized: Any, example: Any, name: str) -> dict[str, Any]:
    """What an INT8 engine reports of itself; raises `EngineError` where it departs from its module."""
    start = time.perf_counter()
    engine = optimized.quantize([example]).build(name, baseline=False)
    found = engine.report["engine"]
    kept = ("name", "version", "device", "notes", "expected_int8", "realized_int8", "not_realized")
    return {key: found[key] for key in kept} | {"seconds": round(time.perf_counter() - start, 2)}


def _differs(captured: Captured, module: nn.Module) -> bool:
    try:
        verify(captured, module)
    except VerificationError:
        return True
    return False


def isolated(work: Callable[[str], dict[str, Any]], spec: str, *, timeout: float) -> dict[str, Any]:
    """`work(spec)`, the row of one model, in a process of its own, forked from one that has the libraries loaded."""
    received, sent = FORKS.Pipe(duplex=False)
    process = FORKS.Process(target=_send, args=(sent, work, spec))
    start = time.perf_counter()
    process.start()
    sent.close()
    try:
        if not received.poll(timeout):
            return {"model": spec, "status": f"no result after {timeout:g} s", "error": "timeout"}
        row: dict[str, Any] = received.recv()
    except EOFError:
        process.join()
        return {"model": spec, "status": f"the process died: exit status {process.exitcode}", "error": "died"}
    finally:
        process.kill()
        process.join()
    return row | {"wall_seconds": round(time.perf_counter() - start, 2)}


def versions() -> dict[str, str]:
    """Versions of what the results depend on."""
    found = {"python": sys.version.split()[0]}
    for package in ("eqsat-deploy", "torch", "egglog", "torchvision", "timm", "transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=Path(__file__).parent,
                            capture_output=True, text=True, check=False)  # fmt: skip
    return found | ({"commit": commit.stdout.strip()} if commit.returncode == 0 else {})


def _send(pipe: Connection, work: Callable[[str], dict[str, Any]], spec: str) -> None:
    """What the process of a model does: its row, or why there is none."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
        os.dup2(nowhere.fileno(), sys.stderr.fileno())
    try:
        row = work(spec)
    except Exception as error:  # whatever goes wrong with somebody's model is the row's status
        first = str(error).strip().splitlines()[0] if str(error).strip() else ""
        notes = "; ".join(getattr(error, "__notes__", []))
        name = REFUSED if first.startswith("torch.export cannot export") else type(error).__name__
        row = {"model": spec, "status": f"{type(error).__name__}: {first}"[:500], "error": name,
               "where": notes, "traceback": traceback.format_exc()[-3000:]}  # fmt: skip
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    pipe.send(row | {"peak_bytes": peak, "versions": versions()})


def main() -> int:
    """Command line; exits with 1 when a model failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default=",".join(FOUNDING), help="comma-separated SPECs and lists")
    parser.add_argument("--json", type=Path, help="where the rows go; rewritten after every model")
    parser.add_argument("--cost", default="trt_int8")
    parser.add_argument("--build", help="the engine that each is built for, too")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds per model")
    parser.add_argument("--resume", action="store_true", help="keep the rows that --json already has")
    parser.add_argument(
        "--side", type=int, help="height and width of images, where the architecture takes them"
    )
    parser.add_argument("--jobs", type=int, default=1, help="models at a time")
    parser.add_argument(
        "--summary", type=Path, help="print the rows of that file as Markdown, and run nothing"
    )
    arguments = parser.parse_args()
    if arguments.summary:
        command = f"python -m benchmarks.zoo --models all --side 128 --threads 1 --json {arguments.summary}"
        print(summary(json.loads(arguments.summary.read_text()), command))
        return 0
    rows: list[dict[str, Any]] = []
    if arguments.resume and arguments.json and arguments.json.exists():
        rows = json.loads(arguments.json.read_text())
    known = {row["model"] for row in rows}
    missing = [spec for spec in expand(arguments.models) if spec not in known]
    work = partial(survey, cost=arguments.cost, seed=arguments.seed, threads=arguments.threads,
                   side=arguments.side, build=arguments.build)  # fmt: skip
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for row in pool.map(partial(isolated, work, timeout=arguments.timeout), missing):
            rows.append(row)
            print(_line(row), flush=True)
            if arguments.json:
                arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    return int(any(not _accepted(row) for row in rows))


def _accepted(row: dict[str, Any]) -> bool:
    """Whether the model came through, or torch.export itself refuses it."""
    return bool(row["status"] == "ok" or row["error"] == REFUSED)


def summary(rows: list[dict[str, Any]], command: str) -> str:
    """Totals of the rows as Markdown, with every model that did not come through and why."""
    done = [row for row in rows if row["status"] == "ok"]
    refused = [row for row in rows if row["error"] == REFUSED]
    failed = [row for row in rows if not _accepted(row)]
    nodes, opaque = sum(r["nodes"] for r in done), sum(r["opaque"] for r in done)
    calls = Counter(name.partition("(")[2].rstrip(")") for r in done for name in r["opaque_nodes"])
    unfinished = [r for r in done if r["stopped"] != "saturated"]
    open_ = [r for r in done if not r["proved"]]
    at_once = sum(r["proved"] and r["seconds"]["extract"] <= 1.0 for r in done)
    seconds = sorted(sum(v for k, v in r["seconds"].items() if k not in ("capture", "verify")) for r in done)
    lines = [
        "# Coverage", "",
        "Each model with re-randomized parameters, in a process of its own: captured, optimized for `trt_int8`,",
        "verified against the original at two batch sizes, and a planted error caught.",
        "", f"    {command}", "",
        "| source | models | verified | refused by torch.export | failed | nodes | opaque |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for source in (*dict.fromkeys(r["model"].partition(":")[0] for r in rows), ""):
        of = [r for r in rows if r["model"].startswith(source)]
        ok = [r for r in of if r in done]
        counts = (len(of), len(ok), sum(r in refused for r in of), sum(r in failed for r in of),
                  sum(r["nodes"] for r in ok), sum(r["opaque"] for r in ok))  # fmt: skip
        lines.append(f"| {source or 'all'} | " + " | ".join(map(str, counts)) + " |")
    lines += [
        "",
        f"Opaque: {100 * opaque / max(nodes, 1):.3f} % of all nodes"
        + "".join(f"; `{name}` {count}" for name, count in calls.most_common()) + ".",
        f"Largest relative error: {max((r['relative_error'] for r in done), default=0.0):.1e}, tolerated "
        f"{max((r['tolerance'] for r in done), default=0.0):.1e}. Planted errors caught: "
        f"{sum(r['mutation_caught'] for r in done)} of {len(done)}. Saturated: {len(done) - len(unfinished)} of "
        f"{len(done)}" + "".join(f"; {r['model']} stopped at {r['stopped']}" for r in unfinished) + ".",
        f"Proved optimal: {len(done) - len(open_)} of {len(done)}, {at_once} of them within 1 s of the clock, reading "
        "compiled code from its cache included"
        + "".join(f"; {r['model']} keeps a gap of {100 * r['gap']:.2g} %" for r in open_) + ".",
        f"Seconds after capture, without verification, on a shared core: median {seconds[len(seconds) // 2]:.1f}, "
        f"largest {seconds[-1]:.1f}." if seconds else "",
    ]  # fmt: skip
    for title, listed in (("Refused by torch.export", refused), ("Failed", failed)):
        if listed:
            lines += ["", f"## {title}", "", *(f"- `{r['model']}`: {r['status']}" for r in listed)]
    missing = [spec for spec in expand("all") if spec not in {r["model"] for r in rows}]
    if missing:
        lines += ["", "## Not run", "", ", ".join(f"`{spec}`" for spec in missing)]
    found = Counter(json.dumps(r["versions"], sort_keys=True) for r in rows if "versions" in r)
    lines += ["", "## Versions", ""]
    lines += [f"- {count} models: " + ", ".join(f"{k} {v}" for k, v in json.loads(text).items())
              for text, count in found.most_common()]  # fmt: skip
    return "\n".join(lines)


def _line(row: dict[str, Any]) -> str:
    if row["status"] != "ok":
        return f"{row['model']:<45} {row['status']}"
    return (
        f"{row['model']:<45} ok  error {row['relative_error']:.1e}  nodes {row['nodes']}  opaque {row['opaque']}  "
        f"kernels {row['plain_kernels']} -> {row['kernels']}  {row['wall_seconds']:.0f} s  "
        f"{row['peak_bytes'] / 2**30:.1f} GiB"
    )


if __name__ == "__main__":
    sys.exit(main())
