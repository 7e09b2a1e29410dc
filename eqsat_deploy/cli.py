"""The command `eqsat-deploy`. Results go to standard output, progress, notes and errors to standard error."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from eqsat_deploy.errors import (
    ArtifactError,
    CaptureError,
    EngineError,
    EqsatError,
    ExtractionError,
    InputError,
    QuantizationError,
    RuleError,
    UnknownNameError,
    VerificationError,
)
from eqsat_deploy.streams import results_alone

if TYPE_CHECKING:
    from rich.console import Console

    from eqsat_deploy.rules import EgglogRule

EXIT_CODES = """\
exit codes:
  0    done
  1    a bug in eqsat-deploy: run again with --debug and report it
  2    bad input: arguments, model, example inputs, rules or calibration data
  3    the model cannot be captured
  4    no verified form: extraction or verification failed
  5    the engine is missing or failed
  6    the artifact or the disk
  130  interrupted
"""
OK, BUG, USAGE, INTERRUPTED = 0, 1, 2, 130
CODES: tuple[tuple[type[BaseException], int], ...] = (
    (CaptureError, 3),
    (ExtractionError, 4),
    (VerificationError, 4),
    (EngineError, 5),
    (ArtifactError, 6),
    (EqsatError, USAGE),
    (OSError, 6),
)
MODEL = """\
SPEC names the model: torchvision:NAME, timm:NAME, transformers:NAME (a hub name, a local folder, or a model type such
as vit), package.module:factory, or path/to/file.py:factory, where factory is a function without arguments that returns
the model. Its parameters are random unless the factory, --pretrained or --weights makes them others.
"""


class Parser(argparse.ArgumentParser):
    """A parser that raises `InputError` where argparse would exit."""

    def error(self, message: str) -> NoReturn:
        """Raise `InputError` with the message and how to call the command."""
        raise InputError(f"{message}\n{self.format_usage().rstrip()}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv`, by default the process's own, and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    as_json, debug = "--json" in arguments, "--debug" in arguments
    try:
        args = parse(arguments)
        with notes(args.quiet, debug), results_alone(args.quiet) as args.results:
            code: int = args.run(args)
        return code
    except BrokenPipeError:  # the reader of our output has gone, as in `eqsat-deploy rules | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except KeyboardInterrupt as error:
        return failed(error, "interrupted; nothing was saved", INTERRUPTED, as_json, debug)
    except Exception as error:
        code = next((code for kind, code in CODES if isinstance(error, kind)), BUG)
        hint = "" if code != BUG else f" ({type(error).__name__}; this is a bug, --debug shows where)"
        return failed(error, f"{str(error) or type(error).__name__}{hint}", code, as_json, debug)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The arguments, with the function to run as `run`.

    Raises:
        InputError: they are not those of a subcommand; near misses of options are named.
    """
    parser, commands = parsers()
    args, unknown = parser.parse_known_args(arguments)
    if unknown:
        known = re.findall(r"--[a-z][a-z-]*", commands[args.command].format_help())
        near = get_close_matches(unknown[0].partition("=")[0], known, n=2, cutoff=0.6)
        hint = f"; did you mean {' or '.join(dict.fromkeys(near))}?" if near else ""
        commands[args.command].error(f"unknown argument {unknown[0]!r}{hint}")
    return args


def parsers() -> tuple[Parser, dict[str, Parser]]:
    """The parser of the command line and those of its subcommands."""
    parser = Parser(
        prog="eqsat-deploy", description="Equality saturation between a PyTorch model and its INT8 engine.",
        epilog=EXIT_CODES, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=_version())
    added = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    commands: dict[str, Parser] = {}

    def command(
        name: str, run: Callable[[argparse.Namespace], int], text: str, *shared: Callable[[Parser], None]
    ) -> Parser:
        made: Parser = added.add_parser(
            name, help=text, description=text + ("\n\n" + MODEL if _model in shared else ""), epilog=EXIT_CODES,
            formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
        )  # fmt: skip
        for add in shared:
            add(made)
        made.add_argument("--json", action="store_true", help="print JSON, errors too")
        made.add_argument("--quiet", action="store_true", help="no progress and no notes")
        made.add_argument("--debug", action="store_true", help="show tracebacks and every warning")
        made.set_defaults(run=run)
        commands[name] = made
        return made

    made = command(
        "optimize",
        optimize,
        "Optimize a model; with --out, quantize, build and save an engine.",
        _model,
        _search,
        _build,
    )
    made.add_argument(
        "--out", type=Path, metavar="DIR", help="save the engine there; an artifact that is there is replaced"
    )
    made.add_argument("--code", action="store_true", help="print the code of the chosen form")
    made = command(
        "explain",
        explain,
        "Show the chosen kernels and what else could have stood at a node.",
        _model,
        _search,
    )
    made.add_argument(
        "--node",
        action="append",
        default=[],
        metavar="NAME",
        help="a node or module of the model; repeatable",
    )
    made.add_argument("--all", action="store_true", help="list every choice of a node, not the 30 cheapest")
    made = command(
        "bench",
        bench,
        "Time torch, the plain form and the chosen form against each other.",
        _model,
        _search,
        _build,
    )
    made.add_argument(
        "--seconds", type=_positive, default=5.0, metavar="S", help="how long to race (default 5)"
    )
    made = command("rules", rules, "List the rewrite rules, or check them.")
    made.add_argument("name", nargs="*", metavar="NAME", help="families or rules")
    made.add_argument(
        "--check",
        action="store_true",
        help="test what each rule says, and where; exit code 2 if one is unsound",
    )
    made = command(
        "orderings",
        orderings,
        "Apply rule families one after another in every order, beside all at once.",
        _model,
        _search,
    )
    made.add_argument(
        "--sample", type=_count, metavar="N", help="try N orders drawn at random instead of all"
    )
    command("doctor", doctor, "Say what this machine can do, and why not more.")
    return parser, commands


def _model(parser: Parser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument("spec", metavar="SPEC")
    group.add_argument("--pretrained", action="store_true", help="download the weights its library publishes")
    group.add_argument("--weights", type=Path, metavar="FILE", help="a state dict, .safetensors or .pt")
    group.add_argument("--input", action="append", default=[], metavar="SHAPE[:DTYPE]",
                       help="an example input, batch first, such as 2x3x224x224; repeatable")  # fmt: skip


def _search(parser: Parser) -> None:
    group = parser.add_argument_group("search")
    group.add_argument(
        "--cost",
        default="auto",
        metavar="NAME",
        help="a cost model, such as trt_int8 (default auto: this machine's engine)",
    )
    group.add_argument(
        "--rules",
        type=_names,
        metavar="NAMES",
        help="families or rules, comma-separated; `conversions` for the founding ones",
    )
    group.add_argument("--extractor", default="auto", metavar="NAME")
    group.add_argument(
        "--time-limit", type=_positive, default=5.0, metavar="S", help="seconds for the extractor (default 5)"
    )
    group.add_argument(
        "--batch", type=_count, default=1, metavar="N", help="batch size to be fastest at (default 1)"
    )


def _build(parser: Parser) -> None:
    group = parser.add_argument_group("build")
    group.add_argument("--calibration", metavar="DATA",
                       help="an .npy, .npz, .safetensors or .pt file, a folder of images, or random:N")  # fmt: skip
    group.add_argument("--float", action="store_true", help="do not quantize")
    group.add_argument(
        "--observer",
        default="minmax",
        metavar="NAME",
        help="minmax, percentile, entropy or mse (default minmax)",
    )
    group.add_argument(
        "--engine", default="auto", metavar="NAME", help="openvino, tensorrt, onnxruntime (default auto)"
    )
    group.add_argument(
        "--no-baseline", action="store_true", help="do not build the plain form to compare with"
    )


def optimize(args: argparse.Namespace) -> int:
    """Optimize; with `--out` or `--calibration`, build too."""
    wants_engine = args.out is not None or args.calibration is not None or args.float
    if wants_engine:
        _check_build(args)
    model, inputs = _load(args)
    optimized = _optimize(args, model, inputs)
    report = optimized.report
    result = report.to_dict()
    if wants_engine:
        quantized = _quantize(args, model, optimized)
        engine = quantized.build(args.engine, batch=args.batch, baseline=not args.no_baseline)
        result = engine.report
        report.engine = result["engine"]
        if args.out is not None:
            engine.save(args.out)
            result["artifact"] = str(args.out)
    if args.code:
        result["code"] = optimized.code.strip()
    saved = f"saved to {args.out}" if args.out is not None else None
    show(args, result, report, *filter(None, (args.code and result["code"], saved)))
    return OK


def explain(args: argparse.Namespace) -> int:
    """Chosen kernels, and the alternatives at each `--node`."""
    from eqsat_deploy.explain import explain, inside

    model, inputs = _load(args)
    found = explain(
        model,
        inputs,
        cost=args.cost,
        rules=args.rules,
        extractor=args.extractor,
        time_limit=args.time_limit,
        batch=args.batch,
    )
    limit = sys.maxsize if args.all else 30
    nodes: list[Any] = [inside(found, name, limit=limit) for name in args.node]
    show(args, {**found.to_dict(), "nodes": [node.to_dict() for node in nodes]}, *(nodes or [found]))
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
    """Every order of the rule families, beside saturating with all."""
    from eqsat_deploy.research import compare_orderings

    model, inputs = _load(args)
    families = [args.rules] if isinstance(args.rules, str) else args.rules
    found = compare_orderings(
        model,
        inputs,
        cost=args.cost,
        families=families,
        orders=args.sample,
        extractor=args.extractor,
        time_limit=args.time_limit,
        batch=args.batch,
    )
    show(args, found.to_dict(), found)
    return OK


def doctor(args: argparse.Namespace) -> int:
    """The diagnosis; the exit code says whether models can be built here."""
    from eqsat_deploy.doctor import doctor

    found = doctor()
    show(args, found.to_json(), found)
    return OK if found.healthy else dict(CODES)[EngineError]


def show(args: argparse.Namespace, result: Any, *texts: Any) -> None:
    """Print `result` as JSON where `--json` asks for it, else `texts`."""
    if args.json:
        json.dump(_finite(result), args.results, indent=2, default=str, allow_nan=False)
        print(file=args.results)
        return
    out = console(args.results)
    for text in texts:
        out.print(text, markup=False, highlight=False)


def failed(error: BaseException, message: str, code: int, as_json: bool, debug: bool) -> int:
    """Say what went wrong, in which stage; returns `code`."""
    stages = [note.removeprefix("while in stage: ") for note in getattr(error, "__notes__", ())]
    if debug:
        sys.excepthook(type(error), error, error.__traceback__)
    if as_json:
        described = {"type": type(error).__name__, "message": message, "stages": stages, "exit_code": code}
        print(json.dumps({"error": described}, indent=2))
    where = f" [{', '.join(stages)}]" if stages else ""
    print(f"eqsat-deploy: {message}{where}", file=sys.stderr)
    return code


@contextmanager
def notes(quiet: bool, debug: bool) -> Iterator[None]:
    """Inside, progress and the warnings meant for users go to standard error, unless `quiet`."""
    from eqsat_deploy.progress import Progress

    out = console(sys.stderr)
    out.quiet = quiet

    def note(
        message: Warning | str, category: type[Warning], filename: str, lineno: int,
        file: TextIO | None = None, line: str | None = None,
    ) -> None:  # fmt: skip
        if category is UserWarning or debug:  # libraries also warn their own developers
            out.print(f"note: {message}", markup=False, highlight=False)

    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = note
        with Progress(out):
            yield


def console(stream: TextIO) -> Console:
    """A console on `stream`; wide enough for tables where that is not a terminal."""
    from rich.console import Console

    return Console(file=stream, width=None if stream.isatty() else 120)


def _load(args: argparse.Namespace) -> tuple[Any, Any]:
    """The model and its example inputs (None where they are to be inferred)."""
    from eqsat_deploy.selection import find_rules
    from eqsat_deploy.specs import draw_inputs, load_model, parse_input
    from eqsat_deploy.stages import Stages
    from eqsat_deploy.targets import find_cost
    from eqsat_extraction.extractor import EXTRACTORS

    find_cost(args.cost)  # before anything slow
    find_rules(args.rules)
    EXTRACTORS.known(args.extractor)
    given = tuple(parse_input(text) for text in args.input)
    with Stages()("load"):
        model = load_model(args.spec, pretrained=args.pretrained, weights=args.weights)
    return model, draw_inputs(model, given) if given else None


def _optimize(args: argparse.Namespace, model: Any, inputs: Any) -> Any:
    from eqsat_deploy.optimizer import optimize

    return optimize(
        model,
        inputs,
        cost=args.cost,
        rules=args.rules,
        extractor=args.extractor,
        time_limit=args.time_limit,
        batch=args.batch,
    )


def _check_build(args: argparse.Namespace) -> None:
    """What can be known before the work: calibration data, engine and a place for the artifact."""
    from eqsat_deploy.artifact import check_target
    from eqsat_deploy.calibration import check_source
    from eqsat_deploy.quantization.observers import OBSERVERS
    from eqsat_deploy.targets import find_engine

    if args.calibration is None and not args.float:
        raise QuantizationError(
            "no calibration data: give --calibration DATA, --calibration random:32 to measure latency only, or --float"
        )
    if args.calibration is not None and args.float:
        raise InputError("--float and --calibration exclude each other")
    if args.calibration is not None:
        check_source(args.calibration)
    find_engine(args.engine)
    if args.observer not in OBSERVERS:
        raise UnknownNameError("observer", args.observer, OBSERVERS)
    if getattr(args, "out", None) is not None:
        check_target(args.out)


def _quantize(args: argparse.Namespace, model: Any, optimized: Any) -> Any:
    from eqsat_deploy.calibration import load_batches
    from eqsat_deploy.deployment import deployment
    from eqsat_deploy.stages import Stages

    if args.float:
        return optimized
    with Stages()("calibrate"):
        batches = load_batches(
            args.calibration,
            deployment(optimized).inputs,
            normalization=_normalization(model),
            module=optimized,
        )
        return optimized.quantize(batches, observer=args.observer)


def _normalization(model: Any) -> Any:
    """What timm's models say their images are normalized with."""
    config = getattr(model, "pretrained_cfg", None) or {}
    return (config["mean"], config["std"]) if "mean" in config and "std" in config else None


def _finite(value: Any) -> Any:
    """`value` with infinities and NaN as null, which JSON has no other word for."""
    match value:
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {key: _finite(item) for key, item in value.items()}
        case list() | tuple():
            return [_finite(item) for item in value]
    return value


def _names(text: str) -> str | list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise argparse.ArgumentTypeError("names of families or rules are expected")
    return names[0] if len(names) == 1 else names


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number from 1 on is expected, not {text!r}")
    return int(text)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"a number of seconds above 0 is expected, not {text!r}")
    return value


def _version() -> str:
    from eqsat_deploy import __version__

    return f"eqsat-deploy {__version__}"


if __name__ == "__main__":
    sys.exit(main())
