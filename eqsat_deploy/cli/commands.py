"""What the subcommands do."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from eqsat_deploy.cli.codes import CODES, OK, USAGE
from eqsat_deploy.cli.output import failed, show
from eqsat_deploy.errors import (
    EngineError,
    InputError,
    QuantizationError,
    RuleError,
    UnknownNameError,
)

if TYPE_CHECKING:
    from eqsat_deploy.buckets import BucketedModule
    from eqsat_deploy.data import Reading
    from eqsat_deploy.rules import EgglogRule


def optimize(args: argparse.Namespace) -> int:
    """Optimize; with `--out` or `--calibration`, build too."""
    wants_engine = args.out is not None or args.calibration is not None or args.float
    if wants_engine:
        _check_build(args)
    model, inputs = _load(args)
    optimized = _optimize(args, model, inputs)
    if args.buckets is not None:
        return _bucketed(args, model, optimized, wants_engine)
    report = optimized.report
    result = report.to_dict()
    if wants_engine:
        quantized = _quantize(args, model, optimized)
        engine = quantized.build(args.engine, **_built(args))
        result = engine.report
        result["command"] = shlex.join(["eqsat-deploy", *args.words])
        report.engine = result["engine"]
        if args.out is not None:
            engine.save(args.out)
            result["artifact"] = str(args.out)
    if args.code:
        result["code"] = optimized.code.strip()
    saved = f"saved to {args.out}" if args.out is not None else None
    show(args, result, report, *filter(None, (args.code and result["code"], saved)))
    return OK


def _bucketed(args: argparse.Namespace, model: Any, made: BucketedModule, wants_engine: bool) -> int:
    """The rest of `optimize` for inputs of several lengths."""
    longest = made.forms[max(made.forms)]
    reports = {size: form.report for size, form in made.forms.items()}
    if wants_engine:
        built = _quantize(args, model, longest, made).build(args.engine, **_built(args))
        for size, engine in built.engines.items():
            engine.report["command"] = shlex.join(["eqsat-deploy", *args.words])
            reports[size].engine = engine.report["engine"]
        if args.out is not None:
            built.save(args.out)
    result: dict[str, Any] = {"buckets": {size: report.to_dict() for size, report in reports.items()}}
    texts = [text for size, report in reports.items() for text in (f"length {size}", report)]
    if args.out is not None:
        result["artifact"] = str(args.out)
        texts.append(f"saved to {args.out}")
    show(args, result, *texts)
    return OK


def export(args: argparse.Namespace) -> int:
    """Optimize, quantize, and write what a target builds its engine from elsewhere, or what Triton serves."""
    from eqsat_deploy.engines.onnx import check_opset, missing_packages
    from eqsat_deploy.targets import find_target

    target = find_target(args.target)
    _check_calibration(args)
    if args.opset is not None and missing_packages() is None:
        check_opset(args.opset)
    # A repository is made with its first model.
    place = args.out.parent.parent if args.triton else args.out.parent
    if not place.is_dir():
        raise InputError(f"--out {args.out}: there is no folder {place}")
    if args.cost == "auto":
        args.cost = target.cost_models[0]
    model, inputs = _load(args)
    optimized = _optimize(args, model, inputs)
    made = _quantize(args, model, optimized).export(
        args.out, target.name, batch=args.batch, opset=args.opset, triton=args.triton
    )
    result = {
        "files": list(map(str, made.files)),
        "target": made.target,
        "inputs": list(map(str, made.inputs)),
        "command": made.command,
        "changes": list(made.changes),
    }
    show(args, result, str(made))
    return OK


def explain(args: argparse.Namespace) -> int:
    """Chosen kernels, and the alternatives at each `--node`."""
    from eqsat_deploy.explain import explain, inside

    model, inputs = _load(args)
    found = explain(model, inputs, **_searched(args))
    limit = sys.maxsize if args.all else 30
    nodes: list[Any] = [inside(found, name, limit=limit) for name in args.node]
    show(args, {**found.to_dict(), "nodes": [node.to_dict() for node in nodes]}, *(nodes or [found]))
    return OK


def explore(args: argparse.Namespace) -> int:
    """The e-graph in a browser, live, until a signal stops it."""
    from eqsat_deploy.serving.server import check_installed

    check_installed()
    from eqsat_deploy.capture import capture
    from eqsat_deploy.inputs import example_arguments
    from eqsat_deploy.lower import lower
    from eqsat_deploy.search import Limits
    from eqsat_deploy.serving.explore import explore
    from eqsat_deploy.serving.session import Session
    from eqsat_deploy.stages import Stages
    from eqsat_deploy.targets import find_cost

    model, inputs = _load(args)
    limits = Limits(args.batch, extractor=args.extractor, time_limit=args.time_limit)
    stages = Stages()
    with stages("capture"):
        given, named = example_arguments(model, inputs)
        lowered = lower(capture(model, given, named))
    with stages("saturate"):
        session = Session(type(model).__name__, lowered, find_cost(args.cost), args.rules, limits)

    def ready(address: str) -> None:
        show(args, {"address": address}, f"{address}\nfor this machine alone; Ctrl-C ends it")
        args.results.flush()

    explore(session, port=args.port, browser=not args.no_browser, ready=ready)
    return OK


def bench(args: argparse.Namespace) -> int:
    """Time the model in torch, the plain form in float and quantized, and the chosen form, in turns."""
    from dataclasses import asdict

    from eqsat_deploy.bench import compare, comparison_table

    _check_build(args)
    model, inputs = _load(args)
    optimized = _optimize(args, model, inputs)
    quantized = optimized if args.float else _quantize(args, model, optimized)
    timings = compare(
        model,
        optimized,
        quantized,
        args.engine,
        batch=args.batch,
        baseline=not args.no_baseline,
        options=dict(args.option),
        seconds=args.seconds,
    )
    result = {"unit": "us", "batch": args.batch, "timings": {name: asdict(t) for name, t in timings.items()}}
    show(args, result, comparison_table(timings, args.batch))
    return OK


def rules(args: argparse.Namespace) -> int:
    """The catalogue, or with `--check` what is derived from every rule's declaration."""
    from rich.table import Table

    from eqsat_deploy.rules import select
    from eqsat_deploy.selection import registered_rules

    chosen = select(registered_rules(), args.name) if args.name else registered_rules()
    if args.check:
        return _check_rules(args, chosen)
    fields = ("name", "family", "kind", "phase", "doc")
    catalogue = [{name: getattr(rule, name) for name in fields} for rule in chosen]
    table = Table("rule", "family", "kind", "what it says")
    for entry in catalogue:
        table.add_row(
            entry["name"],
            entry["family"],
            entry["kind"],
            entry["doc"].partition("\n\n")[0].replace("\n", " "),
        )
    show(args, catalogue, table)
    return OK


def _check_rules(args: argparse.Namespace, chosen: Sequence[EgglogRule]) -> int:
    from rich.table import Table

    from eqsat_deploy.checks import check_all

    checked = list(check_all(chosen))
    table = Table("rule", "samples", "what was checked", "ok")
    for each in checked:
        what = f"nothing: it {each.unchecked}" if each.unchecked else ", ".join(each.checks)
        table.add_row(
            each.rule, str(each.samples or ""), what, each.failure or ("" if each.unchecked else "ok")
        )
    show(args, [each.to_dict() for each in checked], table)
    unsound = [each.rule for each in checked if not each.ok]
    if not unsound:
        return OK
    message = f"{len(unsound)} of {len(checked)} rules are unsound: {', '.join(unsound)}"
    return failed(RuleError(message), message, USAGE, as_json=False, debug=args.debug)


def orderings(args: argparse.Namespace) -> int:
    """Strategies of rewriting side by side, model by model."""
    from eqsat_deploy.research import Effort, Schedule, Sketches, compare_orderings
    from eqsat_deploy.research.strategies import find_strategies

    strategies: dict[str, Any] = {**find_strategies(args.strategies)}
    strategies |= {path.stem: Schedule.load(path) for path in args.schedule}
    if args.sketch:
        strategies["sketches"] = Sketches(*args.sketch)
    tables = []
    for spec in args.specs:
        args.spec = spec
        model, inputs = _load(args)
        table = compare_orderings(
            model,
            inputs,
            strategies=strategies,
            families=args.rules,
            leave_out=[args.leave_out] if isinstance(args.leave_out, str) else args.leave_out,
            effort=Effort(args.evaluations, args.seconds),
            seeds=range(args.seeds),
            cost=args.cost,
            extractor=args.extractor,
            time_limit=args.time_limit,
            batch=args.batch,
        )
        tables.append(table)
        if args.plot:
            name = spec.replace(":", "-").replace("/", "-")
            several = args.plot.with_stem(f"{args.plot.stem}-{name}")
            table.plot().savefig(several if len(args.specs) > 1 else args.plot)
    if args.csv:
        header, *_ = tables[0].to_csv().splitlines(keepends=True)
        lines = [line for table in tables for line in table.to_csv().splitlines(keepends=True)[1:]]
        args.csv.write_text(header + "".join(lines), encoding="utf-8")
    show(args, [table.to_dict() for table in tables], *tables)
    return OK


def doctor(args: argparse.Namespace) -> int:
    """The diagnosis; the exit code says whether models can be built here."""
    from eqsat_deploy.doctor import doctor

    found = doctor()
    show(args, found.to_json(), found)
    return OK if found.healthy else dict(CODES)[EngineError]


def _load(args: argparse.Namespace) -> tuple[Any, Any]:
    """The model and its example inputs (None where they are to be inferred)."""
    from eqsat_deploy.data import check_source, example_batch
    from eqsat_deploy.selection import find_rules
    from eqsat_deploy.specs import draw_inputs, load_model, parse_input
    from eqsat_deploy.stages import Stages
    from eqsat_deploy.targets import find_cost
    from eqsat_extraction.extractor import EXTRACTORS

    find_cost(args.cost)  # before anything slow
    find_rules(args.rules)
    EXTRACTORS.known(args.extractor)
    given = tuple(parse_input(text) for text in args.input)
    if args.inputs is not None:
        check_source(args.inputs, _reading(args), random=False)
    with Stages()("load"):
        model = load_model(args.spec, pretrained=args.pretrained, weights=args.weights)
        if args.inputs is not None:
            return model, example_batch(args.inputs, model, _reading(args))
        if given:
            return model, draw_inputs(model, given)
        if (real := _real_data(args)) is not None:
            with suppress(InputError):  # images of a size that only the model's own examples tell
                return model, example_batch(real, model, _reading(args))
    return model, None


def _real_data(args: argparse.Namespace) -> str | None:
    """What `--calibration` reads, where that is data: real inputs show more than invented ones."""
    found: str | None = getattr(args, "calibration", None)
    return None if found is None or found.partition(":")[0] == "random" else found


def _reading(args: argparse.Namespace) -> Reading:
    from eqsat_deploy.data import Reading

    return Reading(
        args.spec, args.image_size, args.mean, args.std, args.tokenizer, args.length, args.skip_bad
    )


def _optimize(args: argparse.Namespace, model: Any, inputs: Any) -> Any:
    from eqsat_deploy.optimizer import optimize

    return optimize(model, inputs, **_searched(args), tune=args.tune, buckets=getattr(args, "buckets", None))


def _searched(args: argparse.Namespace) -> dict[str, Any]:
    """What `_search` of the parser reads, as keyword arguments."""
    return {name: getattr(args, name) for name in ("cost", "rules", "extractor", "time_limit", "batch")}


def _built(args: argparse.Namespace) -> dict[str, Any]:
    """What `_engine` of the parser reads, as keyword arguments of `build`."""
    return {"batch": args.batch, "baseline": not args.no_baseline, "options": dict(args.option)}


def _check_build(args: argparse.Namespace) -> None:
    """What can be known before the work: calibration data, engine and a place for the artifact."""
    from eqsat_deploy.artifact import check_target
    from eqsat_deploy.bucketed import check_folder
    from eqsat_deploy.targets import find_engine

    _check_calibration(args)
    find_engine(args.engine)
    if getattr(args, "out", None) is not None:
        (check_target if args.buckets is None else check_folder)(args.out)


def _check_calibration(args: argparse.Namespace) -> None:
    from eqsat_deploy.data import check_source
    from eqsat_deploy.quantization.observers import OBSERVERS

    if args.calibration is None and not args.float:
        raise QuantizationError(
            "no calibration data: give --calibration DATA, --calibration random:32 to measure latency only, or --float"
        )
    if args.calibration is not None and args.float:
        raise InputError("--float and --calibration exclude each other")
    if args.calibration is not None:
        check_source(args.calibration, _reading(args))
    if args.observer is not None and args.observer not in OBSERVERS:
        raise UnknownNameError("observer", args.observer, OBSERVERS)


def _quantize(args: argparse.Namespace, model: Any, optimized: Any, all_lengths: Any = None) -> Any:
    """`optimized`, or what is given for `all_lengths` of its inputs, quantized."""
    from eqsat_deploy.data import load_batches
    from eqsat_deploy.deployment import call_of
    from eqsat_deploy.stages import Stages

    if args.float:
        return all_lengths or optimized
    with Stages()("read data"):
        batches = load_batches(
            args.calibration, call_of(optimized), reading=_reading(args), model=model, module=optimized
        )
    kept = args.keep_float or []
    return (all_lengths or optimized).quantize(
        batches,
        effort=args.effort,
        observer=args.observer,
        accuracy_budget=args.accuracy_budget,
        precision=dict.fromkeys([kept] if isinstance(kept, str) else kept, "float"),
    )
