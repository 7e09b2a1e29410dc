"""From the words of the command line to an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from eqsat_deploy.cli.codes import BUG, CODES, INTERRUPTED, OK
from eqsat_deploy.cli.output import failed, notes
from eqsat_deploy.cli.parser import parse
from eqsat_deploy.streams import results_alone


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv`, by default the process's own, and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    as_json, debug = "--json" in arguments, "--debug" in arguments
    try:
        args = parse(arguments)
        args.words = arguments
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
