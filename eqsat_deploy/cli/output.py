"""How results, errors, progress and notes are printed."""

from __future__ import annotations

import argparse
import json
import math
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console


def show(args: argparse.Namespace, result: Any, *texts: Any) -> None:
    """Print `result` as JSON where `--json` asks for it, else `texts`."""
    if args.json:
        json.dump(_finite(result), args.results, indent=2, default=str, allow_nan=False)
        print(file=args.results)
        return
    out = console(args.results)
    for text in texts:
        # Commands and code are printed as they are, to be copied: only what is laid out in a width is fitted to one.
        out.print(text, markup=False, highlight=False, soft_wrap=isinstance(text, str))


def console(stream: TextIO) -> Console:
    """A console on `stream`; wide enough for tables where that is not a terminal."""
    from rich.console import Console

    return Console(file=stream, width=None if stream.isatty() else 120)


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
    """Inside, progress and the warnings meant for users go to standard error, each once, unless `quiet`."""
    from eqsat_deploy.progress import Progress

    out = console(sys.stderr)
    out.quiet = quiet
    said: set[str] = set()

    def note(
        message: Warning | str, category: type[Warning], filename: str, lineno: int,
        file: TextIO | None = None, line: str | None = None,
    ) -> None:  # fmt: skip
        if str(message) in said:  # such as what is true of data that two stages read
            return
        said.add(str(message))
        if category is UserWarning or debug:  # libraries also warn their own developers
            out.print(f"note: {message}", markup=False, highlight=False)

    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = note
        with Progress(out):
            yield
