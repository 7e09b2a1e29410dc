"""What the order of rewriting costs, model by model: every order of rule families beside joint saturation.

    python -m benchmarks.orderings --models torchvision:resnet18,timm:deit_tiny_patch16_224 --cost trt_int8 --out DIR

Writes one CSV a model and `orderings.json` with all tables, and prints a line a model.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path

from benchmarks._models import load
from eqsat_deploy.research import compare_orderings

MODELS = "torchvision:resnet18,torchvision:convnext_tiny,torchvision:vit_b_16,torchvision:swin_t"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default=MODELS, help="comma-separated SPECs")
    parser.add_argument("--cost", default="trt_int8", help="cost model")
    parser.add_argument("--orders", default="all", help="'all', or how many to draw")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument(
        "--extractor", default="greedy", help="extractor, for orders and joint saturation alike"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/results/orderings"), help="folder for the tables"
    )
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    orders = "all" if args.orders == "all" else int(args.orders)
    tables = []
    for spec in args.models.split(","):
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            table = compare_orderings(
                load(spec), cost=args.cost, orders=orders, seed=args.seed, extractor=args.extractor
            )
        seconds = time.perf_counter() - start
        tables.append(
            {"spec": spec, "seconds": round(seconds, 1), "extractor": args.extractor, **table.to_dict()}
        )
        (args.out / f"{spec.replace(':', '-')}.csv").write_text(table.to_csv(), encoding="utf-8")
        best, worst = (row.cost / table.joint.cost - 1 for row in (table.best, table.worst))
        print(f"{spec:40} joint {table.joint.cost:10.2f} {table.unit}  best order {best:+8.2%}  "
              f"worst {worst:+8.2%}  of {len(table.orders)}  ({seconds:.0f} s)", flush=True)  # fmt: skip
    (args.out / "orderings.json").write_text(json.dumps(tables, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
