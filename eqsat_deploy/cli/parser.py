"""The arguments of the command line and of its subcommands."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from eqsat_deploy.cli.artifacts import inspect, serve, verify
from eqsat_deploy.cli.codes import EXIT_CODES
from eqsat_deploy.cli.commands import bench, doctor, explain, explore, export, optimize, orderings, rules
from eqsat_deploy.errors import InputError

MODEL = """\
SPEC names the model: torchvision:NAME, timm:NAME, transformers:NAME (a hub name, a local folder, or a model type such
as vit), package.module:factory, or path/to/file.py:factory, where factory is a function without arguments that returns
the model; or it is a file.pt2 that torch.export saved. Parameters are random unless the factory, --pretrained or
--weights makes them others.
"""


class Parser(argparse.ArgumentParser):
    """A parser that raises `InputError` where argparse would exit."""

    def error(self, message: str) -> NoReturn:
        """Raise `InputError` with the message and how to call the command."""
        raise InputError(f"{message}\n{self.format_usage().rstrip()}")


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
        about = "\n\n" + MODEL if {_model, _models} & set(shared) else ""
        made: Parser = added.add_parser(
            name, help=text, description=text + about, epilog=EXIT_CODES,
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
        _tuning,
        _calibration,
        _engine,
    )
    made.add_argument(
        "--out", type=Path, metavar="DIR", help="save the engine there; an artifact that is there is replaced"
    )
    made.add_argument("--buckets", type=_buckets, metavar="sequence=N,...",
                      help="a form for each of these lengths, such as sequence=32,64; others are padded")  # fmt: skip
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
        "explore",
        explore,
        "Open the e-graph in a browser: put rules in and leave them out, change prices, see the form change.",
        _model,
        _search,
    )
    made.add_argument(
        "--port", type=_port, default=0, help="of this machine's loopback (default: one that is free)"
    )
    made.add_argument("--no-browser", action="store_true", help="print the address and open nothing")
    made = command(
        "bench",
        bench,
        "Time torch, the plain form and the chosen form against each other.",
        _model,
        _search,
        _tuning,
        _calibration,
        _engine,
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
        "Compare strategies of rewriting: families one after another in every order, beside all at once.",
        _models,
        _search,
    )
    _ordering(made)
    made = command(
        "export",
        export,
        "Write the chosen form as the file that an engine is built from elsewhere, and say how.",
        _model,
        _search,
        _tuning,
        _calibration,
    )
    made.add_argument("--out", type=Path, required=True, metavar="PATH",
                      help="the ONNX file to write, or with --triton the model's folder")  # fmt: skip
    made.add_argument("--target", default="tensorrt", metavar="NAME",
                      help="tensorrt (default) or onnxruntime; with --triton also openvino")  # fmt: skip
    made.add_argument("--triton", action="store_true",
                      help="write a model's folder for a repository of the Triton Inference Server")  # fmt: skip
    made.add_argument("--opset", type=_count, metavar="N", help="of ONNX (default 21)")
    made = command(
        "inspect", inspect, "Say what a saved engine is, what it expects and what was measured.", _artifact
    )
    made = command(
        "verify", verify, "Load a saved engine and run it on data, beside expected outputs.", _artifact
    )
    made.add_argument("--data", type=Path, nargs="+", required=True, metavar="FILE",
                      help="an .npz of arrays by input name, samples first, with output_0, output_1, ... where known, "
                      "or an .npy of the only input")  # fmt: skip
    made.add_argument("--decibels", type=_positive, default=40.0, metavar="DB",
                      help="how well an output has to agree with what is expected (default 40)")  # fmt: skip
    made = command(
        "serve", serve, "Serve saved engines over HTTP, by the Open Inference Protocol, version 2."
    )
    _serving(made)
    command("doctor", doctor, "Say what this machine can do, and why not more.")
    return parser, commands


def _artifact(parser: Parser) -> None:
    parser.add_argument("artifact", type=Path, metavar="DIR", help="what engine.save or --out wrote")


def _models(parser: Parser) -> None:
    _model(parser, "specs", nargs="+")


def _model(parser: Parser, name: str = "spec", **options: Any) -> None:
    group = parser.add_argument_group("model")
    group.add_argument(name, metavar="SPEC", **options)
    group.add_argument("--pretrained", action="store_true", help="download the weights its library publishes")
    group.add_argument("--weights", type=Path, metavar="FILE", help="a state dict, .safetensors or .pt")
    given = group.add_mutually_exclusive_group()
    given.add_argument("--input", action="append", default=[], metavar="SHAPE[:DTYPE]",
                       help="a random example input, batch first, such as 2x3x224x224; repeatable")  # fmt: skip
    given.add_argument("--inputs", metavar="DATA",
                       help="real example inputs, of --calibration's forms (default: what that reads)")  # fmt: skip
    _reading(parser)


def _reading(parser: Parser) -> None:
    group = parser.add_argument_group("data")
    group.add_argument("--image-size", type=_size, metavar="HxW",
                       help="of images, instead of what the model's library does to them")  # fmt: skip
    group.add_argument(
        "--mean", type=_numbers, metavar="R,G,B", help="of images in 0..1 (default ImageNet's)"
    )
    group.add_argument("--std", type=_numbers, metavar="R,G,B", help="of images in 0..1 (default ImageNet's)")
    group.add_argument("--tokenizer", type=Path, metavar="FOLDER", help="of Hugging Face, for texts")
    group.add_argument(
        "--length", type=_count, metavar="N", help="of texts, in tokens (default: the longest)"
    )
    group.add_argument("--skip-bad", action="store_true", help="leave out what cannot be read, and say so")


def _search(parser: Parser) -> None:
    group = parser.add_argument_group("search")
    group.add_argument(
        "--cost",
        default="auto",
        metavar="NAME",
        help="a cost model, such as trt_int8 (default auto: this machine's engine); `measured` times kernels on that "
        "engine and keeps what they take",
    )
    group.add_argument(
        "--rules",
        type=_names,
        metavar="NAMES",
        help="families or rules, comma-separated; `conversions` for the founding ones",
    )
    group.add_argument("--extractor", default="auto", metavar="NAME")
    group.add_argument(
        "--time-limit",
        type=_positive,
        metavar="S",
        help="seconds for the extractor (default: as much work as takes a few)",
    )
    group.add_argument(
        "--batch", type=_count, default=1, metavar="N", help="batch size to be fastest at (default 1)"
    )


def _tuning(parser: Parser) -> None:
    parser.add_argument_group("tuning").add_argument(
        "--tune",
        type=_count,
        metavar="K",
        help="build the K cheapest distinct forms and the plain ones, time them here and go on with the fastest; what "
        "is interrupted goes on when it is called again",
    )


def _ordering(parser: Parser) -> None:
    group = parser.add_argument_group("comparison")
    group.add_argument("--strategies", type=_names, default=["joint", "destructive"], metavar="NAMES",
                       help="comma-separated (default joint,destructive)")  # fmt: skip
    group.add_argument("--schedule", type=Path, action="append", default=[], metavar="FILE.toml",
                       help="saturation under this schedule is one more strategy; repeatable")  # fmt: skip
    group.add_argument("--sketch", action="append", default=[], metavar="SKETCH",
                       help="what the program must contain on the way, such as 'conv2d(layer_norm)'; "
                       "repeatable, in their order: together one more strategy")  # fmt: skip
    group.add_argument("--leave-out", type=_names, default=[], metavar="NAMES",
                       help="every strategy again without each of these families or rules")  # fmt: skip
    group.add_argument(
        "--seeds", type=_count, default=1, metavar="N", help="of strategies that draw (default 1)"
    )
    group.add_argument("--evaluations", type=_count, default=60, metavar="N",
                       help="e-graphs that a strategy may saturate and price (default 60)")  # fmt: skip
    group.add_argument(
        "--seconds", type=_positive, default=60.0, metavar="S", help="that a strategy may take (default 60)"
    )
    group.add_argument("--csv", type=Path, metavar="FILE", help="write all outcomes and orders there")
    group.add_argument("--plot", type=Path, metavar="FILE",
                       help="draw them there (.svg, .png, .pdf); with several models a file each")  # fmt: skip


def _calibration(parser: Parser) -> None:
    group = parser.add_argument_group("quantization")
    group.add_argument("--calibration", metavar="DATA",
                       help="an .npy, .npz, .safetensors or .pt file, a folder of images, a .txt file, "
                       "module:function, or random:N")  # fmt: skip
    group.add_argument("--float", action="store_true", help="do not quantize")
    group.add_argument(
        "--effort",
        default="balanced",
        choices=("fast", "balanced", "best"),
        help="how ranges and biases are chosen: as observed, by the error at each kernel's output (default), or "
        "trained on top of that",
    )
    group.add_argument(
        "--accuracy-budget",
        type=_positive,
        metavar="DB",
        help="keep in float what has to be for this SQNR of the outputs",
    )
    group.add_argument(
        "--keep-float",
        type=_names,
        metavar="NAMES",
        help="kernels or patterns of them that stay in float, comma-separated",
    )
    group.add_argument(
        "--observer",
        metavar="NAME",
        help="take every range from it alone: minmax, percentile, entropy or mse",
    )


def _engine(parser: Parser) -> None:
    group = parser.add_argument_group("build")
    group.add_argument(
        "--engine", default="auto", metavar="NAME", help="openvino, tensorrt, onnxruntime (default auto)"
    )
    group.add_argument("--option", type=_option, action="append", default=[], metavar="NAME=VALUE",
                       help="of the engine, such as mode=throughput or threads=2; repeatable")  # fmt: skip
    group.add_argument(
        "--no-baseline", action="store_true", help="do not build the plain form to compare with"
    )


def _serving(parser: Parser) -> None:
    parser.add_argument(
        "artifacts", nargs="+", metavar="DIR", help="what engine.save or --out wrote; NAME=DIR names it"
    )
    group = parser.add_argument_group("serving")
    group.add_argument("--host", default="127.0.0.1", help="address (default 127.0.0.1: this machine alone)")
    group.add_argument("--port", type=_port, default=8000, help="port (default 8000; 0 for a free one)")
    group.add_argument(
        "--max-batch", type=_count, metavar="N", help="samples run together (default: as built)"
    )
    group.add_argument("--max-delay", type=_positive, default=1.0, metavar="MS",
                       help="milliseconds that a request waits for others to be run with (default 1)")  # fmt: skip
    group.add_argument("--queue", type=_count, default=64, metavar="N",
                       help="requests that wait; one more is answered 503 (default 64)")  # fmt: skip
    group.add_argument(
        "--workers", type=_count, metavar="N", help="batches at a time (default: as the engine)"
    )
    group.add_argument("--max-request", type=_count, default=64, metavar="MB", help="of a body (default 64)")
    group.add_argument(
        "--timeout", type=_positive, default=30.0, metavar="S", help="of a request (default 30)"
    )


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"a port from 0 to 65535 is expected, not {text!r}")
    return int(text)


def _size(text: str) -> tuple[int, int]:
    sides = text.split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) for side in sides):
        raise argparse.ArgumentTypeError(f"HEIGHTxWIDTH is expected, such as 224x224, not {text!r}")
    return int(sides[0]), int(sides[-1])


def _numbers(text: str) -> tuple[float, ...]:
    try:
        values = tuple(map(float, text.split(",")))
    except ValueError:
        values = ()
    if not values or not all(map(math.isfinite, values)):
        raise argparse.ArgumentTypeError(f"numbers are expected, such as 0.5,0.5,0.5, not {text!r}")
    return values


def _names(text: str) -> str | list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise argparse.ArgumentTypeError("names of families or rules are expected")
    return names[0] if len(names) == 1 else names


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number from 1 on is expected, not {text!r}")
    return int(text)


def _buckets(text: str) -> dict[str, list[int]]:
    name, _, sizes = text.partition("=")
    if name != "sequence" or not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", sizes):
        raise argparse.ArgumentTypeError(f"lengths are expected, such as sequence=32,64,128, not {text!r}")
    return {name: list(map(int, sizes.split(",")))}


def _option(text: str) -> tuple[str, str | int]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise argparse.ArgumentTypeError(f"NAME=VALUE is expected, such as threads=2, not {text!r}")
    return name, int(value) if value.isdecimal() else value


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"a number above 0 is expected, not {text!r}")
    return value


def _version() -> str:
    from eqsat_deploy import __version__

    return f"eqsat-deploy {__version__}"
