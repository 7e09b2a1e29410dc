"""Extraction on published and on generated e-graphs: cost, bound, gap, time and peak memory.

    python -m benchmarks.extraction PATHS... --time-limit S --json OUT      files or folders of gym JSON
    python -m benchmarks.extraction --zoo [--save FOLDER] --json OUT        the e-graphs of the product's own models
    python -m benchmarks.extraction --scaling --json OUT --plot OUT.svg     generated, 10^3 to 10^6 e-nodes

Every run has a process of its own, so that its peak memory is its own. `seconds` is the time of `extract` in
compiled code that is loaded, `cpu_seconds` what of it the process had a core for, `loading` the time that loading
took (numba reads its cache, or compiles on the first run).
"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import get_context
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import Any
from warnings import catch_warnings, simplefilter

import numpy as np
from numpy.typing import NDArray

from eqsat_extraction import (
    EGraph,
    EGraphError,
    ExtractionError,
    _budget,
    _jit,
    dump_json,
    extract,
    load_json,
)

Row = dict[str, Any]
SIZES = (1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000)


def generated(n_nodes: int, seed: int = 0) -> tuple[EGraph, NDArray[np.float64]]:
    """A connected e-graph of about `n_nodes` e-nodes, two to three per e-class, shared and partly cyclic.

    E-classes are numbered from the root down. The first e-node of each reads one to three of the next three
    e-classes; the others read one to three from two above to six below, so some close cycles. Costs are 0 to 9.
    """
    rng = np.random.default_rng(seed)
    n_classes = max(2, int(n_nodes / 2.5))
    extra = rng.integers(0, n_classes, n_nodes - n_classes)
    head = np.sort(np.concatenate((np.arange(n_classes), extra)))
    first = np.append(True, head[1:] != head[:-1])
    width = np.where(head >= n_classes - 10, 0, rng.integers(1, 4, n_nodes))
    owner = np.repeat(np.arange(n_nodes), width)
    near = head[owner] + rng.integers(1, 4, len(owner))
    far = head[owner] + rng.integers(-2, 7, len(owner))
    child = np.where(first[owner], near, far)
    # The first operand of the first e-node is the next e-class, so that every e-class is reachable.
    starts = np.concatenate(([0], np.cumsum(width)[:-1]))
    spine = first & (width > 0)
    child[starts[spine]] = head[spine] + 1
    egraph = EGraph(
        node_class=head.astype(np.int32),
        child_ptr=np.concatenate(([0], np.cumsum(width))).astype(np.int64),
        children=np.clip(child, 0, n_classes - 1).astype(np.int32),
        roots=np.zeros(1, dtype=np.int32),
        n_classes=n_classes,
    )
    return egraph, rng.integers(0, 10, n_nodes).astype(np.float64)


def run(
    load: Callable[[], tuple[EGraph, NDArray[np.float64]]], extractor: str, time_limit: float, cpu: bool
) -> Row:
    """One extraction in this process: size, cost, bound, gap, seconds, peak memory; `cpu` limits seconds of a core."""
    start = perf_counter()
    if cpu:
        _budget.monotonic = process_time
    _jit.SMALL = 0  # nothing is interpreted
    warm, prices = generated(200)
    for name in {extractor, "ilp"} if extractor == "auto" else {extractor}:
        extract(warm, prices, extractor=name, time_limit=1.0)
    loading = perf_counter() - start
    with catch_warnings():
        simplefilter("ignore")
        try:
            egraph, costs = load()
        except EGraphError as error:
            return {"extractor": extractor, "error": str(error), "proved": False}
    row: Row = {"extractor": extractor, "nodes": egraph.n_nodes, "classes": egraph.n_classes}
    start, cpu_start = perf_counter(), process_time()
    try:
        solution = extract(egraph, costs, extractor=extractor, time_limit=time_limit)
    except ExtractionError as error:
        return {**row, "error": str(error), "proved": False}
    seconds, cpu = perf_counter() - start, process_time() - cpu_start
    solution.check(egraph, costs)
    return {
        **row,
        "cost": solution.cost,
        "bound": solution.bound,
        "gap": solution.gap,
        "proved": solution.proved,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "loading": loading,
        "peak_mb": getrusage(RUSAGE_SELF).ru_maxrss / 1024,
    }


ZOO_COSTS = ("trt_int8", "openvino_int8")
ZOO_MORE = (
    *(f"torchvision:{name}" for name in ("googlenet", "densenet121", "mobilenet_v3_small", "shufflenet_v2_x1_0",
                                         "regnet_y_400mf", "squeezenet1_1")),
    *(f"transformers:{name}" for name in ("bert", "segformer")),
)  # fmt: skip


def save(spec: str, folder: Path) -> list[Path]:
    """The e-graph of a model, saturated with all rules and priced for every target, as files."""
    import benchmarks._models as models
    from eqsat_deploy.capture import capture
    from eqsat_deploy.freeze import freeze
    from eqsat_deploy.inputs import example_arguments
    from eqsat_deploy.lower import lower
    from eqsat_deploy.price import price
    from eqsat_deploy.saturate import saturate
    from eqsat_deploy.selection import find_rules
    from eqsat_deploy.targets import find_cost

    model = models.load(spec)
    args, kwargs = example_arguments(model, models.inputs(spec))
    lowered = lower(capture(model, args, kwargs))
    space = freeze(lowered, saturate(lowered, find_rules().rules))
    written = []
    for cost in ZOO_COSTS:
        priced = price(space, find_cost(cost))
        written.append(folder / f"{spec.replace(':', '-')}.{cost}.json")
        dump_json(priced.egraph, priced.costs, written[-1])
    return written


def save_zoo(specs: Sequence[str] | None, folder: Path) -> Iterator[Path]:
    """`save` for every model, each in a process of its own, so that this one stays small."""
    folder.mkdir(parents=True, exist_ok=True)
    for spec in specs or _own_models():
        with get_context("spawn").Pool(1) as pool:
            yield from pool.apply(save, (spec, folder))


def _own_models() -> list[str]:
    from benchmarks.zoo import FOUNDING  # with torch, whose memory processes of a run on files would inherit

    return [*FOUNDING, *ZOO_MORE]


class GymFile:
    """Loads an extraction-gym file, in whichever process asks."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self) -> tuple[EGraph, NDArray[np.float64]]:
        return load_json(self.path)


class _Generated:
    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self) -> tuple[EGraph, NDArray[np.float64]]:
        return generated(self.size)


def isolated(
    load: Callable[[], tuple[EGraph, NDArray[np.float64]]],
    extractor: str,
    time_limit: float,
    cpu: bool = False,
) -> Row:
    """`run` in a process of its own."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(run, (load, extractor, time_limit, cpu))


def files(paths: list[Path]) -> Iterator[Path]:
    """The files named, and the JSON files below the folders named."""
    for path in paths:
        yield from sorted(path.rglob("*.json")) if path.is_dir() else [path]


def plot(rows: list[Row], path: Path) -> None:
    """Seconds, and peak memory, over the number of e-nodes, per extractor."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for axis, key, label in ((axes[0], "seconds", "seconds"), (axes[1], "peak_mb", "peak memory (MB)")):
        for name in dict.fromkeys(row["extractor"] for row in rows):
            mine = [row for row in rows if row["extractor"] == name and key in row]
            axis.plot([row["nodes"] for row in mine], [row[key] for row in mine], marker="o", label=name)
        axis.set(xscale="log", yscale="log", xlabel="e-nodes", ylabel=label)
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(path)


def main() -> int:
    parser = ArgumentParser(prog="python -m benchmarks.extraction", description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="*", type=Path, help="extraction-gym files, or folders of them")
    parser.add_argument("--time-limit", type=float, default=10.0, metavar="S", help="seconds per file")
    parser.add_argument(
        "--cpu", action="store_true", help="the limit is of seconds of a core, on a busy machine"
    )
    parser.add_argument("--extractor", action="append", help="may be repeated (default auto)")
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--scaling", action="store_true", help="generated e-graphs instead of files")
    parser.add_argument("--zoo", action="store_true", help="the product's own e-graphs instead of files")
    parser.add_argument("--models", nargs="*", help="with --zoo: SPECs (default: the founding ones and more)")
    parser.add_argument("--save", type=Path, help="with --zoo: keep the e-graphs in this folder")
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES)
    parser.add_argument("--plot", type=Path, help="with --scaling: draw time and memory here")
    options = parser.parse_args()
    if options.scaling + options.zoo + bool(options.paths) != 1:
        parser.error("name files or folders, or pass --zoo or --scaling")
    with TemporaryDirectory() as scratch:
        return _report(options, options.save or Path(scratch))


def _report(options: Namespace, folder: Path) -> int:
    rows: list[Row] = []
    jobs: list[tuple[str, Callable[[], tuple[EGraph, NDArray[np.float64]]]]]
    if options.scaling:
        jobs = [(f"generated-{size}", _Generated(size)) for size in options.sizes]
        names = options.extractor or ["tree", "greedy", "local", "auto", "ilp"]
    else:
        paths = save_zoo(options.models, folder) if options.zoo else files(options.paths)
        jobs = [(path.name if options.zoo else str(path), GymFile(path)) for path in paths]
        names = options.extractor or ["auto"]
    for name in names:
        for file, load in jobs:
            row = {"file": file, **isolated(load, name, options.time_limit, options.cpu)}
            rows.append(row)
            summary = row.get("error") or (
                f"cost {row['cost']:.9g}  bound {row['bound']:.9g}  gap {100 * row['gap']:.3g}%"
                f"  {row['seconds']:.3f} s (CPU {row['cpu_seconds']:.3f})  {row['peak_mb']:.0f} MB"
                f"{'  proved' if row['proved'] else ''}"
            )
            print(f"{file}  {name}  {summary}", flush=True)
            if options.json is not None:
                options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    proved = sum(row["proved"] for row in rows)
    at_once = sum(row["proved"] and row["seconds"] <= 1.0 for row in rows)
    print(f"{len(rows)} runs, {proved} proved, {at_once} of them within 1 s")
    if options.plot is not None:
        plot(rows, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
