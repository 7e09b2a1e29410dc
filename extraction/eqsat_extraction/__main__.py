"""`python -m eqsat_extraction FILE`: extract from an extraction-gym file and say how good the answer is."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from resource import RUSAGE_SELF, getrusage

from . import ExtractionError, anytime, load_json


def main(arguments: Sequence[str] | None = None) -> int:
    """Print cost, bound, gap and time; returns the exit status."""
    parser = ArgumentParser(prog="python -m eqsat_extraction", description=__doc__)
    parser.add_argument("file", type=Path, help="an e-graph in the extraction-gym JSON format")
    parser.add_argument("--extractor", default="auto", help="tree, greedy, local, ilp or auto (default)")
    parser.add_argument("--time-limit", type=float, default=10.0, metavar="S", help="seconds (default 10)")
    parser.add_argument(
        "--work-limit", type=int, metavar="N", help="units of counted work, for repeatable runs"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the solution here, as JSON")
    parser.add_argument("--progress", action="store_true", help="print every improvement as it is found")
    options = parser.parse_args(arguments)
    try:
        egraph, costs = load_json(options.file)
        solution = None
        try:
            for solution in anytime(
                egraph,
                costs,
                extractor=options.extractor,
                time_limit=options.time_limit,
                work_limit=options.work_limit,
                seed=options.seed,
            ):
                if options.progress:
                    print(f"{solution.seconds:8.3f} s  cost {solution.cost:.9g}  bound {solution.bound:.9g}")
        except KeyboardInterrupt:
            print("interrupted; the best so far:", file=sys.stderr)
    except (ExtractionError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if solution is None:
        return 130
    proved = "optimal" if solution.proved else f"gap {100 * solution.gap:.4g}%"
    print(f"cost {solution.cost:.12g}  bound {solution.bound:.12g}  {proved}  {solution.seconds:.3f} s")
    print(f"peak memory {getrusage(RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")
    if options.out is not None:
        names = egraph.node_ids or tuple(str(i) for i in range(egraph.n_nodes))
        classes = egraph.class_ids or tuple(str(c) for c in range(egraph.n_classes))
        result = {
            "file": options.file.name,
            "extractor": solution.extractor,
            "cost": solution.cost,
            "bound": solution.bound,
            "gap": solution.gap,
            "proved": solution.proved,
            "seconds": solution.seconds,
            "choices": {classes[egraph.node_class[n]]: names[n] for n in solution.order(egraph).tolist()},
        }
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
